"""What a check found, in words."""

from collections import Counter
from collections.abc import Iterator

from npgpt2.golden.check import Report
from npgpt2.golden.compare import HALF_ROUNDING, Verdict
from npgpt2.golden.reference import SLICE


def in_words(report: Report, every: bool = False) -> Iterator[str]:
    """Line by line: how many agree, the first that does not, and why."""
    verdicts = report.verdicts
    missing = f"; {report.missing:,} references are not in the dump" if report.missing else ""
    yield f"{sum(v.agrees for v in verdicts):,} of {len(verdicts):,} tensors agree{missing}"
    if any(v.reference.stride > 1 for v in verdicts):
        yield f"the folder keeps {SLICE} numbers of a tensor, its mean and its root mean square"
    for remark, count in Counter(v.remark for v in verdicts if v.remark and v.agrees).items():
        yield f"read as: {remark} ({count:,})"
    if any(v.dtype in HALF_ROUNDING for v in verdicts):
        yield "half precision cannot show what is finer, such as another eps or GELU's erf form"
    for name, near in report.unknown.items():
        yield f"unknown: {name}" + (f", did you mean {near}?" if near else "")
    if every:
        yield ""
        yield from map(of_one, verdicts)
    if report.first is not None:
        yield ""
        name = report.first.reference.name
        yield f"the first that differs, in the order of the data's flow: {name}"
        yield "  " + _numbers(report.first)
        yield from _why(report)


def of_one(v: Verdict) -> str:
    """A line about one tensor."""
    return f"{'agrees ' if v.agrees else 'DIFFERS'}  {v.reference.name}: {_numbers(v)}"


def _numbers(v: Verdict) -> str:
    if v.kept is None:
        return v.remark
    where = f"worst at [{', '.join(map(str, v.index))}]"
    remark = f"{v.remark}; " if v.remark else ""
    text = f"{remark}{where}: got {v.got:.9g}, expected {v.expected:.9g}"
    if v.reference.dtype.kind != "f":
        return text
    noise = v.reference.noise
    return f"{text}, {v.units:,.1f} × the noise of {noise:.2g} (allowed: {v.allowed:,.1f})"


def _why(report: Report) -> Iterator[str]:
    for d in report.diagnoses:
        yield f"why, by the case {d.first.reference.case}: {d.mistake.sentence}"
        if d.then:
            yield (
                f"  this gives {d.explained:,} of the {d.of:,} tensors from there on; "
                f"at {d.then} something else differs too"
            )
        elif d.of:
            yield f"  this gives all {d.of:,} of the tensors from there on"
    if not report.diagnoses:
        yield f"no mistake that is known gives these numbers; {_hint(report)}"


def _hint(report: Report) -> str:
    if all(v.reference.case != "eight" for v in report.verdicts):
        return "mistakes are known best by the case eight: dump that too"
    return "the first that differs is the one to look at: dump all before it, if any is missing"
