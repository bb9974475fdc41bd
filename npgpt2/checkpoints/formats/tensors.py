"""The place of a tensor's values in a file, and how to read them: mapped or copied.

All formats give the same description: a path, the first byte, a shape, strides. A tensor that is
contiguous and already has the requested dtype is a view of the map: nothing is copied. A map has
one danger: if another program truncates the file while it is in use, the operating system kills
this process (SIGBUS). Reading copies has no such danger.
"""

import mmap as mmap_
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from npgpt2.base.arrays import Array
from npgpt2.base.errors import CheckpointError
from npgpt2.base.files import named_errors
from npgpt2.checkpoints.formats.checksums import require_sum

# NumPy has no bfloat16. Its bits are the upper half of a float32, see `from_bfloat16`.
DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
NOWHERE = Path()  # the path of tensors that are all zeros
SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1,
         "BOOL": 1}  # fmt: skip


class TensorInfo(NamedTuple):
    """The place of one tensor.

    Attributes:
        name: as in the parameter tree.
        dtype: as in safetensors, such as "F32".
        nbytes: bytes from the first value to the last.
        start: the first byte.
        strides: in values, not bytes; None for a contiguous tensor.
        checksum: CRC-32C of its bytes, if the format has one.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    path: Path
    start: int
    strides: tuple[int, ...] | None = None
    checksum: int | None = None

    @classmethod
    def zeros(cls, name: str, shape: tuple[int, ...]) -> "TensorInfo":
        """A tensor of zeros, which is in no file."""
        return cls(name, "F32", shape, 0, NOWHERE, 0)


class Files:
    """Reads tensors from files: each file is mapped once, or read tensor by tensor."""

    def __init__(self, mmap: bool, writable: bool = False) -> None:
        self._mmap, self._writable = mmap, writable
        self._maps: dict[Path, mmap_.mmap] = {}

    def array(self, info: TensorInfo, dtype: np.dtype[Any]) -> Array:
        """A tensor in `dtype`; a view of the map if no conversion is needed.

        Raises:
            FileError: the file cannot be read.
            CheckpointError: the file has become shorter since its header was read, or the checksum
                of the tensor does not match.
        """
        if info.path == NOWHERE:
            return np.zeros(info.shape, dtype)
        stored, flat = np.dtype(DTYPES[info.dtype]), self.raw(info)
        if info.checksum is not None:
            require_sum(info.path, info.name, flat, info.checksum)
        if info.start % stored.itemsize:  # legal, but unaligned: slow or wrong in BLAS
            flat = flat.copy()
        numbers = flat.view(stored)
        if info.strides is None:
            return to_dtype(numbers.reshape(info.shape), info.dtype, dtype)
        steps = tuple(step * stored.itemsize for step in info.strides)
        view = np.lib.stride_tricks.as_strided(numbers, info.shape, steps)
        return np.ascontiguousarray(to_dtype(view, info.dtype, dtype))

    def pieces(self, info: TensorInfo, size: int) -> Iterator[Array]:
        """A tensor as flat float32, in pieces of `size` values."""
        single = np.dtype(np.float32)
        if info.strides is not None or info.checksum is not None or info.path == NOWHERE:
            whole = self.array(info, single).reshape(-1)
            yield from (whole[at : at + size] for at in range(0, whole.size, size))
            return
        dtype = np.dtype(DTYPES[info.dtype])
        step = size * dtype.itemsize
        for at in range(0, info.nbytes, step):
            piece = info._replace(start=info.start + at, nbytes=min(step, info.nbytes - at))
            yield to_dtype(self.raw(piece).view(dtype), info.dtype, single)

    def raw(self, info: TensorInfo) -> Array:
        """The bytes from a tensor's first value to its last, uint8."""
        if self._mmap:
            if info.path not in self._maps:
                self._maps[info.path] = _map(info.path, self._writable)
            mapped = self._maps[info.path]
            if len(mapped) < info.start + info.nbytes:
                raise _shrunk(info, len(mapped))
            return np.frombuffer(mapped, np.uint8, info.nbytes, info.start)
        with named_errors(info.path):
            size = info.path.stat().st_size
            if size < info.start + info.nbytes:  # before memory for all of them is allocated
                raise _shrunk(info, size)
            flat = np.fromfile(info.path, np.uint8, info.nbytes, offset=info.start)
        if flat.size < info.nbytes:
            raise _shrunk(info, info.start + flat.size)
        return flat


def _map(path: Path, writable: bool) -> mmap_.mmap:
    """A map. What is written to a writable one stays in this process; the file does not change."""
    try:
        with named_errors(path), path.open("rb") as file:
            if writable:
                with suppress(OSError):  # larger than the memory that the system would promise
                    return mmap_.mmap(file.fileno(), 0, access=mmap_.ACCESS_COPY)
            return mmap_.mmap(file.fileno(), 0, access=mmap_.ACCESS_READ)
    except ValueError:  # an empty file cannot be mapped
        raise CheckpointError(f"{path}: has become empty. Download again") from None


def _shrunk(info: TensorInfo, size: int) -> CheckpointError:
    return CheckpointError(
        f"{info.path}: has become shorter while it was read: {size:,} of "
        f"{info.start + info.nbytes:,} bytes. Download again"
    )


def from_bfloat16(bits: Array) -> Array:
    """bfloat16 values as uint16 bits → the same values as float32.

    >>> from_bfloat16(np.array([0x3F80, 0xC000], "<u2"))
    array([ 1., -2.], dtype=float32)
    """
    return (bits.astype("<u4") << 16).view("<f4")


def to_dtype(stored: Array, name: str, dtype: np.dtype[Any]) -> Array:
    if name == "BF16":
        stored = from_bfloat16(stored)
    if stored.dtype == dtype:
        return stored
    with np.errstate(over="ignore"):  # a float64 beyond float32's range is reported as infinity
        return stored.astype(dtype)
