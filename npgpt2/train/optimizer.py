"""AdamW on one flat array, gradient clipping by global norm, and the learning rate schedule.

All parameters are stored in one array, and so are their gradients and both moments; the leaves of
a tree are views of it. A step is one loop over pieces that fit the cache, for any model shape.
"""

import math
from collections.abc import Callable, Iterable
from itertools import chain, pairwise
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from npgpt2.base.arrays import BLOCK, Array
from npgpt2.model.params import Params, build_tree, named_parameters

Pieces: TypeAlias = list[slice]
Map: TypeAlias = Callable[[Callable[[Pieces], list[Any]], Iterable[Pieces]], Iterable[list[Any]]]


class Flat(NamedTuple):
    """A tree of parameters in one array: matrices, then vectors, then frozen parameters.

    Attributes:
        array: all values, 1-D.
        tree: the parameters, as views of `array`.
        decayed: the first `decayed` values belong to matrices and get weight decay.
        trained: the first `trained` values are trained.
        order: the names, in the order of the array.
    """

    array: Array
    tree: Params
    decayed: int
    trained: int
    order: tuple[str, ...]

    @classmethod
    def of(cls, params: Params, frozen: Callable[[str], bool] = lambda name: False) -> "Flat":
        """A flat copy of a tree.

        >>> from npgpt2 import GPT2
        >>> flat = Flat.of(GPT2.from_pretrained("tests/data/tiny").params)
        >>> flat.array.shape, flat.decayed, flat.tree.h[0].mlp.c_fc.bias.shape
        ((191040,), 188416, (256,))
        """
        named = dict(named_parameters(params))
        kind = {name: 2 if frozen(name) else int(x.ndim < 2) for name, x in named.items()}
        order = tuple(sorted(named, key=kind.__getitem__))  # stable: within a kind the order stays
        array = np.concatenate([named[name].reshape(-1) for name in order])
        decayed, trained = (
            sum(x.size for name, x in named.items() if kind[name] <= k) for k in (0, 1)
        )
        return cls(array, _views(array, named, order), decayed, trained, order)

    def zeros(self) -> "Flat":
        """Zeros of the same structure, for gradients or moments."""
        array = np.zeros(self.array.shape, self.array.dtype)
        named = dict(named_parameters(self.tree))
        return self._replace(array=array, tree=_views(array, named, self.order))


def _views(array: Array, named: dict[str, Array], order: tuple[str, ...]) -> Params:
    at, views = 0, {}
    for name in order:
        shape, size = named[name].shape, named[name].size
        views[name] = array[at : at + size].reshape(shape)
        at += size
    return build_tree({name: views[name] for name in named})


class AdamW:
    """Adam with decoupled weight decay: Loshchilov, Hutter 2019, https://arxiv.org/abs/1711.05101.

        m ← β1 m + (1 − β1) g,  v ← β2 v + (1 − β2) g²
        p ← p − lr · (weight_decay · p + m / (1 − β1ᵗ) / (√(v / (1 − β2ᵗ)) + eps))

    Weight decay applies to matrices only: biases and LayerNorm weights need not be small.

    Args:
        first, second: the moments m and v, zero at the beginning.
        steps: t, the number of steps taken so far.
        clip: largest norm of the gradient; None: no clipping.
        each: maps a function over stretches of the array: `map`, or the map of a thread pool.
        shares: number of stretches, one per thread. One task per piece would take longer than the
            computation.
    """

    def __init__(
        self,
        params: Flat,
        first: Flat,
        second: Flat,
        steps: int = 0,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        clip: float | None = None,
        each: Map = map,
        shares: int = 1,
    ) -> None:
        self.params, self.first, self.second, self.steps = params, first, second, steps
        self._betas, self._eps, self._decay = (beta1, beta2), eps, weight_decay
        self._clip, self._each = clip, each
        parts = (0, params.decayed), (params.decayed, params.trained)
        pieces = [
            slice(i, min(i + BLOCK, end)) for start, end in parts for i in range(start, end, BLOCK)
        ]
        ends = [len(pieces) * n // shares for n in range(shares + 1)]
        self._stretches = [pieces[i:end] for i, end in pairwise(ends)]

    def norm(self, gradient: Flat) -> float:
        """The norm of a gradient, without frozen parameters."""
        return math.sqrt(sum(self._of_each(lambda at: _square(gradient.array[at]))))

    def step(self, gradient: Flat, lr: float, norm: float) -> None:
        """Take one step along a gradient whose norm is given.

        A gradient longer than `clip` is scaled down to it: Pascanu, Mikolov and Bengio 2013,
        https://arxiv.org/abs/1211.5063.
        """
        factor = 1.0
        if self._clip is not None and norm > self._clip:
            factor = self._clip / (norm + 1e-6)  # as torch.nn.utils.clip_grad_norm_
        self.steps += 1
        self._of_each(lambda at: self._update(gradient.array[at], at, factor, lr))

    def _of_each(self, f: Callable[[slice], Any]) -> list[Any]:
        """The results of f for all pieces, in order."""
        stretches = self._each(lambda pieces: [f(at) for at in pieces], self._stretches)
        return list(chain.from_iterable(stretches))

    def _update(self, g: Array, at: slice, factor: float, lr: float) -> None:
        (beta1, beta2), t = self._betas, self.steps
        p, m, v = self.params.array[at], self.first.array[at], self.second.array[at]
        g = g * factor
        if at.start < self.params.decayed:
            p *= 1.0 - lr * self._decay
        m *= beta1
        m += (1.0 - beta1) * g
        v *= beta2
        g *= g
        g *= 1.0 - beta2
        v += g
        root = np.sqrt(v, out=g)
        root /= math.sqrt(1.0 - beta2**t)
        root += self._eps
        np.divide(m, root, out=root)
        root *= lr / (1.0 - beta1**t)
        p -= root


def _square(g: Array) -> float:
    wide = g.astype(np.float64)
    return float(np.dot(wide, wide))


def learning_rate(step: int, peak: float, warmup: int, steps: int, schedule: str) -> float:
    """The learning rate of one step, counted from 0.

    It rises linearly from 0 to `peak` in `warmup` steps; then it stays, or falls to 0 at `steps`
    as half a cosine (Loshchilov and Hutter 2017, https://arxiv.org/abs/1608.03983).

    >>> [round(learning_rate(s, 1.0, 2, 6, "cosine"), 3) for s in range(7)]
    [0.5, 1.0, 1.0, 0.854, 0.5, 0.146, 0.0]
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule == "constant":
        return peak
    return peak * 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
