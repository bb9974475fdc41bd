"""GPT-2 as nodes: the counterpart of `npgpt2.model.forward`, with the same functions line by line.

The code exists twice on purpose: each version checks the other. Here the leaves of the parameter
tree are values of the graph. Only attention differs: ONNX Runtime computes it for every query, in
one node where possible, and the requested positions are selected after it.

Axes: B batch, T new tokens, P past, S = P + T, C n_embd, H heads, D head_dim, F mlp width,
V vocabulary.
"""

from typing import Any, TypeAlias

from npgpt2_onnx.graph.attention import Run, attend, plain, split_heads
from npgpt2_onnx.graph.builder import Graph, Value
from npgpt2_onnx.graph.ops import activation, add, dot_rows, layer_norm, linear, rows_of

Tree: TypeAlias = Any  # a node of `npgpt2.model.params`, its leaves values of the graph


def embed(g: Graph, params: Tree, input_ids: Value, position_ids: Value) -> Value:
    """Ids (B, T) → (B, T, C): token embeddings plus position embeddings."""
    wte, wpe = params.wte.weight, params.wpe.weight
    x = g.tap("wte", rows_of(g.at("wte"), wte, input_ids))
    return g.tap("embed", g.op("Add", x, g.tap("wpe", rows_of(g.at("wpe"), wpe, position_ids))))


def transformer(g: Graph, x: Value, params: Tree, run: Run) -> Value:
    """(B, T, C) embeddings → (B, T, C) last hidden states."""
    for layer, p in enumerate(params.h):
        x = block(g.at(f"h.{layer}"), x, p, layer, run)
    return g.tap(
        "ln_f", layer_norm(g.at("ln_f"), x, *params.ln_f, eps=run.config.layer_norm_epsilon)
    )


def block(g: Graph, x: Value, p: Tree, layer: int, run: Run) -> Value:
    """Attention, then the MLP: each reads the normalised residual stream and adds to it."""
    eps = run.config.layer_norm_epsilon
    y = g.tap("ln_1", layer_norm(g.at("ln_1"), x, *p.ln_1, eps=eps))
    y = attn(g.at("attn"), y, p.attn, layer, run)
    x = g.tap("resid_attn", add(g, asked_for(g, x, layer, run), y))
    if p.ln_cross_attn and p.crossattention:
        y = g.tap("ln_cross_attn", layer_norm(g.at("ln_cross_attn"), x, *p.ln_cross_attn, eps=eps))
        y = crossattention(g.at("crossattention"), y, p.crossattention, layer, run)
        x = g.tap("resid_cross", add(g, x, y))
    y = g.tap("ln_2", layer_norm(g.at("ln_2"), x, *p.ln_2, eps=eps))
    return g.tap("resid_mlp", add(g, x, mlp(g.at("mlp"), y, p.mlp, run)))


def attn(g: Graph, x: Value, p: Tree, layer: int, run: Run) -> Value:
    """Causal self-attention: each token attends to itself and to the tokens before it."""
    qkv = g.tap("c_attn", linear(g.at("c_attn"), x, *p.c_attn))  # (B, T, 3·H·D)
    y = g.tap("heads", attend(g, qkv, layer, run))
    return g.tap("c_proj", linear(g.at("c_proj"), asked_for(g, y, layer, run), *p.c_proj))


def asked_for(g: Graph, x: Value, layer: int, run: Run) -> Value:
    """(B, T, ...) → (B, 1 or T, ...): select the requested positions after the last attention."""
    if run.asked is None or layer < run.config.n_layer - 1:
        return x
    return g.op("GatherND", x, run.asked, batch_dims=1)


def crossattention(g: Graph, x: Value, p: Tree, layer: int, run: Run) -> Value:
    """Each token attends to all of the encoder's states, whose keys and values are inputs."""
    q = g.tap("q_attn", linear(g.at("q_attn"), x, *p.q_attn))
    q = split_heads(g, q, run.config.n_head, run.config)
    scale = run.config.attention_scale(layer)
    y = g.tap("heads", plain(g, q, *run.cross[layer], scale, run.cross_bias))
    return g.tap("c_proj", linear(g.at("c_proj"), y, *p.c_proj))


def mlp(g: Graph, x: Value, p: Tree, run: Run) -> Value:
    """Feed-forward network of each token: C → F, activation, F → C."""
    x = g.tap("c_fc", linear(g.at("c_fc"), x, *p.c_fc))  # (B, T, F)
    x = g.tap("act", activation(g.at("act"), run.config.activation_function, x))
    return g.tap("c_proj", linear(g.at("c_proj"), x, *p.c_proj))


def lm_head(g: Graph, x: Value, params: Tree, count: int) -> Value:
    """(B, T, C) hidden states → (B, T, V) logits, one dot product with each row of the head."""
    return dot_rows(g.at("lm_head"), x, params.head, count)
