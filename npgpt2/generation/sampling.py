"""From logits to the next id: filters, each logits → logits, and a draw with one uniform number.

All of it is in float64, whatever dtype the model computes in, so that a port with the same logits
and the same uniform numbers draws the same ids. A token that is filtered out has the logit −∞.

Axes: V vocabulary.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from npgpt2.base.arrays import Array
from npgpt2.model.ops import softmax


def logit_bias(logits: Array, bias: Mapping[int, float]) -> Array:
    """Add the bias of each id to the logits (..., V).

    >>> logit_bias(np.array([1.0, 2.0]), {0: 0.5, 1: -100})
    array([  1.5, -98. ])
    """
    logits = logits.copy()
    logits[..., list(bias)] += list(bias.values())
    return logits


def repetition_penalty(logits: Array, seen: Sequence[int], penalty: float) -> Array:
    """Make seen ids less likely: divide logits above 0 by `penalty`, multiply those below.

    Keskar et al. 2019, CTRL, https://arxiv.org/abs/1909.05858, section 4.1

    >>> repetition_penalty(np.array([2.0, -1.0, 3.0]), [0, 1], penalty=2.0)
    array([ 1., -2.,  3.])
    """
    logits, ids = logits.copy(), np.unique(np.asarray(seen, np.int64))
    logits[ids] = np.where(logits[ids] < 0, logits[ids] * penalty, logits[ids] / penalty)
    return logits


def temperature(logits: Array, t: float) -> Array:
    """(logits − max) / t: with the largest at 0, a tiny t cannot overflow upwards.

    >>> temperature(np.array([1.0, 3.0]), 0.5)
    array([-4.,  0.])
    """
    with np.errstate(over="ignore"):
        scaled: Array = (logits - logits.max()) / t
    return scaled


def top_k(logits: Array, k: int) -> Array:
    """Keep the k largest logits, and all that equal the k-th.

    Fan, Lewis and Dauphin 2018, https://arxiv.org/abs/1805.04833

    >>> top_k(np.array([1.0, 3.0, 2.0]), 2)
    array([-inf,   3.,   2.])
    """
    k = min(k, logits.size)
    return np.where(logits < np.partition(logits, -k)[-k], -np.inf, logits)


def top_p(logits: Array, p: float) -> Array:
    """Keep the fewest tokens whose probabilities sum to p: up to the one that crosses p, and all
    that equal it.

    Holtzman et al. 2020, https://arxiv.org/abs/1904.09751

    >>> top_p(np.log([0.5, 0.3, 0.2]), 0.6).round(3)
    array([-0.693, -1.204,   -inf])
    """
    if p >= 1:
        return logits
    falling = np.sort(logits)[::-1]
    crossing = int(np.searchsorted(np.cumsum(softmax(falling)), p))
    return np.where(logits < falling[min(crossing, logits.size - 1)], -np.inf, logits)


def min_p(logits: Array, p: float) -> Array:
    """Keep tokens at least p times as probable as the most probable one.

    Nguyen et al. 2024, https://arxiv.org/abs/2407.01082

    >>> min_p(np.log([0.5, 0.3, 0.2]), 0.5).round(3)
    array([-0.693, -1.204,   -inf])
    """
    probs = softmax(logits)
    return np.where(probs < p * probs.max(), -np.inf, logits)


def draw(logits: Array, uniform: float) -> int:
    """The first id at which the cumulative sum of probabilities exceeds `uniform`.

    Args:
        logits: (V,); −∞ is never drawn.
        uniform: in [0, 1).

    >>> [draw(np.log([0.25, 0.25, 0.5]), u) for u in (0.0, 0.24, 0.26, 0.999)]
    [0, 0, 1, 2]
    """
    probs = softmax(logits)
    running = np.cumsum(probs)
    token = int(np.searchsorted(running, uniform * running[-1], side="right"))
    return min(token, int(np.flatnonzero(probs)[-1]))  # rounding may reach past the last


def uniforms(seed: int, sample: int) -> Iterator[float]:
    """Uniform random numbers in [0, 1), one per token, for one sample of one seed.

    The generator is counter-based (Philox): a row draws the same numbers alone and in a batch,
    in whatever order the rows are drawn.

    >>> stream = uniforms(seed=7, sample=0)
    >>> round(next(stream), 6), round(next(stream), 6)
    (0.872073, 0.295365)
    """
    generator = np.random.Generator(np.random.Philox(key=seed + (sample << 64)))
    while True:
        yield float(generator.random())
