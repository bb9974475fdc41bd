"""GPT-2 with other heads: text and token classification, question answering, multiple choice.

    GPT2ForSequenceClassification   score                  a text → its label, or its reward
    GPT2ForTokenClassification      classifier             a text → a label for each token
    GPT2ForQuestionAnswering        qa_outputs             a question and a text → the answer in it
    GPT2DoubleHeadsModel            multiple_choice_head   texts → a choice; it also has an lm_head

The names of classes and outputs are those of transformers.

Axes: B batch, N choices, T tokens, C n_embd, V vocabulary, K labels.
"""

from __future__ import annotations  # so that `help` shows ArrayLike, not what it stands for

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from npgpt2 import arguments
from npgpt2.base.arrays import Array, product
from npgpt2.base.errors import ConfigError, InputError
from npgpt2.base.files import Progress
from npgpt2.checkpoints.checkpoint import Checkpoint
from npgpt2.checkpoints.convert import save_model
from npgpt2.checkpoints.hub import resolve
from npgpt2.generation.generate import sound
from npgpt2.generation.language_model import Prompt, TextModel
from npgpt2.gpt2 import GPT2, numpy_float
from npgpt2.model.config import HEADS, GPT2Config
from npgpt2.model.forward import lm_head
from npgpt2.model.ops import ACTIVATIONS, softmax
from npgpt2.model.params import Head, Params, Summary
from npgpt2.tokenizer.load import vocabulary_of

NONE = np.empty(0, np.int64)  # as `logits_to_keep`: no logits over the vocabulary
LONGEST = 15  # most tokens of an answer, as in transformers' pipeline


class Labelled(NamedTuple):
    """A label and its score: a probability, or the raw output of a reward or regression model."""

    label: str
    score: float


class LabelledToken(NamedTuple):
    id: int
    piece: str
    label: str
    score: float


class Answer(NamedTuple):
    """Tokens `start` to `end` (not included) of the text, and the probability of that span."""

    text: str
    start: int
    end: int
    score: float


class HeadOutput(dict[str, Array]):
    """Arrays by transformers' names, available as items and as attributes."""

    def __getattr__(self, name: str) -> Array:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no output {name!r}, expected {', '.join(self)}") from None


class HeadModel(TextModel, ABC):
    """A model with a head that labels text, on any engine."""

    @abstractmethod
    def __call__(
        self,
        input_ids: npt.ArrayLike,
        *,
        attention_mask: npt.ArrayLike | None = None,
        mc_token_ids: npt.ArrayLike | None = None,
    ) -> HeadOutput:
        """One forward pass, with transformers' names.

        The position of a token is its index among the real tokens of its row. (transformers uses
        the column unless position_ids are given, so rows padded on the left give other results.)

        Args:
            input_ids: (B, T) ids; for multiple choice (B, N, T).
            attention_mask: the same shape, 1 for real tokens and 0 for padding.
            mc_token_ids: (B, N), the position in each choice that the head reads; default the last.

        Returns:
            `logits` (B, K) for texts, or (B, T, K) for tokens; or `start_logits` and `end_logits`
            (B, T); or `logits` (B, N, T, V) and `mc_logits` (B, N).
        """

    def classify(self, text: Prompt) -> list[Labelled]:
        """The labels of a text, highest score first.

        Scores are probabilities. A model with one label, such as a reward model, and a regression
        model give the raw output instead. With problem_type multi_label_classification in
        config.json, each label has its own probability.

        Raises:
            ConfigError: the model has another head.

        >>> names = {"id2label": {0: "no", 1: "yes"}}
        >>> shape = {"vocab_size": 512, "n_positions": 16, "n_embd": 8, "n_layer": 1, "n_head": 2}
        >>> config = GPT2Config(architectures=("GPT2ForSequenceClassification",), **names, **shape)
        >>> model = GPT2WithHead.from_random(config)
        >>> [(label, round(score, 3)) for label, score in model.classify([84, 258, 346])]
        [('no', 0.509), ('yes', 0.491)]
        """
        self._require("score")
        x = sound(self([self.encode(text, "text")]).logits[0])
        kind = self.config.problem_type
        if kind == "multi_label_classification":
            x = np.exp(-np.logaddexp(0, -x))  # 1 / (1 + e^−x)
        elif len(x) > 1 and kind != "regression":
            x = softmax(x)
        found = map(Labelled, self.config.labels, x.tolist())
        return sorted(found, key=lambda one: -one.score)

    def classify_tokens(self, text: Prompt) -> list[LabelledToken]:
        """The most probable label of each token of a text."""
        self._require("classifier")
        ids = self.encode(text, "text")
        probs = softmax(sound(self([ids]).logits[0]))
        pieces = [self.tokenizer.piece(i) if self.has_vocabulary else str(i) for i in ids]
        labels = [self.config.labels[i] for i in probs.argmax(-1)]
        return list(map(LabelledToken, ids, pieces, labels, probs.max(-1).tolist()))

    def answer(self, question: Prompt, text: Prompt) -> Answer:
        """The most probable span of at most `LONGEST` tokens of the text that answers the question.
        The input is the question followed by the text, with nothing between them."""
        self._require("qa_outputs")
        asked, ids = self._ids(question), self._ids(text)
        if not ids:
            raise InputError("text: is empty, expected a text that contains the answer")
        out = self([self.encode([*asked, *ids], "question and text")])
        scores = (sound(out[f"{at}_logits"][0, len(asked) :]) for at in ("start", "end"))
        begin, end = map(softmax, scores)
        spans = np.tril(np.triu(begin[:, None] * end), LONGEST - 1)
        first, last = np.unravel_index(spans.argmax(), spans.shape)
        words = self.tokenizer.decode(ids[first : last + 1]) if self.has_vocabulary else ""
        return Answer(words, int(first), int(last) + 1, float(spans.max()))

    def choose(self, texts: Sequence[Prompt]) -> list[float]:
        """The probability that each text is the right choice, in the order of the texts."""
        self._require("multiple_choice_head")
        if isinstance(texts, str):
            raise InputError("texts: got one text, expected a list of texts")
        rows = [self.encode(text, f"text {number}") for number, text in enumerate(texts, 1)]
        if not rows:
            raise InputError("texts: the list is empty, expected at least one")
        ids, mask = _padded(rows)
        last = mask.sum(1) - 1
        logits = self._mc_logits(ids[None], mask[None], last[None])[0]
        return [float(p) for p in softmax(sound(logits))]

    def _mc_logits(self, ids: Array, mask: Array, at: Array) -> Array:
        return self(ids, attention_mask=mask, mc_token_ids=at).mc_logits

    def _require(self, head: str) -> None:
        if self.config.head != head:
            (expected,) = (name for name, known in HEADS.items() if known == head)
            raise ConfigError(
                f"{self.folder or 'the model'}: is a {self.config.architectures[0]}, "
                f"expected a {expected}"
            )


def _padded(rows: list[list[int]]) -> tuple[Array, Array]:
    """Rows of ids → ids (N, T), padded on the right, and the mask (N, T) bool."""
    mask = np.arange(max(map(len, rows))) < np.array([[len(row)] for row in rows])
    ids = np.zeros(mask.shape, np.int64)
    ids[mask] = np.concatenate(rows)
    return ids, mask


class GPT2WithHead(HeadModel):
    """GPT-2 in NumPy with the head that `architectures` in config.json names.

    >>> config = GPT2Config(n_layer=1, architectures=("GPT2ForTokenClassification",))
    >>> model = GPT2WithHead.from_random(config)
    >>> model([[262, 497], [497, 0]], attention_mask=[[1, 1], [1, 0]])["logits"].shape
    (2, 2, 2)
    """

    def __init__(self, config: GPT2Config, params: Params, folder: Path | None = None) -> None:
        if config.head == "lm_head":
            raise ConfigError(
                f"{folder or 'the model'}: is a language model, expected one of "
                f"{', '.join(HEADS)}. Use 'npgpt2 generate', or npgpt2.GPT2 in Python"
            )
        self.config, self.params, self.folder = config, params, folder
        self._vocabulary = vocabulary_of(folder)
        self.body = GPT2(config, params, folder)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        dtype: str = "float32",
        *,
        mmap: bool = True,
        strict: bool = False,
        revision: str | None = None,
        token: str | None = None,
        progress: Progress = lambda loop, what: loop,
    ) -> GPT2WithHead:
        """Load a checkpoint. For arguments and errors see `GPT2.from_pretrained`.

        Raises:
            ConfigError: the checkpoint is a language model.
        """
        float_ = numpy_float(dtype)
        checkpoint = Checkpoint.open(resolve(name, revision, token))
        params = checkpoint.read(float_, mmap, strict, progress)
        return cls(checkpoint.config, params, checkpoint.folder)

    def save_pretrained(
        self, folder: str | Path, dtype: str | None = None, force: bool = False
    ) -> Path:
        """Write the model as a checkpoint. Arguments and errors: see `GPT2.save_pretrained`."""
        return save_model(folder, self.config, self.params, self.folder, dtype, force)

    @classmethod
    def from_random(cls, config: GPT2Config, seed: int = 0, dtype: str = "float32") -> GPT2WithHead:
        """Random weights as in `GPT2.from_random`; the head is initialized as other matrices."""
        return cls(config, GPT2.from_random(config, seed, dtype).params)

    def __call__(
        self,
        input_ids: npt.ArrayLike,
        *,
        attention_mask: npt.ArrayLike | None = None,
        mc_token_ids: npt.ArrayLike | None = None,
    ) -> HeadOutput:
        config = self.config
        ids, mask, at = checked(config, input_ids, attention_mask, mc_token_ids)
        if at is not None:
            x, chosen = self._chosen(ids, mask, at)
            logits = lm_head(x, self.params)
            return HeadOutput(logits=logits.reshape(*ids.shape, -1), mc_logits=chosen)
        x = self.states(ids, mask)
        if config.head == "score":
            x = x[np.arange(len(x)), last_real(ids, mask, config.pad_token_id)]
        y = apply(self.dense, x)
        if config.head != "qa_outputs":
            return HeadOutput(logits=y)
        return HeadOutput(start_logits=y[..., 0], end_logits=y[..., 1])

    def __repr__(self) -> str:
        kind = self.config.architectures[0]
        return f"GPT2WithHead({kind}, {self.body.dtype}; {self._in_words()})"

    def states(self, ids: Array, mask: Array | None = None) -> Array:
        """Ids (B, T) → the last hidden states (B, T, C), the head's input."""
        out = self.body(ids, attention_mask=mask, use_cache=False, logits_to_keep=NONE)
        return out.last_hidden_state

    @property
    def dense(self) -> Head:
        """The head's linear layer."""
        head = getattr(self.params, self.config.head)
        found: Head = head.summary if isinstance(head, Summary) else head
        return found

    def _mc_logits(self, ids: Array, mask: Array, at: Array) -> Array:
        return self._chosen(ids, mask, at)[1]  # without the logits over the vocabulary

    def _chosen(self, ids: Array, mask: Array | None, at: Array) -> tuple[Array, Array]:
        """Ids (B, N, T) → last hidden states (B·N, T, C) and mc_logits (B, N)."""
        t = ids.shape[-1]
        x = self.states(ids.reshape(-1, t), None if mask is None else mask.reshape(-1, t))
        y = apply(self.dense, x[np.arange(len(x)), at.reshape(-1)]).reshape(at.shape)
        act = self.config.summary_activation
        return x, y if act is None else ACTIVATIONS[act](y)


def checked(
    config: GPT2Config, input_ids: Any, attention_mask: Any, mc_token_ids: Any
) -> tuple[Array, Array | None, Array | None]:
    """Check the arguments of a call: ids, the mask as bool, and mc_token_ids for multiple choice.

    Raises:
        InputError: an argument has a wrong shape, dtype or id; the message names it.
    """
    chooses = config.head == "multiple_choice_head"
    ids = arguments.array("input_ids", input_ids)
    if ids.ndim != (3 if chooses else 2) or not ids.size:
        wanted = "(B, N, T)" if chooses else "(B, T)"
        raise InputError(f"input_ids: got shape {ids.shape}, expected {wanted}")
    ids = arguments.ids("input_ids", ids, ids.shape, config.vocab_size)
    t = ids.shape[-1]
    if t > config.n_positions:
        raise InputError(
            f"input_ids: are longer than the context: {t:,} > {config.n_positions:,} tokens"
        )
    mask = None
    if attention_mask is not None:
        mask = arguments.mask("attention_mask", attention_mask, ids.shape)
    if not chooses:
        return ids, mask, None
    last = np.full(ids.shape[:2], t - 1)
    at = last if mc_token_ids is None else mc_token_ids
    return ids, mask, arguments.ids("mc_token_ids", at, ids.shape[:2], t)


def apply(p: Head, x: Array) -> Array:
    """The head's linear layer, (..., C) → (..., K)."""
    y = product(x.reshape(-1, x.shape[-1]), p.weight.T)
    if p.bias is not None:
        y += p.bias
    return y.reshape(*x.shape[:-1], -1)


def last_real(ids: Array, mask: Array | None, pad: int | None) -> Any:
    """(B,), the position of the last real token of each row, found as in transformers: by
    `pad_token_id` if config.json has one, else by the mask; without both it is the last position.

    >>> last_real(np.array([[5, 6, 0], [0, 7, 8]]), None, pad=0)
    array([1, 2])
    """
    real = mask if pad is None else ids != pad
    if real is None:
        return np.full(len(ids), ids.shape[1] - 1)
    return (np.arange(ids.shape[1]) * real).argmax(1)
