"""The arithmetic of GPT-2 as nodes: the counterpart of `npgpt2.model.ops`, with the same functions.

In a `fused` graph (ONNX Runtime's own operators, domain com.microsoft), a function merges the node
of a preceding sum into its own: bias and GELU and, with `skip`, residual add and LayerNorm.

Axes: B batch, T new tokens, P past, S = P + T, C n_embd, H heads, D head_dim; `...` any.
"""

import math
from typing import NamedTuple, TypeAlias

import numpy as np
from onnx import TensorProto

from npgpt2_onnx.graph.builder import FLOAT, FLOAT16, MICROSOFT, Graph, Value

LOWEST = {FLOAT: float(np.finfo(np.float32).min), FLOAT16: float(np.finfo(np.float16).min)}


class Quantized(NamedTuple):
    """A matrix of integers of `bits`, with a scale for each block along its inner axis."""

    data: Value  # (rows, blocks, bytes of a block) uint8
    scales: Value  # (rows, blocks)
    bits: int
    block: int
    rows: int  # outputs of the product
    width: int  # length of the axis that is summed over


Weight: TypeAlias = Value | Quantized


def linear(g: Graph, x: Value, weight: Weight, bias: Value) -> Value:
    """x @ weight + bias: (..., in), (in, out), (out,) → (..., out)."""
    if isinstance(weight, Quantized):
        # On CUDA, the operator itself can add the bias only since onnxruntime 1.28.
        return g.op("Add", _blockwise(g, x, weight), bias)
    return g.op("Add", g.op("MatMul", x, weight), bias)


def _blockwise(g: Graph, x: Value, w: Quantized) -> Value:
    """MatMulNBits at accuracy level 4, which also rounds x to 8 bits, block by block."""
    return g.op(
        "MatMulNBits", x, w.data, w.scales, domain=MICROSOFT,
        K=w.width, N=w.rows, bits=w.bits, block_size=w.block, accuracy_level=4,
    )  # fmt: skip


def rows_of(g: Graph, weight: Weight, ids: Value) -> Value:
    """Ids (B, T) → their rows (B, T, C), always float32. Quantized rows have 8 bits."""
    if isinstance(weight, Quantized):
        # GatherBlockQuantized would do this, but onnxruntime-web has no kernel for it.
        codes = g.op("Cast", g.op("Gather", weight.data, ids), to=FLOAT)  # (..., blocks, block)
        codes = g.op("Sub", codes, g.constant(1 << (weight.bits - 1), np.float32))
        scales = g.op("Unsqueeze", g.op("Gather", weight.scales, ids), g.constant([-1]))
        x = g.op("Reshape", g.op("Mul", codes, scales), g.constant([0, 0, -1]))
        if weight.width % weight.block:  # the last block is only partly used
            x = g.op("Slice", x, g.constant([0]), g.constant([weight.width]), g.constant([-1]))
        return x
    return wide(g, g.op("Gather", weight, ids))


def dot_rows(g: Graph, x: Value, weight: Weight, count: int) -> Value:
    """x (B, T, C) · each row of (V, C) → (B, T, V) float32, without transposing a tied matrix."""
    if isinstance(weight, Quantized):
        return _blockwise(g, x, weight)
    shape = g.op("Concat", g.op("Shape", x, end=2), g.constant([count]), axis=0)
    flat = g.op("Reshape", x, g.op("Concat", g.constant([-1]), g.op("Shape", x, start=2), axis=0))
    return wide(g, g.op("Reshape", g.op("Gemm", flat, weight, transB=1), shape))


def add(g: Graph, x: Value, y: Value) -> Value:
    """Add a sublayer's output to the residual stream, in float32 in every precision."""
    return g.op("Add", x, wide(g, y))


def layer_norm(g: Graph, x: Value, weight: Value, bias: Value, *, eps: float) -> Value:
    """(..., C) float32 → (..., C) in the matrices' dtype."""
    if g.skip and (sides := _taken_over(g, x)):
        y = g.ops(
            "SkipLayerNormalization", *sides, weight, bias, domain=MICROSOFT,
            outputs=[Value(), None, None, x], epsilon=eps,
        )[0]  # fmt: skip
    else:
        y = g.op("LayerNormalization", x, weight, bias, axis=-1, epsilon=eps)
    return narrow(g, y)


def _taken_over(g: Graph, x: Value) -> list[Value | None]:
    """Return the inputs of a sum and remove its node; nothing if x is no sum or not fused."""
    node = x.node
    if not g.fused or node is None or node.op != "Add":
        return []
    g.remove(node)
    return node.inputs


def narrow(g: Graph, x: Value) -> Value:
    """float32 → the dtype of matrix products."""
    return x if g.float == FLOAT else g.op("Cast", x, to=FLOAT16)


def wide(g: Graph, x: Value) -> Value:
    """The dtype of matrix products → float32."""
    return x if g.float == FLOAT else g.op("Cast", x, to=FLOAT)


# ── activations ──────────────────────────────────────────────────────────────────────────────────


def activation(g: Graph, name: str, x: Value) -> Value:
    """Apply one of `npgpt2.model.ops.ACTIVATIONS`."""
    if name in ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"):  # differ in the 11th digit
        return _tanh_gelu(g, x)
    x = wide(g, x)
    if name == "gelu":
        half = g.op("Mul", x, g.constant(0.5, np.float32))
        erf = g.op("Erf", g.op("Mul", x, g.constant(math.sqrt(0.5), np.float32)))
        y = g.op("Mul", half, g.op("Add", erf, g.constant(1.0, np.float32)))
    elif name == "quick_gelu":
        y = g.op("Mul", x, g.op("Sigmoid", g.op("Mul", x, g.constant(1.702, np.float32))))
    elif name in ("silu", "swish"):
        y = g.op("Mul", x, g.op("Sigmoid", x))
    else:
        y = g.op({"relu": "Relu", "tanh": "Tanh"}[name], x)
    return narrow(g, y)


def _tanh_gelu(g: Graph, x: Value) -> Value:
    """x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³)))."""
    if g.fused:
        return g.op("FastGelu", *(_taken_over(g, x) or [x, None]), domain=MICROSOFT)
    x = wide(g, x)
    if g.opset >= 20:
        return narrow(g, g.op("Gelu", x, approximate="tanh"))
    # (1 + tanh u) / 2 = σ(2u), which saves two passes over memory.
    slope = 2 * math.sqrt(2 / math.pi)
    u = g.op("Mul", g.op("Mul", x, x), g.constant(slope * 0.044715, np.float32))
    u = g.op("Mul", g.op("Add", u, g.constant(slope, np.float32)), x)
    return narrow(g, g.op("Mul", x, g.op("Sigmoid", u)))


def numbers(g: Graph, stop: Value) -> Value:
    """0, 1, …, stop − 1; int64."""
    return g.op("Range", g.constant(0), stop, g.constant(1))


def length(g: Graph, x: Value, axis: int) -> Value:
    """The length of one axis, as a scalar tensor."""
    return g.op("Gather", g.op("Shape", x), g.constant(axis), axis=0)


def to_bool(g: Graph, x: Value) -> Value:
    return g.op("Cast", x, to=TensorProto.BOOL)


def to_int(g: Graph, x: Value) -> Value:
    return g.op("Cast", x, to=TensorProto.INT64)


def reduce(g: Graph, kind: str, x: Value, axis: int | None = 1) -> Value:
    """ReduceMax or ReduceMin over one axis, kept with length 1; None: over all, to a scalar."""
    if axis is None:
        return g.op(kind, x, keepdims=0)
    if g.opset < 18:  # since then the axes are an input
        return g.op(kind, x, axes=[axis], keepdims=1)
    return g.op(kind, x, g.constant([axis]), keepdims=1)
