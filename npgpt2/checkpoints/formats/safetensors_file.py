"""safetensors files: read headers, write files (https://huggingface.co/docs/safetensors).

The library checks offsets, overlaps, holes, sizes and dtypes. Checks that it lacks, but the format
requires, are here.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from safetensors import SafetensorError, safe_open

from npgpt2.base.arrays import Array
from npgpt2.base.errors import CheckpointError
from npgpt2.base.files import named_errors, parse_json, require_regular
from npgpt2.base.impostors import ZIP, refuse_impostor
from npgpt2.checkpoints.formats.tensors import TensorInfo

MAX_HEADER = 100_000_000  # bytes, as in the library
# NumPy's dtypes → the format's, in the order in which the library writes them.
WRITTEN = {
    "uint64": "U64", "int64": "I64", "float64": "F64", "float32": "F32", "uint32": "U32",
    "int32": "I32", "bfloat16": "BF16", "float16": "F16", "uint16": "U16", "int16": "I16",
    "int8": "I8", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The places of all tensors in one safetensors file, by name.

    Raises:
        FileError: it is not a regular file, or cannot be read.
        CheckpointError: it is not a valid safetensors file.
    """
    with named_errors(path):
        size = require_regular(path)
        with path.open("rb") as file:
            start = file.read(32)
            refuse_impostor(path, start, "the weights")
            if start.startswith(ZIP):
                raise CheckpointError(
                    f"{path}: is a zip archive, perhaps of PyTorch, expected safetensors. If so, "
                    "rename it to pytorch_model.bin"
                )
            if size < 8:
                raise CheckpointError(
                    f"{path}: has {size} bytes, expected a safetensors file. Download again"
                )
            length = int.from_bytes(start[:8], "little")
            if not 2 <= length <= min(size - 8, MAX_HEADER):
                raise CheckpointError(
                    f"{path}: has a header of {length:,} bytes in a file of {size:,}: "
                    "not safetensors, or damaged. Download again"
                )
            file.seek(8)
            header = _parse_header(path, file.read(length))
        _require_complete(path, header, size - 8 - length)
        try:
            with safe_open(path, framework="numpy"):
                pass  # the library checks offsets, overlaps, holes, sizes and dtypes
        except SafetensorError as error:
            raise CheckpointError(f"{path}: damaged header ({error}). Download again") from None
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        tensors[name] = TensorInfo(
            name, entry["dtype"], tuple(entry["shape"]), end - begin, path, 8 + length + begin
        )
    return tensors


def _parse_header(path: Path, data: bytes) -> dict[str, Any]:
    header = parse_json(data, f"{path}: header", CheckpointError)
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CheckpointError(f"{path}: __metadata__ is not an object of texts. Save it again")
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


# The fields of a tensor's entry. The library also takes other forms, such as a list.
FIELDS: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("dtype", lambda v: isinstance(v, str), "a name such as F32"),
    ("shape", _counts, "integers from 0"),
    ("data_offsets", lambda v: _counts(v) and len(v) == 2 and v[0] <= v[1], "[begin, end]"),
)


def _require_complete(path: Path, header: dict[str, Any], size: int) -> None:
    """Clear messages for a file that is too short or too long; the library checks the rest."""
    end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if size < end:
        raise CheckpointError(f"{path}: has {size:,} of {end:,} bytes of data. Download again")
    if size > end:
        raise CheckpointError(f"{path}: has {size - end:,} extra bytes at the end. Download again")


def write(file: BinaryIO, tensors: Mapping[str, Array]) -> None:
    """Write the same bytes as the library. (The library, if killed, leaves a temporary file.)"""
    ranks = list(WRITTEN)
    names = sorted(tensors, key=lambda name: (ranks.index(tensors[name].dtype.name), name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers requires it
    end = 0
    for name in names:
        array = tensors[name]
        begin, end = end, end + array.nbytes
        header[name] = {
            "dtype": WRITTEN[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in names:
        array = tensors[name].astype(tensors[name].dtype.newbyteorder("<"), copy=False)
        file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
