"""Texts of any length in one cache, side by side: they join and leave between two steps.

A `Stepper` is given its rows together and they grow together. Here each row, a slot, has a length
of its own: a prompt is read into one while the others stand, and then a token is written behind
each. What a row's logits are, to the last bit, does not depend on the rows beside it: a matrix
product sums in an order that depends on how many rows it has, so each engine says how many it has
to be given for that (`padded`).

Axes: B rows, H heads (of the layer), T new tokens, S tokens held, D head_dim, V vocabulary.
"""

from abc import ABC, abstractmethod

import numpy as np
import numpy.typing as npt

from npgpt2.base.arrays import Array
from npgpt2.model.cache import KVCache
from npgpt2.model.config import GPT2Config

Block = list[Array]  # by layer, keys and values (2, H, T, D) of some tokens of a text


class Slots(ABC):
    """Slots with one engine behind them.

    Args:
        count: how many; all of their memory is asked for at once.
        dtype: of keys and values.

    Attributes:
        lengths: (B,), tokens that each slot holds.

    >>> from npgpt2 import GPT2
    >>> slots = GPT2.from_pretrained("tests/data/tiny").slots(2)
    >>> slots.prefill(0, np.array([262, 497])).shape, slots.prefill(1, np.array([84])).shape
    ((512,), (512,))
    >>> slots.step(np.array([5, 6])).shape, slots.lengths.tolist()
    ((2, 512), [3, 2])
    """

    def __init__(self, config: GPT2Config, count: int, dtype: npt.DTypeLike = np.float32) -> None:
        self.count, self.n_positions = count, config.n_positions
        self.lengths = np.zeros(count, np.int64)
        self._cache = KVCache(config, count, config.n_positions, dtype)

    # ── what an engine gives ─────────────────────────────────────────────────────────────────────

    @abstractmethod
    def padded(self, rows: int) -> int:
        """So many rows a step has to compute, for each to be the same whatever the others are."""

    @abstractmethod
    def _prefill(self, slot: int, ids: Array, every: bool) -> Array:
        """Ids (1, T) behind what a slot holds → logits (1, T, V) with `every`, else (1, 1, V)."""

    @abstractmethod
    def _step(self, ids: Array) -> Array:
        """Ids (B, 1) behind what the first B slots hold → logits (B, 1, V)."""

    # ── what is done with them ───────────────────────────────────────────────────────────────────

    def prefill(self, slot: int, ids: Array, every: bool = False) -> Array:
        """Put T tokens (T,) behind what a slot holds.

        Returns:
            the logits (V,) of the token after the last; with `every` (T, V), after each.
        """
        logits = self._prefill(slot, ids[None], every)[0]
        self.lengths[slot] += len(ids)
        last: Array = logits[-1]
        return logits if every else last

    def step(self, ids: Array) -> Array:
        """Put a token (B,) behind what each of the first B slots holds.

        Returns:
            (B, V), the logits of the token after it.
        """
        rows = len(ids)
        # What stands in for missing rows is written behind what other slots hold, and forgotten.
        filled = np.zeros((self.padded(rows), 1), np.int64)
        filled[:rows, 0] = ids
        logits = self._step(filled)[:rows, 0]
        self.lengths[:rows] += 1
        return logits

    def move(self, source: int, target: int) -> None:
        """A slot's text goes to another slot, and leaves its own empty."""
        held = self.lengths[source]
        for layer in range(len(self._cache)):
            for buffer in self._cache.room(layer):
                buffer[target, :, :held] = buffer[source, :, :held]
        self.lengths[target] = held
        self.clear(source)

    def clear(self, slot: int) -> None:
        """Forget a slot's text. What lies there is not read again: not even NaN does harm."""
        self.lengths[slot] = 0

    def block(self, slot: int, start: int, stop: int) -> Block:
        """A copy of the keys and values of some tokens."""
        layers = range(len(self._cache))
        return [np.stack([b[slot, :, start:stop] for b in self._cache.room(n)]) for n in layers]

    def restore(self, slot: int, block: Block) -> None:
        """Put a block behind what a slot holds, as if its tokens had been read again."""
        start = self.lengths[slot]
        stop = start + block[0].shape[2]
        for layer, pair in enumerate(block):
            for buffer, array in zip(self._cache.room(layer), pair, strict=True):
                buffer[slot, :, start:stop] = array
        self.lengths[slot] = stop


class RaggedCache(KVCache):
    """A `KVCache` of rows that differ in length: one new token each, behind its own last.

    `length` is that of the longest.
    """

    @classmethod
    def over(cls, cache: KVCache, lengths: Array) -> "RaggedCache":
        """The first rows of a cache, in its memory, with so many tokens in each."""
        ragged = cls.__new__(cls)
        ragged.__dict__ |= cache.rows(0, len(lengths)).__dict__
        ragged.length, ragged.lengths = int(lengths.max()), lengths + 1
        return ragged

    def write(self, layer: int, key: Array, value: Array) -> tuple[Array, Array]:
        assert self.lengths is not None
        rows = np.arange(len(self.lengths))
        for buffer, new in zip(self.room(layer), (key, value), strict=True):
            buffer[rows, :, self.lengths - 1] = new[:, :, 0]
        return self.room(layer)
