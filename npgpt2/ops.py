"""The arithmetic of GPT-2: pure functions on arrays, each returning the dtype it was given.

Axes: B batch, T new tokens, S tokens attended to (past + new), H heads, D head_dim; `...` any.
Scalars here are Python floats on purpose: a NumPy float64 scalar would promote float32 arrays.
"""

import math
from collections.abc import Callable
from functools import wraps
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from npgpt2.threads import spread

Array: TypeAlias = npt.NDArray[Any]

BLOCK = 1 << 16  # elements an elementwise chain works on at a time: its temporaries stay in cache
COLUMNS = 8192  # of the head at a time: BLAS reads 25 MB pieces faster than one of 154 MB
FEW, UNCOPIED = 4, 900_000  # rows, and multiplications of a piece: see `product`
QUERIES = 128  # queries attention works on at a time: what lies in their future is never computed


class Activation(Protocol):
    """An elementwise function. `out` may be the input itself, or another contiguous array."""

    def __call__(self, x: Array, out: Array | None = None) -> Array: ...


def linear(x: Array, weight: Array, bias: Array) -> Array:
    """x @ weight + bias: (..., in), (in, out), (out,) → (..., out).

    >>> linear(np.ones((1, 2), "f4"), np.eye(2, dtype="f4"), np.array([1, 2], "f4"))
    array([[2., 3.]], dtype=float32)
    """
    # One matrix product over all rows: NumPy would multiply a 3-D x batch entry by batch entry.
    y = product(x.reshape(-1, x.shape[-1]), weight)
    y += bias
    return y.reshape(*x.shape[:-1], weight.shape[1])


def product(x: Array, weight: Array) -> Array:
    """x @ weight: (N, in), (in, out) → (N, out), by some columns at a time where there are many.

    A few rows by few columns: OpenBLAS copies a matrix into the order that its kernels like before
    it multiplies, which costs more than multiplying by a few rows, but for products of up to
    `UNCOPIED` multiplications it does without (on AVX-512).
    """
    (n, inner), outer = x.shape, weight.shape[1]
    few = 1 < n <= FEW
    width = max(16, UNCOPIED // (n * inner) // 16 * 16) if few else COLUMNS
    if outer <= width:
        whole: Array = np.dot(x, weight)
        return whole
    y = np.empty((n, outer), x.dtype)

    def some(i: int) -> None:
        np.matmul(x, weight[:, i : i + width], out=y[:, i : i + width])

    pieces = range(0, outer, width)
    if few:
        spread(some, pieces)
    else:
        for i in pieces:
            some(i)
    return y


def layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    """(x − mean) / √(var + eps) · weight + bias over the last axis; the variance is the biased one.

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
    """exp(x) / Σ exp(x) over the last axis. A row of −∞ only (all masked) gives zeros, not NaN.

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
    y /= np.maximum(total, 1, out=total)  # the largest gives exp(0): only a masked row has less
    return y


def attention(
    q: Array,
    k: Array,
    v: Array,
    scale: float,
    causal: bool = True,
    mask: Array | None = None,
    head_mask: Array | None = None,
    want_probs: bool = False,
    lengths: Array | None = None,
) -> tuple[Array, Array | None]:
    """softmax(scale · q kᵀ, masked) v, by blocks of queries.

    Args:
        q: (B, H, T, D) queries of the new tokens, which are the last T of the S.
        k, v: (B, H, S, D) keys and values.
        scale: factor on q · k.
        causal: query i sees key j where j − i ≤ S − T: counted from the lower right corner, so
            that prefill, chunks and single steps are one formula.
        mask: (B, S) bool, False where a key is padding.
        head_mask: broadcast to (B, H, T, S), multiplies the probabilities.
        want_probs: return the probabilities as well.
        lengths: (B,), the keys that each row has, where they differ; no mask and no probabilities
            then. Each row is computed as if it were alone.

    Returns:
        (B, H, T, D) weighted values, and (B, H, T, S) probabilities or None.

    >>> one = np.ones((1, 1, 2, 1))
    >>> out, probs = attention(one, one, np.array([[[[2.0], [4.0]]]]), scale=1.0, want_probs=True)
    >>> out.ravel(), probs[0, 0]
    (array([2., 3.]), array([[1. , 0. ],
           [0.5, 0.5]]))
    """
    (b, h, t, d), s = q.shape, k.shape[2]
    out = np.empty((b, t, h, d), q.dtype).transpose(0, 2, 1, 3)  # heads merge without a copy
    if lengths is not None:
        for i, n in enumerate(lengths):
            row = slice(i, i + 1)
            out[row], _ = attention(q[row], k[row, :, :n], v[row, :, :n], scale, causal)
        return out, None
    probs = np.zeros((b, h, t, s), q.dtype) if want_probs else None
    if head_mask is not None:
        head_mask = np.broadcast_to(head_mask, (b, h, t, s))
    q = q * scale
    scratch = np.empty(b * h * min(t, QUERIES) * s, q.dtype)
    for start in range(0, t, QUERIES):
        stop = min(start + QUERIES, t)
        seen = s - t + stop if causal else s  # what is right of it lies in this block's future
        w = scratch[: b * h * (stop - start) * seen].reshape(b, h, stop - start, seen)
        np.matmul(q[:, :, start:stop], k[:, :, :seen].swapaxes(2, 3), out=w)
        if causal and stop - start > 1:
            square = w[:, :, :, seen - (stop - start) :]
            np.copyto(square, -np.inf, where=~np.tri(stop - start, dtype=bool))
        if mask is not None:
            np.copyto(w, -np.inf, where=~mask[:, None, None, :seen])
        softmax(w, out=w)
        if head_mask is not None:
            w *= head_mask[:, :, start:stop, :seen]
        np.matmul(w, v[:, :, :seen], out=out[:, :, start:stop])
        if probs is not None:
            probs[:, :, start:stop, :seen] = w
    return out, probs


def log_softmax(x: Array) -> Array:
    """log softmax over the last axis, always in float64.

    >>> log_softmax(np.zeros((1, 4), "f4")).round(6)
    array([[-1.386294, -1.386294, -1.386294, -1.386294]])
    """
    y = x.astype(np.float64)
    y -= y.max(-1, keepdims=True)
    y -= np.log(np.exp(y).sum(-1, keepdims=True))
    return y


def cross_entropy(logits: Array, targets: Array, ignore_index: int = -100) -> Array:
    """−log softmax(logits)[target] for each row, by log-sum-exp; 0 where the target is ignored.

    Args:
        logits: (..., V).
        targets: (...) ids.

    Returns:
        (...) in nats.

    >>> cross_entropy(np.zeros((2, 4)), np.array([3, -100])).round(6)
    array([1.386294, 0.      ])
    """
    kept = targets != ignore_index
    x = logits - logits.max(-1, keepdims=True)
    picked = np.take_along_axis(x, np.where(kept, targets, 0)[..., None], -1)[..., 0]
    nats: Array = (np.log(np.exp(x, out=x).sum(-1)) - picked) * kept
    return nats


# ── activations ──────────────────────────────────────────────────────────────────────────────────


def blockwise(f: Callable[[Array], Array]) -> Activation:
    """Run an elementwise chain over pieces of `BLOCK` elements, so that it stays in cache."""

    @wraps(f)
    def apply(x: Array, out: Array | None = None) -> Array:
        y = np.empty(x.shape, x.dtype) if out is None else out
        source, target = x.reshape(-1), y.reshape(-1)
        for i in range(0, source.size, BLOCK):
            target[i : i + BLOCK] = f(source[i : i + BLOCK])
        return y

    return apply


def _tanh_gelu(x: Array, slope: float) -> Array:
    """x/2 · (1 + tanh(slope · (x + 0.044715 x³))), in place where it can."""
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
    """`gelu_new` with √(2/π) cut to ten digits, as transformers' FastGELUActivation has it."""
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
    """1 / (1 + exp(−x)), never exponentiating a positive number: no overflow, small tails exact."""
    e = np.exp(-np.abs(x))
    return np.where(x < 0, e, 1.0) / (1.0 + e)


# Rational Chebyshev approximations of erf and erfc: W. J. Cody, "Rational Chebyshev Approximations
# for the Error Function", Mathematics of Computation 23 (1969), pp. 631–637. NumPy has no erf.
_ERF_P = (3.16112374387056560e00, 1.13864154151050156e02, 3.77485237685302021e02,
          3.20937758913846947e03, 1.85777706184603153e-1)  # fmt: skip
_ERF_Q = (2.36012909523441209e01, 2.44024637934444173e02, 1.28261652607737228e03,
          2.84423683343917062e03)  # fmt: skip
_ERFC_P = (5.64188496988670089e-1, 8.88314979438837594e0, 6.61191906371416295e01,
           2.98635138197400131e02, 8.81952221241769090e02, 1.71204761263407058e03,
           2.05107837782607147e03, 1.23033935479799725e03, 2.15311535474403846e-8)  # fmt: skip
_ERFC_Q = (1.57449261107098347e01, 1.17693950891312499e02, 5.37181101862009858e02,
           1.62138957456669019e03, 3.29079923573345963e03, 4.36261909014324716e03,
           3.43936767414372164e03, 1.23033935480374942e03)  # fmt: skip


def erf(x: Array) -> Array:
    """The error function, 2/√π ∫₀ˣ exp(−t²) dt, to the last digits of float64.

    >>> erf(np.array([0.25, 1.0, -3.0])).round(8)
    array([ 0.27632639,  0.84270079, -0.99997791])
    """
    a = np.abs(x)
    # |x| ≤ 0.46875: an odd rational function.
    z = np.minimum(a, 0.46875) ** 2
    num, den = _ERF_P[4] * z, z
    for p, q in zip(_ERF_P[:3], _ERF_Q[:3], strict=True):
        num, den = (num + p) * z, (den + q) * z
    near = x * (num + _ERF_P[3]) / (den + _ERF_Q[3])
    # Above: 1 − exp(−x²) · a rational function; from 6 on it is 1 to the last bit.
    y = np.clip(a, 0.46875, 6.0)
    num, den = _ERFC_P[8] * y, y
    for p, q in zip(_ERFC_P[:7], _ERFC_Q[:7], strict=True):
        num, den = (num + p) * y, (den + q) * y
    far = 1.0 - np.exp(-y * y) * (num + _ERFC_P[7]) / (den + _ERFC_Q[7])
    return np.where(a <= 0.46875, near, np.copysign(far, x))


ACTIVATIONS: dict[str, Activation] = {
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
