"""The file of weights that the graphs of one precision share: what lies where, and writing it.

A parameter keeps its checkpoint name. A quantized one is three initializers, two of them the same
bytes: `NAME.int8` (rows, blocks, bytes of a block), `NAME.int8.rows` (rows, bytes of a row) for
looking up rows, and `NAME.scales` (rows, blocks).
"""

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto

from npgpt2.checkpoint import Checkpoint
from npgpt2.config import GPT2Config
from npgpt2.errors import CheckpointError, FileError
from npgpt2.ops import Array
from npgpt2.params import param_shapes
from npgpt2_onnx.builder import FLOAT, FLOAT16, UINT8, Graph, Tensor, Value
from npgpt2_onnx.ops import Quantized, Weight
from npgpt2_onnx.precision import Precision, block_size
from npgpt2_onnx.quantize import dequantize, quantize

Layout = dict[str, Tensor]

SIZES = {FLOAT: 4, FLOAT16: 2, UINT8: 1}
CHUNK = 1 << 23  # bytes read at a time: memory does not grow with the model
ROWED = ("wte.weight", "lm_head.weight")  # (outputs, inputs); the others are (inputs, outputs)


def layout(config: GPT2Config, precision: Precision, location: str) -> Layout:
    """Where each initializer will lie, by its name."""
    tensors: Layout = {}
    end = 0

    def put(name: str, dtype: int, shape: tuple[int, ...]) -> None:
        nonlocal end
        nbytes = math.prod(shape) * SIZES[dtype]
        # Pages for what is mapped, cache lines for what is small.
        step = 4096 if nbytes >= 65536 else 64
        offset = -(-end // step) * step
        tensors[name] = Tensor(name, dtype, shape, location, offset, nbytes)
        end = offset + nbytes

    for name, shape in param_shapes(config).items():
        bits = precision.bits_of(name)
        if not bits:
            exact = ".ln_" in name or name.startswith("ln_f")
            put(name, FLOAT if exact else precision.float, shape)
            continue
        rows, width = shape if name in ROWED else shape[::-1]
        blocks = -(-width // block_size(width))
        size = block_size(width) * bits // 8
        whole = f"{name}.int{bits}"
        put(whole, UINT8, (rows, blocks, size))
        if name == "wte.weight":
            same = tensors[whole]
            tensors[f"{whole}.rows"] = Tensor(
                f"{whole}.rows", UINT8, (rows, blocks * size), location, same.offset, same.nbytes
            )
        put(f"{name}.scales", FLOAT, (rows, blocks))
    return tensors


def weights(
    g: Graph, config: GPT2Config, precision: Precision, tensors: Layout
) -> dict[str, Weight]:
    """The parameters as initializers, by checkpoint name."""

    def known(name: str) -> Value:
        return g.initializer(tensors[name].proto())

    found: dict[str, Weight] = {}
    for name, shape in param_shapes(config).items():
        bits = precision.bits_of(name)
        if not bits:
            found[name] = known(name)
            continue
        whole = f"{name}.int{bits}"
        rows, width = shape if name in ROWED else shape[::-1]
        table = known(f"{whole}.rows") if f"{whole}.rows" in tensors else None
        scales = known(f"{name}.scales")
        block = block_size(width)
        found[name] = Quantized(known(whole), table, scales, bits, block, rows, width)
    return found


def write(
    file: BinaryIO,
    checkpoint: Checkpoint,
    precision: Precision,
    tensors: Layout,
    progress: Callable[[Iterable[str], str], Iterable[str]] = lambda names, what: names,
) -> None:
    """Fill the file. A checkpoint's tensors pass through in pieces of `CHUNK` bytes."""
    for name in progress(list(checkpoint.tensors), f"writing {precision.name}"):
        bits = precision.bits_of(name)
        if bits:
            _write_quantized(file, checkpoint, name, bits, tensors)
            continue
        tensor = tensors[name]
        file.seek(tensor.offset)
        dtype = np.float32 if tensor.dtype == FLOAT else np.float16
        for piece in checkpoint.pieces(name, CHUNK // 4):
            file.write(piece.astype(dtype, copy=False).data)


def _write_quantized(
    file: BinaryIO, checkpoint: Checkpoint, name: str, bits: int, tensors: Layout
) -> None:
    codes, scales = tensors[f"{name}.int{bits}"], tensors[f"{name}.scales"]
    shape = checkpoint.tensors[name].shape
    block = block_size(shape[1] if name in ROWED else shape[0])
    if name in ROWED:  # rows come one after the other: so do their codes
        rows = max(1, CHUNK // 4 // shape[1])
        for at, piece in enumerate(checkpoint.pieces(name, rows * shape[1])):
            some, scale = quantize(piece.reshape(-1, shape[1]), bits, block)
            file.seek(codes.offset + at * rows * codes.nbytes // shape[0])
            file.write(some.data)
            file.seek(scales.offset + at * rows * scales.nbytes // shape[0])
            file.write(scale.data)
        return
    # Blocks run down the columns: so many rows at a time are whole blocks of every column.
    all_codes, all_scales = np.empty(codes.shape, np.uint8), np.empty(scales.shape, np.float32)
    blocks = max(1, CHUNK // 4 // (shape[1] * block))
    for at, piece in enumerate(checkpoint.pieces(name, blocks * block * shape[1])):
        here = slice(at * blocks, (at + 1) * blocks)
        columns = np.ascontiguousarray(piece.reshape(-1, shape[1]).T)
        all_codes[:, here], all_scales[:, here] = quantize(columns, bits, block)
    file.seek(codes.offset)
    file.write(all_codes.data)
    file.seek(scales.offset)
    file.write(all_scales.data)


class Stored(NamedTuple):
    """A parameter as a graph reads it, in float32, and how far rounding may have moved it.

    Not at all in float32, half a step in float16; in int8 and int4 a whole step of the block, whose
    codes are cut off at one end.
    """

    array: Array
    slack: Array


def read(path: Path) -> dict[str, Stored]:
    """The parameters that a graph reads, by checkpoint name.

    Raises:
        FileError, CheckpointError: a file is missing or too short.
    """
    model = _load(path)
    about = {entry.key: entry.value for entry in model.metadata_props}
    if "config" not in about:
        raise CheckpointError(f"{path}: has no config, expected a graph that npgpt2 exported")
    config = GPT2Config.from_dict(json.loads(about["config"]), str(path))
    held = {proto.name: proto for proto in model.graph.initializer}
    found: dict[str, Stored] = {}
    slack: Array
    for name, shape in param_shapes(config).items():
        if name in held:
            x, slack = _raw(path, held[name]), np.zeros(1, np.float32)
            if x.dtype == np.float16:
                slack = np.spacing(np.abs(x)).astype(np.float32) / 2
            found[name] = Stored(x.astype(np.float32, copy=False), slack)
            continue
        [whole] = [f"{name}.int{bits}" for bits in (4, 8) if f"{name}.int{bits}" in held]
        bits, rowed = int(whole.rpartition(".int")[2]), name in ROWED
        codes, scales = _raw(path, held[whole]), _raw(path, held[f"{name}.scales"])
        width = shape[1 if rowed else 0]
        x = dequantize(codes, scales, bits, width)
        slack = np.repeat(np.abs(scales), codes.shape[2] * 8 // bits, 1)[:, :width]
        found[name] = Stored(x, slack) if rowed else Stored(x.T, slack.T)
    return found


def _load(path: Path) -> onnx.ModelProto:
    """A graph without its weights."""
    try:
        return onnx.load(path, load_external_data=False)
    except OSError as error:
        raise FileError(f"{path}: {error.strerror or error}") from None
    except Exception as error:  # protobuf's own, which has no public name
        raise CheckpointError(f"{path}: is not an ONNX graph ({error})") from None


def _raw(path: Path, proto: TensorProto) -> Array:
    """One initializer of a file beside the graph, mapped."""
    where = {entry.key: entry.value for entry in proto.external_data}
    file = path.parent / where["location"]
    shape = tuple(proto.dims)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(proto.data_type)
    offset, end = int(where["offset"]), int(where["offset"]) + int(where["length"])
    try:
        if file.stat().st_size < end:
            raise CheckpointError(f"{file}: has {file.stat().st_size:,} of {end:,} bytes")
        if offset % dtype.itemsize:
            return np.fromfile(file, dtype, math.prod(shape), offset=offset).reshape(shape)
        mapped: Array = np.memmap(file, dtype, "r", offset, shape)
        return mapped
    except OSError as error:
        raise FileError(f"{file}: {error.strerror or error}") from None


def external_files(path: Path) -> list[str]:
    """The files beside a graph that its weights lie in."""
    return sorted({
        entry.value
        for proto in _load(path).graph.initializer
        for entry in proto.external_data
        if entry.key == "location"
    })  # fmt: skip
