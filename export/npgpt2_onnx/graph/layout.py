"""Locations of the weights in the file that the graphs of one precision share.

A parameter keeps its checkpoint name. A quantized one has two initializers: `NAME.int8` or
`NAME.int4` (rows, blocks, bytes of a block), and `NAME.scales` (rows, blocks).
"""

import math
from collections.abc import Callable

from npgpt2.model.config import GPT2Config
from npgpt2.model.params import param_shapes
from npgpt2_onnx.graph.builder import FLOAT, FLOAT16, UINT8, Graph, Tensor, Value
from npgpt2_onnx.graph.ops import Quantized, Weight
from npgpt2_onnx.graph.precision import Precision, block_size, is_exact

Layout = dict[str, Tensor]

SIZES = {FLOAT: 4, FLOAT16: 2, UINT8: 1}
ROWED = ("wte.weight", "lm_head.weight")  # (outputs, inputs); the others are (inputs, outputs)


def layout(config: GPT2Config, precision: Precision, location: str) -> Layout:
    """Return the location of each initializer, by its name."""
    tensors: Layout = {}
    end = 0

    def put(name: str, dtype: int, shape: tuple[int, ...]) -> None:
        nonlocal end
        nbytes = math.prod(shape) * SIZES[dtype]
        # Large tensors start at a page (for mapping), small ones at a cache line.
        step = 4096 if nbytes >= 65536 else 64
        offset = -(-end // step) * step
        tensors[name] = Tensor(name, dtype, shape, location, offset, nbytes)
        end = offset + nbytes

    for name, shape in param_shapes(config).items():
        bits = precision.bits_of(name)
        if not bits:
            put(name, FLOAT if is_exact(name) else precision.float, shape)
            continue
        rows, width = rows_and_width(name, shape)
        blocks = -(-width // block_size(width))
        size = block_size(width) * bits // 8
        whole = f"{name}.int{bits}"
        put(whole, UINT8, (rows, blocks, size))
        put(f"{name}.scales", FLOAT, (rows, blocks))
    return tensors


def rows_and_width(name: str, shape: tuple[int, ...]) -> tuple[int, int]:
    """Return a matrix's number of outputs, and the length of the axis that is summed over."""
    rows, width = shape if name in ROWED else shape[::-1]
    return rows, width


def weights(
    g: Graph,
    config: GPT2Config,
    precision: Precision,
    tensors: Layout,
    wanted: Callable[[str], bool] = lambda name: True,
) -> dict[str, Weight]:
    """Return the parameters as initializers, by checkpoint name: all, or the `wanted` ones."""

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
        rows, width = rows_and_width(name, shape)
        codes, scales = known(whole), known(f"{name}.scales")
        found[name] = Quantized(codes, scales, bits, block_size(width), rows, width)
    return found
