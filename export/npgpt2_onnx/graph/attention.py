"""Attention in three ways: with plain operators, or with one of ONNX Runtime's two fused ones.

Each takes c_attn's output (B, T, 3·H·D), the concatenated queries, keys and values. It appends the
layer's present keys and values to `run.present` and returns the merged heads (B, T, H·D).

Axes: B batch, T new tokens, P past, S = P + T, H heads, D head_dim, E tokens of an encoder.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from npgpt2.model.config import GPT2Config
from npgpt2_onnx.graph.builder import FLOAT, MICROSOFT, Graph, Value
from npgpt2_onnx.graph.ops import narrow, wide

Pair = tuple[Value, Value]  # keys and values


@dataclass
class Run:
    """What one graph carries besides its residual stream: as `npgpt2.model.forward.Run`."""

    config: GPT2Config
    kind: str  # "portable", "gqa" or "mha"
    past: list[Pair]  # by layer, (B, H, P, D); empty: the graph has no past
    bias: Value | None = None  # (B, 1, T, S) float32: 0 or, if masked, very low
    seqlens: Value | None = None  # (B,) int32, index of each row's last real token
    total: Value | None = None  # () int32, S
    cross: list[Pair] = field(default_factory=list)  # by layer, (B, H, E, D)
    cross_bias: Value | None = None  # (B, 1, 1, E) float32
    asked: Value | None = None  # (B, 1 or T, 1) int64, positions with logits
    want_probs: bool = False
    present: list[Pair] = field(default_factory=list)


def one_node(g: Graph, run: Run) -> bool:
    """Return whether one operator computes attention; it needs its mask in its own dtype."""
    return run.kind != "portable" or (g.opset >= 23 and not run.want_probs)


def attend(g: Graph, qkv: Value, layer: int, run: Run) -> Value:
    """Attention of one layer, in the graph's kind."""
    if run.kind == "gqa":
        return group_query(g, qkv, layer, run)
    heads, scale = run.config.heads_left(layer), run.config.attention_scale(layer)
    q, k, v = split(g, qkv, 3)
    past: tuple[Value | None, Value | None] = run.past[layer] if run.past else (None, None)
    if run.kind == "mha":
        y, *present = g.ops(
            "MultiHeadAttention", q, k, v, None, None, run.bias, *past,
            outputs=3, domain=MICROSOFT, num_heads=heads, scale=scale,
        )  # fmt: skip
    elif one_node(g, run):
        y, *present = g.ops(
            "Attention", q, k, v, run.bias, *past,
            # onnxruntime 1.23 fails on presents without pasts, even if nothing reads them.
            outputs=3 if run.past else 1, q_num_heads=heads, kv_num_heads=heads, scale=scale,
        )  # fmt: skip
    else:
        q, k, v = (split_heads(g, part, heads, run.config) for part in (q, k, v))
        if run.past:
            k, v = (g.op("Concat", p, x, axis=2) for p, x in zip(past, (k, v), strict=True))
        y, present = plain(g, q, k, v, scale, run.bias), [k, v]
    if present:
        run.present.append((present[0], present[1]))
    return y


def group_query(g: Graph, qkv: Value, layer: int, run: Run) -> Value:
    """GroupQueryAttention of packed qkv; keys and values are appended to the past in place."""
    heads = run.config.heads_left(layer)
    y, key, value = g.ops(
        "GroupQueryAttention", qkv, None, None, *run.past[layer], run.seqlens, run.total,
        outputs=3, domain=MICROSOFT,
        num_heads=heads, kv_num_heads=heads, scale=run.config.attention_scale(layer),
    )  # fmt: skip
    run.present.append((key, value))
    return y


def plain(g: Graph, q: Value, k: Value, v: Value, scale: float, bias: Value | None) -> Value:
    """softmax(scale · q kᵀ, masked) v: (B, H, T, D), (B, H, S, D), (B, H, S, D) → (B, T, H·D)."""
    dtype = np.float32 if g.float == FLOAT else np.float16
    q = g.op("Mul", q, g.constant(scale, dtype))
    w = wide(g, g.op("MatMul", q, g.op("Transpose", k, perm=[0, 1, 3, 2])))
    if bias is not None:
        w = g.op("Add", w, bias)
    w = g.tap("probs", g.op("Softmax", w, axis=-1))
    return merge_heads(g, g.op("MatMul", narrow(g, w), v))


def split_heads(g: Graph, x: Value, heads: int, config: GPT2Config) -> Value:
    """(B, T, H·D) → (B, H, T, D)."""
    x = g.op("Reshape", x, g.constant([0, 0, heads, config.head_dim]))
    return g.op("Transpose", x, perm=[0, 2, 1, 3])


def merge_heads(g: Graph, x: Value) -> Value:
    """(B, H, T, D) → (B, T, H·D)."""
    return g.op("Reshape", g.op("Transpose", x, perm=[0, 2, 1, 3]), g.constant([0, 0, -1]))


def split(g: Graph, x: Value, parts: int) -> list[Value]:
    """(..., parts · n) → parts of (..., n)."""
    # Required since opset 18, unknown before.
    count: dict[str, Any] = {"num_outputs": parts} if g.opset >= 18 else {}
    return g.ops("Split", x, outputs=parts, axis=-1, **count)
