"""The file of weights that the graphs of one precision share: what lies where, and writing it.

A parameter keeps its checkpoint name. A quantized one is two initializers: `NAME.int8` or
`NAME.int4` (rows, blocks, bytes of a block), and `NAME.scales` (rows, blocks).
"""

import math
from collections.abc import Callable, Iterable
from typing import BinaryIO, NamedTuple

import numpy as np
import onnx

from npgpt2.checkpoint import Checkpoint
from npgpt2.config import GPT2Config
from npgpt2.errors import CheckpointError, FileError
from npgpt2.ops import Array
from npgpt2.params import param_shapes
from npgpt2_onnx.builder import FLOAT, FLOAT16, UINT8, Graph, Tensor, Value
from npgpt2_onnx.exported import Exported
from npgpt2_onnx.ops import Quantized, Weight
from npgpt2_onnx.precision import Precision, block_size, is_exact
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
            put(name, FLOAT if is_exact(name) else precision.float, shape)
            continue
        rows, width = _rows_and_width(name, shape)
        blocks = -(-width // block_size(width))
        size = block_size(width) * bits // 8
        whole = f"{name}.int{bits}"
        put(whole, UINT8, (rows, blocks, size))
        put(f"{name}.scales", FLOAT, (rows, blocks))
    return tensors


def _rows_and_width(name: str, shape: tuple[int, ...]) -> tuple[int, int]:
    """Outputs of a matrix, and the length of the axis that is summed over."""
    rows, width = shape if name in ROWED else shape[::-1]
    return rows, width


def weights(
    g: Graph,
    config: GPT2Config,
    precision: Precision,
    tensors: Layout,
    wanted: Callable[[str], bool] = lambda name: True,
) -> dict[str, Weight]:
    """The parameters as initializers, by checkpoint name: all, or those that are wanted."""

    def known(name: str) -> Value:
        return g.initializer(tensors[name].proto())

    found: dict[str, Weight] = {}
    for name, shape in param_shapes(config).items():
        if not wanted(name):
            continue
        bits = precision.bits_of(name)
        if not bits:
            found[name] = known(name)
            continue
        whole = f"{name}.int{bits}"
        rows, width = _rows_and_width(name, shape)
        codes, scales = known(whole), known(f"{name}.scales")
        found[name] = Quantized(codes, scales, bits, block_size(width), rows, width)
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
    block = block_size(_rows_and_width(name, shape)[1])
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


def in_place(graph: Exported) -> bool:
    """Whether a graph looks for each weight where it lies: where `layout` says, or a checkpoint."""
    if graph.shared:
        held = Checkpoint.open(graph.path.parent).tensors
        places = {name: (i.path.name, i.start, i.nbytes) for name, i in held.items()}
        return places == {n: (t.location, t.offset, t.nbytes) for n, t in graph.tensors.items()}
    [location] = graph.locations
    return graph.tensors == layout(graph.config, graph.precision, location)


class Stored(NamedTuple):
    """A parameter as a graph reads it, in float32, and how far rounding may have moved it.

    Not at all in float32, half a step in float16; in int8 and int4 a whole step of the block, whose
    codes are cut off at one end.
    """

    array: Array
    slack: Array


def read(graph: Exported) -> dict[str, Stored]:
    """The parameters that a graph reads, by checkpoint name; mapped where they are float32.

    Raises:
        FileError, CheckpointError: a file cannot be read, or lacks a parameter.
    """
    found: dict[str, Stored] = {}
    slack: Array
    for name, shape in param_shapes(graph.config).items():
        bits = graph.precision.bits_of(name)
        whole = f"{name}.int{bits}" if bits else name
        needed = [whole, f"{name}.scales"] if bits else [whole]
        if not all(part in graph.tensors for part in needed):
            raise CheckpointError(f"{graph.path}: has no {whole}. Export again")
        x = _raw(graph, whole)
        if bits:
            scales, rowed = _raw(graph, f"{name}.scales"), name in ROWED
            _, width = _rows_and_width(name, shape)
            step = np.abs(scales) * 1.001  # dequantizing rounds, too
            slack = np.repeat(step, x.shape[2] * 8 // bits, 1)[:, :width]
            x = dequantize(x, scales, bits, width)
            found[name] = Stored(x, slack) if rowed else Stored(x.T, slack.T)
            continue
        slack = np.zeros(1, np.float32)
        if x.dtype == np.float16:
            slack = np.spacing(np.abs(x)).astype(np.float32) / 2
        found[name] = Stored(x.astype(np.float32, copy=False), slack)
    return found


def _raw(graph: Exported, name: str) -> Array:
    """One initializer, mapped."""
    tensor = graph.tensors[name]
    file = graph.path.parent / tensor.location
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.dtype)
    try:
        if tensor.offset % dtype.itemsize:
            count = math.prod(tensor.shape)
            return np.fromfile(file, dtype, count, offset=tensor.offset).reshape(tensor.shape)
        mapped: Array = np.memmap(file, dtype, "r", tensor.offset, tensor.shape)
        return mapped
    except OSError as error:
        raise FileError(f"{file}: {error.strerror or error}") from None
