"""GPT-2, read from top to bottom: embed → blocks → ln_f → logits.

Radford, Wu, Child, Luan, Amodei and Sutskever 2019, "Language Models are Unsupervised Multitask
Learners"; the parts are named as in OpenAI's checkpoints. Each function takes the node of the
parameter tree that has its name.

Axes: B batch, T new tokens, P past, S = P + T, C n_embd, H heads, D head_dim, F mlp width,
V vocabulary, E tokens of an encoder.
"""

from collections.abc import Callable
from typing import NamedTuple

from npgpt2.base.arrays import Array, product
from npgpt2.model.cache import KVCache
from npgpt2.model.config import GPT2Config
from npgpt2.model.fast import attention, linear
from npgpt2.model.ops import ACTIVATIONS, layer_norm
from npgpt2.model.params import MLP, Attention, Block, CrossAttention, Params


class Tap:
    """Passes every intermediate array to a callback, with its name, such as `h.3.attn.probs`.

    The model modifies the arrays in place afterwards, so the callback must copy what it keeps.

    >>> names = []
    >>> tap = Tap(lambda name, array: names.append(name)).at("h.3").at("mlp")
    >>> _ = tap("c_fc", None)
    >>> names
    ['h.3.mlp.c_fc']
    """

    def __init__(self, listen: Callable[[str, Array], None] | None = None, path: str = "") -> None:
        self.listen, self.path = listen, path

    def at(self, part: str) -> "Tap":
        return Tap(self.listen, f"{self.path}{part}.") if self.listen else self

    def __call__(self, name: str, array: Array) -> Array:
        if self.listen:
            self.listen(self.path + name, array)
        return array


SILENT = Tap()


class Run(NamedTuple):
    """The settings and state of one forward pass."""

    config: GPT2Config
    cross: dict[int, tuple[Array, Array]]  # by layer, keys and values of the encoder's states
    cache: KVCache | None = None
    mask: Array | None = None  # (B, S) bool, False where padding
    head_mask: Array | None = None  # (L, 1 or B, H, 1 or T, 1 or S)
    encoder: Array | None = None  # (B, E, C) hidden states to attend to
    encoder_mask: Array | None = None  # (B, E) bool
    want_probs: bool = False
    last: int = 0  # compute logits for this many last positions; 0: for all

    def asked(self, layer: int) -> slice:
        """Positions whose output is needed: in the last block, only those of `last`."""
        return slice(-self.last if layer == self.config.n_layer - 1 else 0, None)


def embed(
    params: Params,
    tokens: Array,
    position_ids: Array,
    token_type_ids: Array | None = None,
    tap: Tap = SILENT,
) -> Array:
    """Ids (B, T), or embeddings (B, T, C) → (B, T, C): token plus position embeddings."""
    wte, wpe = params.wte.weight, params.wpe.weight
    x = tap("wte", wte[tokens] if tokens.ndim == 2 else tokens)
    x = x + tap("wpe", wpe[position_ids])
    if token_type_ids is not None:
        x += wte[token_type_ids]
    return tap("embed", x)


def transformer(x: Array, params: Params, run: Run, tap: Tap = SILENT) -> Array:
    """(B, T, C) embeddings → (B, T, C) last hidden states, or only the last `run.last` positions.

    Appends keys and values to the cache; the caller advances its length.
    """
    for layer, p in enumerate(params.h):
        x = block(x, p, layer, run, tap.at(f"h.{layer}"))
    return tap("ln_f", layer_norm(x, *params.ln_f, run.config.layer_norm_epsilon))


def block(x: Array, p: Block, layer: int, run: Run, tap: Tap) -> Array:
    """(B, T, C) → (B, T, C): attention, then the MLP; each reads the normalised residual stream x
    and adds to it in place (pre-LN)."""
    eps = run.config.layer_norm_epsilon
    y = tap("ln_1", layer_norm(x, *p.ln_1, eps))
    y = attn(y, p.attn, layer, run, tap.at("attn"))
    x = x[:, run.asked(layer)]
    x += y
    tap("resid_attn", x)
    if p.ln_cross_attn and p.crossattention and (kv := encoder_kv(p.crossattention, layer, run)):
        y = tap("ln_cross_attn", layer_norm(x, *p.ln_cross_attn, eps))
        x += crossattention(y, p.crossattention, *kv, layer, run, tap.at("crossattention"))
        tap("resid_cross", x)
    y = tap("ln_2", layer_norm(x, *p.ln_2, eps))
    x += mlp(y, p.mlp, run, tap.at("mlp"))
    return tap("resid_mlp", x)


def attn(x: Array, p: Attention, layer: int, run: Run, tap: Tap) -> Array:
    """(B, T, C) → (B, T, C): each token attends to itself and to the tokens before it."""
    qkv = tap("c_attn", linear(x, *p.c_attn))  # (B, T, 3·H·D)
    q, k, v = split(qkv, 3)
    q, k, v = (split_heads(y, run.config) for y in (q[:, run.asked(layer)], k, v))
    if run.cache is not None:
        k, v = run.cache.write(layer, k, v)  # (B, H, S, D)
    y, probs = attention(
        q, k, v,
        scale=run.config.attention_scale(layer),
        mask=run.mask,
        head_mask=None if run.head_mask is None else run.head_mask[layer],
        want_probs=run.want_probs,
        lengths=None if run.cache is None else run.cache.lengths,
    )  # fmt: skip
    if probs is not None:
        tap("probs", probs)
    y = tap("heads", merge_heads(y))
    return tap("c_proj", linear(y, *p.c_proj))


def crossattention(
    x: Array, p: CrossAttention, k: Array, v: Array, layer: int, run: Run, tap: Tap
) -> Array:
    """(B, T, C) → (B, T, C): each token attends to all of the encoder's states."""
    q = split_heads(tap("q_attn", linear(x, *p.q_attn)), run.config)
    y, probs = attention(
        q, k, v,
        scale=run.config.attention_scale(layer),
        causal=False,
        mask=run.encoder_mask,
        want_probs=run.want_probs,
    )  # fmt: skip
    if probs is not None:
        tap("probs", probs)
    y = tap("heads", merge_heads(y))
    return tap("c_proj", linear(y, *p.c_proj))


def encoder_kv(p: CrossAttention, layer: int, run: Run) -> tuple[Array, Array] | None:
    """Keys and values (B, H, E, D) of the encoder's states, computed once; None without encoder."""
    if layer not in run.cross and run.encoder is not None:
        k, v = (split_heads(part, run.config) for part in split(linear(run.encoder, *p.c_attn), 2))
        run.cross[layer] = k, v
    return run.cross.get(layer)


def mlp(x: Array, p: MLP, run: Run, tap: Tap) -> Array:
    """(B, T, C) → (B, T, C), each token separately: C → F, activation, F → C."""
    act = ACTIVATIONS[run.config.activation_function]
    x = tap("c_fc", linear(x, *p.c_fc))  # (B, T, F)
    x = tap("act", act(x, out=x))
    return tap("c_proj", linear(x, *p.c_proj))


def lm_head(x: Array, params: Params, tap: Tap = SILENT) -> Array:
    """(..., C) hidden states → (..., V) logits: the dot product with each row of the head."""
    y = product(x.reshape(-1, x.shape[-1]), params.head.T)
    return tap("logits", y.reshape(*x.shape[:-1], y.shape[-1]))


def split_heads(x: Array, config: GPT2Config) -> Array:
    """(B, T, H·D) → (B, H, T, D), a view."""
    return x.reshape(*x.shape[:2], -1, config.head_dim).transpose(0, 2, 1, 3)


def merge_heads(x: Array) -> Array:
    """(B, H, T, D) → (B, T, H·D)."""
    b, _, t, _ = x.shape
    return x.transpose(0, 2, 1, 3).reshape(b, t, -1)


def split(x: Array, parts: int) -> list[Array]:
    width = x.shape[-1] // parts
    return [x[..., i * width : (i + 1) * width] for i in range(parts)]
