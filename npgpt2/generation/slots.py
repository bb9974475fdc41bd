"""Slots: texts of different lengths in one KV cache, which join and leave between two steps.

The rows of a `Stepper` begin and grow together. Here each row, a slot, has its own length: a prompt
is prefilled into one slot while the others wait, and a decode step appends one token to each. The
logits of a row are the same to the last bit whatever the other rows are. The order of the sums in a
matrix product depends on its number of rows, so each engine says how many rows it must be given
(`padded`).

Axes: B rows, H heads (of the layer), T new tokens, D head_dim, V vocabulary.
"""

from abc import ABC, abstractmethod

import numpy as np
import numpy.typing as npt

from npgpt2.base.arrays import Array
from npgpt2.model.cache import KVCache
from npgpt2.model.config import GPT2Config

Block = list[Array]  # for each layer, keys and values (2, H, T, D) of some tokens of a text


class Slots(ABC):
    """The slots of one engine.

    Args:
        count: number of slots; the memory of all is allocated at once.
        dtype: of keys and values.

    Attributes:
        lengths: (B,) int64, the number of tokens in each slot.

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

    # ── implemented by an engine ─────────────────────────────────────────────────────────────────

    @abstractmethod
    def padded(self, rows: int) -> int:
        """How many rows a step must compute so that the other rows do not change a row's result."""

    @abstractmethod
    def _prefill(self, slot: int, ids: Array, every: bool) -> Array:
        """Append ids (1, T) to a slot → logits (1, T, V) with `every`, else (1, 1, V)."""

    @abstractmethod
    def _step(self, ids: Array) -> Array:
        """Append ids (B, 1) to the first B slots → logits (B, 1, V)."""

    # ── common to all engines ────────────────────────────────────────────────────────────────────

    def prefill(self, slot: int, ids: Array, every: bool = False) -> Array:
        """Append T tokens, ids (T,), to a slot.

        Returns:
            the logits (V,) of the token after the last; with `every`, (T, V), after each.
        """
        logits = self._prefill(slot, ids[None], every)[0]
        self.lengths[slot] += len(ids)
        last: Array = logits[-1]
        return logits if every else last

    def step(self, ids: Array) -> Array:
        """Append one token, ids (B,), to each of the first B slots.

        Returns:
            the logits (B, V) of the token after it.
        """
        rows = len(ids)
        # Zeros fill the missing rows: they land after the text of other slots, and are ignored.
        filled = np.zeros((self.padded(rows), 1), np.int64)
        filled[:rows, 0] = ids
        logits = self._step(filled)[:rows, 0]
        self.lengths[:rows] += 1
        return logits

    def move(self, source: int, target: int) -> None:
        """Move a slot's text to another slot; the source becomes empty."""
        held = self.lengths[source]
        for layer in range(len(self._cache)):
            for buffer in self._cache.room(layer):
                buffer[target, :, :held] = buffer[source, :, :held]
        self.lengths[target] = held
        self.clear(source)

    def clear(self, slot: int) -> None:
        """Empty a slot. Its old values, even NaN, are never read again."""
        self.lengths[slot] = 0

    def block(self, slot: int, start: int, stop: int) -> Block:
        """A copy of the keys and values of tokens `start` to `stop` of a slot."""
        layers = range(len(self._cache))
        return [np.stack([b[slot, :, start:stop] for b in self._cache.room(n)]) for n in layers]

    def restore(self, slot: int, block: Block) -> None:
        """Append a block to a slot, as if its tokens had been prefilled."""
        start = self.lengths[slot]
        stop = start + block[0].shape[2]
        for layer, pair in enumerate(block):
            for buffer, array in zip(self._cache.room(layer), pair, strict=True):
                buffer[slot, :, start:stop] = array
        self.lengths[slot] = stop


class RaggedCache(KVCache):
    """A `KVCache` of rows of different lengths: each gets one new token after its own last.

    `length` is that of the longest row.
    """

    @classmethod
    def over(cls, cache: KVCache, lengths: Array) -> "RaggedCache":
        """The first rows of a cache, in the same memory; row i has `lengths[i]` tokens."""
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
