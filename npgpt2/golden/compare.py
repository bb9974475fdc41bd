"""The comparator: one tensor of a port against its reference. Nothing but agreement passes.

What is asked is whether ALL differences are within their bounds, never whether any is beyond: NaN
is within nothing.
"""

from dataclasses import dataclass

import numpy as np

from npgpt2.base.arrays import Array
from npgpt2.golden.dump import Dumped, Layout, layouts
from npgpt2.golden.reference import Reference, sliced, sums

# Half precision rounds each number by half of its last place: 2⁻¹¹ and 2⁻⁸. Twice that is allowed.
HALF_ROUNDING = {"float16": 2.0**-10, "bfloat16": 2.0**-7}


@dataclass(frozen=True)
class Verdict:
    """What became of one tensor.

    Attributes:
        agrees: whether it is what it should be.
        remark: another layout or dtype, or why it cannot be compared.
        index: of the worst element, in the golden shape.
        got, expected: there.
        units: how large the difference is there, in units of the tensor's noise.
        allowed: how large it may be there, in the same units.
        kept: the port's numbers where the reference has its own, flat, in float64; None where none
            fit.
        bounds: how far each of these may be from what is expected.
        dtype: of the dump.
        lost: how many of all its numbers are NaN or infinite.
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
    """One tensor.

    Args:
        heads: of the layer, to know layouts by.
        half_cost: what computing in the dump's half precision costs here: the largest error.
        real: in the golden shape, or broadcast to it, where a token is no padding: the rest is
            compared as zeros.
    """
    array, wanted = dumped.array, reference.dtype.kind
    if not array.size:
        return Verdict(reference, False, f"is empty, expected shape {reference.shape}")
    if (array.dtype.kind == "f") != (wanted == "f"):
        expected = "float32" if wanted == "f" else "whole numbers"
        return Verdict(reference, False, f"is {dumped.dtype}, expected {expected}")
    verdicts = [
        _held(reference, dumped.dtype, layout, half_cost, real)
        for layout in layouts(reference.tensor, array, reference.shape, heads)
    ]
    if not verdicts:
        return Verdict(reference, False, f"has shape {array.shape}, expected {reference.shape}")
    if array.shape == reference.shape and not any(v.agrees for v in verdicts):
        return verdicts[0]  # as it was written: what is wrong is not a layout
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
    """What is wrong with the sums over a tensor of which a slice is kept; nothing where it is."""
    with np.errstate(invalid="ignore", over="ignore"):
        mean, rms = sums(flat)
    half = rtol > reference.rtol
    for name, got, expected, bound in (
        ("mean", mean, reference.mean, reference.mean_atol),
        ("root mean square", rms, reference.rms, reference.rms_atol),
    ):
        bound = atol + rtol * reference.rms if half else bound
        if not abs(got - expected) <= bound:
            return f"between the numbers kept: its {name} is {got:.9g}, expected {expected:.9g}"
    return ""
