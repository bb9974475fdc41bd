"""Write and read the file of weights that the graphs of one precision share."""

import math
from collections.abc import Callable, Iterable
from typing import BinaryIO, NamedTuple

import numpy as np
import onnx

from npgpt2.base.arrays import Array
from npgpt2.base.errors import CheckpointError
from npgpt2.base.files import named_errors
from npgpt2.checkpoints.checkpoint import Checkpoint
from npgpt2.model.params import param_shapes
from npgpt2_onnx.graph.builder import FLOAT
from npgpt2_onnx.graph.layout import ROWED, Layout, layout, rows_and_width
from npgpt2_onnx.graph.precision import Precision, block_size
from npgpt2_onnx.run.exported import Exported
from npgpt2_onnx.write.quantize import dequantize, quantize

CHUNK = 1 << 23  # bytes read at a time, so that memory use does not depend on the model's size


def write(
    file: BinaryIO,
    checkpoint: Checkpoint,
    precision: Precision,
    tensors: Layout,
    progress: Callable[[Iterable[str], str], Iterable[str]] = lambda names, what: names,
) -> None:
    """Write the weights of one precision. Tensors are read in pieces of about `CHUNK` bytes."""
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
    block = block_size(rows_and_width(name, shape)[1])
    if name in ROWED:  # rows follow each other in the file, and so do their codes
        rows = max(1, CHUNK // 4 // shape[1])
        for at, piece in enumerate(checkpoint.pieces(name, rows * shape[1])):
            some, scale = quantize(piece.reshape(-1, shape[1]), bits, block)
            file.seek(codes.offset + at * rows * codes.nbytes // shape[0])
            file.write(some.data)
            file.seek(scales.offset + at * rows * scales.nbytes // shape[0])
            file.write(scale.data)
        return
    # Blocks run down the columns: read as many rows as fill whole blocks of every column.
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
    """Return whether a graph reads each weight at its place in `layout` or in the checkpoint."""
    if graph.shared:
        held = Checkpoint.open(graph.path.parent).tensors
        places = {name: (i.path.name, i.start, i.nbytes) for name, i in held.items()}
        return places == {n: (t.location, t.offset, t.nbytes) for n, t in graph.tensors.items()}
    [location] = graph.locations
    return graph.tensors == layout(graph.config, graph.precision, location)


class Stored(NamedTuple):
    """A parameter as a graph reads it, in float32, and the largest change that rounding may make.

    The change is 0 for float32 and half a step for float16. For int8 and int4 it is a whole step of
    the block, because the codes are clipped at one end.
    """

    array: Array
    slack: Array


def read(graph: Exported) -> dict[str, Stored]:
    """Return the parameters that a graph reads, by checkpoint name; float32 ones are mapped.

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
            _, width = rows_and_width(name, shape)
            step = np.abs(scales) * 1.001  # dequantizing rounds as well
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
    """Return one initializer, memory-mapped."""
    tensor = graph.tensors[name]
    file = graph.path.parent / tensor.location
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.dtype)
    with named_errors(file):
        if tensor.offset % dtype.itemsize:
            count = math.prod(tensor.shape)
            return np.fromfile(file, dtype, count, offset=tensor.offset).reshape(tensor.shape)
        mapped: Array = np.memmap(file, dtype, "r", tensor.offset, tensor.shape)
        return mapped
