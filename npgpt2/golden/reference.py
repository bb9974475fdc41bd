"""One tensor of a golden folder: its values in both precisions, or a slice of them, and its bounds.

A tensor that is not kept whole is kept as a slice of `SLICE` values: element k of the slice is
element k · stride of the flattened tensor. The stride has no common divisor with the size, so the
slice covers rows and columns evenly. The mean and the root mean square cover all other values.
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
FACTOR = 16.0  # a port's error may be so many times ours: sequential sums, another exp, …
LAST_PLACE = 2.0**-23  # relative precision of float32
RELATIVE = 16 * LAST_PLACE  # relative tolerance, added to the absolute one
LEAST = LAST_PLACE / 8  # smallest noise, relative to the rms: our result may be exact by chance

BESIDE = ThreadPoolExecutor(1)  # the checksum, which takes as long as the sums, runs in parallel


@dataclass(frozen=True)
class Reference:
    """The expected values of a tensor.

    Attributes:
        name: CASE/TENSOR.
        shape: shape of the whole tensor.
        dtype: dtype of a port's tensor: float32, int32, uint8 or bool.
        stride: 1 if the tensor is kept whole.
        single, double: the kept values, flat, in float32 and float64; the same for integers.
        noise: the error of float32 itself: the largest |float32 − float64| of the kept values,
            beyond the rounding of each value, as a power of two. 0 for integers.
        mean, rms: mean and root mean square of the whole tensor, in float64.
        mean_atol, rms_atol: the largest differences of a port's mean and rms that are allowed.
        sha256: checksum of the whole tensor's bytes, in float32.
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
    """A copy of the values to keep, taken before the model changes the array in place."""

    def __init__(self, array: Array, whole: bool) -> None:
        flat = np.ascontiguousarray(array).reshape(-1)
        self.shape, self.dtype = array.shape, array.dtype
        self.stride = 1 if whole else stride(flat.size)
        self.numbers = sliced(flat, self.stride).copy()
        single = flat.dtype.itemsize < 8  # the float64 array needs no checksum
        digest = BESIDE.submit(hashlib.sha256, flat.view(np.uint8).data) if single else None
        self.mean, self.rms = sums(flat)
        self.sha256 = digest.result().hexdigest() if digest else ""


def reference(name: str, single: Piece, double: Piece) -> Reference:
    """Combine both precisions of one tensor.

    Raises:
        GoldenError: integers differ between the two, or a value is NaN or infinite: such a model
            cannot be a reference.
    """
    noise = mean_atol = rms_atol = 0.0
    if single.dtype.kind == "f":
        if not (np.isfinite(single.rms) and np.isfinite(double.rms)):
            raise GoldenError(f"{name}: is not finite, expected a model with finite values")
        error = np.abs(single.numbers - double.numbers)
        error -= 2 * LAST_PLACE * np.abs(double.numbers)
        least = max(LEAST * double.rms, 2.0**-60)
        noise = power_of_two(max(float(error.max()), least))
        mean_atol = FACTOR * power_of_two(max(abs(single.mean - double.mean), least))
        rms_atol = FACTOR * power_of_two(max(abs(single.rms - double.rms), least))
    elif not np.array_equal(single.numbers, double.numbers):
        raise GoldenError(f"{name}: float32 and float64 give different ids, expected the same ids")
    wide = double.numbers.astype(np.float64) if single.dtype.kind == "f" else double.numbers
    return Reference(
        name, single.shape, single.dtype, single.stride, single.numbers, wide, noise,
        double.mean, double.rms, mean_atol, rms_atol, single.sha256,
    )  # fmt: skip


def sums(flat: Array) -> tuple[float, float]:
    """Mean and root mean square, in float64; 0 for an empty array."""
    total = squares = 0.0
    for at in range(0, flat.size, BLOCK):
        wide = flat[at : at + BLOCK].astype(np.float64, copy=False)
        total += float(wide.sum())
        squares += float(np.dot(wide, wide))
    size = max(1, flat.size)
    return total / size, math.sqrt(squares / size)


def stride(size: int) -> int:
    """The distance between kept elements of a tensor of `size` elements; 1 keeps all of them.

    >>> stride(32), stride(512), stride(1000)
    (1, 15, 31)
    """
    step = max(1, size // SLICE)
    while math.gcd(step, size) > 1:
        step -= 1
    return step


def sliced(flat: Array, step: int) -> Array:
    """The elements that are kept: all if step is 1, else `SLICE` of them."""
    return flat if step == 1 else flat[: step * SLICE : step]


def power_of_two(x: float) -> float:
    """The smallest power of two ≥ x: it hides differences in last digits between machines.

    >>> power_of_two(0.3), power_of_two(0.5)
    (0.5, 0.5)
    """
    return 2.0 ** math.ceil(math.log2(x))
