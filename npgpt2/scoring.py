"""How probable a text is: log-probability per token, perplexity, bits per byte.

Axes: T tokens of the text.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from npgpt2.errors import InputError, OptionError
from npgpt2.ops import Array, cross_entropy

ROWS = 64  # positions whose logits are held in float64 at a time


@dataclass(frozen=True, eq=False)
class Score:
    """What a model thinks of a text.

    Attributes:
        ids: (T,) int64.
        logprobs: (T,) float64, natural logarithm; NaN where a token had nothing before it.
        bytes: of the tokens that were scored, as text.
        tokens: how many were scored.
        nats: the sum of −log-probability over them.
    """

    ids: Array
    logprobs: Array
    bytes: int

    @property
    def tokens(self) -> int:
        return int((~np.isnan(self.logprobs)).sum())

    @property
    def nats(self) -> float:
        return -float(np.nansum(self.logprobs))

    @property
    def perplexity(self) -> float:
        """exp of the mean −log-probability; infinite where that overflows, NaN of nothing."""
        if not self.tokens:
            return math.nan
        mean = self.nats / self.tokens
        return math.exp(mean) if mean < 700 else math.inf

    @property
    def bits_per_byte(self) -> float:
        """NaN for a model without a vocabulary, whose tokens have no bytes."""
        return self.nats / math.log(2) / self.bytes if self.bytes else math.nan


class Window(NamedTuple):
    """Tokens start … stop go through the model; those from `first` on are scored."""

    start: int
    first: int
    stop: int


def windows(length: int, size: int, stride: int) -> Iterator[Window]:
    """A sliding window, as in https://huggingface.co/docs/transformers/perplexity.

    Every token is scored once, except those with nothing before them in their window: the first of
    the text, and with stride == size the first of each window.

    >>> [tuple(w) for w in windows(10, size=6, stride=3)]
    [(0, 1, 6), (3, 6, 9), (6, 9, 10)]
    >>> [tuple(w) for w in windows(10, size=6, stride=6)]
    [(0, 1, 6), (6, 7, 10)]
    """
    scored = 0
    for start in range(0, length, stride):
        stop = min(start + size, length)
        yield Window(start, max(scored, start + 1), stop)
        scored = stop
        if stop == length:
            return


def token_logprobs(
    logits_of: Callable[[Array], Array],
    ids: Array,
    size: int,
    stride: int | None = None,
    progress: Callable[[Iterable[Window], str], Iterable[Window]] = lambda loop, what: loop,
) -> Array:
    """Log-probability of each token given those before it in its window.

    Args:
        logits_of: ids (1, T) → logits (1, T, V).
        ids: (T,) int64.
        size: of the window, the model's n_positions at most.
        stride: how far the window moves; by default half of it. Smaller gives more context to each
            token and takes longer.

    Returns:
        (T,) float64, NaN where a token was not scored.

    Raises:
        OptionError: a stride outside 1 … size.
        InputError: fewer than two tokens.
    """
    stride = max(1, size // 2) if stride is None else stride
    if not isinstance(stride, int) or isinstance(stride, bool) or not 1 <= stride <= size:
        raise OptionError("stride", f"got {stride!r}, expected a whole number from 1 to {size}")
    if len(ids) < 2:
        raise InputError(
            f"text: has {len(ids)} tokens, expected two at least: "
            "the first has nothing to be predicted from"
        )
    logprobs = np.full(len(ids), np.nan)
    for start, first, stop in progress(list(windows(len(ids), size, stride)), "scoring"):
        if first < stop:
            logits = logits_of(ids[None, start : stop - 1])[0, first - start - 1 :]
            for i in range(0, stop - first, ROWS):
                rows = slice(first + i, min(first + i + ROWS, stop))
                wide = logits[i : i + ROWS].astype(np.float64)
                logprobs[rows] = -cross_entropy(wide, ids[rows])
    return logprobs
