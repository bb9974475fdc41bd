"""The comparator: one tensor of a port against its reference.

It tests whether ALL errors are within their bounds, not whether any error is outside: a NaN is
never within a bound, so it cannot pass.
"""

from dataclasses import dataclass

import numpy as np

from npgpt2.base.arrays import Array
from npgpt2.golden.dump import Dumped, Layout, layouts
from npgpt2.golden.reference import Reference, sliced, sums

# Half precision rounds each value by up to half of its last place: 2⁻¹¹ and 2⁻⁸; twice is allowed.
HALF_ROUNDING = {"float16": 2.0**-10, "bfloat16": 2.0**-7}


@dataclass(frozen=True)
class Verdict:
    """The result for one tensor.

    Attributes:
        agrees: whether all values are within their bounds.
        remark: another layout or dtype, or why the tensor cannot be compared.
        index: position of the worst element, in the golden shape.
        got, expected: the two values at this position.
        units: the error at this position, in units of the tensor's noise.
        allowed: the bound at this position, in the same units.
        kept: the port's values at the elements that the reference keeps, flat, float64; None if
            the tensor could not be compared.
        bounds: the largest error allowed for each of them.
        dtype: dtype of the tensor in the dump.
        lost: number of NaN or infinite values in the whole tensor.
    """

    reference: Reference
    agrees: bool
    remark: str = ""
    index: tuple[int, ...] = ()
    got: float = 0.0
    expected: float = 0.0
    units: float = 0.0
    allowed: float = 0.0
    kept: Array | None = None
    bounds: Array | None = None
    dtype: str = ""
    lost: int = 0


def compare(
    reference: Reference,
    dumped: Dumped,
    heads: int = 1,
    half_cost: float = 0.0,
    real: Array | None = None,
) -> Verdict:
    """Compare one tensor with its reference.

    Args:
        heads: number of heads of the layer, needed to recognise layouts.
        half_cost: the largest error that the dump's half precision causes at this tensor.
        real: mask that broadcasts to the golden shape, False at padding, which is compared as
            zeros.
    """
    array, wanted = dumped.array, reference.dtype.kind
    if not array.size:
        return Verdict(reference, False, f"is empty, expected shape {reference.shape}")
    if (array.dtype.kind == "f") != (wanted == "f"):
        expected = "float32" if wanted == "f" else "integers"
        return Verdict(reference, False, f"is {dumped.dtype}, expected {expected}")
    verdicts = [
        _held(reference, dumped.dtype, layout, half_cost, real)
        for layout in layouts(reference.tensor, array, reference.shape, heads)
    ]
    if not verdicts:
        return Verdict(reference, False, f"has shape {array.shape}, expected {reference.shape}")
    if array.shape == reference.shape and not any(v.agrees for v in verdicts):
        return verdicts[0]  # in the layout as dumped: the layout is not the problem
    return min(verdicts, key=lambda v: (not v.agrees, np.isnan(v.units), v.units))


def _held(
    reference: Reference, dtype: str, layout: Layout, half_cost: float, real: Array | None
) -> Verdict:
    array = layout.array if real is None else np.where(real, layout.array, 0)
    flat, step = array.reshape(-1), reference.stride
    kept, expected = sliced(flat, step).astype(np.float64), reference.double.astype(np.float64)
    atol, rtol = reference.atol, reference.rtol
    if dtype in HALF_ROUNDING:
        atol = max(atol, half_cost if np.isfinite(half_cost) else 0.0)
        rtol = HALF_ROUNDING[dtype]
    bounds = atol + rtol * np.abs(expected)
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.abs(kept - expected)
        beyond = np.where(np.isfinite(error), error - bounds, np.inf)
    at = int(beyond.argmax())
    agrees = bool(np.all(np.isfinite(kept)) and np.all(error <= bounds))
    remarks = [layout.words, dtype if dtype != reference.dtype.name else ""]
    if agrees and step > 1:
        remarks.append(_of_all(reference, flat, atol, rtol))
        agrees = not remarks[-1]
    unit = reference.noise or 1.0
    index = np.unravel_index(at * step, reference.shape)
    return Verdict(
        reference, agrees, ", ".join(filter(None, remarks)), tuple(int(i) for i in index),
        float(kept[at]), float(expected[at]), float(error[at] / unit), float(bounds[at] / unit),
        kept, bounds, dtype, int(flat.size - np.isfinite(flat).sum()),
    )  # fmt: skip


def _of_all(reference: Reference, flat: Array, atol: float, rtol: float) -> str:
    """Compare mean and root mean square of a tensor that is kept as a slice; "" if they agree."""
    with np.errstate(invalid="ignore", over="ignore"):
        mean, rms = sums(flat)
    half = rtol > reference.rtol
    for name, got, expected, bound in (
        ("mean", mean, reference.mean, reference.mean_atol),
        ("root mean square", rms, reference.rms, reference.rms_atol),
    ):
        bound = atol + rtol * reference.rms if half else bound
        if not abs(got - expected) <= bound:
            return f"outside the kept values: the {name} is {got:.9g}, expected {expected:.9g}"
    return ""
