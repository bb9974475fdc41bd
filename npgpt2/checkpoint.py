"""A checkpoint folder ↔ config and parameters. Every quirk of files in the wild lives here.

The library `safetensors` validates a file; then it is memory-mapped and the tensors are views of
the map: nothing is copied where the file holds the dtype that is asked for. A map has one danger.
If another program truncates the file while it is in use, the operating system ends this process
(SIGBUS); `mmap=False` reads everything into memory first and has no such danger.
"""

import json
import mmap as mmap_module
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from npgpt2.config import GPT2Config
from npgpt2.errors import CheckpointError, ConfigError, FileError, WeightsWarning
from npgpt2.files import parse_json, read_json, replaced, require_regular
from npgpt2.ops import Array
from npgpt2.params import Params, build_tree, named_parameters, param_shapes

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"

# NumPy has no bfloat16: its bits are the upper half of a float32, see `from_bfloat16`.
DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}

MAX_HEADER = 100_000_000  # bytes, as in the library

# Old checkpoints carry each layer's causal mask and the value behind it as if they were weights.
MASK_BUFFER = re.compile(r"h\.\d+\.(attn|crossattention)\.(bias|masked_bias)$")

# What people really have under the name model.safetensors, by its first bytes.
IMPOSTORS = {
    b"version https://git-lfs": "is a Git LFS pointer, expected the weights. Run 'git lfs pull'",
    b"<!doctype html": "is a web page, expected the weights: the download failed. Download again",
    b"<html": "is a web page, expected the weights: the download failed. Download again",
    b"\x1f\x8b": "is compressed (gzip), expected safetensors. Unpack it first",
    b"pk\x03\x04": "is a zip archive (of PyTorch?), expected safetensors. Save it as such",
}

Progress = Callable[[Iterable[str], str], Iterable[str]]


class TensorInfo(NamedTuple):
    """Where one tensor lies: `name` as in the tree, `dtype` as in the file, `start` in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    path: Path
    start: int


@dataclass(frozen=True)
class Checkpoint:
    """What a folder holds, before any number is read.

    >>> checkpoint = Checkpoint.open("tests/data/tiny")
    >>> checkpoint.config.n_layer, checkpoint.tensors["h.0.attn.c_attn.weight"].shape
    (3, (64, 192))
    """

    folder: Path
    config: GPT2Config
    tensors: dict[str, TensorInfo]

    @classmethod
    def open(cls, folder: str | Path) -> "Checkpoint":
        """Read config.json and the headers, and check that the tensors are those of the config.

        Raises:
            FileError: a file is missing or cannot be read.
            ConfigError: config.json is not a GPT-2 that is implemented here.
            CheckpointError: a weights file is damaged, or tensors are missing, extra or misshapen.
        """
        folder = Path(folder)
        if not os.path.isdir(folder):  # Path.is_dir raises where the name is too long
            raise FileError(f"{folder}: no such folder, expected one with config.json in it")
        config = read_config(folder)
        found = read_headers(folder)
        tensors = {name: info for name, info in found.items() if not MASK_BUFFER.fullmatch(name)}
        config = _settle_head(config, tensors)
        _require_sound(folder, config, tensors)
        return cls(folder, config, {name: tensors[name] for name in param_shapes(config)})

    def read(
        self,
        dtype: npt.DTypeLike = np.float32,
        mmap: bool = True,
        strict: bool = False,
        progress: Progress = lambda names, what: names,
    ) -> Params:
        """The parameters, in float32 or float64.

        Args:
            mmap: map the files; tensors already of `dtype` are views, read-only and shared between
                processes. False: read copies.
            strict: NaN or infinity in the weights is an error, not a warning.
            progress: wraps the loop over names.

        Raises:
            CheckpointError: with `strict`, a tensor holds NaN or infinity; a file has become
                shorter since its header was read.
        """
        files: dict[Path, _File] = {}
        arrays: dict[str, Array] = {}
        for name in progress(self.tensors, "loading"):
            info = self.tensors[name]
            if info.path not in files:
                files[info.path] = _File(info.path, mmap)
            stored = files[info.path].tensor(info)
            arrays[name] = _to_dtype(stored, info.dtype, np.dtype(dtype))
            _warn_of_nonfinite(arrays[name], info, strict)
        return build_tree(arrays)

    def pieces(self, name: str, size: int) -> Iterator[Array]:
        """One parameter as float32, flat, in pieces of `size` numbers: read, not mapped.

        Raises:
            FileError: the file cannot be read.
            CheckpointError: it has become shorter since its header was read.
        """
        info = self.tensors[name]
        dtype = np.dtype(DTYPES[info.dtype])
        file, step = _File(info.path, mmap=False), size * dtype.itemsize
        for at in range(0, info.nbytes, step):
            piece = info._replace(start=info.start + at, nbytes=min(step, info.nbytes - at))
            yield _to_dtype(file.raw(piece).view(dtype), info.dtype, np.dtype(np.float32))


def save(
    folder: Path, config: GPT2Config, params: Params, dtype: npt.DTypeLike = np.float32
) -> None:
    """Write config.json, generation_config.json and model.safetensors, as transformers does.

    Each file is written whole or not at all, the weights last.

    Args:
        dtype: of the weights: float32, or float16 for half the size.

    Raises:
        FileError: a file cannot be written.
    """
    eos = config.eos_token_id
    ids = {"bos_token_id": config.bos_token_id, "eos_token_id": eos}
    values = {**config.to_dict(), "dtype": np.dtype(dtype).name}
    for name, table in (("config.json", values), ("generation_config.json", ids)):
        with replaced(folder / name) as path:
            path.write_text(json.dumps(table, indent=2) + "\n")
    tensors = {
        name if name == "lm_head.weight" else f"transformer.{name}": array.astype(dtype, copy=False)
        for name, array in named_parameters(params)
    }
    save_tensors(folder / SINGLE, tensors)


def save_tensors(path: Path, tensors: Mapping[str, Array]) -> None:
    """One safetensors file, whole or not at all. Raises FileError where it cannot be written."""
    with replaced(path) as work:
        try:
            save_file(dict(tensors), work, {"format": "pt"})  # transformers asks for this word
        except SafetensorError as error:
            raise FileError(f"{path}: {error}") from None


def read_config(folder: Path) -> GPT2Config:
    """config.json, with the end-of-text ids of generation_config.json where it names them."""
    config = GPT2Config.from_file(folder / "config.json")
    path = folder / "generation_config.json"
    if path.exists():
        eos = read_json(path, ConfigError).get("eos_token_id")
        try:
            config = config if eos is None else replace(config, eos_token_id=eos)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None
    return config


def read_headers(folder: Path) -> dict[str, TensorInfo]:
    """Every tensor of a folder's safetensors file or files, by its name in the tree."""
    if (folder / SINGLE).exists() or not (folder / INDEX).exists():
        if not (folder / SINGLE).exists():
            other = [p.name for p in sorted(folder.glob("*.bin")) + sorted(folder.glob("*.ckpt*"))]
            hint = f"It has {other[0]}: save that as safetensors. " if other else ""
            if any(folder.glob("onnx/*.onnx")):
                hint = "It has ONNX graphs, but not the checkpoint that they came from. "
            raise FileError(
                f"{folder / SINGLE}: no such file. {hint}Expected {SINGLE} or {INDEX} in the folder"
            )
        return read_header(folder / SINGLE)
    where = read_json(folder / INDEX, CheckpointError).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(f, str) for f in where.values()):
        raise CheckpointError(f"{folder / INDEX}: weight_map is not a table of tensor → file")
    tensors: dict[str, TensorInfo] = {}
    for shard in sorted(set(where.values())):
        if shard in ("", ".", "..") or "/" in shard or "\\" in shard or "\0" in shard:
            raise CheckpointError(
                f"{folder / INDEX}: names the shard {shard!r}, expected a file in the same folder"
            )
        if not os.path.exists(folder / shard):
            raise FileError(
                f"{folder / shard}: this shard is missing, {INDEX} names it. Download it"
            )
        held = read_header(folder / shard)
        named = {_tree_name(name) for name, file in where.items() if file == shard}
        if set(held) != named or tensors.keys() & named:
            odd = min(set(held) ^ named or tensors.keys() & named)
            raise CheckpointError(f"{folder / INDEX}: disagrees with {shard} about {odd}")
        tensors |= held
    return tensors


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Every tensor of one safetensors file (https://huggingface.co/docs/safetensors).

    Raises:
        FileError: it is not a regular file, or cannot be read.
        CheckpointError: it is not a sound safetensors file.
    """
    try:
        size = require_regular(path)
        with path.open("rb") as file:
            start = file.read(32)
            for magic, text in IMPOSTORS.items():
                if start.lstrip().lower().startswith(magic):
                    raise CheckpointError(f"{path}: {text}")
            if size < 8:
                raise CheckpointError(
                    f"{path}: has {size} bytes, expected a safetensors file. Download again"
                )
            length = int.from_bytes(start[:8], "little")
            if not 2 <= length <= min(size - 8, MAX_HEADER):
                raise CheckpointError(
                    f"{path}: header of {length:,} bytes in a file of {size:,}: "
                    "not safetensors, or damaged. Download again"
                )
            file.seek(8)
            header = _parse_header(path, file.read(length))
        _require_complete(path, header, size - 8 - length)
        with safe_open(path, framework="numpy"):
            pass  # the library checks offsets, overlaps, holes, sizes and dtypes
    except SafetensorError as error:
        raise CheckpointError(f"{path}: damaged header ({error}). Download again") from None
    except OSError as error:
        if isinstance(error, FileError):
            raise
        raise FileError(f"{path}: {error.strerror or error}") from None
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        name = _tree_name(name)
        if name in tensors:
            raise CheckpointError(f"{path}: holds {name} with and without 'transformer.'")
        tensors[name] = TensorInfo(
            name, entry["dtype"], tuple(entry["shape"]), end - begin, path, 8 + length + begin
        )
    return tensors


def _parse_header(path: Path, data: bytes) -> dict[str, Any]:
    header = parse_json(data, f"{path}: header", CheckpointError)
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CheckpointError(f"{path}: __metadata__ is not a table of text → text. Save it again")
    for name, entry in header.items():
        for key, good, expected in FIELDS:
            value = entry.get(key) if isinstance(entry, dict) else None
            if not good(value):
                raise CheckpointError(
                    f"{path}: {name} has {key} {value!r}, expected {expected}. Download again"
                )
    return header


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)


# What a tensor's entry holds. The library takes other forms too, such as a list in their order.
FIELDS: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("dtype", lambda v: isinstance(v, str), "a name such as F32"),
    ("shape", _counts, "whole numbers from 0"),
    ("data_offsets", lambda v: _counts(v) and len(v) == 2 and v[0] <= v[1], "[begin, end]"),
)


def _require_complete(path: Path, header: dict[str, Any], size: int) -> None:
    """The two commonest damages in words; the library says the rest."""
    end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if size < end:
        raise CheckpointError(f"{path}: has {size:,} of {end:,} bytes of data: download again")
    if size > end:
        raise CheckpointError(f"{path}: {size - end:,} bytes too many at the end. Download again")


def _tree_name(name: str) -> str:
    return name.removeprefix("transformer.")


def _settle_head(config: GPT2Config, tensors: dict[str, TensorInfo]) -> GPT2Config:
    """Decide by the files whether the head is tied, as transformers 5 does.

    A head stored beside a config that ties it is the same matrix written twice, or was trained
    apart: then it is the model's own. Where only the head was stored, it is wte as well.
    """
    head, wte = tensors.get("lm_head.weight"), tensors.get("wte.weight")
    if head is None or not config.tie_word_embeddings:
        return config
    if wte is None:
        tensors["wte.weight"] = head
    elif head.shape == wte.shape and not _same_bytes(head, wte):
        return replace(config, tie_word_embeddings=False)
    del tensors["lm_head.weight"]
    return config


def _same_bytes(a: TensorInfo, b: TensorInfo) -> bool:
    one, two = (_File(i.path, mmap=True).raw(i) for i in (a, b))
    return bool(np.array_equal(one, two))


def _require_sound(folder: Path, config: GPT2Config, tensors: dict[str, TensorInfo]) -> None:
    """Missing, misshapen, unexpected tensors and dtypes, all in one line."""
    # A layer has 12 tensors at least. Asked first: n_layer may claim a billion.
    if config.n_layer > len(tensors):
        raise CheckpointError(
            f"{folder}: config.json has n_layer {config.n_layer:,}, "
            f"the weights have {len(tensors)} tensors in all"
        )
    shapes = param_shapes(config)
    missing = [name for name in shapes if name not in tensors]
    extra = [name for name in tensors if name not in shapes]
    wrong, other = [], []
    for name in shapes.keys() & tensors.keys():
        got, want = tensors[name].shape, shapes[name]
        if got != want:
            transposed = ", transposed" if got == want[::-1] else ""
            wrong.append(f"{name} is {got}, expected {want}{transposed}")
        if tensors[name].dtype not in DTYPES:
            other.append(f"{name} is {tensors[name].dtype}, expected one of {', '.join(DTYPES)}")
    faults = []
    if missing:
        faults.append(f"{_some(missing)} missing, {len(missing)} of {len(shapes)}")
    if wrong:
        faults.append(f"{len(wrong)} of the wrong shape ({_some(sorted(wrong))})")
    if other:
        faults.append(f"{len(other)} of an unknown dtype ({_some(sorted(other))})")
    if extra:
        faults.append(f"{len(extra)} unexpected ({_some(sorted(extra))})")
    if faults:
        raise CheckpointError(
            f"{folder}: {'; '.join(faults)}. Expected the tensors of the GPT-2 in config.json"
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


class _File:
    """The bytes of one file: mapped, or read tensor by tensor."""

    def __init__(self, path: Path, mmap: bool) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self.map = (
                    mmap_module.mmap(file.fileno(), 0, access=mmap_module.ACCESS_READ)
                    if mmap
                    else None
                )
        except OSError as error:
            raise FileError(f"{path}: {error.strerror or error}") from None
        except ValueError:  # an empty file cannot be mapped
            raise CheckpointError(f"{path}: has become empty. Download again") from None

    def tensor(self, info: TensorInfo) -> Array:
        dtype, flat = np.dtype(DTYPES[info.dtype]), self.raw(info)
        if info.start % dtype.itemsize:  # legal, and slow or worse for BLAS
            flat = flat.copy()
        return flat.view(dtype).reshape(info.shape)

    def raw(self, info: TensorInfo) -> Array:
        if self.map is not None:
            if len(self.map) < info.start + info.nbytes:
                raise self._shrunk(info, len(self.map))
            return np.frombuffer(self.map, np.uint8, info.nbytes, info.start)
        try:
            flat = np.fromfile(self.path, np.uint8, info.nbytes, offset=info.start)
        except OSError as error:
            raise FileError(f"{self.path}: {error.strerror or error}") from None
        if flat.size < info.nbytes:
            raise self._shrunk(info, info.start + flat.size)
        return flat

    def _shrunk(self, info: TensorInfo, size: int) -> CheckpointError:
        return CheckpointError(
            f"{self.path}: has become shorter while it was read: {size:,} of "
            f"{info.start + info.nbytes:,} bytes. Download again"
        )


def from_bfloat16(bits: Array) -> Array:
    """bfloat16 as two bytes each, in uint16 → the same numbers in float32.

    >>> from_bfloat16(np.array([0x3F80, 0xC000], "<u2"))
    array([ 1., -2.], dtype=float32)
    """
    return (bits.astype("<u4") << 16).view("<f4")


def _to_dtype(stored: Array, name: str, dtype: np.dtype[Any]) -> Array:
    if name == "BF16":
        stored = from_bfloat16(stored)
    if stored.dtype == dtype:
        return stored
    with np.errstate(over="ignore"):  # a float64 beyond float32's range is reported as infinity
        return stored.astype(dtype)


def _warn_of_nonfinite(x: Array, info: TensorInfo, strict: bool) -> None:
    # x · x is NaN or infinite if any element is, and runs at the speed of memory; it may also
    # overflow on sound weights, so the exact count has the last word.
    with np.errstate(all="ignore"):
        if np.isfinite(np.dot(x.reshape(-1), x.reshape(-1))):
            return
    count = int(x.size - np.isfinite(x).sum())
    if not count:
        return
    text = f"{info.path}: {info.name} holds {count:,} NaN or infinite of {x.size:,} numbers"
    if strict:
        raise CheckpointError(f"{text}, expected finite weights. Download again")
    warnings.warn(text, WeightsWarning, stacklevel=2)
