"""The graph of a GPT-2 with another head than a language model: counterpart of `npgpt2.heads`.

ids, mask → blocks → head. There is no past, and the mask determines the positions: clients such as
optimum's ORTModelForSequenceClassification pass these two inputs and read `logits`.

Axes: B batch, N choices, T tokens, C n_embd, V vocabulary, K labels.
"""

from collections.abc import Mapping
from typing import Any

from onnx import ModelProto

from npgpt2.model.config import GPT2Config
from npgpt2.model.params import build_tree
from npgpt2_onnx.graph import names
from npgpt2_onnx.graph.attention import Run
from npgpt2_onnx.graph.blocks import embed, lm_head, transformer
from npgpt2_onnx.graph.builder import FLOAT, INT64, Graph, Value
from npgpt2_onnx.graph.language_model import OPSET, causal_bias
from npgpt2_onnx.graph.layout import Layout, weights
from npgpt2_onnx.graph.ops import activation, length, narrow, numbers, to_int, wide
from npgpt2_onnx.graph.precision import Precision


def build_head(
    config: GPT2Config,
    precision: Precision,
    layout: Layout,
    opset: int = OPSET,
    metadata: Mapping[str, str] | None = None,
) -> ModelProto:
    """Build the portable graph for the head in the config. Reads no weights."""
    g = Graph(opset, precision.float)
    chooses = config.head == "multiple_choice_head"
    shape = [names.BATCH, *([names.CHOICES] if chooses else []), names.NEW]
    ids = g.input(names.INPUT_IDS, INT64, shape)
    mask = g.input(names.ATTENTION_MASK, INT64, shape)
    choices = g.input(names.MC_TOKEN_IDS, INT64, shape[:2]) if chooses else None
    rows = g.op("Shape", ids, end=2)  # (B, N) with a multiple choice head
    if chooses:
        flat = g.op("Concat", g.constant([-1]), g.op("Shape", ids, start=2), axis=0)
        ids, mask = g.op("Reshape", ids, flat), g.op("Reshape", mask, flat)
    values: Any = weights(g, config, precision, layout)
    p: Any = build_tree(values)
    run = Run(config, "portable", [])
    run.bias = causal_bias(g.at(names.ATTENTION_MASK), run, ids, mask)
    x = transformer(g, embed(g, p, ids, positions(g.at(names.POSITION_IDS), mask)), p, run)

    h = g.at(config.head)
    if choices is not None:
        chosen = choose(h, x, p.multiple_choice_head.summary, rows, choices, config)
        logits = lm_head(g, x, p, config.vocab_size)
        logits = _unfolded(g.at("lm_head"), logits, rows)
        g.output(g.tap(names.LOGITS, logits), FLOAT, [*shape, config.vocab_size])
        g.output(g.tap(names.MC_LOGITS, chosen), FLOAT, shape[:2])
    elif config.head == "qa_outputs":
        both = dense(h, wide(h, x), p.qa_outputs)
        for at, name in enumerate((names.START_LOGITS, names.END_LOGITS)):
            value = h.op("Gather", both, g.constant(at), axis=2)
            g.output(g.tap(name, value), FLOAT, shape)
    else:
        if config.head == "score":
            last = last_real(h, ids, mask, config.pad_token_id)
            x = h.op("GatherND", x, h.op("Unsqueeze", last, g.constant([-1])), batch_dims=1)
        logits = dense(h, wide(h, x), getattr(p, config.head))
        kept = shape[:1] if config.head == "score" else shape
        g.output(g.tap(names.LOGITS, logits), FLOAT, [*kept, len(config.labels)])
    return g.model("gpt2", metadata)


def positions(g: Graph, mask: Value) -> Value:
    """(B, T), each token's index among the real tokens of its row."""
    index = g.op("Sub", g.op("CumSum", mask, g.constant(1)), g.constant(1))
    return g.op("Max", index, g.constant(0))


def last_real(g: Graph, ids: Value, mask: Value, pad: int | None) -> Value:
    """(B,), index of the last token of each row that is not padding."""
    real = mask
    if pad is not None:
        real = to_int(g, g.op("Not", g.op("Equal", ids, g.constant(pad))))
    return g.op("ArgMax", g.op("Mul", real, numbers(g, length(g, ids, 1))), axis=1, keepdims=0)


def dense(g: Graph, x: Value, p: Any) -> Value:
    """(..., C) float32 → (..., outputs), with the weight as stored, (outputs, C)."""
    y = g.op("MatMul", x, g.op("Transpose", p.weight, perm=[1, 0]))
    return y if p.bias is None else g.op("Add", y, p.bias)


def choose(g: Graph, x: Value, p: Any, rows: Value, choices: Value, config: GPT2Config) -> Value:
    """(B·N, T, C) → (B, N), from one token of each choice."""
    at = g.op("Reshape", choices, g.constant([-1, 1]))
    y = dense(g, wide(g, g.op("GatherND", x, at, batch_dims=1)), p)
    y = g.op("Reshape", y, rows)
    if config.summary_activation:
        y = wide(g, activation(g, config.summary_activation, narrow(g, y)))
    return y


def _unfolded(g: Graph, x: Value, rows: Value) -> Value:
    """(B·N, T, V) → (B, N, T, V)."""
    return g.op("Reshape", x, g.op("Concat", rows, g.op("Shape", x, start=1), axis=0))
