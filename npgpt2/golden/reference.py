"""One tensor of a golden folder: its numbers in both precisions, or some of them, and its bounds.

Where a tensor is not kept whole, `SLICE` of its numbers are: element k of the slice is element
k · stride of the flattened tensor. The stride has no divisor in common with the size, so that the
slice wanders over rows and columns alike. What lies between is held by its mean and its root mean
square.
"""

import hashlib
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from npgpt2.base.arrays import BLOCK, Array
from npgpt2.base.errors import GoldenError

SLICE = 32
FACTOR = 16.0  # what a port's rounding may be of ours: sums one after the other, another exp, …
LAST_PLACE = 2.0**-23  # of float32, beside 1
RELATIVE = 16 * LAST_PLACE  # and beside it, of each number
LEAST = LAST_PLACE / 8  # of the root mean square: where we happen to be exact a port need not be

BESIDE = ThreadPoolExecutor(1)  # a checksum takes as long as the sums


@dataclass(frozen=True)
class Reference:
    """A tensor as it should be.

    Attributes:
        name: CASE/TENSOR.
        shape: of the whole tensor.
        dtype: of what a port computes: float32, int32, uint8 or bool.
        stride: 1 where the whole is kept.
        single, double: the numbers kept, flat, in float32 and in float64; whole numbers are one.
        noise: what float32 itself costs: the largest |float32 − float64| of the numbers kept,
            beyond a rounding of each, as a power of two. 0 for whole numbers.
        mean, rms: of the whole tensor, in float64: the mean, and the root of the mean square.
        mean_atol, rms_atol: how far a port's may be from them.
        sha256: of the whole tensor's bytes, in float32.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    stride: int
    single: Array
    double: Array
    noise: float
    mean: float
    rms: float
    mean_atol: float
    rms_atol: float
    sha256: str

    @property
    def case(self) -> str:
        return self.name.partition("/")[0]

    @property
    def tensor(self) -> str:
        return self.name.partition("/")[2]

    @property
    def atol(self) -> float:
        return FACTOR * self.noise

    @property
    def rtol(self) -> float:
        return RELATIVE if self.dtype.kind == "f" else 0.0


class Piece:
    """What is kept of an array that is about to change."""

    def __init__(self, array: Array, whole: bool) -> None:
        flat = np.ascontiguousarray(array).reshape(-1)
        self.shape, self.dtype = array.shape, array.dtype
        self.stride = 1 if whole else stride(flat.size)
        self.numbers = sliced(flat, self.stride).copy()
        single = flat.dtype.itemsize < 8  # nobody asks for the double's
        digest = BESIDE.submit(hashlib.sha256, flat.view(np.uint8).data) if single else None
        self.mean, self.rms = sums(flat)
        self.sha256 = digest.result().hexdigest() if digest else ""


def reference(name: str, single: Piece, double: Piece) -> Reference:
    """Both precisions of one tensor together.

    Raises:
        GoldenError: whole numbers differ between the two, or there is NaN or infinity: such a
            model can be no reference.
    """
    noise = mean_atol = rms_atol = 0.0
    if single.dtype.kind == "f":
        if not (np.isfinite(single.rms) and np.isfinite(double.rms)):
            raise GoldenError(f"{name}: is not finite, expected a model that computes numbers")
        error = np.abs(single.numbers - double.numbers)
        error -= 2 * LAST_PLACE * np.abs(double.numbers)
        least = max(LEAST * double.rms, 2.0**-60)
        noise = power_of_two(max(float(error.max()), least))
        mean_atol = FACTOR * power_of_two(max(abs(single.mean - double.mean), least))
        rms_atol = FACTOR * power_of_two(max(abs(single.rms - double.rms), least))
    elif not np.array_equal(single.numbers, double.numbers):
        raise GoldenError(f"{name}: float32 and float64 choose differently, expected the same ids")
    wide = double.numbers.astype(np.float64) if single.dtype.kind == "f" else double.numbers
    return Reference(
        name, single.shape, single.dtype, single.stride, single.numbers, wide, noise,
        double.mean, double.rms, mean_atol, rms_atol, single.sha256,
    )  # fmt: skip


def sums(flat: Array) -> tuple[float, float]:
    """Mean and root mean square, in float64; 0 of nothing."""
    total = squares = 0.0
    for at in range(0, flat.size, BLOCK):
        wide = flat[at : at + BLOCK].astype(np.float64, copy=False)
        total += float(wide.sum())
        squares += float(np.dot(wide, wide))
    size = max(1, flat.size)
    return total / size, math.sqrt(squares / size)


def stride(size: int) -> int:
    """Between the elements that are kept of so many: all up to `SLICE`.

    >>> stride(32), stride(512), stride(1000)
    (1, 15, 31)
    """
    step = max(1, size // SLICE)
    while math.gcd(step, size) > 1:
        step -= 1
    return step


def sliced(flat: Array, step: int) -> Array:
    """Every element, or `SLICE` of them."""
    return flat if step == 1 else flat[: step * SLICE : step]


def power_of_two(x: float) -> float:
    """The next one above: bounds do not change with the last digits of a machine.

    >>> power_of_two(0.3), power_of_two(0.5)
    (0.5, 0.5)
    """
    return 2.0 ** math.ceil(math.log2(x))
