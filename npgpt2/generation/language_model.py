"""Text in, text out, over any engine: what GPT2 and the ONNX runner have in common.

An engine gives `stepper` and `logits`; everything a user calls to write or to score text is here,
once.

Axes: B rows of the batch, P tokens of a prompt, T tokens, V vocabulary.
"""

import os
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from npgpt2.base.arrays import Array
from npgpt2.base.errors import CheckpointError, FileError, InputError, OptionError, TokenizerError
from npgpt2.generation.generate import Rewindable, Row, beam_search, left_padded, sound, write
from npgpt2.generation.options import GenerationOptions
from npgpt2.generation.scoring import Batch, Score, token_logprobs
from npgpt2.generation.slots import Slots
from npgpt2.generation.speculate import Speculating
from npgpt2.model.config import GPT2Config
from npgpt2.tokenizer.interface import END, TextDecoder, Tokenizer

Prompt: TypeAlias = str | Sequence[int]


class Piece(NamedTuple):
    """What one step adds to one text. `row` counts the samples of the first prompt, then the next.

    `finish` is None until the row's last piece: "eos", "stop", "length" or "context".
    """

    row: int
    text: str
    ids: tuple[int, ...] = ()
    finish: str | None = None


@dataclass(frozen=True)
class Completion:
    """One text that was written, without its prompt.

    `ids` are all that were written; a stop text, and what follows it, is not in `text`.
    """

    text: str
    ids: list[int]
    finish_reason: str
    prompt_ids: list[int]

    def __str__(self) -> str:
        return self.text


class TextModel:
    """Takes text, or the ids that it becomes.

    Attributes:
        config: the model's shape.
        folder: where it comes from; None where it comes from no folder.
    """

    config: GPT2Config
    folder: Path | None = None
    _vocabulary: Callable[[], Tokenizer] | None = None  # None: only ids go in

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The model's vocabulary, read when it is first used.

        Raises:
            FileError, TokenizerError, MissingPackage: see `npgpt2.load_tokenizer`.
        """
        if self._vocabulary is None:
            raise TokenizerError("this model has no vocabulary. Give ids, not text")
        return self._vocabulary()

    def encode(self, prompt: Prompt, what: str = "prompt") -> list[int]:
        """A prompt as ids the model can take; errors call it `what`.

        Raises:
            InputError: empty, longer than the context, or an id outside the vocabulary.
            TokenizerError: text that is not Unicode.

        >>> from npgpt2 import GPT2
        >>> GPT2.from_pretrained("tests/data/tiny").encode("the king")
        [84, 258, 346, 299]
        """
        ids = self._ids(prompt)
        if len(ids) > self.config.n_positions:
            raise InputError(f"{what}: is longer than the context: {len(ids):,} > "
                             f"{self.config.n_positions:,} tokens. Shorten it")  # fmt: skip
        if not ids:
            first = self._first() if what == "prompt" else ""
            hint = f". To write from nothing, begin with {first!r}" if first else ""
            raise InputError(f"{what}: is empty, expected one token at least{hint}")
        self._require_ids(ids)
        return [int(token) for token in ids]

    def decode(self, ids: Sequence[int]) -> str:
        """Ids as text; bytes that are not UTF-8 become U+FFFD.

        Raises:
            TokenizerError: an id that is not in the vocabulary, or no vocabulary.

        >>> from npgpt2 import GPT2
        >>> GPT2.from_pretrained("tests/data/tiny").decode([84, 258, 346, 299])
        'the king'
        """
        return self.tokenizer.decode(ids)

    def ids(self, text: Prompt) -> list[int]:
        """A text of any length as ids of the vocabulary. Raises as `encode` does."""
        ids = self._ids(text)
        self._require_ids(ids)
        return [int(token) for token in ids]

    def _in_words(self) -> str:
        """The model's shape, for `repr`."""
        c = self.config
        return (
            f"{c.n_layer} layers of {c.n_head} heads, width {c.n_embd}, "
            f"context {c.n_positions:,}, vocabulary {c.vocab_size:,}"
        )

    @cached_property
    def has_vocabulary(self) -> bool:
        """Whether there is one: ids go in and out without."""
        try:
            return self._vocabulary is not None and self.tokenizer is not None
        except FileError:
            return False

    def _first(self) -> str:
        """How a prompt spells the token that texts begin with; empty where none is known."""
        if "tokenizer" not in self.__dict__:  # ids only, so far: no reason to read it
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
    """Writes and scores text."""

    @abstractmethod
    def stepper(
        self, mask: Array | None = None, use_cache: bool = True, room: int = 64
    ) -> Rewindable:
        """A fresh `Rewindable`.

        Args:
            mask: the prompts' (B, P) padding mask, False where padding.
            room: tokens in all, as far as is known: so many fit without moving what is cached.
        """

    @abstractmethod
    def logits(self, ids: Array) -> Array:
        """Ids (B, T) → logits (B, T, V), without a past."""

    @abstractmethod
    def slots(self, count: int) -> Slots:
        """Room for so many texts that join and leave."""

    @abstractmethod
    def hidden(self, ids: Array) -> Array:
        """Ids (B, T) → the last hidden states (B, T, C), which the head reads; without a past."""

    def pieces(
        self,
        prompts: Sequence[Sequence[int]],
        options: GenerationOptions,
        told: Callable[[int], None] = lambda tokens: None,
    ) -> Iterator[Piece]:
        """Write on behind several encoded prompts at once; text comes as it is made.

        Text is held back while it may be half a character or the beginning of a stop text. A row
        is the same alone and in a batch: same seed, same text. `told` hears how many tokens each
        step gave, where `options.speculate` makes them several.
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
        if options.speculate and len(texts) > 1:
            raise OptionError("speculate", f"is for one text at a time, got {len(texts)} prompts")
        ids, mask = left_padded([text.seen for text in texts])
        most, context = options.speculate, self.config.n_positions
        room = min(ids.shape[1] + options.max_new_tokens + (most or 0), context)
        one = self.stepper(mask, options.use_cache, room)
        step = Speculating(one, most, context, told) if most else one
        for n, token, finish in write(step, texts):
            yield texts[n].piece(n, token, finish)

    def writing(
        self, prompt: Sequence[int], options: GenerationOptions, sample: int = 0
    ) -> "Writing":
        """A text behind an encoded prompt, of which nothing is written yet.

        Args:
            options: with `seed` set, unless greedy.
            sample: which of the prompt's texts it is.

        Raises:
            OptionError: a stop text, but no vocabulary; an id of `logit_bias` outside of it.
        """
        if options.stop and not self.has_vocabulary:
            raise OptionError("stop", "this model has no vocabulary, so no text to stop at")
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
            # No parent held a stop text: a new one ends in the last token and begins, every token
            # having a byte at least, within so many of them.
            ended=lambda _, ids: bool(options.stop) and text_of(ids[-reach:]).stopped,
        )  # fmt: skip
        for i, beam in enumerate(beams):
            yield Piece(row + i, text_of(beam.ids).take(last=True), tuple(beam.ids), beam.finish)

    def decoder(self) -> TextDecoder | None:
        """A decoder of this model's vocabulary; None where it has none."""
        return self.tokenizer.decoder() if self.has_vocabulary else None

    def stream(self, prompt: Prompt, **options: Any) -> Iterator[str]:
        """The text that follows a prompt, piece by piece; whole characters only.

        Args:
            options: those of `GenerationOptions`.

        Raises:
            OptionError, InputError, TokenizerError: at the call; see `generate`.

        >>> from npgpt2 import GPT2
        >>> model = GPT2.from_pretrained("tests/data/tiny")
        >>> list(model.stream("O Romeo, ", max_new_tokens=5, temperature=0))
        ['or', ' e', 'l', 'se', ',']
        """
        chosen = GenerationOptions(**options)
        if chosen.num_samples > 1:
            raise OptionError("num_samples", "a stream is one text. Use generate for several")
        pieces = self.pieces([self.encode(prompt)], chosen)
        return (piece.text for piece in pieces if piece.text)

    def generate(self, prompts: Prompt | Sequence[Prompt], **options: Any) -> list[Completion]:
        """The texts that follow one prompt or several: a list, `num_samples` for each, in order.

        Args:
            prompts: text or ids, or a list of these; of different lengths as they come.
            options: those of `GenerationOptions`.

        Raises:
            OptionError, InputError, TokenizerError: see `GenerationOptions` and `encode`.

        >>> from npgpt2 import GPT2
        >>> model = GPT2.from_pretrained("tests/data/tiny")
        >>> [c.text for c in model.generate(["O Romeo, ", "KING"], max_new_tokens=4, temperature=0)]
        ['or else', 'HAM:']
        """
        chosen = GenerationOptions(**options)
        encoded = [self.encode(prompt) for prompt in _each(prompts)]
        return collect(encoded, chosen.num_samples, self.pieces(encoded, chosen))

    def embed(self, text: Prompt) -> Array:
        """The mean of a text's last hidden states, (C,) float32.

        Args:
            text: text or ids, within the context.

        >>> from npgpt2 import GPT2
        >>> GPT2.from_pretrained("tests/data/tiny").embed("O Romeo").shape
        (64,)
        """
        mean: Array = self.embeds([self.encode(text, "text")])[0]
        return mean

    def embeds(self, texts: Sequence[Sequence[int]]) -> Array:
        """`embed` of several encoded texts in one call, (B, C).

        Raises:
            CheckpointError: the states hold NaN or infinity.
        """
        block = np.zeros((len(texts), max(map(len, texts))), np.int64)
        for row, ids in enumerate(texts):
            block[row, : len(ids)] = ids  # padded on the right: nothing sees it
        states = self.hidden(block)
        if not np.isfinite(states).all():
            raise CheckpointError(
                "hidden states: NaN or infinity. The weights hold such numbers, or overflow"
            )
        means = [x[: len(ids)].mean(0, np.float64) for x, ids in zip(states, texts, strict=True)]
        return np.stack(means).astype(np.float32)

    def score(
        self,
        text: Prompt,
        stride: int | None = None,
        progress: Callable[[Iterable[Batch], str], Iterable[Batch]] = lambda loop, what: loop,
    ) -> Score:
        """Log-probability of each token of a text of any length, by a sliding window.

        Args:
            text: text or ids.
            stride: see `npgpt2.generation.scoring.token_logprobs`.

        >>> from npgpt2 import GPT2
        >>> score = GPT2.from_pretrained("tests/data/tiny").score("O Romeo, Romeo")
        >>> score.tokens, round(score.perplexity, 2), round(score.bits_per_byte, 3)
        (7, 15.7, 2.139)
        """
        return self.scores([self.ids(text)], stride, progress)[0]

    def scores(
        self,
        texts: Sequence[Sequence[int]],
        stride: int | None = None,
        progress: Callable[[Iterable[Batch], str], Iterable[Batch]] = lambda loop, what: loop,
        together: int = 0,
    ) -> list[Score]:
        """`score` of several encoded texts; `together`: see `scoring.token_logprobs`."""
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
        return Score(ids, logprobs, size)


def fresh_seed() -> int:
    """A seed nobody has chosen, short enough to be typed again."""
    return int.from_bytes(os.urandom(4), "little")


def collect(
    prompts: Sequence[list[int]], num_samples: int, pieces: Iterable[Piece]
) -> list[Completion]:
    """Pieces, as they came, put together: one `Completion` a row."""
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
    """A row that is read as text, too."""

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
        """What `choose` gave, as the row of this number shows it."""
        ids = () if token is None else (token,)
        return Piece(row, self._text.take(finish is not None), ids, finish)


class _GrowingText:
    """The text of one row: what is safe to show, and whether a stop text has come."""

    def __init__(self, decoder: TextDecoder | None, stops: tuple[str, ...]) -> None:
        self._decoder, self._stops, self._held, self.stopped = decoder, stops, "", False

    def push(self, token: int) -> bool:
        """Add a token; True once the text holds a stop text, which is cut off."""
        if self._decoder:
            self._held += self._decoder.push(token)
            found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
            if found:
                self._held, self.stopped = self._held[: min(found)], True
        return self.stopped

    def take(self, last: bool) -> str:
        """Text that nothing to come can change; with `last`, all the rest."""
        if last:
            if self._decoder and not self.stopped:
                self._held += self._decoder.finish()
            safe = len(self._held)
        else:
            # The longest end of the text that is the beginning of a stop text has to wait.
            begun = (n for stop in self._stops
                     for n in range(min(len(stop) - 1, len(self._held)), 0, -1)
                     if self._held.endswith(stop[:n]))  # fmt: skip
            safe = len(self._held) - max(begun, default=0)
        text, self._held = self._held[:safe], self._held[safe:]
        return text


def _each(prompts: Any) -> list[Prompt]:
    """One prompt or several → several. Numbers are one prompt, of ids."""
    one = isinstance(prompts, (str, bytes)) or not isinstance(prompts, (Sequence, np.ndarray))
    if not one and not len(prompts):
        raise InputError("prompts: the list is empty, expected one prompt at least")
    if one or not any(isinstance(prompt, (Sequence, np.ndarray)) for prompt in prompts):
        return [prompts]
    return list(prompts)


def _is_whole(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)
