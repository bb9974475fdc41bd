"""GPT-2 under another head than the language model's: it labels texts and tokens, finds answers,
chooses.

    GPT2ForSequenceClassification   score                  a text → its label, or its reward
    GPT2ForTokenClassification      classifier             a text → a label for each token
    GPT2ForQuestionAnswering        qa_outputs             a question and a text → the answer in it
    GPT2DoubleHeadsModel            multiple_choice_head   texts → which one; it writes as well

The classes are transformers', and so are the outputs' names.

Axes: B batch, N choices, T tokens, C n_embd, V vocabulary, K labels.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from npgpt2 import arguments
from npgpt2.checkpoint import Checkpoint
from npgpt2.config import HEADS, GPT2Config
from npgpt2.errors import ConfigError, InputError
from npgpt2.files import Progress
from npgpt2.gpt2 import GPT2, numpy_float
from npgpt2.hub import resolve
from npgpt2.language_model import Prompt, TextModel
from npgpt2.ops import ACTIVATIONS, Array, product, softmax
from npgpt2.params import Head, Params, Summary

NONE = np.empty(0, np.int64)  # positions whose logits over the vocabulary are wanted
LONGEST = 15  # tokens of an answer, as in transformers' pipeline


class Labelled(NamedTuple):
    """A label and how sure the model is of it: a probability, or the bare number of a reward."""

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


class HeadModel(TextModel, ABC):
    """What a head says of text, over any engine."""

    @abstractmethod
    def __call__(
        self,
        input_ids: npt.ArrayLike,
        *,
        attention_mask: npt.ArrayLike | None = None,
        mc_token_ids: npt.ArrayLike | None = None,
    ) -> dict[str, Array]:
        """One forward pass, by transformers' names.

        Args:
            input_ids: (B, T) ids; of a model that chooses (B, N, T).
            attention_mask: of the same shape, 1 for real tokens and 0 for padding.
            mc_token_ids: (B, N), the token of each choice that stands for it; by default its last.

        Returns:
            `logits` (B, K) of a text, or (B, T, K) of tokens; or `start_logits` and `end_logits`
            (B, T); or `logits` (B, N, T, V) and `mc_logits` (B, N).
        """

    def classify(self, text: Prompt) -> list[Labelled]:
        """A text's labels, the most probable first.

        With one label it is the bare number, which of a reward model is the reward; where
        config.json says that labels exclude nothing, each has a probability of its own.

        Raises:
            ConfigError: the model does something else.

        >>> names = {"id2label": {0: "no", 1: "yes"}}
        >>> shape = {"vocab_size": 512, "n_positions": 16, "n_embd": 8, "n_layer": 1, "n_head": 2}
        >>> config = GPT2Config(architectures=("GPT2ForSequenceClassification",), **names, **shape)
        >>> model = GPT2WithHead.from_random(config)
        >>> [(label, round(score, 3)) for label, score in model.classify([84, 258, 346])]
        [('no', 0.509), ('yes', 0.491)]
        """
        self._require("score")
        logits = self([self.encode(text)])["logits"][0]
        if len(logits) > 1 and self.config.problem_type != "regression":
            several = self.config.problem_type == "multi_label_classification"
            logits = 1 / (1 + np.exp(-logits)) if several else softmax(logits)
        found = map(Labelled, self.config.labels, logits.tolist())
        return sorted(found, key=lambda one: -one.score)

    def classify_tokens(self, text: Prompt) -> list[LabelledToken]:
        """The most probable label of each token."""
        self._require("classifier")
        ids = self.encode(text)
        probs = softmax(self([ids])["logits"][0])
        pieces = [self.tokenizer.piece(i) if self.has_vocabulary else str(i) for i in ids]
        labels = [self.config.labels[i] for i in probs.argmax(-1)]
        return list(map(LabelledToken, ids, pieces, labels, probs.max(-1).tolist()))

    def answer(self, question: Prompt, text: Prompt) -> Answer:
        """Where a text answers a question: the span of at most `LONGEST` tokens that is the most
        probable. The two are read one after the other, as they stand."""
        self._require("qa_outputs")
        asked, ids = self._ids(question), self._ids(text)
        if not ids:
            raise InputError("text: is empty, expected one with an answer in it")
        out = self([self.encode([*asked, *ids])])
        begin, end = (softmax(out[f"{at}_logits"][0, len(asked) :]) for at in ("start", "end"))
        spans = np.tril(np.triu(begin[:, None] * end), LONGEST - 1)
        first, last = np.unravel_index(spans.argmax(), spans.shape)
        words = self.tokenizer.decode(ids[first : last + 1]) if self.has_vocabulary else ""
        return Answer(words, int(first), int(last) + 1, float(spans.max()))

    def choose(self, texts: Sequence[Prompt]) -> list[float]:
        """How probable each text is as the choice among them."""
        self._require("multiple_choice_head")
        rows = [self.encode(text) for text in texts]
        if not rows:
            raise InputError("texts: the list is empty, expected one at least")
        ids, mask = _padded(rows)
        last = mask.sum(1) - 1
        out = self(ids[None], attention_mask=mask[None], mc_token_ids=last[None])
        probs: list[float] = softmax(out["mc_logits"][0]).tolist()
        return probs

    def _require(self, head: str) -> None:
        if self.config.head != head:
            (expected,) = (name for name, known in HEADS.items() if known == head)
            raise ConfigError(
                f"{self.folder}: is a {self.config.architectures[0]}, expected a {expected}"
            )


def _padded(rows: list[list[int]]) -> tuple[Array, Array]:
    """Rows of ids → (N, T), padded on the right, and the mask."""
    mask = np.arange(max(map(len, rows))) < np.array([[len(row)] for row in rows])
    ids = np.zeros(mask.shape, np.int64)
    ids[mask] = np.concatenate(rows)
    return ids, mask


class GPT2WithHead(HeadModel):
    """A GPT-2 in NumPy under the head that config.json's `architectures` names.

    >>> config = GPT2Config(n_layer=1, architectures=("GPT2ForTokenClassification",))
    >>> model = GPT2WithHead.from_random(config)
    >>> model([[262, 497], [497, 0]], attention_mask=[[1, 1], [1, 0]])["logits"].shape
    (2, 2, 2)
    """

    def __init__(self, config: GPT2Config, params: Params, folder: Path | None = None) -> None:
        if config.head == "lm_head":
            raise ConfigError(
                f"{folder}: is a language model, expected one of {', '.join(HEADS)}. "
                "'npgpt2 generate' runs it, in Python npgpt2.GPT2"
            )
        self.config, self.params, self.folder = config, params, folder
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
    ) -> "GPT2WithHead":
        """Load a checkpoint. Arguments and errors: see `GPT2.from_pretrained`.

        Raises:
            ConfigError: it is a language model.
        """
        float_ = numpy_float(dtype)
        checkpoint = Checkpoint.open(resolve(name, revision, token))
        params = checkpoint.read(float_, mmap, strict, progress)
        return cls(checkpoint.config, params, checkpoint.folder)

    @classmethod
    def from_random(
        cls, config: GPT2Config, seed: int = 0, dtype: str = "float32"
    ) -> "GPT2WithHead":
        """Weights as of `GPT2.from_random`, the head's as those of the other matrices."""
        return cls(config, GPT2.from_random(config, seed, dtype).params)

    def __call__(
        self,
        input_ids: npt.ArrayLike,
        *,
        attention_mask: npt.ArrayLike | None = None,
        mc_token_ids: npt.ArrayLike | None = None,
    ) -> dict[str, Array]:
        config = self.config
        ids = arguments.array("input_ids", input_ids)
        mask = None if attention_mask is None else arguments.array("attention_mask", attention_mask)
        if config.head == "multiple_choice_head":
            return self._choose(ids, mask, mc_token_ids)
        x = self.states(ids, mask)
        if config.head == "score":
            x = x[np.arange(len(x)), last_real(ids, mask, config.pad_token_id)]
        y = apply(self.dense, x)
        if config.head != "qa_outputs":
            return {"logits": y}
        return {"start_logits": y[..., 0], "end_logits": y[..., 1]}

    def states(self, ids: Array, mask: Array | None = None) -> Array:
        """(B, T) ids → (B, T, C), what stands under the head."""
        out = self.body(ids, attention_mask=mask, use_cache=False, logits_to_keep=NONE)
        return out.last_hidden_state

    @property
    def dense(self) -> Head:
        """The head's linear layer."""
        head = getattr(self.params, self.config.head)
        found: Head = head.summary if isinstance(head, Summary) else head
        return found

    def _choose(self, ids: Array, mask: Array | None, at: npt.ArrayLike | None) -> dict[str, Array]:
        """(B, N, T): each choice is a row by itself, and one of its tokens stands for it."""
        if ids.ndim != 3 or 0 in ids.shape:
            raise InputError(f"input_ids: got shape {ids.shape}, expected (B, N, T)")
        b, n, t = ids.shape
        if mask is not None and mask.shape != ids.shape:
            raise InputError(f"attention_mask: got shape {mask.shape}, expected {ids.shape}")
        last = np.full((b, n), t - 1)
        at = last if at is None else arguments.ids("mc_token_ids", at, (b, n), t)
        out = self.body(
            ids.reshape(-1, t),
            attention_mask=None if mask is None else mask.reshape(-1, t),
            use_cache=False,
        )
        states = out.last_hidden_state[np.arange(b * n), at.reshape(-1)]
        chosen = apply(self.dense, states)[:, 0]
        if self.config.summary_activation:
            chosen = ACTIVATIONS[self.config.summary_activation](chosen, out=None)
        return {"logits": out.logits.reshape(b, n, t, -1), "mc_logits": chosen.reshape(b, n)}


def apply(p: Head, x: Array) -> Array:
    """(..., C) → (..., outputs)."""
    y = product(x.reshape(-1, x.shape[-1]), p.weight.T)
    if p.bias is not None:
        y += p.bias
    return y.reshape(*x.shape[:-1], -1)


def last_real(ids: Array, mask: Array | None, pad: int | None) -> Any:
    """(B,), the rightmost token of each row that is no padding, as transformers finds it: by the
    id of padding where config.json has one; else by the mask; without either the last.

    >>> last_real(np.array([[5, 6, 0], [0, 7, 8]]), None, pad=0)
    array([1, 2])
    """
    real = mask if pad is None else ids != pad
    if real is None:
        return np.full(len(ids), ids.shape[1] - 1)
    return (np.arange(ids.shape[1]) * real).argmax(1)
