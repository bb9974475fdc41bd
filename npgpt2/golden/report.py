"""The result of a check as text."""

import math
from collections import Counter
from collections.abc import Iterator
from itertools import islice

from npgpt2.golden.check import Report
from npgpt2.golden.compare import HALF_ROUNDING, Verdict
from npgpt2.golden.reference import SLICE

SHOWN = 10  # unknown names that are listed


def in_words(report: Report, every: bool = False) -> Iterator[str]:
    """The report's lines: how many tensors agree, the first difference, and its cause."""
    verdicts = report.verdicts
    missing = f"; {report.missing:,} references are not in the dump" if report.missing else ""
    yield f"{sum(v.agrees for v in verdicts):,} of {len(verdicts):,} tensors agree{missing}"
    if any(v.reference.stride > 1 for v in verdicts):
        yield f"the folder keeps {SLICE} values of a tensor, its mean and its root mean square"
    for remark, count in Counter(v.remark for v in verdicts if v.remark and v.agrees).items():
        yield f"read as: {remark} ({count:,})"
    if any(v.dtype in HALF_ROUNDING for v in verdicts):
        yield "half precision hides small differences, such as another eps or GELU's erf form"
    for name, near in islice(report.unknown.items(), SHOWN):
        yield f"unknown: {name}" + (f", did you mean {near}?" if near else "")
    if report.unknown:
        more = len(report.unknown) - SHOWN
        yield (f"unknown: {more:,} more; " if more > 0 else "") + (
            "a dump with names that the golden folder does not have cannot agree"
        )
    if every:
        yield ""
        yield from map(of_one, verdicts)
    if report.first is not None:
        yield ""
        name = report.first.reference.name
        yield f"first difference, in the order of computation: {name}"
        yield "  " + _numbers(report.first)
        differ = Counter(v.reference.case for v in verdicts if not v.agrees)
        if differ.total() > 1:
            cases = ", ".join(f"{count:,} in {case}" for case, count in differ.items())
            yield f"tensors that differ: {cases}" + ("" if every else " (--all lists them)")
        yield from _why(report)


def of_one(v: Verdict) -> str:
    """A line about one tensor."""
    return f"{'agrees ' if v.agrees else 'DIFFERS'}  {v.reference.name}: {_numbers(v)}"


def _numbers(v: Verdict) -> str:
    if v.kept is None:
        return v.remark
    where = f"worst error at [{', '.join(map(str, v.index))}]"
    remark = f"{v.remark}; " if v.remark else ""
    text = f"{remark}{where}: got {v.got:.9g}, expected {v.expected:.9g}"
    if v.reference.dtype.kind != "f":
        return text
    noise = v.reference.noise
    if v.lost:
        return f"{text}; {v.lost:,} of {math.prod(v.reference.shape):,} are NaN or infinite"
    return f"{text}: {_short(v.units)} × the noise of {noise:.2g} (allowed: {v.allowed:.3g} ×)"


def _why(report: Report) -> Iterator[str]:
    for d in report.diagnoses:
        yield f"likely cause (case {d.first.reference.case}): {d.mistake.sentence}"
        if d.then:
            yield (
                f"  this explains {d.explained:,} of the {d.of:,} tensors from there on; "
                f"at {d.then} something else differs too"
            )
        elif d.of > 1:
            yield f"  this explains all {d.of:,} tensors from there on"
    if not report.diagnoses and report.first is not None:
        yield _hint(report, report.first)


def _hint(report: Report, first: Verdict) -> str:
    r, dumped = first.reference, {v.reference.name for v in report.verdicts}
    if first.kept is None:
        return f"this tensor was not compared: dump it as {r.dtype.name} of shape {r.shape}"
    if first.lost:
        return (
            "look for a division by zero, an overflow or uninitialised memory between the previous "
            "tensor and this one"
        )
    before = list(islice(report.golden.references, list(report.golden.references).index(r.name)))
    absent = [n for n in before if n.startswith(f"{r.case}/") and n not in dumped]
    known = "no known mistake gives these values; "
    if absent:
        return f"{known}dump the tensors before this one too, such as {absent[-1]}"
    if all(v.reference.case != "eight" for v in report.verdicts):
        return f"{known}most mistakes are identified in the case eight: dump it too"
    return f"{known}all tensors before this one agree, so this tensor is computed wrongly"


def _short(x: float) -> str:
    """
    >>> _short(12.345), _short(123456789.0)
    ('12.3', '1.2e+08')
    """
    return f"{x:.3g}" if x < 1000 else f"{x:.2g}"
