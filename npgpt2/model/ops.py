"""The operations of GPT-2: pure functions on arrays that keep the dtype of their input.

`linear` and `attention` are the textbook forms; the model uses the faster forms in `fast`. Scalars
are Python floats on purpose: a NumPy float64 scalar would promote float32 arrays.

Axes: B batch, T new tokens, S tokens attended to (past + new), H heads, D head_dim; `...` any.
"""

import math

import numpy as np

from npgpt2.base.arrays import Array, Elementwise, blockwise, erf


def linear(x: Array, weight: Array, bias: Array) -> Array:
    """x @ weight + bias: (..., in), (in, out), (out,) → (..., out).

    >>> linear(np.ones((1, 2), "f4"), np.eye(2, dtype="f4"), np.array([1, 2], "f4"))
    array([[2., 3.]], dtype=float32)
    """
    y: Array = x @ weight + bias
    return y


def layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    """(x − mean) / √(var + eps) · weight + bias over the last axis; var is the biased variance.

    Ba, Kiros and Hinton 2016, https://arxiv.org/abs/1607.06450

    >>> layer_norm(np.array([1.0, 3.0]), np.ones(2), np.zeros(2), eps=0.0)
    array([-1.,  1.])
    """
    n = x.shape[-1]
    y: Array = x - np.add.reduce(x, -1, keepdims=True) / n
    scale = np.add.reduce(y * y, -1, keepdims=True)
    scale /= n
    scale += eps
    y /= np.sqrt(scale, out=scale)
    y *= weight
    y += bias
    return y


def softmax(x: Array, out: Array | None = None) -> Array:
    """exp(x) / Σ exp(x) over the last axis. A row of only −∞ (all masked) gives zeros, not NaN.

    >>> softmax(np.array([[0.0, math.log(3)], [-np.inf, -np.inf]]))
    array([[0.25, 0.75],
           [0.  , 0.  ]])
    """
    y = np.empty_like(x) if out is None else out
    top = np.maximum.reduce(x, -1, keepdims=True)
    np.maximum(top, np.finfo(x.dtype).min, out=top)  # −∞ − −∞ would be NaN
    np.subtract(x, top, out=y)
    np.exp(y, out=y)
    total = np.add.reduce(y, -1, keepdims=True)
    y /= np.maximum(total, 1, out=total)  # ≥ exp(0), except in a masked row
    return y


def attention(
    q: Array,
    k: Array,
    v: Array,
    scale: float,
    causal: bool = True,
    mask: Array | None = None,
    head_mask: Array | None = None,
) -> tuple[Array, Array]:
    """softmax(scale · q kᵀ, masked) v.

    Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, section 3.2

    Args:
        q: (B, H, T, D) queries of the new tokens, the last T of the S.
        k, v: (B, H, S, D) keys and values.
        scale: factor on q · k.
        causal: query i sees key j if j − i ≤ S − T. This covers prefill, chunks and single steps.
        mask: (B, S) bool, False where a key is padding.
        head_mask: factor on the probabilities, broadcast to (B, H, T, S).

    Returns:
        (B, H, T, D) weighted values, and (B, H, T, S) probabilities.

    >>> one = np.ones((1, 1, 2, 1))
    >>> out, probs = attention(one, one, np.array([[[[2.0], [4.0]]]]), scale=1.0)
    >>> out.ravel(), probs[0, 0]
    (array([2., 3.]), array([[1. , 0. ],
           [0.5, 0.5]]))
    """
    t, s = q.shape[2], k.shape[2]
    scores = scale * q @ k.swapaxes(2, 3)
    if causal:
        scores = np.where(np.tri(t, s, s - t, dtype=bool), scores, -np.inf)
    if mask is not None:
        scores = np.where(mask[:, None, None, :], scores, -np.inf)
    probs = softmax(scores)
    if head_mask is not None:
        probs = probs * head_mask
    return probs @ v, probs


# ── activations ──────────────────────────────────────────────────────────────────────────────────


def _tanh_gelu(x: Array, slope: float) -> Array:
    """x/2 · (1 + tanh(slope · (x + 0.044715 x³)))."""
    y = x * x
    y *= 0.044715
    y += 1.0
    y *= x
    y *= slope
    np.tanh(y, out=y)
    y += 1.0
    y *= x
    y *= 0.5
    return y


@blockwise
def gelu_new(x: Array) -> Array:
    """GPT-2's GELU, the tanh form: Hendrycks and Gimpel 2016, https://arxiv.org/abs/1606.08415

    >>> gelu_new(np.array([-1.0, 0.0, 1.0])).round(6)
    array([-0.158808,  0.      ,  0.841192])
    """
    return _tanh_gelu(x, math.sqrt(2.0 / math.pi))


@blockwise
def gelu_fast(x: Array) -> Array:
    """`gelu_new` with √(2/π) cut to ten digits, as in transformers' FastGELUActivation."""
    return _tanh_gelu(x, 0.7978845608)


@blockwise
def gelu(x: Array) -> Array:
    """x · Φ(x) by the error function: the exact GELU.

    >>> gelu(np.array([-1.0, 0.0, 1.0])).round(6)
    array([-0.158655,  0.      ,  0.841345])
    """
    return x * (0.5 + 0.5 * erf(x * math.sqrt(0.5)))


@blockwise
def quick_gelu(x: Array) -> Array:
    """x · σ(1.702 x)."""
    return x * sigmoid(1.702 * x)


@blockwise
def silu(x: Array) -> Array:
    """x · σ(x), also called swish."""
    return x * sigmoid(x)


@blockwise
def relu(x: Array) -> Array:
    """max(x, 0)."""
    return np.maximum(x, 0)


@blockwise
def tanh(x: Array) -> Array:
    """tanh(x)."""
    return np.tanh(x)


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(−x)). Uses exp(−|x|) only: no overflow, and small values stay exact."""
    e = np.exp(-np.abs(x))
    return np.where(x < 0, e, 1.0) / (1.0 + e)


ACTIVATIONS: dict[str, Elementwise] = {
    "gelu_new": gelu_new,
    "gelu_pytorch_tanh": gelu_new,
    "gelu_fast": gelu_fast,
    "gelu": gelu,
    "quick_gelu": quick_gelu,
    "relu": relu,
    "silu": silu,
    "swish": silu,
    "tanh": tanh,
}
