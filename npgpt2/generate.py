"""The loops that write: sampling (greedy is its limit) and beam search.

They know no text, no files and no model: they take a `Stepper`, which the NumPy model and ONNX
Runtime both offer, and give ids.

Axes: B rows of the batch, T new tokens, V vocabulary.
"""

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from npgpt2 import sampling
from npgpt2.errors import CheckpointError, OptionError
from npgpt2.ops import Array, log_softmax

Ended = Callable[[int, list[int]], bool]  # (row, ids written so far) → has a stop text appeared?


class Stepper(Protocol):
    """One conversation with a model: it remembers what it was given."""

    def __call__(self, ids: Array) -> Array:
        """Take T new tokens (B, T) int64; return the logits (B, V) of the token after the last."""

    def reorder(self, rows: Array) -> None:
        """Keep these rows of the batch, in this order; a row may be taken twice or left out."""


class Rewindable(Stepper, Protocol):
    """A `Stepper` that tells what it thinks of every token, and can forget the last."""

    def __call__(self, ids: Array, every: bool = False) -> Array:
        """As a `Stepper`; with `every` the logits (B, T, V) of the token after every one."""

    def rewind(self, tokens: int) -> None:
        """Forget the last so many tokens."""


@dataclass(frozen=True)
class GenerationOptions:
    """How to write. One place for every default.

    They run in this order: logit bias, repetition penalty, temperature, top-k, top-p, min-p.

    Attributes:
        max_new_tokens: at most so many; the context's end and an end-of-text token come first.
        temperature: 0 is greedy; below 1 sharpens, above 1 flattens.
        top_k, top_p, min_p: see `npgpt2.sampling`. None: no limit.
        logit_bias: by id, what is added to its logit before anything else, −100 to 100: at these
            ends a token is as good as never written, or always.
        repetition_penalty: above 1 makes tokens of the prompt and the text less likely.
        num_beams: above 1, beam search: no sampling, the `num_samples` best texts.
        num_samples: texts per prompt.
        stop: texts that end the writing; they are not part of it.
        seed: the same seed, the same text. None: another one every time.
        use_cache: False computes the whole text again for every token.
        speculate: guess up to so many tokens and try them in one step; see `npgpt2.speculate`. The
            same text, sooner where it repeats itself. 0: none.

    Raises:
        OptionError: a value outside its range.

    >>> GenerationOptions(top_p=1.5)
    Traceback (most recent call last):
    npgpt2.errors.OptionError: top_p: got 1.5, expected a number above 0, up to 1
    """

    max_new_tokens: int = 100
    temperature: float = 0.8
    top_k: int | None = None
    top_p: float | None = 0.95
    min_p: float | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    repetition_penalty: float = 1.0
    num_beams: int = 1
    num_samples: int = 1
    stop: tuple[str, ...] = ()
    seed: int | None = None
    use_cache: bool = True
    speculate: int = 0

    def __post_init__(self) -> None:
        _require_whole("max_new_tokens", self.max_new_tokens, 1)
        for name in ("num_beams", "num_samples"):  # each is a row of the batch, all in memory
            _require_whole(name, getattr(self, name), 1, below=4097)
        if self.top_k is not None:
            _require_whole("top_k", self.top_k, 1, ". Leave it out for no limit")
        if self.seed is not None:
            _require_whole("seed", self.seed, 0, below=2**64)
        _require("temperature", self.temperature, lambda t: t >= 0, "a number from 0 (greedy) up")
        _require(  # beyond these bounds a logit times the penalty can leave float64
            "repetition_penalty",
            self.repetition_penalty,
            lambda r: 1e-100 <= r <= 1e100,
            "a number from 1e-100 to 1e100",
        )
        if not isinstance(self.logit_bias, Mapping):
            raise OptionError("logit_bias", f"got {self.logit_bias!r}, expected {{id: number}}")
        for token, bias in self.logit_bias.items():
            _require_whole("logit_bias", token, 0, ". It is a token's id")
            _require("logit_bias", bias, lambda b: -100 <= b <= 100, "a number from -100 to 100")
        for name in ("top_p", "min_p"):
            if getattr(self, name) is not None:
                _require(
                    name, getattr(self, name), lambda p: 0 < p <= 1, "a number above 0, up to 1"
                )
        several = isinstance(self.stop, Iterable) and not isinstance(self.stop, str)
        stops = tuple(self.stop) if several else (self.stop,)
        if not all(isinstance(text, str) and text for text in stops):
            raise OptionError("stop", f"got {self.stop!r}, expected texts that are not empty")
        object.__setattr__(self, "stop", stops)
        _require_whole("speculate", self.speculate, 0, below=1025)
        if self.speculate and (self.num_beams > 1 or self.num_samples > 1):
            raise OptionError("speculate", "is for one text at a time. Leave it out")
        if self.num_beams > 1:
            default = {
                f: GenerationOptions.__dataclass_fields__[f].default
                for f in ("temperature", "top_k", "top_p", "min_p", "seed")
            }
            for name, value in default.items():
                if getattr(self, name) != value:
                    raise OptionError(name, "beam search does not sample. Leave one of the two out")
            if self.num_samples > self.num_beams:
                raise OptionError(
                    "num_samples",
                    f"got {self.num_samples}, expected at most one a beam ({self.num_beams})",
                )

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    def next_token(self, logits: Array, seen: Sequence[int], uniform: Iterator[float]) -> int:
        """One row's logits (V,) → the id to write."""
        logits = logits.astype(np.float64)
        if self.logit_bias:
            logits = sampling.logit_bias(logits, self.logit_bias)
        if self.repetition_penalty != 1:
            logits = sampling.repetition_penalty(logits, seen, self.repetition_penalty)
        if self.greedy:
            return int(logits.argmax())
        logits = sampling.temperature(logits, self.temperature)
        if self.top_k is not None:
            logits = sampling.top_k(logits, self.top_k)
        if self.top_p is not None:
            logits = sampling.top_p(logits, self.top_p)
        if self.min_p is not None:
            logits = sampling.min_p(logits, self.min_p)
        return sampling.draw(logits, next(uniform))


def _require_whole(
    name: str, value: Any, least: int, hint: str = "", below: float = math.inf
) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < below:
        limit = f" up to {below - 1}" if below < math.inf else ""
        raise OptionError(name, f"got {value!r}, expected a whole number from {least}{limit}{hint}")


def _require(name: str, value: Any, good: Callable[[float], bool], expected: str) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (number and abs(value) <= sys.float_info.max and good(value)):
        raise OptionError(name, f"got {value!r}, expected {expected}")


class Row:
    """One text on its way: what it holds, and the numbers that it draws.

    Which rows are computed beside it, and how often it has moved between them, is nothing to it.

    Args:
        prompt: its ids.
        options: with `seed` set.
        n_positions: of the model: the context ends the text.
        eos: ids that end it, and are not written.
        sample: which of its prompt's texts it is: it picks the random numbers.

    Attributes:
        seen: the prompt, and what was written behind it.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        options: GenerationOptions,
        n_positions: int,
        eos: frozenset[int] = frozenset(),
        sample: int = 0,
    ) -> None:
        self.seen, self._prompt = list(prompt), len(prompt)
        self._options, self._n_positions, self._eos = options, n_positions, eos
        self._uniforms = sampling.uniforms(options.seed or 0, sample)

    def ended(self) -> bool:
        """Asked after each token: has a stop text come? Ids know of none."""
        return False

    def choose(self, logits: Array) -> tuple[int | None, str | None]:
        """Logits (V,) of the next token → its id, and why the text ends with it.

        The id is None where it is an end-of-text token; the reason None where the text goes on,
        else "eos", "stop", "length" or "context".
        """
        token = self._options.next_token(logits, self.seen, self._uniforms)
        if token in self._eos:
            return None, "eos"
        self.seen.append(token)
        if self.ended():
            return token, "stop"
        if len(self.seen) >= self._n_positions:
            return token, "context"
        full = len(self.seen) - self._prompt >= self._options.max_new_tokens
        return token, "length" if full else None


class Token(NamedTuple):
    """One step of one row. `id` is None where the row ended without writing one."""

    row: int
    id: int | None
    finish: str | None  # None: it goes on; "eos", "stop", "length" or "context"


def write(step: Stepper, rows: Sequence[Row]) -> Iterator[Token]:
    """Write on behind several prompts at once, a token for each row in turn.

    Args:
        step: fresh, and told of the padding that `left_padded` puts in before the prompts.

    Yields:
        each row's tokens. The last of a row says why it ends; an end-of-text id is not written.

    Raises:
        CheckpointError: the logits hold NaN or infinity.
    """
    live = list(range(len(rows)))
    ids, _ = left_padded([row.seen for row in rows])
    while live:
        logits = sound(step(ids))
        going = []
        for i, row in enumerate(live):
            token, finish = rows[row].choose(logits[i])
            yield Token(row, token, finish)
            if finish is None:
                going.append(i)
        if 0 < len(going) < len(live):
            step.reorder(np.array(going))
        live = [live[i] for i in going]
        ids = np.array([rows[row].seen[-1:] for row in live], np.int64)


class Beam(NamedTuple):
    """A text that beam search ended: `score` is its mean log-probability per token, in nats."""

    ids: list[int]
    score: float
    finish: str


def beam_search(
    step: Stepper,
    prompt: Sequence[int],
    options: GenerationOptions,
    n_positions: int,
    eos: frozenset[int] = frozenset(),
    ended: Ended = lambda row, ids: False,
) -> list[Beam]:
    """The most probable continuations of one prompt, best first: `num_samples` of them.

    As transformers does it with its defaults (length_penalty 1, early_stopping False): a text's
    score is its mean log-probability, its end-of-text token counted; the search ends when no
    running text could still beat the worst of `num_beams` ended ones.

    Raises:
        CheckpointError: the logits hold NaN or infinity.
    """
    room = n_positions - len(prompt)
    limit, at_limit = (
        max(1, min(options.max_new_tokens, room)),
        ("length" if options.max_new_tokens <= room else "context"),
    )
    # So many that `num_beams` can run on even if every one of the best ends here.
    width = max(2, 1 + len(eos)) * options.num_beams
    running: list[list[int]] = [[]]
    scores = np.zeros(1)
    done: list[Beam] = []
    ids = np.array([prompt], np.int64)
    for length in range(1, limit + 1):
        totals = _log_probs(sound(step(ids)), prompt, running, options) + scores[:, None]
        best = np.argpartition(-totals, min(width, totals.size) - 1, axis=None)[:width]
        best = best[np.lexsort((best, -totals.flat[best]))]
        going = []
        for rank, flat in enumerate(best):
            parent, token = divmod(int(flat), totals.shape[1])
            text, total = running[parent], float(totals.flat[flat])
            finish = "eos" if token in eos else None
            if finish is None:
                text = [*text, token]
                finish = "stop" if ended(0, text) else at_limit if length == limit else None
            if finish is None:
                going.append((parent, text, total))
            elif rank < options.num_beams:
                done.append(Beam(text, total / length, finish))
        done = sorted(done, key=lambda beam: -beam.score)[: options.num_beams]
        going = going[: options.num_beams]
        if not going or (len(done) == options.num_beams and going[0][2] / length <= done[-1].score):
            break
        step.reorder(np.array([parent for parent, _, _ in going]))
        running, scores = [text for _, text, _ in going], np.array([total for *_, total in going])
        ids = np.array([[text[-1]] for text in running], np.int64)
    return done[: options.num_samples]


def _log_probs(
    logits: Array, prompt: Sequence[int], running: list[list[int]], options: GenerationOptions
) -> Array:
    if options.logit_bias:
        logits = sampling.logit_bias(logits.astype(np.float64), options.logit_bias)
    x = log_softmax(logits)
    if options.repetition_penalty != 1:
        for row, text in enumerate(running):
            seen = [*prompt, *text]
            x[row] = sampling.repetition_penalty(x[row], seen, options.repetition_penalty)
    return x


def left_padded(prompts: Sequence[Sequence[int]]) -> tuple[Array, Array | None]:
    """Prompts as one block (B, T) of ids, padded on the left, and its mask (None where none is).

    >>> left_padded([[5], [6, 7]])
    (array([[0, 5],
           [6, 7]]), array([[False,  True],
           [ True,  True]]))
    """
    width = max(map(len, prompts))
    ids, mask = np.zeros((len(prompts), width), np.int64), np.zeros((len(prompts), width), bool)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = prompt
        mask[row, width - len(prompt) :] = True
    return ids, None if mask.all() else mask


def sound(logits: Array) -> Array:
    """The logits (..., V), of which none is NaN or +∞. (−∞ is a token that is never written.)

    Raises:
        CheckpointError: one is.
    """
    if not np.isfinite(logits.max(-1)).all():
        raise CheckpointError("logits: NaN or infinity. The weights hold such numbers, or overflow")
    return logits
