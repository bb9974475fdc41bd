"""GPT-2's forward and backward pass: `npgpt2/model/forward.py` with the parts that training adds.

Each function returns its result and its backward function (see `train/ops.py`): read its body from
top to bottom, and then `back`, which has the same lines in reverse order. `d` is the node in the
tree of gradients that corresponds to the node `p` in the tree of parameters.

Axes: B batch, T tokens, C n_embd, H heads, D head_dim, F mlp width, V vocabulary, E tokens of an
encoder.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from npgpt2.base.arrays import Array
from npgpt2.model.config import GPT2Config
from npgpt2.model.forward import merge_heads, split, split_heads
from npgpt2.model.params import MLP, Attention, Block, CrossAttention, Params
from npgpt2.train.ops import (
    Drop,
    activation,
    attention,
    cross_entropy,
    dropout,
    embedding,
    head,
    layer_norm,
    linear,
)


class Rows(NamedTuple):
    """The inputs of a pass: rows of tokens, and the target of each position, the next token."""

    ids: Array  # (B, T)
    targets: Array  # (B, T), −100: ignored
    positions: Array  # (1 or B, T)
    mask: Array | None = None  # (B, T) bool, False at padding
    types: Array | None = None  # (B, T) ids whose rows of wte are added
    encoder: Array | None = None  # (B, E, C) hidden states to attend to
    encoder_mask: Array | None = None  # (B, E) bool
    d_encoder: Array | None = None  # (B, E, C), to which the encoder's gradient is added


class Run(NamedTuple):
    """The config, inputs and options of one pass."""

    config: GPT2Config
    rows: Rows
    drop: Drop | None = None  # seed, step and row for dropout; None: no dropout
    checkpointing: bool = False  # keep only the inputs of blocks; see `checkpointed`

    def dropping(self, kind: str, site: str) -> Drop:
        """The dropout of a site, with the config's embd_pdrop, attn_pdrop or resid_pdrop."""
        p: float = getattr(self.config, kind) if self.drop else 0.0
        return (self.drop or Drop(0.0))._replace(probability=p, site=site)


def loss(params: Params, run: Run) -> tuple[float, Callable[[float, Params], None]]:
    """Σ −log p(target), in nats; `back(1 / count, d)` adds the gradients of the mean to `d`."""
    x, embed_back = embed(params, run)
    x, transformer_back = transformer(x, params, run)
    logits, head_back = head(x, params.head)
    nats, loss_back = cross_entropy(logits, run.rows.targets)

    def back(dloss: float, d: Params) -> None:
        dx = head_back(loss_back(dloss), d.lm_head or d.wte)
        dx = transformer_back(dx, d)
        embed_back(dx, d)

    return nats, back


def embed(params: Params, run: Run) -> tuple[Array, Callable[[Array, Params], None]]:
    """(B, T) ids → (B, T, C)."""
    ids, types = run.rows.ids, run.rows.types
    x, wte_back = embedding(ids, params.wte.weight)
    y, wpe_back = embedding(np.broadcast_to(run.rows.positions, ids.shape), params.wpe.weight)
    x += y
    if types is not None:
        y, types_back = embedding(types, params.wte.weight)
        x += y
    x, dropout_back = dropout(x, run.dropping("embd_pdrop", "embed"))

    def back(dx: Array, d: Params) -> None:
        dx = dropout_back(dx)
        if types is not None:
            types_back(dx, d.wte)
        wpe_back(dx, d.wpe)
        wte_back(dx, d.wte)

    return x, back


def transformer(
    x: Array, params: Params, run: Run
) -> tuple[Array, Callable[[Array, Params], Array]]:
    """(B, T, C) embeddings → (B, T, C) last hidden states."""
    through = checkpointed if run.checkpointing else block
    backs = []
    for layer, p in enumerate(params.h):
        x, block_back = through(x, p, layer, run)
        backs.append(block_back)
    x, ln_f_back = layer_norm(x, *params.ln_f, run.config.layer_norm_epsilon)

    def back(dx: Array, d: Params) -> Array:
        dx = ln_f_back(dx, d.ln_f)
        for node in reversed(d.h):
            dx = backs.pop()(dx, node)  # pop frees the arrays that the block saved
        return dx

    return x, back


def checkpointed(
    x: Array, p: Block, layer: int, run: Run
) -> tuple[Array, Callable[[Array, Block], Array]]:
    """`block`, which keeps only its input: gradient checkpointing (Chen, Xu, Zhang and Guestrin
    2016, https://arxiv.org/abs/1604.06174)."""

    def back(dx: Array, d: Block) -> Array:
        return block(x, p, layer, run)[1](dx, d)

    return block(x, p, layer, run)[0], back


def block(
    x: Array, p: Block, layer: int, run: Run
) -> tuple[Array, Callable[[Array, Block], Array]]:
    """Attention, then the MLP: each reads the normalised stream and adds to it (pre-LN)."""
    eps, cross_back = run.config.layer_norm_epsilon, None

    y, ln_1_back = layer_norm(x, *p.ln_1, eps)
    y, attn_back = attn(y, p.attn, layer, run)
    x = x + y  # not in place: `checkpointed` needs the block's input unchanged
    if p.ln_cross_attn and p.crossattention and run.rows.encoder is not None:
        y, ln_cross_attn_back = layer_norm(x, *p.ln_cross_attn, eps)
        y, cross_back = crossattention(y, p.crossattention, run.rows.encoder, layer, run)
        x += y
    y, ln_2_back = layer_norm(x, *p.ln_2, eps)
    y, mlp_back = mlp(y, p.mlp, layer, run)
    x += y

    def back(dx: Array, d: Block) -> Array:
        dx += ln_2_back(mlp_back(dx, d.mlp), d.ln_2)
        if cross_back and d.crossattention and d.ln_cross_attn:
            dx += ln_cross_attn_back(cross_back(dx, d.crossattention), d.ln_cross_attn)
        dx += ln_1_back(attn_back(dx, d.attn), d.ln_1)
        return dx

    return x, back


def attn(
    x: Array, p: Attention, layer: int, run: Run
) -> tuple[Array, Callable[[Array, Attention], Array]]:
    """Self-attention: each token attends to itself and to the tokens before it."""
    config, site = run.config, f"h.{layer}.attn"
    qkv, c_attn_back = linear(x, *p.c_attn)  # (B, T, 3·H·D)
    q, k, v = (split_heads(part, config) for part in split(qkv, 3))
    y, attention_back = attention(
        q, k, v,
        scale=config.attention_scale(layer),
        drop=run.dropping("attn_pdrop", f"{site}.probs"),
        mask=run.rows.mask,
    )  # fmt: skip
    y, c_proj_back = linear(merge_heads(y), *p.c_proj)
    y, dropout_back = dropout(y, run.dropping("resid_pdrop", f"{site}.c_proj"))

    def back(dy: Array, d: Attention) -> Array:
        dy = c_proj_back(dropout_back(dy), d.c_proj)
        dqkv = np.empty_like(qkv)
        attention_back(split_heads(dy, config), *(split_heads(x, config) for x in split(dqkv, 3)))
        return c_attn_back(dqkv, d.c_attn)

    return y, back


def crossattention(
    x: Array, p: CrossAttention, encoder: Array, layer: int, run: Run
) -> tuple[Array, Callable[[Array, CrossAttention], Array]]:
    """Cross-attention: each token attends to all hidden states of the encoder."""
    config, site = run.config, f"h.{layer}.crossattention"
    q, q_attn_back = linear(x, *p.q_attn)
    kv, c_attn_back = linear(encoder, *p.c_attn)  # (B, E, 2·C)
    k, v = (split_heads(part, config) for part in split(kv, 2))
    y, attention_back = attention(
        split_heads(q, config), k, v,
        scale=config.attention_scale(layer),
        drop=run.dropping("attn_pdrop", f"{site}.probs"),
        causal=False,
        mask=run.rows.encoder_mask,
    )  # fmt: skip
    y, c_proj_back = linear(merge_heads(y), *p.c_proj)
    y, dropout_back = dropout(y, run.dropping("resid_pdrop", f"{site}.c_proj"))

    def back(dy: Array, d: CrossAttention) -> Array:
        dy = c_proj_back(dropout_back(dy), d.c_proj)
        dq, dkv = np.empty_like(q), np.empty_like(kv)
        parts = (dq, *split(dkv, 2))
        attention_back(split_heads(dy, config), *(split_heads(part, config) for part in parts))
        d_encoder = c_attn_back(dkv, d.c_attn)
        if run.rows.d_encoder is not None:
            run.rows.d_encoder[...] += d_encoder
        return q_attn_back(dq, d.q_attn)

    return y, back


def mlp(x: Array, p: MLP, layer: int, run: Run) -> tuple[Array, Callable[[Array, MLP], Array]]:
    """The MLP, for each token separately: widen, activation, project back."""
    x, c_fc_back = linear(x, *p.c_fc)  # (B, T, F)
    x, act_back = activation(run.config.activation_function, x)
    x, c_proj_back = linear(x, *p.c_proj)
    x, dropout_back = dropout(x, run.dropping("resid_pdrop", f"h.{layer}.mlp.c_proj"))

    def back(dx: Array, d: MLP) -> Array:
        dx = c_proj_back(dropout_back(dx), d.c_proj)
        return c_fc_back(act_back(dx), d.c_fc)

    return x, back
