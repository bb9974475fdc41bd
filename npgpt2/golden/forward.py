"""A second, simple implementation of GPT-2, with a switch for each usual mistake.

With default switches it computes the same as `npgpt2.model.forward`; a test compares the two. Each
other setting of a switch computes what a port with that mistake computes, under the same tap names,
so that a port's mistake can be recognised by its values.

Axes: B batch, T tokens, C n_embd, H heads, D head_dim, F mlp width, V vocabulary.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from npgpt2.base.arrays import Array, blockwise
from npgpt2.model.config import GPT2Config
from npgpt2.model.forward import Tap
from npgpt2.model.ops import ACTIVATIONS, softmax
from npgpt2.model.params import Block, LayerNorm, Linear, Params

# Wrong variants of gelu_new found in ports, in addition to the other activations.
WRONG_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "none": lambda x: x,
    "0.44715": lambda x: 0.5 * x * (1.0 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.44715 * x**3))),
    "no root": lambda x: 0.5 * x * (1.0 + np.tanh(2 / math.pi * (x + 0.044715 * x**3))),
    "no half": lambda x: x * (1.0 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
}

# Factors by which ports multiply q · k, given the layer, D and C.
SCALES: dict[str, Callable[[int, int, int], float]] = {
    "1/sqrt(d)": lambda layer, d, c: d**-0.5,
    "1/sqrt(d)/(layer + 1)": lambda layer, d, c: d**-0.5 / (layer + 1),
    "1": lambda layer, d, c: 1.0,
    "1/d": lambda layer, d, c: 1.0 / d,
    "1/sqrt(c)": lambda layer, d, c: c**-0.5,
}

Listen: TypeAlias = Callable[[str, Array], None]
# A generator that yields (x, weight), is sent x @ weight, and returns its result; see `together`.
Pass: TypeAlias = Generator[tuple[Array, Array], Array, Array]


class Inputs(NamedTuple):
    """Ids and positions (B, T), and the attention mask: (B, T) bool, False at padding, or None."""

    ids: Array
    positions: Array
    mask: Array | None = None


@dataclass(frozen=True)
class Switches:
    """How a port computes. The defaults are GPT-2.

    Attributes:
        activation: activation of the MLP; None: the config's.
        eps: eps of LayerNorm; None: the config's.
        unbiased: LayerNorm divides its sum of squares by C − 1.
        centred: LayerNorm subtracts the mean.
        affine: LayerNorm applies its weight and bias.
        scale: factor of q · k, a key of `SCALES`; None: the config's.
        future: how many later tokens a token attends to; None: all.
        empty: probabilities of a query that attends to no key: "zeros", "uniform" or "nan".
        over: axis of the softmax: "keys" or "queries".
        shift: added to every position; None: no position embeddings.
        widened: embeddings are multiplied by √C.
        parts: the order in which the three thirds of c_attn are read.
        turned: its weight and bias are already in that order, and so its output.
        split: how the C values of a token are split into heads: "(H, D)", "(D, H)", "(H, 3, D)"
            with q, k and v of each head together, or "no transpose": (T, C) read as (H, T, D).
        merged: how heads are merged into C values: "(H, D)", "(D, H)" or "no transpose".
        flipped: names of the linear layers whose weight is read as (out, in).
        unbias: names of the layers whose bias is left out.
        post: LayerNorm comes after each residual sum (post-LN).
        onto: what the output of attention or MLP is added to: "stream", "normalised", "nothing".
        final: ln_f is applied.
        head: "the model's"; "wte" although the model has its own; or "zeros".
        half: sums are accumulated in float16.
        stored: every tensor is rounded to "float16" or "bfloat16"; None: not rounded.
    """

    activation: str | None = None
    eps: float | None = None
    unbiased: bool = False
    centred: bool = True
    affine: bool = True
    scale: str | None = None
    future: int | None = 0
    empty: str = "zeros"
    over: str = "keys"
    shift: int | None = 0
    widened: bool = False
    parts: str = "qkv"
    turned: bool = False
    split: str = "(H, D)"
    merged: str = "(H, D)"
    flipped: tuple[str, ...] = ()
    unbias: tuple[str, ...] = ()
    post: bool = False
    onto: str = "stream"
    final: bool = True
    head: str = "the model's"
    half: bool = False
    stored: str | None = None


class Rounding(Tap):
    """A tap that rounds every tensor to half precision."""

    def __init__(self, listen: Listen | None = None, path: str = "", how: str | None = None):
        super().__init__(listen, path)
        self.how = how

    def at(self, part: str) -> "Rounding":
        return Rounding(self.listen, f"{self.path}{part}.", self.how)

    def __call__(self, name: str, array: Array) -> Array:
        return super().__call__(name, rounded(array, self.how))


@blockwise
def _float16(x: Array) -> Array:
    with np.errstate(over="ignore"):
        return x.astype(np.float16)


@blockwise
def _bfloat16(x: Array) -> Array:
    bits: Array = x.astype(np.float32).view(np.uint32)
    bits += 0x7FFF + (bits >> 16 & 1)
    bits &= 0xFFFF0000
    return bits.view(np.float32)


def rounded(array: Array, to: str | None) -> Array:
    """Round to the nearest float16 or bfloat16 (ties to even); the dtype stays.

    >>> rounded(np.array([1.001, 1.01]), "bfloat16"), rounded(np.array([1.001]), "float16")
    (array([1.     , 1.0078125]), array([1.00097656]))
    """
    if to is None:
        return array
    return _float16(array) if to == "float16" else _bfloat16(array)


class Port:
    """GPT-2, computed according to its switches.

    >>> from npgpt2 import GPT2
    >>> model = GPT2.from_pretrained("tests/data/tiny", dtype="float64")
    >>> port = Port(model.params, model.config, Switches())
    >>> ids = np.array([[84, 258, 346]])
    >>> logits = port(Inputs(ids, np.arange(3)[None]), lambda name, array: None)
    >>> bool(abs(logits - model(ids).logits).max() < 1e-12)
    True
    """

    def __init__(self, params: Params, config: GPT2Config, how: Switches) -> None:
        self.params, self.config, self.how = params, config, how
        self.eps = config.layer_norm_epsilon if how.eps is None else how.eps
        name = how.activation or config.activation_function
        self.act = WRONG_ACTIVATIONS.get(name) or ACTIVATIONS[name]

    def __call__(self, inputs: Inputs, listen: Listen) -> Array:
        return together([self.through(inputs, listen)])[0]

    def through(self, inputs: Inputs, listen: Listen) -> Pass:
        tap, params, how = Rounding(listen, how=self.how.stored), self.params, self.how
        x = params.wte.weight[inputs.ids]
        x = tap("wte", x * math.sqrt(x.shape[-1]) if how.widened else x)
        if how.shift is not None:
            last = self.config.n_positions - 1
            x = x + tap("wpe", params.wpe.weight[(inputs.positions + how.shift).clip(0, last)])
        x = tap("embed", x)
        allowed = self.allowed(inputs)
        for i, p in enumerate(params.h):
            x = yield from self.block(x, p, i, allowed, tap.at(f"h.{i}"))
        if how.final:
            x = self.norm(x, params.ln_f, "ln_f")
        return tap("logits", (yield from self.times(tap("ln_f", x), self.head().T)))

    def head(self) -> Array:
        model, wte = self.params.head, self.params.wte.weight
        if self.how.head == "wte":
            return wte
        if self.how.head == "zeros":
            return np.zeros_like(wte)
        return model

    def block(self, x: Array, p: Block, layer: int, allowed: Array, tap: Tap) -> Pass:
        how = self.how
        if how.post:
            y = yield from self.attn(x, p, layer, allowed, tap.at("attn"))
            x = tap("resid_attn", x + y)
            x = tap("ln_1", self.norm(x, p.ln_1, "ln_1"))
            y = yield from self.mlp(x, p, tap.at("mlp"))
            x = tap("resid_mlp", x + y)
            return tap("ln_2", self.norm(x, p.ln_2, "ln_2"))
        y = tap("ln_1", self.norm(x, p.ln_1, "ln_1"))
        part = yield from self.attn(y, p, layer, allowed, tap.at("attn"))
        x = tap("resid_attn", self.added(x, y, part))
        y = tap("ln_2", self.norm(x, p.ln_2, "ln_2"))
        part = yield from self.mlp(y, p, tap.at("mlp"))
        return tap("resid_mlp", self.added(x, y, part))

    def added(self, stream: Array, normalised: Array, part: Array) -> Array:
        if self.how.onto == "nothing":
            return part
        return (normalised if self.how.onto == "normalised" else stream) + part

    def attn(self, x: Array, p: Block, layer: int, allowed: Array, tap: Tap) -> Pass:
        how, config = self.how, self.config
        qkv = yield from self.linear(x, p.attn.c_attn, "attn.c_attn")
        if how.turned:
            thirds = np.split(qkv, 3, axis=-1)
            qkv = np.concatenate([thirds[how.parts.index(part)] for part in "qkv"], axis=-1)
        qkv = tap("c_attn", qkv)
        if how.split == "(H, 3, D)":
            b, t, d = *x.shape[:2], config.head_dim
            taken = list(qkv.reshape(b, t, -1, 3, d).transpose(3, 0, 2, 1, 4))
        else:
            taken = [self.heads(part) for part in np.split(qkv, 3, axis=-1)]
        parts = "qkv" if how.turned else how.parts
        q, k, v = (taken[parts.index(part)] for part in "qkv")
        scale = config.attention_scale(layer)
        if how.scale is not None:
            scale = SCALES[how.scale](layer, config.head_dim, config.n_embd)
        scores = np.where(allowed, self.dot(q * scale, k.swapaxes(2, 3)), -np.inf)
        if how.over == "queries":
            probs = softmax(scores.swapaxes(2, 3)).swapaxes(2, 3)
        else:
            probs = softmax(scores)
        if how.empty != "zeros":
            instead = np.nan if how.empty == "nan" else 1.0 / probs.shape[-1]
            probs = np.where(allowed.any(-1, keepdims=True), probs, x.dtype.type(instead))
        y = tap("heads", self.merge(self.dot(tap("probs", probs), v)))
        return tap("c_proj", (yield from self.linear(y, p.attn.c_proj, "attn.c_proj")))

    def allowed(self, inputs: Inputs) -> Array:
        """(B, 1, T, T) bool: which query attends to which key."""
        t = inputs.ids.shape[1]
        at = np.arange(t)
        future = t if self.how.future is None else self.how.future
        seen = (at[None, :] <= at[:, None] + future)[None, None]
        return seen if inputs.mask is None else seen & inputs.mask[:, None, None, :]

    def heads(self, x: Array) -> Array:
        """(B, T, H·D) → (B, H, T, D)."""
        (b, t, _), d = x.shape, self.config.head_dim
        if self.how.split == "(D, H)":
            return x.reshape(b, t, d, -1).transpose(0, 3, 1, 2)
        if self.how.split == "no transpose":
            return x.reshape(b, -1, t, d)
        return x.reshape(b, t, -1, d).transpose(0, 2, 1, 3)

    def merge(self, x: Array) -> Array:
        """(B, H, T, D) → (B, T, H·D)."""
        b, _, t, _ = x.shape
        axes = {"(H, D)": (0, 2, 1, 3), "(D, H)": (0, 2, 3, 1), "no transpose": (0, 1, 2, 3)}
        return x.transpose(axes[self.how.merged]).reshape(b, t, -1)

    def mlp(self, x: Array, p: Block, tap: Tap) -> Pass:
        x = tap("c_fc", (yield from self.linear(x, p.mlp.c_fc, "mlp.c_fc")))
        x = tap("act", self.act(x))
        return tap("c_proj", (yield from self.linear(x, p.mlp.c_proj, "mlp.c_proj")))

    # ── the arithmetic ───────────────────────────────────────────────────────────────────────────

    def norm(self, x: Array, p: LayerNorm, name: str) -> Array:
        how, n = self.how, x.shape[-1]
        y = x - x.mean(-1, keepdims=True) if how.centred else x
        variance = (y * y).sum(-1, keepdims=True) / (n - 1 if how.unbiased else n)
        y = y / np.sqrt(variance + self.eps)
        if how.affine:
            y = y * p.weight
            y = y if name in how.unbias else y + p.bias
        normalised: Array = y
        return normalised

    def linear(self, x: Array, p: Linear, name: str) -> Pass:
        weight = p.weight
        if name in self.how.flipped:
            weight = weight.reshape(weight.shape[::-1]).T
        y = yield from self.times(x, weight)
        return y if name in self.how.unbias else y + p.bias

    def times(self, x: Array, weight: Array) -> Pass:
        """x @ weight. `together` batches it with other passes that use the same weight."""
        return self.dot(x, weight) if self.how.half else (yield x, weight)

    def dot(self, x: Array, y: Array) -> Array:
        """x @ y; with `half`, accumulated in float16: each product and each sum is rounded."""
        if not self.how.half:
            whole: Array = x @ y
            return whole
        shape = np.broadcast_shapes(x.shape[:-2], y.shape[:-2])
        total = np.zeros((*shape, x.shape[-2], y.shape[-1]), np.float32)
        x, y = rounded(x, "float16").astype(np.float32), rounded(y, "float16").astype(np.float32)
        for k in range(x.shape[-1]):
            total = to_eleven_bits(total + to_eleven_bits(x[..., :, k, None] * y[..., k, None, :]))
        return total.astype(self.params.wte.weight.dtype)


def together(passes: Sequence[Pass]) -> list[Array]:
    """Run several passes in parallel and return their results. Rows that need the same weight are
    multiplied in one product, since most of the time of a short pass is spent reading weights.

    >>> def double(x):
    ...     y = yield x, 2 * np.eye(2)
    ...     return y.sum()
    >>> together([double(np.ones((1, 2))), double(np.ones((3, 2)))])
    [np.float64(4.0), np.float64(12.0)]
    """
    came_to: dict[int, Array] = {}
    asked: dict[int, tuple[Array, Array]] = {}

    def go_on(n: int, y: Array | None) -> None:
        try:
            asked[n] = passes[n].send(y) if y is not None else next(passes[n])
        except StopIteration as end:
            came_to[n] = end.value

    for n in range(len(passes)):
        go_on(n, None)
    while asked:
        meet: dict[tuple[Any, ...], list[int]] = defaultdict(list)
        for n, (_, weight) in asked.items():
            meet[weight.ctypes.data, weight.strides, weight.shape].append(n)
        now, asked = asked, {}
        for these in meet.values():
            xs = [now[n][0] for n in these]
            rows = [x.reshape(-1, x.shape[-1]) for x in xs]
            y = np.concatenate(rows) @ now[these[0]][1]
            ys = np.split(y, np.cumsum([len(r) for r in rows])[:-1])
            for n, x, part in zip(these, xs, ys, strict=True):
                go_on(n, part.reshape(*x.shape[:-1], -1))
    return [came_to[n] for n in range(len(passes))]


def to_eleven_bits(x: Array) -> Array:
    """float32 rounded to float16's 11 bits, without its range limits: ten times as fast as a cast.

    Veltkamp's splitting: Dekker 1971, Numerische Mathematik 18, pp. 224–242.

    >>> to_eleven_bits(np.array([1.001, 2049.0], np.float32))
    array([1.0009766e+00, 2.0480000e+03], dtype=float32)
    """
    shifted = x * np.float32(2**13 + 1)
    high: Array = shifted - (shifted - x)
    return high
