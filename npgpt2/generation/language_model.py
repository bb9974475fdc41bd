"""Text in, text out, on any engine: the methods that GPT2 and OnnxModel have in common.

An engine implements `stepper`, `logits`, `slots` and `hidden`; everything that a user calls to
generate, score or embed text is here.

Axes: B rows of the batch, P tokens of a prompt, T tokens, V vocabulary.
"""

import os
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from npgpt2.base import notebook
from npgpt2.base.arrays import Array
from npgpt2.base.errors import CheckpointError, FileError, InputError, OptionError, TokenizerError
from npgpt2.generation.generate import Rewindable, Row, beam_search, left_padded, sound, write
from npgpt2.generation.options import GenerationOptions
from npgpt2.generation.prompt_lookup import PromptLookup
from npgpt2.generation.scoring import Batch, Score, token_logprobs
from npgpt2.generation.slots import Slots
from npgpt2.model.config import GPT2Config
from npgpt2.tokenizer.interface import END, TextDecoder, Tokenizer

if TYPE_CHECKING:
    from npgpt2.base.document import Page

Prompt: TypeAlias = str | Sequence[int]


class Piece(NamedTuple):
    """What one step adds to one text. `row` counts the samples of the first prompt, then the next.

    `finish` is None before the row's last piece, there "eos", "stop", "length" or "context".
    """

    row: int
    text: str
    ids: tuple[int, ...] = ()
    finish: str | None = None


@dataclass(frozen=True)
class Completion:
    """One generated text, without its prompt.

    `ids` are all generated ids; `text` ends before a stop text.
    """

    text: str
    ids: list[int]
    finish_reason: str
    prompt_ids: list[int]

    def __str__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        """In a notebook: the text."""
        return notebook.text(f"{len(self.ids)} tokens, ended by {self.finish_reason}", self.text)


class TextModel:
    """A model that takes text or ids.

    Attributes:
        config: the model's shape.
        folder: the checkpoint's folder; None for a model that was not loaded from one.
    """

    config: GPT2Config
    folder: Path | None = None
    _vocabulary: Callable[[], Tokenizer] | None = None  # None: the model takes ids only

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer, loaded on first use.

        Raises:
            FileError, TokenizerError, MissingPackage: see `npgpt2.load_tokenizer`.
        """
        if self._vocabulary is None:
            raise TokenizerError("this model has no vocabulary. Give ids, not text")
        return self._vocabulary()

    def encode(self, prompt: Prompt, what: str = "prompt") -> list[int]:
        """Encode a prompt to ids that fit the context. Error messages call it `what`.

        Raises:
            InputError: it is empty, longer than the context, or has an id outside the vocabulary.
            TokenizerError: text that is not Unicode.

        >>> from npgpt2 import GPT2
        >>> GPT2.from_pretrained("shakespeare").encode("the king")
        [910, 505]
        """
        ids = self._ids(prompt)
        if len(ids) > self.config.n_positions:
            raise InputError(f"{what}: is longer than the context: {len(ids):,} > "
                             f"{self.config.n_positions:,} tokens. Shorten it")  # fmt: skip
        if not ids:
            first = self._first() if what == "prompt" else ""
            hint = f". For a text without a prompt give {first!r}" if first else ""
            raise InputError(f"{what}: is empty, expected at least one token{hint}")
        self._require_ids(ids)
        return [int(token) for token in ids]

    def decode(self, ids: Sequence[int]) -> str:
        """Decode ids to text; bytes that are not UTF-8 become U+FFFD.

        Raises:
            TokenizerError: an id is not in the vocabulary, or the model has no vocabulary.

        >>> from npgpt2 import GPT2
        >>> GPT2.from_pretrained("shakespeare").decode([910, 505])
        'the king'
        """
        return self.tokenizer.decode(ids)

    def show_tokens(self, text: Prompt) -> "Page":
        """An HTML page of a text, or of the text of ids, with the borders of its tokens.

        >>> from npgpt2 import GPT2
        >>> "2 tokens" in GPT2.from_pretrained("shakespeare").show_tokens("the king")
        True
        """
        from npgpt2.pictures.text import tokens_page

        ids = self.ids(text)
        whole = text if isinstance(text, str) else self.decode(ids)
        return tokens_page(whole, ids, self.tokenizer, self._name)

    def ids(self, text: Prompt) -> list[int]:
        """Encode a text of any length to ids. Raises what `encode` raises."""
        ids = self._ids(text)
        self._require_ids(ids)
        return [int(token) for token in ids]

    @property
    def _name(self) -> str:
        """The folder's name, or that of the model whose snapshot it is in the hub's cache."""
        if self.folder is None:
            return "the model"
        path = self.folder.absolute()
        if path.parent.name == "snapshots":
            return path.parents[1].name.removeprefix("models--").replace("--", "/")
        return path.name

    def _in_words(self) -> str:
        """The model's shape, for `repr`."""
        c = self.config
        return (
            f"{c.n_layer} layers of {c.n_head} heads, width {c.n_embd}, "
            f"context {c.n_positions:,}, vocabulary {c.vocab_size:,}"
        )

    @cached_property
    def has_vocabulary(self) -> bool:
        """Whether the model has a vocabulary; without one it takes and returns ids only."""
        try:
            return self._vocabulary is not None and self.tokenizer is not None
        except FileError:
            return False

    def _first(self) -> str:
        """How to write the first token of a text in a prompt; "" if there is no such token."""
        if "tokenizer" not in self.__dict__:  # only ids so far: no reason to load it
            return END
        known, bos = self.tokenizer, self.config.bos_token_id
        named = [known.piece(bos)] if bos is not None and 0 <= bos < known.size else []
        for text in (END, *named):
            if [known.piece(token) for token in known.encode(text)] == [text]:
                return text
        return ""

    def _ids(self, prompt: Prompt) -> list[Any]:
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt)
        if not isinstance(prompt, (Sequence, np.ndarray)) or isinstance(prompt, bytes):
            raise InputError(f"prompt: got {prompt!r}, expected text or ids")
        return list(prompt)

    def _require_ids(self, ids: Sequence[Any]) -> None:
        for token in ids:
            if not _is_whole(token) or not 0 <= token < self.config.vocab_size:
                raise InputError(f"prompt: has the id {token!r}, "
                                 f"expected 0 to {self.config.vocab_size - 1}")  # fmt: skip


class LanguageModel(TextModel, ABC):
    """A model that generates, scores and embeds text."""

    @abstractmethod
    def stepper(
        self, mask: Array | None = None, use_cache: bool = True, room: int = 64
    ) -> Rewindable:
        """A fresh `Rewindable`.

        Args:
            mask: the prompts' padding mask (B, P) bool, False for padding.
            use_cache: False computes the whole text again in every step.
            room: the expected length of the texts in tokens: the first capacity of the KV cache.
        """

    @abstractmethod
    def logits(self, ids: Array) -> Array:
        """Ids (B, T) → logits (B, T, V), without a KV cache."""

    @abstractmethod
    def slots(self, count: int) -> Slots:
        """`count` slots for continuous batching."""

    @abstractmethod
    def hidden(self, ids: Array) -> Array:
        """Ids (B, T) → the last hidden states (B, T, C), ln_f's output; without a KV cache."""

    def pieces(
        self,
        prompts: Sequence[Sequence[int]],
        options: GenerationOptions,
        on_step: Callable[[int], None] = lambda tokens: None,
    ) -> Iterator[Piece]:
        """Continue several encoded prompts at once; yields text as it is generated.

        Text is held back while it may be half a character or the beginning of a stop text. A row
        draws the same random numbers alone and in a batch; in int8 and int4 its logits differ in
        the last digits, and its text may. With `options.prompt_lookup`, `on_step` is called with
        the number of tokens that each step gave.
        """
        if options.seed is None and not options.greedy and options.num_beams == 1:
            options = replace(options, seed=fresh_seed())
        if options.num_beams > 1:
            self.writing(prompts[0], options)  # raises
            for n, prompt in enumerate(prompts):
                yield from self._beams(prompt, n * options.num_samples, options)
            return
        texts = [
            self.writing(prompt, options, sample)
            for prompt in prompts
            for sample in range(options.num_samples)
        ]
        if options.prompt_lookup and len(texts) > 1:
            what = f"works on one text at a time, got {len(texts)} prompts"
            raise OptionError("prompt_lookup", what)
        ids, mask = left_padded([text.seen for text in texts])
        most, context = options.prompt_lookup, self.config.n_positions
        room = min(ids.shape[1] + options.max_new_tokens + (most or 0), context)
        one = self.stepper(mask, options.use_cache, room)
        step = PromptLookup(one, most, context, on_step) if most else one
        for n, token, finish in write(step, texts):
            yield texts[n].piece(n, token, finish)

    def writing(
        self, prompt: Sequence[int], options: GenerationOptions, sample: int = 0
    ) -> "Writing":
        """A text that continues an encoded prompt; nothing of it is generated yet.

        Args:
            options: with `seed` set, unless greedy.
            sample: index of the text among those of its prompt.

        Raises:
            OptionError: a stop text without a vocabulary; an id of `logit_bias` outside of it.
        """
        if options.stop and not self.has_vocabulary:
            raise OptionError("stop", "needs a vocabulary, and this model has none. Leave it out")
        vocabulary = self.config.vocab_size
        if (token := max(options.logit_bias, default=0)) >= vocabulary:
            raise OptionError("logit_bias", f"has the id {token}, expected 0 to {vocabulary - 1}")
        context, eos = self.config.n_positions, self.config.eos_token_ids
        return Writing(prompt, options, context, eos, sample, self.decoder())

    def _beams(
        self, prompt: Sequence[int], row: int, options: GenerationOptions
    ) -> Iterator[Piece]:
        def text_of(ids: list[int]) -> _GrowingText:
            text = _GrowingText(self.decoder(), options.stop)
            for token in ids:
                text.push(token)
            return text

        reach = max((len(stop.encode()) for stop in options.stop), default=0) + 1
        beams = beam_search(
            self.stepper(None, options.use_cache), prompt, options,
            self.config.n_positions, self.config.eos_token_ids,
            # The text before this token had no stop text. A new one ends in this token, and every
            # token has at least one byte: so it lies within the last `reach` tokens.
            ended=lambda _, ids: bool(options.stop) and text_of(ids[-reach:]).stopped,
        )  # fmt: skip
        for i, beam in enumerate(beams):
            yield Piece(row + i, text_of(beam.ids).take(last=True), tuple(beam.ids), beam.finish)

    def decoder(self) -> TextDecoder | None:
        """A streaming decoder for this model's vocabulary; None if it has none."""
        return self.tokenizer.decoder() if self.has_vocabulary else None

    def stream(self, prompt: Prompt, **options: Any) -> Iterator[str]:
        """Generate a text that continues a prompt; yields it in pieces of whole characters.

        Args:
            options: fields of `GenerationOptions`.

        Raises:
            OptionError, InputError, TokenizerError: at the call; see `generate`.

        >>> from npgpt2 import GPT2
        >>> model = GPT2.from_pretrained("shakespeare")
        >>> list(model.stream("O Romeo,", max_new_tokens=5, temperature=0))
        ['\\n', 'And', ' Romeo', ',', ' Romeo']
        """
        chosen = GenerationOptions.of(options)
        if chosen.num_samples > 1:
            raise OptionError("num_samples", "a stream has one text. Use generate for several")
        pieces = self.pieces([self.encode(prompt)], chosen)
        return (piece.text for piece in pieces if piece.text)

    def generate(self, prompts: Prompt | Sequence[Prompt], **options: Any) -> list[Completion]:
        """Generate texts that continue one or several prompts: `num_samples` for each, in order.

        Args:
            prompts: text or ids, or a list of these, of any lengths.
            options: fields of `GenerationOptions`.

        Raises:
            OptionError, InputError, TokenizerError: see `GenerationOptions` and `encode`.

        >>> from npgpt2 import GPT2
        >>> model = GPT2.from_pretrained("shakespeare")
        >>> [c.text for c in model.generate(["O Romeo,", "KING"], max_new_tokens=4, temperature=0)]
        ['\\nAnd Romeo,', ' RICHARD III:\\n']
        """
        chosen = GenerationOptions.of(options)
        encoded = [self.encode(prompt) for prompt in _each(prompts)]
        return collect(encoded, chosen.num_samples, self.pieces(encoded, chosen))

    def embed(self, text: Prompt) -> Array:
        """The mean of a text's last hidden states, (C,) float32.

        Args:
            text: text or ids, within the context.

        >>> from npgpt2 import GPT2
        >>> GPT2.from_pretrained("shakespeare").embed("O Romeo").shape
        (256,)
        """
        mean: Array = self.embeds([self.encode(text, "text")])[0]
        return mean

    def embeds(self, texts: Sequence[Sequence[int]]) -> Array:
        """`embed` for several encoded texts in one call, (B, C) float32.

        Raises:
            CheckpointError: the hidden states contain NaN or infinity.
        """
        block = np.zeros((len(texts), max(map(len, texts))), np.int64)
        for row, ids in enumerate(texts):
            block[row, : len(ids)] = ids  # padded on the right: no token attends to padding
        states = self.hidden(block)
        if not np.isfinite(states).all():
            raise CheckpointError(
                "hidden states: NaN or infinity. The weights have them, or values overflow"
            )
        means = [x[: len(ids)].mean(0, np.float64) for x, ids in zip(states, texts, strict=True)]
        return np.stack(means).astype(np.float32)

    def score(
        self,
        text: Prompt,
        stride: int | None = None,
        progress: Callable[[Iterable[Batch], str], Iterable[Batch]] = lambda loop, what: loop,
    ) -> Score:
        """The log-probability of each token of a text of any length, with a sliding window.

        Args:
            text: text or ids.
            stride: see `npgpt2.generation.scoring.token_logprobs`.

        >>> from npgpt2 import GPT2
        >>> score = GPT2.from_pretrained("shakespeare").score("O Romeo, Romeo")
        >>> score.tokens, round(score.perplexity, 2), round(score.bits_per_byte, 3)
        (3, 24.7, 1.068)
        """
        return self.scores([self.ids(text)], stride, progress)[0]

    def scores(
        self,
        texts: Sequence[Sequence[int]],
        stride: int | None = None,
        progress: Callable[[Iterable[Batch], str], Iterable[Batch]] = lambda loop, what: loop,
        together: int = 0,
    ) -> list[Score]:
        """`score` for several encoded texts; `together`: see `scoring.token_logprobs`."""
        arrays = [np.array(ids, np.int64) for ids in texts]
        found = token_logprobs(
            lambda ids: sound(self.logits(ids)),
            arrays,
            self.config.n_positions,
            stride,
            progress,
            together,
        )
        return [self._score(*pair) for pair in zip(arrays, found, strict=True)]

    def _score(self, ids: Array, logprobs: Array) -> Score:
        scored = ids[~np.isnan(logprobs)].tolist()
        known = self.has_vocabulary
        size = sum(len(self.tokenizer.token_bytes(i)) for i in scored) if known else 0
        return Score(ids, logprobs, size, self.tokenizer if known else None)


def fresh_seed() -> int:
    """A random seed, short enough to type."""
    return int.from_bytes(os.urandom(4), "little")


def collect(
    prompts: Sequence[list[int]], num_samples: int, pieces: Iterable[Piece]
) -> list[Completion]:
    """Join pieces into one `Completion` for each row."""
    texts: dict[int, list[str]] = defaultdict(list)
    written: dict[int, list[int]] = defaultdict(list)
    finishes: dict[int, str] = {}
    for row, text, ids, finish in pieces:
        texts[row].append(text)
        written[row] += ids
        finishes[row] = finish or ""
    return [
        Completion("".join(texts[row]), written[row], finish, prompts[row // num_samples])
        for row, finish in sorted(finishes.items())
    ]


class Writing(Row):
    """A `Row` with its text: it decodes the ids and looks for stop texts."""

    def __init__(
        self,
        prompt: Sequence[int],
        options: GenerationOptions,
        n_positions: int,
        eos: frozenset[int],
        sample: int,
        decoder: TextDecoder | None,
    ) -> None:
        super().__init__(prompt, options, n_positions, eos, sample)
        self._text = _GrowingText(decoder, options.stop)

    def ended(self) -> bool:
        return self._text.push(self.seen[-1])

    def piece(self, row: int, token: int | None, finish: str | None) -> Piece:
        """The piece of row number `row` for what `choose` returned."""
        ids = () if token is None else (token,)
        return Piece(row, self._text.take(finish is not None), ids, finish)


class _GrowingText:
    """The text of one row: what can be shown already, and whether a stop text has appeared."""

    def __init__(self, decoder: TextDecoder | None, stops: tuple[str, ...]) -> None:
        self._decoder, self._stops, self._held, self.stopped = decoder, stops, "", False

    def push(self, token: int) -> bool:
        """Add a token; True once the text contains a stop text, which is cut off."""
        if self._decoder:
            self._held += self._decoder.push(token)
            found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
            if found:
                self._held, self.stopped = self._held[: min(found)], True
        return self.stopped

    def take(self, last: bool) -> str:
        """Text that later tokens cannot change; with `last`, all the rest."""
        if last:
            if self._decoder and not self.stopped:
                self._held += self._decoder.finish()
            safe = len(self._held)
        else:
            # Hold back the longest end of the text that may begin a stop text.
            begun = (n for stop in self._stops
                     for n in range(min(len(stop) - 1, len(self._held)), 0, -1)
                     if self._held.endswith(stop[:n]))  # fmt: skip
            safe = len(self._held) - max(begun, default=0)
        text, self._held = self._held[:safe], self._held[safe:]
        return text


def _each(prompts: Any) -> list[Prompt]:
    """One prompt or several → a list of prompts. A list of integers is one prompt of ids."""
    one = isinstance(prompts, (str, bytes)) or not isinstance(prompts, (Sequence, np.ndarray))
    if not one and not len(prompts):
        raise InputError("prompts: the list is empty, expected at least one prompt")
    if one or not any(isinstance(prompt, (Sequence, np.ndarray)) for prompt in prompts):
        return [prompts]
    return list(prompts)


def _is_whole(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)
