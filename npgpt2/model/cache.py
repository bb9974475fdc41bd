"""The KV cache: keys and values of past tokens, so that a step computes only the new ones.

Axes: B batch, H heads (of the layer), P past tokens, D head_dim, L layers.
"""

from copy import copy
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from npgpt2.base.arrays import Array
from npgpt2.base.errors import InputError
from npgpt2.model.config import GPT2Config


class KVCache:
    """Preallocated keys and values of all layers.

    Pass it as `past_key_values`: a forward pass appends to it in place. `cache[i]` is layer i's
    (key, value), each a view (B, H, P, D): what an ONNX graph takes as `past_key_values.i.key` and
    `.value`. The buffers double when they are full, up to n_positions; only padding columns can
    make them longer.

    Attributes:
        length: P, the number of past tokens.
        lengths: (B,) tokens of each row after the pass, if the rows differ; else None.
        cross: by layer, keys and values of the encoder's states, once computed.
        cross_mask: (B, E) bool, False where an encoder state is padding; None if there is none.

    >>> config = GPT2Config(n_layer=2, n_head=2, n_embd=8, n_positions=16)
    >>> cache = KVCache(config, batch_size=1)
    >>> cache.write(0, np.ones((1, 2, 3, 4), "f4"), np.ones((1, 2, 3, 4), "f4"))[0].shape
    (1, 2, 3, 4)
    >>> cache.advance(3)
    >>> len(cache), cache.length, cache[0][0].shape
    (2, 3, (1, 2, 3, 4))
    """

    lengths: Array | None

    def __init__(
        self,
        config: GPT2Config,
        batch_size: int,
        capacity: int = 64,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        self.length, self.lengths = 0, None
        self._limit, self._dtype = config.n_positions, np.dtype(dtype)
        self._heads = [config.heads_left(i) for i in range(config.n_layer)]
        self._head_dim = config.head_dim
        self._buffers = self._allocate(batch_size, capacity)
        self.cross: dict[int, tuple[Array, Array]] = {}
        self.cross_mask: Array | None = None

    def _allocate(self, batch_size: int, capacity: int) -> list[Array]:
        """Per layer (2, B, H, capacity, D), in one allocation, which can use huge pages."""
        row = 2 * batch_size * capacity * self._head_dim
        memory = np.empty(row * sum(self._heads), self._dtype)
        ends = [row * heads for heads in accumulate(self._heads)]
        return [
            memory[end - row * heads : end].reshape(2, batch_size, heads, capacity, self._head_dim)
            for heads, end in zip(self._heads, ends, strict=True)
        ]

    def __len__(self) -> int:
        """L, the number of layers, as for a tuple of (key, value) pairs."""
        return len(self._buffers)

    def __getitem__(self, layer: int) -> tuple[Array, Array]:
        key, value = self._buffers[layer][:, :, :, : self.length]
        return key, value

    @property
    def batch_size(self) -> int:
        """B, the number of rows."""
        return int(self._buffers[0].shape[1])

    @property
    def capacity(self) -> int:
        """The number of tokens that fit into the buffers."""
        return int(self._buffers[0].shape[3])

    def write(self, layer: int, key: Array, value: Array) -> tuple[Array, Array]:
        """Append T new (B, H, T, D) to the past; returns views (B, H, P+T, D). Does not advance.

        Raises:
            InputError: the batch size differs from that of the cache.
        """
        if key.shape[0] != self.batch_size:
            raise InputError(f"past_key_values: got {self.batch_size} rows, expected {len(key)}")
        end = self.length + key.shape[2]
        self.reserve(end)  # only the first layer of a pass moves the buffers
        buffer = self._buffers[layer]
        buffer[0, :, :, self.length : end] = key
        buffer[1, :, :, self.length : end] = value
        return buffer[0, :, :, :end], buffer[1, :, :, :end]

    def rows(self, first: int, last: int) -> "KVCache":
        """A cache of these rows, in the same memory. Its length is 0, and it cannot grow."""
        part = copy(self)
        part._buffers = [buffer[:, first:last] for buffer in self._buffers]
        part.length = 0
        return part

    def reserve(self, tokens: int) -> None:
        """Make room for this many tokens in all; larger buffers are allocated if necessary."""
        if tokens <= self.capacity:
            return
        limit = self._limit if tokens <= self._limit else 2 * tokens  # padding may exceed it
        capacity = max(tokens, min(2 * self.capacity, limit))
        self._move(self._allocate(self.batch_size, capacity), slice(None))

    def room(self, layer: int) -> tuple[Array, Array]:
        """A layer's whole key and value buffers (B, H, capacity, D), including the unused part.

        For an engine that writes in place and sets `length` itself.
        """
        key, value = self._buffers[layer]
        return key, value

    def _move(self, buffers: list[Array], rows: Any) -> None:
        """Copy these rows of the past to other buffers, and use those from now on."""
        for new, old in zip(buffers, self._buffers, strict=True):
            new[:, :, :, : self.length] = old[:, rows, :, : self.length]
        self._buffers = buffers

    def advance(self, tokens: int) -> None:
        """Add T tokens to `length`, after every layer has written them."""
        self.length += tokens

    def fits(self, config: GPT2Config, dtype: npt.DTypeLike) -> bool:
        """Whether the cache was made for a model of this config and dtype."""
        heads = [config.heads_left(i) for i in range(config.n_layer)]
        made_for = (self._heads, self._head_dim, self._dtype)
        return made_for == (heads, config.head_dim, np.dtype(dtype))

    def rewind(self, length: int) -> None:
        """Keep only the first `length` tokens. Raises InputError unless 0 ≤ length ≤ P."""
        if not 0 <= length <= self.length:
            raise InputError(f"length: got {length}, expected 0 to {self.length}")
        self.length = length

    def reorder(self, rows: npt.ArrayLike) -> None:
        """Keep these rows of the batch, in this order. A row may be repeated or left out."""
        index = np.asarray(rows)
        whole = index.dtype.kind in "iu" and index.ndim == 1 and index.size > 0
        if not whole or index.min() < 0 or index.max() >= self.batch_size:
            raise InputError(f"rows: got {rows!r}, expected row numbers below {self.batch_size}")
        self._move(self._allocate(len(index), self.capacity), index)
        self.cross = {layer: (k[index], v[index]) for layer, (k, v) in self.cross.items()}
        if self.cross_mask is not None:
            self.cross_mask = self.cross_mask[index]

    def __repr__(self) -> str:
        shape: tuple[Any, ...] = self[0][0].shape
        return f"KVCache(layers={len(self)}, key=value={shape}, dtype={self._buffers[0].dtype})"
