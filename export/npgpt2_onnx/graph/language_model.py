"""A whole graph: inputs → masks → blocks → logits and presents, as clients expect them.

Three kinds of graphs use the same weights:

portable  standard operators (ai.onnx) only, except for quantized weights; padding on either side.
gqa       GroupQueryAttention on a KV cache that need not be copied. Padding on the right of a
          prompt; anywhere else it is an error.
mha       MultiHeadAttention, for float32 on CUDA, where GroupQueryAttention has no kernel; padding
          on either side.

The last two are for ONNX Runtime. They use its fused operators and return only the logits of each
row's last real token, or of all tokens if the optional input `all_logits` is 1.

Axes: B batch, T new tokens, P past, S = P + T, C n_embd, H heads, D head_dim, V vocabulary,
E tokens of an encoder.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import ModelProto

from npgpt2.model.config import GPT2Config
from npgpt2.model.params import build_tree
from npgpt2.model.taps import TapName, tap_names
from npgpt2_onnx.graph import names
from npgpt2_onnx.graph.attention import Pair, Run, one_node
from npgpt2_onnx.graph.blocks import embed, lm_head, transformer
from npgpt2_onnx.graph.builder import FLOAT, INT32, INT64, Axis, Graph, Value
from npgpt2_onnx.graph.layout import Layout, weights
from npgpt2_onnx.graph.ops import LOWEST, length, narrow, numbers, reduce, to_bool, to_int, wide
from npgpt2_onnx.graph.precision import Precision

OPSET = 17  # the first with LayerNormalization; every client's onnxruntime loads it


def build(
    config: GPT2Config,
    precision: Precision,
    kind: str,
    layout: Layout,
    opset: int = OPSET,
    shown: Sequence[TapName] = (),
    metadata: Mapping[str, str] | None = None,
) -> ModelProto:
    """Build the graph of one GPT-2. Reads no weights: `layout` has their locations.

    Args:
        shown: intermediate values that become outputs, after the presents and in this order. The
            portable graph has all of `inside`; the others lack the values that a fused operator
            computes.
    """
    fused = kind != "portable"
    # One node for residual add and LayerNorm suits CUDA; on a CPU it takes 7 times as long as two.
    skip = kind == "mha" or (fused and precision.float != FLOAT)
    g = Graph(opset, precision.float, fused, skip)
    ids = g.input(names.INPUT_IDS, INT64, [names.BATCH, names.NEW])
    mask = g.input(names.ATTENTION_MASK, INT64, [names.BATCH, names.TOTAL])
    positions = g.input(names.POSITION_IDS, INT64, [names.BATCH, names.NEW])
    layers = range(config.n_layer)
    past = [_pair(g, names.past(i), names.PAST, config, config.heads_left(i)) for i in layers]
    run = Run(config, kind, past, want_probs=any(tap.name.endswith("attn.probs") for tap in shown))
    if config.add_cross_attention:
        run.cross = [_pair(g, names.cross(i), names.ENCODER, config, config.n_head) for i in layers]
        encoder = g.input(names.ENCODER_MASK, INT64, [names.BATCH, names.ENCODER])
        run.cross_bias = _padding_bias(g.at(names.ENCODER_MASK), encoder)
    masks = g.at(names.ATTENTION_MASK)
    fresh, last = _fresh(masks, ids, mask)
    if kind == "gqa":
        _right_padding(masks, run, ids, mask, fresh, last)
    else:
        run.bias = causal_bias(masks, run, ids, mask)

    asked = _asked(g.at("lm_head"), ids, last) if fused else None
    run.asked = None if shown else asked  # intermediate values are returned for every token
    values: Any = weights(g, config, precision, layout)
    params: Any = build_tree(values)
    x = transformer(g, embed(g, params, ids, positions), params, run)
    if asked is not None and run.asked is None:
        x = g.at("lm_head").op("GatherND", x, asked, batch_dims=1)
    logits = g.tap(names.LOGITS, lm_head(g, x, params, config.vocab_size))

    # onnxruntime-genai allocates logits for every position, unless the shape says 1.
    kept = names.NEW if kind == "portable" else 1
    g.output(logits, FLOAT, [names.BATCH, kept, config.vocab_size])
    for i, pair in enumerate(run.present):
        for name, value in zip(names.present(i), pair, strict=True):
            value.name = name
            heads = config.heads_left(i)
            g.output(value, g.float, [names.BATCH, heads, names.TOTAL, config.head_dim])
    for tap in shown:
        _put_out(g, tap, config)
    return g.model("gpt2", metadata)


def _pair(g: Graph, pair: tuple[str, str], axis: str, config: GPT2Config, heads: int) -> Pair:
    key, value = (g.input(n, g.float, [names.BATCH, heads, axis, config.head_dim]) for n in pair)
    return key, value


# ── intermediate values as outputs ───────────────────────────────────────────────────────────────

# Endings of names of values that are float32 in every precision.
WIDE = ("wte", "wpe", "embed", "probs", "resid_attn", "resid_mlp")


def inside(config: GPT2Config) -> list[TapName]:
    """Return every intermediate value of the portable graph, in the order of computation.

    These are the values of `tap_names` without the logits, which every graph returns, and the
    attention maps of cross-attention, (B, n_head, T, E).

    >>> taps = inside(GPT2Config(n_layer=1, add_cross_attention=True))
    >>> len(taps), taps[9].name, taps[-1].name
    (16, 'h.0.crossattention.probs', 'ln_f')
    """
    found = []
    for tap in tap_names(config)[:-1]:
        found.append(tap)
        if config.add_cross_attention and tap.name.endswith("resid_attn"):
            name, axes = f"h.{tap.layer}.crossattention.probs", ("B", "n_head", "T", "E")
            found.append(TapName(name, axes, "what each token looks at", tap.layer))
    return found


def states_and_maps(config: GPT2Config, kind: str) -> list[TapName]:
    """Return hidden states and, if one operator does not compute all of attention, its maps.

    >>> [tap.name for tap in states_and_maps(GPT2Config(n_layer=1), "portable")]
    ['embed', 'h.0.attn.probs', 'h.0.resid_mlp', 'ln_f']
    """
    ends = ["embed", "crossattention.probs", "resid_mlp", "ln_f"]
    if kind == "portable":
        ends.append("attn.probs")
    return [tap for tap in inside(config) if tap.name.endswith(tuple(ends))]


def _put_out(g: Graph, tap: TapName, config: GPT2Config) -> None:
    """Add one intermediate value as an output, always float32."""
    value = g.taps[tap.name]
    if g.float != FLOAT and not tap.name.endswith(WIDE):
        value.name = ""
        value = g.tap(tap.name, wide(g, value))
    g.output(value, FLOAT, _shape(tap, config))


def _shape(tap: TapName, config: GPT2Config) -> list[Axis]:
    """Return a tap's axes: fixed lengths, and the names of variable ones."""
    heads = 0 if tap.layer is None else config.heads_left(tap.layer)
    width = heads * config.head_dim
    known: dict[str, Axis] = {
        "B": names.BATCH, "T": names.NEW, "S": names.TOTAL, "E": names.ENCODER,
        "C": config.n_embd, "F": config.mlp_width, "V": config.vocab_size,
        "H": heads, "n_head": config.n_head, "H·D": width, "3·H·D": 3 * width,
    }  # fmt: skip
    return [known[axis] for axis in tap.axes]


# ── masks ────────────────────────────────────────────────────────────────────────────────────────


def _padding_bias(g: Graph, mask: Value) -> Value:
    """(B, S) of ones and zeros → (B, 1, 1, S) float32: 0 where real, else the lowest value."""
    real = to_bool(g, g.op("Unsqueeze", mask, g.constant([1, 2])))
    return g.op("Where", real, g.constant(0, np.float32), g.constant(LOWEST[g.float], np.float32))


def causal_bias(g: Graph, run: Run, ids: Value, mask: Value) -> Value:
    """(B, 1, T, S): 0 where key j is real and j ≤ P + i, the lowest value elsewhere.

    A padded query on the left weighs all keys equally: the result is finite and nobody reads it.
    """
    new, total = length(g, ids, 1), length(g, mask, 1)
    query = g.op("Add", numbers(g, new), g.op("Sub", total, new))
    seen = g.op("LessOrEqual", numbers(g, total), g.op("Unsqueeze", query, g.constant([1])))
    low = g.constant(LOWEST[g.float], np.float32)
    bias = g.op("Where", seen, _padding_bias(g, mask), low)
    return narrow(g, bias) if one_node(g, run) else bias


def _right_padding(g: Graph, run: Run, ids: Value, mask: Value, fresh: Value, last: Value) -> None:
    """Compute GroupQueryAttention's inputs from the mask.

    The operator only counts tokens, so padding anywhere but on the right of a prompt would give
    wrong values. The graph fails there: a Reshape to −2, whose node name is the error text.
    """
    one, new, total = g.constant([1]), g.op("Shape", ids, start=1), g.op("Shape", mask, start=1)
    count = g.op("ReduceSum", fresh, one)  # (B, 1)
    # In a prompt no zero comes before a one, and after a past every new token is real.
    in_order = g.op("Equal", last, count)
    whole = g.op("Equal", count, g.op("Where", g.op("Equal", total, new), count, new))
    first = g.op("Slice", mask, g.constant([0]), one, one)
    good = g.op("Mul", first, g.op("Mul", to_int(g, in_order), to_int(g, whole)))
    shape = g.op("Sub", reduce(g, "ReduceMin", good, None), g.constant(2))  # −1: keep the shape
    shape = g.op("Reshape", shape, one)
    real = g.at(names.RIGHT_ONLY).op("Reshape", g.op("ReduceSum", mask, one, keepdims=0), shape)
    run.seqlens = g.op("Cast", g.op("Sub", real, one), to=INT32)
    run.total = g.op("Cast", g.op("Squeeze", total), to=INT32)


def _fresh(g: Graph, ids: Value, mask: Value) -> tuple[Value, Value]:
    """The new tokens' mask (B, T), and the 1-based index of each row's last real one (B, 1)."""
    new, total = g.op("Shape", ids, start=1), g.op("Shape", mask, start=1)
    one = g.constant([1])
    fresh = g.op("Slice", mask, g.op("Sub", total, new), total, one)
    numbered = g.op("Mul", fresh, g.op("Add", numbers(g, g.op("Squeeze", new)), one))
    return fresh, reduce(g, "ReduceMax", numbered)


def _asked(g: Graph, ids: Value, last: Value) -> Value:
    """(B, 1, 1), index of each row's last real token; (B, T, 1), all, if `all_logits` is 1."""
    everything = to_bool(g, g.option(names.ALL_LOGITS, np.zeros(1, np.int64)))
    one, new = g.constant([1]), g.op("Shape", ids, start=1)
    first = g.op("Where", everything, g.constant([0]), g.op("Sub", last, one))  # (B, 1)
    steps = numbers(g, g.op("Squeeze", g.op("Where", everything, new, one)))
    return g.op("Unsqueeze", g.op("Add", first, steps), g.constant([2]))
