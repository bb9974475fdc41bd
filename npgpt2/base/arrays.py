"""What NumPy lacks: matrix products and elementwise functions in pieces (faster), and erf."""

from collections.abc import Callable
from functools import wraps
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from npgpt2.base.threads import spread

Array: TypeAlias = npt.NDArray[Any]

BLOCK = 1 << 16  # elements of an elementwise function at a time: its temporaries stay in cache
COLUMNS = 8192  # columns of a matrix at a time: BLAS reads 25 MB pieces faster than one of 154 MB
FEW, UNCOPIED = 4, 900_000  # rows, and multiplications of a piece: see `product`


class Elementwise(Protocol):
    """An elementwise function. `out` may be the input itself, or another contiguous array."""

    def __call__(self, x: Array, out: Array | None = None) -> Array: ...


def blockwise(f: Callable[[Array], Array]) -> Elementwise:
    """Run an elementwise function on pieces of `BLOCK` elements, so that they stay in cache."""

    @wraps(f)
    def apply(x: Array, out: Array | None = None) -> Array:
        y = np.empty(x.shape, x.dtype) if out is None else out
        source, target = x.reshape(-1), y.reshape(-1)
        for i in range(0, source.size, BLOCK):
            target[i : i + BLOCK] = f(source[i : i + BLOCK])
        return y

    return apply


def product(x: Array, weight: Array) -> Array:
    """x @ weight: (N, in), (in, out) → (N, out). A wide weight is multiplied in column pieces.

    For a few rows the pieces are small. OpenBLAS packs a matrix before it multiplies, which costs
    more than the product with a few rows; it does not pack for products of up to `UNCOPIED`
    multiplications (on AVX-512).
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


# Rational Chebyshev approximations of erf and erfc: W. J. Cody, "Rational Chebyshev Approximations
# for the Error Function", Mathematics of Computation 23 (1969), pp. 631–637. NumPy has no erf.
ERF_P = (3.16112374387056560e00, 1.13864154151050156e02, 3.77485237685302021e02,
          3.20937758913846947e03, 1.85777706184603153e-1)  # fmt: skip
ERF_Q = (2.36012909523441209e01, 2.44024637934444173e02, 1.28261652607737228e03,
          2.84423683343917062e03)  # fmt: skip
ERFC_P = (5.64188496988670089e-1, 8.88314979438837594e0, 6.61191906371416295e01,
           2.98635138197400131e02, 8.81952221241769090e02, 1.71204761263407058e03,
           2.05107837782607147e03, 1.23033935479799725e03, 2.15311535474403846e-8)  # fmt: skip
ERFC_Q = (1.57449261107098347e01, 1.17693950891312499e02, 5.37181101862009858e02,
           1.62138957456669019e03, 3.29079923573345963e03, 4.36261909014324716e03,
           3.43936767414372164e03, 1.23033935480374942e03)  # fmt: skip


def erf(x: Array) -> Array:
    """The error function, 2/√π ∫₀ˣ exp(−t²) dt, to nearly full float64 precision.

    >>> erf(np.array([0.25, 1.0, -3.0])).round(8)
    array([ 0.27632639,  0.84270079, -0.99997791])
    """
    a = np.abs(x)
    # |x| ≤ 0.46875: an odd rational function.
    z = np.minimum(a, 0.46875) ** 2
    num, den = ERF_P[4] * z, z
    for p, q in zip(ERF_P[:3], ERF_Q[:3], strict=True):
        num, den = (num + p) * z, (den + q) * z
    near = x * (num + ERF_P[3]) / (den + ERF_Q[3])
    # |x| > 0.46875: 1 − exp(−x²) · a rational function; from 6 on, 1 to the last bit.
    y = np.clip(a, 0.46875, 6.0)
    num, den = ERFC_P[8] * y, y
    for p, q in zip(ERFC_P[:7], ERFC_Q[:7], strict=True):
        num, den = (num + p) * y, (den + q) * y
    far = 1.0 - np.exp(-y * y) * (num + ERFC_P[7]) / (den + ERFC_Q[7])
    return np.where(a <= 0.46875, near, np.copysign(far, x))
