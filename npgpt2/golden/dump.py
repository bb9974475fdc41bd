"""Read a port's dump: safetensors, npz, or raw files with an index.tsv.

Axes: B batch, T tokens, S = past + T, C n_embd, H heads, D head_dim, F mlp width, V vocabulary.
"""

import math
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

import numpy as np

from npgpt2.base.arrays import Array
from npgpt2.base.errors import CheckpointError, GoldenError
from npgpt2.base.files import named_errors, read_file, require_regular
from npgpt2.checkpoints.formats.safetensors_file import read_header
from npgpt2.checkpoints.formats.tensors import from_bfloat16
from npgpt2.golden.folder import INDEX, parse_shape

# The names of dtypes in an index.tsv, and in safetensors. bfloat16 is read as uint16.
DTYPES = {
    "float64": "<f8", "float32": "<f4", "float16": "<f2", "bfloat16": "<u2", "int64": "<i8",
    "int32": "<i4", "int16": "<i2", "int8": "i1", "uint64": "<u8", "uint32": "<u4",
    "uint16": "<u2", "uint8": "u1", "bool": "?",
}  # fmt: skip
SHORT = {
    "f64": "float64", "f32": "float32", "f16": "float16", "bf16": "bfloat16", "i64": "int64",
    "i32": "int32", "i16": "int16", "i8": "int8", "u64": "uint64", "u32": "uint32",
    "u16": "uint16", "u8": "uint8", "bool": "bool",
}  # fmt: skip

NEEDED = ("name", "dtype", "shape", "file")  # columns; offset too, if a file has several tensors


@dataclass(frozen=True)
class Dumped:
    """One tensor of a port: its values, and the dtype in which they were dumped."""

    array: Array
    dtype: str


def read_dump(path: Path) -> dict[str, Dumped]:
    """All tensors of a dump, by name.

    Raises:
        FileError: the dump cannot be read.
        GoldenError: its format is unknown, or it is damaged.
    """
    found: dict[str, Dumped] = {}
    try:
        with named_errors(path, inside=True):
            read = _raw if path.is_dir() else _npz if path.suffix == ".npz" else _safetensors
            for name, tensor in read(path):
                if name in found:
                    raise GoldenError(f"{path}: has {name!r} twice, expected once")
                found[name] = tensor
        return found
    except CheckpointError as error:
        raise GoldenError(
            f"{str(error).removesuffix('. Download again')}. Expected safetensors, .npz, or a "
            f"folder with {INDEX}"
        ) from None


def _safetensors(path: Path) -> Iterator[tuple[str, Dumped]]:
    for name, info in read_header(path).items():
        kind = SHORT.get(info.dtype.lower())
        if kind is None:
            raise GoldenError(
                f"{path}: {name} is {info.dtype}, expected one of {', '.join(DTYPES)}"
            )
        flat = np.fromfile(path, np.uint8, info.nbytes, offset=info.start)
        yield name, _dumped(flat.view(DTYPES[kind]).reshape(info.shape), kind)


def _npz(path: Path) -> Iterator[tuple[str, Dumped]]:
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                with archive.open(name) as file:
                    array = np.lib.format.read_array(file, allow_pickle=False)
                yield name.removesuffix(".npy"), _dumped(array, array.dtype.name)
    # A damaged or encrypted archive, an unknown compression, a member that is no array or is huge.
    except (
        zipfile.BadZipFile, zlib.error, ValueError, EOFError, RuntimeError, MemoryError,
    ) as error:  # fmt: skip
        raise GoldenError(f"{path}: is not an npz file of plain arrays ({error})") from None


def _raw(folder: Path) -> Iterator[tuple[str, Dumped]]:
    """The first line of `index.tsv` names the columns; name, dtype, shape, file are required."""
    path = folder / INDEX
    if not path.exists():
        raise GoldenError(
            f"{folder}: has no {INDEX}, expected one with the columns name, dtype, shape, file"
        )
    head, *lines = read_file(path).decode("utf-8", "replace").split("\n")
    if absent := [name for name in NEEDED if name not in head.rstrip("\r").split("\t")]:
        raise GoldenError(
            f"{path}: line 1: has no {', '.join(absent)}, expected the column names, separated by "
            f"tabs: {', '.join(NEEDED)}"
        )
    for number, line in enumerate(lines, 2):
        if not line.strip():
            continue
        row = dict(zip(head.rstrip("\r").split("\t"), line.rstrip("\r").split("\t"), strict=False))
        try:
            name, kind, shape = row["name"], row["dtype"], parse_shape(row["shape"])
            file, offset = folder / row["file"], int(row.get("offset", "0"))
            kind = SHORT.get(kind, kind)
            dtype = np.dtype(DTYPES[kind])
            if offset < 0 or "\0" in row["file"]:
                raise ValueError(f"the offset {offset}" if offset < 0 else "a file name with \\0")
        except (KeyError, ValueError) as error:
            raise GoldenError(
                f"{path}: line {number}: got {error}, expected a name, a dtype (one of "
                f"{', '.join(DTYPES)}), a shape such as 1x8x64 and a file"
            ) from None
        nbytes, there = math.prod(shape) * dtype.itemsize, require_regular(file) - offset
        if there < nbytes or ("offset" not in row and there > nbytes):
            raise GoldenError(
                f"{file}: has {there:,} bytes for {name}, expected {nbytes:,} "
                f"({row['shape']} {kind})"
            )
        flat = np.fromfile(file, np.uint8, nbytes, offset=offset)
        yield name, _dumped(flat.view(dtype).reshape(shape), kind)


def _dumped(array: Array, kind: str) -> Dumped:
    if kind == "bfloat16":
        return Dumped(from_bfloat16(array), kind)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"an array of {array.dtype}, expected numbers or booleans")
    return Dumped(array, kind)


# ── layouts ──────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Layout:
    """A port's tensor in the golden shape, and a description of its original layout."""

    array: Array
    words: str = ""


def layouts(name: str, array: Array, shape: tuple[int, ...], heads: int) -> Iterator[Layout]:
    """Every way to read a port's tensor in the golden shape, the simplest first.

    Args:
        name: name of the tensor, without its case.
        heads: number of heads of the layer.
    """
    if array.shape == shape:
        yield Layout(array)
    elif array.size == math.prod(shape) and _squeezed(array.shape) == _squeezed(shape):
        yield Layout(array.reshape(shape), f"shape {_written(array.shape)}")
    if name == "wpe" and shape[0] > 1 and _squeezed(array.shape) == _squeezed(shape[1:]):
        yield Layout(np.broadcast_to(array.reshape(shape[1:]), shape), "one for all rows")
    if name == "logits" and array.ndim and array.shape[-1] > shape[-1]:
        cut = array[..., : shape[-1]]
        if _squeezed(cut.shape) == _squeezed(shape):
            more = array.shape[-1]
            yield Layout(
                cut.reshape(shape),
                f"a padded vocabulary of {more:,}, without its last {more - shape[-1]:,}",
            )
    if array.size != math.prod(shape):
        return
    if len(shape) == 2 and array.shape == shape[::-1] and name.endswith("weight"):
        yield Layout(array.T, "(out, in)")
    yield from _with_heads(name, array, shape, heads)


def _with_heads(name: str, array: Array, shape: tuple[int, ...], heads: int) -> Iterator[Layout]:
    """Layouts of c_attn, heads and probs: with separate axes, or axes in another order."""
    axes: dict[str, int]
    if name.endswith("attn.c_attn") and len(shape) == 3:
        b, t, width = shape
        axes = {"B": b, "T": t, "3": 3, "H": heads, "D": width // 3 // heads}
    elif name.endswith("attn.heads") and len(shape) == 3:
        b, t, width = shape
        axes = {"B": b, "T": t, "H": heads, "D": width // heads}
    elif name.endswith(".probs") and len(shape) == 4:
        axes = dict(zip("BHTS", shape, strict=True))
    else:
        return
    for order in permutations(axes):
        sizes = tuple(axes[a] for a in order)
        if list(order) == list(axes) and array.shape == shape:
            continue
        if _squeezed(sizes) != _squeezed(array.shape):
            continue
        back = [order.index(a) for a in axes]
        apart = array.reshape(sizes).transpose(back)
        shown = ", ".join(a for a in order if axes[a] > 1 or a != "B")
        yield Layout(apart.reshape(shape), f"({shown})")


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(n for n in shape if n != 1)


def _written(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "() (a scalar)"
