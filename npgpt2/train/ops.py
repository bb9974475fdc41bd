"""The operations of GPT-2, each with its backward pass.

Each function returns its result and a backward function:

    y, back = linear(x, *p.c_fc)
    dx = back(dy, d.c_fc)

`back` takes the gradient of the result, adds the gradients of the parameters to the node `d` of a
tree with the structure of the parameters, and returns the gradient of the input. The arrays that it
needs are saved in the closure and freed with it. `back` overwrites them, so call it only once. It
does not change `dy`, but may return it.

Axes as in `npgpt2.model.ops`. These functions call its forwards, or those of `npgpt2.model.fast`,
where they need to save nothing from inside.
"""

import hashlib
import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np

from npgpt2.base.arrays import Array, Elementwise, blockwise, erf
from npgpt2.model import fast, ops
from npgpt2.model.fast import QUERIES
from npgpt2.model.ops import ACTIVATIONS
from npgpt2.model.params import Embedding, LayerNorm, Linear

Back: TypeAlias = Callable[[Array], Array]

VOCABULARY = 4096  # rows of the head per product: for all at once the temporary is as large as it


def linear(x: Array, weight: Array, bias: Array) -> tuple[Array, Callable[[Array, Linear], Array]]:
    """x @ weight + bias: (..., in) → (..., out).

    >>> d = Linear(np.zeros((2, 1)), np.zeros(1))
    >>> y, back = linear(np.array([[1.0, 2.0]]), np.array([[3.0], [4.0]]), np.zeros(1))
    >>> y, back(np.array([[10.0]]), d), d.weight.ravel(), d.bias
    (array([[11.]]), array([[30., 40.]]), array([10., 20.]), array([10.]))
    """

    def back(dy: Array, d: Linear) -> Array:
        rows, drows = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
        d.weight[...] += np.dot(rows.T, drows)
        d.bias[...] += np.add.reduce(drows, 0)
        dx: Array = np.dot(drows, weight.T)
        return dx.reshape(x.shape)

    return fast.linear(x, weight, bias), back


def embedding(ids: Array, weight: Array) -> tuple[Array, Callable[[Array, Embedding], None]]:
    """Rows of a table: (...) ids → (..., C). `back` returns None: ids have no gradient.

    >>> d = Embedding(np.zeros((3, 1)))
    >>> _, back = embedding(np.array([2, 0, 2]), np.eye(3)[:, :1])
    >>> back(np.array([[1.0], [2.0], [3.0]]), d), d.weight.ravel()
    (None, array([2., 0., 4.]))
    """

    def back(dy: Array, d: Embedding) -> None:
        flat = ids.reshape(-1)
        order = flat.argsort(kind="stable")  # groups the rows of each id, to sum them at once
        rows, starts = np.unique(flat[order], return_index=True)
        d.weight[rows] += np.add.reduceat(dy.reshape(-1, dy.shape[-1])[order], starts)

    return weight[ids], back


def layer_norm(
    x: Array, weight: Array, bias: Array, eps: float
) -> tuple[Array, Callable[[Array, LayerNorm], Array]]:
    """(x − mean) / √(var + eps) · weight + bias over the last axis.

    Its gradient, through mean and variance (Ba, Kiros and Hinton 2016), with n the normalised x
    and g = dy · weight: dx = (g − mean(g) − n · mean(g · n)) / √(var + eps).

    >>> _, back = layer_norm(np.array([[1.0, 3.0, 2.0]]), np.ones(3), np.zeros(3), eps=0.0)
    >>> d = LayerNorm(np.zeros(3), np.zeros(3))
    >>> back(np.array([[1.0, 0.0, 0.0]]), d).round(6), d.weight.round(6)
    (array([[ 0.204124,  0.204124, -0.408248]]), array([-1.224745,  0.      ,  0.      ]))
    """
    size = x.shape[-1]
    normal = x - np.add.reduce(x, -1, keepdims=True) / size
    scale = np.einsum("...i,...i->...", normal, normal)[..., None]
    scale /= size
    scale += eps
    np.sqrt(scale, out=scale)
    normal /= scale
    y = normal * weight
    y += bias

    def back(dy: Array, d: LayerNorm) -> Array:
        rows, drows = normal.reshape(-1, size), dy.reshape(-1, size)
        d.weight[...] += np.einsum("ri,ri->i", rows, drows)
        d.bias[...] += np.add.reduce(drows, 0)
        g = dy * weight
        along = np.einsum("...i,...i->...", g, normal)[..., None] / size
        g -= np.add.reduce(g, -1, keepdims=True) / size
        g -= np.multiply(normal, along, out=normal)
        g /= scale
        return g

    return y, back


def activation(name: str, x: Array) -> tuple[Array, Back]:
    """The config's activation_function, elementwise.

    >>> y, back = activation("relu", np.array([-1.0, 2.0]))
    >>> y, back(np.ones(2))
    (array([0., 2.]), array([0., 1.]))
    """

    def back(dy: Array) -> Array:
        slope = SLOPES[name](x, out=x)
        slope *= dy
        return slope

    return ACTIVATIONS[name](x), back


# ── attention ────────────────────────────────────────────────────────────────────────────────────


def attention(
    q: Array,
    k: Array,
    v: Array,
    scale: float,
    drop: "Drop",
    causal: bool = True,
    mask: Array | None = None,
) -> tuple[Array, Callable[[Array, Array, Array, Array], None]]:
    """softmax(scale · q kᵀ, masked), dropout, times v, by blocks of queries as in `fast.attention`.

    `back(dy, dq, dk, dv)` writes the gradients of q, k and v into the given arrays. The term
    Σ dP · P of softmax's gradient equals Σ dy · y, a sum over D instead of S, with and without
    dropout (Dao et al. 2022, https://arxiv.org/abs/2205.14135, appendix B).

    Args:
        q, k, v, scale, causal, mask: as for `ops.attention`; T == S if causal.
        drop: dropout of the probabilities.

    >>> one, drop = np.ones((1, 1, 2, 1)), NO_DROP
    >>> y, back = attention(one, one, np.array([[[[2.0], [4.0]]]]), 1.0, drop)
    >>> dq, dk, dv = np.empty((3, 1, 1, 2, 1))
    >>> back(np.ones((1, 1, 2, 1)), dq, dk, dv)
    >>> y.ravel(), dq.ravel(), dk.ravel(), dv.ravel()
    (array([2., 3.]), array([0., 0.]), array([-0.5,  0.5]), array([1.5, 0.5]))
    """
    (b, h, t, d), s = q.shape, k.shape[2]
    y = np.empty((b, t, h, d), q.dtype).transpose(0, 2, 1, 3)
    q = q * scale
    blocks = []
    for start in range(0, t, QUERIES):
        now = slice(start, min(start + QUERIES, t))
        seen = slice(now.stop if causal else s)
        w = np.matmul(q[:, :, now], k[:, :, seen].swapaxes(2, 3))
        if causal:
            future = ~np.tri(now.stop - start, dtype=bool)
            np.copyto(w[:, :, :, start:], -np.inf, where=future)
        if mask is not None:
            np.copyto(w, -np.inf, where=~mask[:, None, None, seen])
        ops.softmax(w, out=w)
        kept = drop.at(start).draw(w.shape)
        np.matmul(drop.apply(w, kept), v[:, :, seen], out=y[:, :, now])
        blocks.append((now, seen, w, kept))

    def back(dy: Array, dq: Array, dk: Array, dv: Array) -> None:
        dk[...] = dv[...] = 0
        rows = np.einsum("bhtd,bhtd->bht", dy, y)[..., None]
        while blocks:
            now, seen, w, kept = blocks.pop()
            dw = np.matmul(dy[:, :, now], v[:, :, seen].swapaxes(2, 3))
            dv[:, :, seen] += np.matmul(drop.apply(w, kept).swapaxes(2, 3), dy[:, :, now])
            dw = drop.apply(dw, kept)
            dw -= rows[:, :, now]
            dw *= w  # of the scores
            np.matmul(dw, k[:, :, seen], out=dq[:, :, now])
            dk[:, :, seen] += np.matmul(dw.swapaxes(2, 3), q[:, :, now])
        dq *= scale

    return y, back


# ── dropout ──────────────────────────────────────────────────────────────────────────────────────


class Drop(NamedTuple):
    """A dropout mask as a pure function of seed, step, row of the batch and site.

    So gradient checkpointing needs no stored mask, and the mask of a row does not depend on how
    threads share the batch. The generator is the counter-based Philox: Salmon, Moraes, Dror and
    Shaw 2011, https://doi.org/10.1145/2063384.2063405.

    Attributes:
        probability: probability that an element becomes zero, rounded to 1/65536 (16-bit draws).
        seed: seed of the run, below 2^64.
        step: step of the optimizer.
        row: number of the first row among all rows of the step.
        site: name of the array, as in taps: `h.3.attn.probs`.
    """

    probability: float
    seed: int = 0
    step: int = 0
    row: int = 0
    site: str = ""

    def at(self, part: str | int) -> "Drop":
        return self._replace(site=f"{self.site}.{part}") if self.probability else self

    @property
    def threshold(self) -> int:
        return round(self.probability * 65536)

    def draw(self, shape: tuple[int, ...]) -> Array | None:
        """(B, ...) bool, True where an element is kept; None if all are kept."""
        if not self.threshold:
            return None
        size = math.prod(shape[1:])
        site = int.from_bytes(hashlib.sha256(self.site.encode()).digest()[:8], "little")
        kept = np.empty((shape[0], size), bool)
        for i, row in enumerate(kept):
            counter = np.array([0, self.row + i, site, self.step], np.uint64)
            bits = np.random.Philox(key=self.seed, counter=counter).random_raw(-(-size // 4))
            np.greater_equal(bits.astype("<u8", copy=False).view("<u2")[:size], self.threshold, row)
        return kept.reshape(shape)

    def apply(self, x: Array, kept: Array | None) -> Array:
        """x with dropped elements zero and the others scaled up; x itself if all are kept."""
        if kept is None:
            return x
        left = 65536 - self.threshold
        y: Array = kept.astype(x.dtype)
        y *= 65536 / left if left else 0.0
        y *= x
        return y


NO_DROP = Drop(0.0)


def dropout(x: Array, drop: Drop) -> tuple[Array, Back]:
    """Dropout with scaling of the kept elements (Srivastava et al. 2014, JMLR 15).

    >>> y, back = dropout(np.ones((1, 8)), Drop(0.5, seed=1, site="embed"))
    >>> y, back(np.ones((1, 8)))
    (array([[2., 2., 2., 0., 2., 2., 2., 0.]]), array([[2., 2., 2., 0., 2., 2., 2., 0.]]))
    """
    kept = drop.draw(x.shape)
    return drop.apply(x, kept), lambda dy: drop.apply(dy, kept)


# ── head and loss ────────────────────────────────────────────────────────────────────────────────


def head(x: Array, weight: Array) -> tuple[Array, Callable[[Array, Embedding], Array]]:
    """(..., C) hidden states → (..., V) logits: x @ weightᵀ. If tied, `d` is the node of wte."""

    rows = x.reshape(-1, x.shape[-1])

    def back(dy: Array, d: Embedding) -> Array:
        drows = dy.reshape(-1, len(weight))
        for i in range(0, len(weight), VOCABULARY):
            some = slice(i, i + VOCABULARY)
            d.weight[some] += np.dot(drows[:, some].T, rows)
        dx: Array = np.dot(drows, weight)
        return dx.reshape(x.shape)

    logits: Array = np.dot(rows, weight.T)
    return logits.reshape(*x.shape[:-1], len(weight)), back


def cross_entropy(
    logits: Array, targets: Array, ignore_index: int = -100
) -> tuple[float, Callable[[float], Array]]:
    """Σ −log softmax(logits)[target], in nats, over the targets that are not ignored.

    Works in place: `back` turns `logits` (..., V) into their gradient, softmax(logits) −
    one-hot(target), times its argument, which is 1 / count for the mean.

    >>> nats, back = cross_entropy(np.zeros((2, 4)), np.array([3, -100]))
    >>> round(nats, 6), back(1.0)
    (1.386294, array([[ 0.25,  0.25,  0.25, -0.75], [ 0.  ,  0.  ,  0.  ,  0.  ]]))
    """
    vocabulary = logits.shape[-1]
    x, flat = logits.reshape(-1, vocabulary), targets.reshape(-1)
    kept = flat != ignore_index
    rows, labels = np.arange(len(flat))[kept], flat[kept]
    x -= x.max(-1, keepdims=True)
    picked = x[rows, labels].astype(np.float64)
    np.exp(x, out=x)
    total = np.add.reduce(x, -1)
    nats = float((np.log(total[kept].astype(np.float64)) - picked).sum())

    def back(dy: float) -> Array:
        np.multiply(x, (dy * kept / total).astype(x.dtype)[:, None], out=x)
        x[rows, labels] -= dy
        return x.reshape(logits.shape)

    return nats, back


# ── derivatives of the activations, in the order of `npgpt2.model.ops` ───────────────────────────


def _tanh_gelu(x: Array, slope: float) -> Array:
    """(1 + t)/2 + x/2 · (1 − t²) · u′, where t = tanh(u) and u = slope · (x + 0.044715 x³)."""
    square = x * x
    t = square * 0.044715
    t += 1.0
    t *= x
    t *= slope
    np.tanh(t, out=t)
    square *= 3 * 0.044715 * slope
    square += slope
    square *= x
    square *= 1.0 - t * t
    square += t
    square += 1.0
    square *= 0.5
    return square


@blockwise
def gelu_new(x: Array) -> Array:
    return _tanh_gelu(x, math.sqrt(2.0 / math.pi))


@blockwise
def gelu_fast(x: Array) -> Array:
    return _tanh_gelu(x, 0.7978845608)


@blockwise
def gelu(x: Array) -> Array:
    """Φ(x) + x φ(x), with the normal distribution Φ and its density φ."""
    density = np.exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi))
    return 0.5 + 0.5 * erf(x * math.sqrt(0.5)) + x * density


@blockwise
def quick_gelu(x: Array) -> Array:
    s = ops.sigmoid(1.702 * x)
    return s + 1.702 * x * s * (1.0 - s)


@blockwise
def silu(x: Array) -> Array:
    s = ops.sigmoid(x)
    return s + x * s * (1.0 - s)


@blockwise
def relu(x: Array) -> Array:
    """1 above zero; 0 at zero and below, as in PyTorch."""
    return (x > 0).astype(x.dtype)


@blockwise
def tanh(x: Array) -> Array:
    return 1.0 - np.tanh(x) ** 2


SLOPES: dict[str, Elementwise] = {
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
