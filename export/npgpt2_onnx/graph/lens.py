"""Logit lens: the model's prediction at a block boundary, from ln_f and the head.

nostalgebraist 2020, "interpreting GPT: the logit lens",
https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru. The graph uses the weights of model.onnx, and
its input is a hidden state that model.onnx returns.

Axes: N hidden states, C n_embd, V vocabulary, K tokens named for each state.
"""

from typing import Any

from onnx import ModelProto

from npgpt2.model.config import GPT2Config
from npgpt2_onnx.graph.builder import FLOAT, INT64, Graph
from npgpt2_onnx.graph.language_model import OPSET
from npgpt2_onnx.graph.layout import Layout, weights
from npgpt2_onnx.graph.ops import dot_rows, layer_norm
from npgpt2_onnx.graph.precision import Precision

HIDDEN, PROBS, IDS = "hidden", "probs", "ids"  # the graph's input and outputs


def build_lens(
    config: GPT2Config, precision: Precision, layout: Layout, opset: int = OPSET, top: int = 5
) -> ModelProto:
    """Build the graph `hidden` (N, C) → `probs` (N, K) float32 and `ids` (N, K) int64, best first.

    N is at least 1. Reads no weights: `layout` has their locations, the same as for
    model.onnx.

    Args:
        top: K; at most the vocabulary size.

    >>> from npgpt2_onnx.graph.layout import layout
    >>> from npgpt2_onnx.graph.precision import PRECISIONS
    >>> config, fp32 = GPT2Config(), PRECISIONS["fp32"]
    >>> lens = build_lens(config, fp32, layout(config, fp32, "model.onnx_data")).graph
    >>> [proto.name for proto in lens.initializer if proto.external_data]
    ['wte.weight', 'ln_f.weight', 'ln_f.bias']
    """
    g = Graph(opset, precision.float)
    hidden = g.input(HIDDEN, FLOAT, ["N", config.n_embd])
    head = "wte.weight" if config.tie_word_embeddings else "lm_head.weight"
    read = (head, "ln_f.weight", "ln_f.bias")
    p: Any = weights(g, config, precision, layout, read.__contains__)
    row = g.op("Unsqueeze", hidden, g.constant([0]))  # (1, N, C): a batch of one row
    norm = p["ln_f.weight"], p["ln_f.bias"]
    x = layer_norm(g.at("ln_f"), row, *norm, eps=config.layer_norm_epsilon)
    logits = dot_rows(g.at("lm_head"), x, p[head], config.vocab_size)
    probs = g.op("Softmax", g.op("Squeeze", logits, g.constant([0])), axis=-1)
    k = min(top, config.vocab_size)
    best = g.ops("TopK", probs, g.constant([k]), outputs=2, axis=-1)
    for name, value, dtype in zip((PROBS, IDS), best, (FLOAT, INT64), strict=True):
        g.output(g.tap(name, value), dtype, ["N", k])
    return g.model("gpt2_lens")
