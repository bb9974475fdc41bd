"""Find the usual mistake that produces a port's values."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from npgpt2.base.arrays import Array
from npgpt2.golden.compare import Verdict
from npgpt2.golden.fingerprints import HALVES, WAYS
from npgpt2.golden.folder import Golden
from npgpt2.golden.forward import rounded
from npgpt2.golden.mistakes import Mistake
from npgpt2.golden.reference import sliced, stride

INSIDE = 2.0  # distance to a fingerprint that counts as a match, in bounds: both sides have noise
LIKE, SEVERAL = 3.0, 5  # errors of the same size: within a factor of 2³, in at least 5 tensors

HALF_SUMS = Mistake(
    "float16 accumulation",
    "in every tensor your errors are as large as those of float16 accumulation: accumulate in "
    "float32, and check whether weights or results are rounded to bfloat16",
)
HALF_TENSORS = {
    dtype: Mistake(
        f"{dtype} tensors",
        f"your tensors are rounded to {dtype}: if that is intended, dump them in {dtype}, and "
        f"they are compared within the bounds of {dtype}",
    )
    for dtype in reversed(WAYS)  # bfloat16 first: float16 can represent most of its values
}
UNTIED = Mistake(
    "untied head",
    "your logits are not the product of ln_f's output and wteᵀ: this model's head is tied, "
    "logits = ln_f · wteᵀ, and its checkpoint has no lm_head.weight",
)
OTHER_INPUT = Mistake("other inputs", "your inputs differ: use the inputs of the golden folder")


@dataclass(frozen=True)
class Diagnosis:
    """Why a port differs in a case.

    Attributes:
        first: the first tensor of the case that differs, in the order of computation.
        explained: how many of the tensors from there on the mistake reproduces.
        of: how many tensors the dump has from there on.
        then: the first tensor that the mistake does not reproduce, or "".
    """

    mistake: Mistake
    first: Verdict
    explained: int
    of: int
    then: str = ""


def diagnose(golden: Golden, verdicts: list[Verdict]) -> Iterator[Diagnosis]:
    """At most one diagnosis for each case. Fix the one of the first case first."""
    for case, mistakes in golden.manifest["mistakes"].items():
        mine = [v for v in verdicts if v.reference.case == case]
        start = next((n for n, v in enumerate(mine) if not v.agrees), None)
        if start is None:
            continue
        if mine[start].reference.dtype.kind != "f":  # ids, positions or a mask
            yield Diagnosis(OTHER_INPUT, mine[start], 0, 0)
        if mine[start].reference.name not in golden.fingerprints:
            continue
        rest = [v for v in mine[start:] if v.reference.name in golden.fingerprints]
        known = _known(golden, rest, [Mistake(*m) for m in mistakes])
        if known is None and case == "eight":
            known = _in_half(golden, mine, rest) or _untied(golden, mine, rest)
        if known is not None:
            yield known


def _known(golden: Golden, rest: list[Verdict], mistakes: list[Mistake]) -> Diagnosis | None:
    """The mistake that reproduces the most tensors, from the first difference on; among equals,
    the closest one."""
    best: tuple[int, float] = 0, 0.0
    found = None
    for n, mistake in enumerate(mistakes):
        if not _wrong_there(golden, rest[0], n):
            continue
        misses = []
        for v in rest:
            miss = _miss(golden, v, n)
            if not miss <= INSIDE:
                break
            misses.append(miss)
        if misses and (len(misses), -max(misses)) > best:
            best = len(misses), -max(misses)
            then = rest[len(misses)].reference.name if len(misses) < len(rest) else ""
            found = Diagnosis(mistake, rest[0], len(misses), len(rest), then)
    return found


def _wrong_there(golden: Golden, v: Verdict, n: int) -> bool:
    """Whether a mistake, too, gives wrong values at this tensor, and not only NaN."""
    if v.kept is None or v.bounds is None:
        return False
    given = golden.fingerprints[v.reference.name][n].astype(np.float64)
    right, bounds = (_thinned(v, numbers) for numbers in (v.reference.double, v.bounds))
    if np.isnan(given).all():
        return False
    with np.errstate(invalid="ignore"):
        return not bool(np.all(np.abs(given - right) <= bounds))


def _miss(golden: Golden, v: Verdict, n: int) -> float:
    """The distance between a port and a mistake, in units of the bound. NaN matches NaN."""
    if v.kept is None or v.bounds is None:
        return np.inf
    given = golden.fingerprints[v.reference.name][n].astype(np.float64)
    if v.lost and np.isfinite(given).all():
        return np.inf  # the NaN or infinity may be outside the kept values
    kept, bounds = (_thinned(v, numbers) for numbers in (v.kept, v.bounds))
    with np.errstate(invalid="ignore"):
        wide = bounds + v.reference.rtol * np.abs(given)
        miss = np.where(np.isnan(kept) & np.isnan(given), 0.0, np.abs(kept - given) / wide)
    return float(np.where(np.isnan(miss), np.inf, miss).max())


def _thinned(v: Verdict, numbers: Array) -> Array:
    """The elements that fingerprints keep, also from a tensor that is kept whole."""
    if v.reference.stride > 1:
        return numbers
    return sliced(numbers, stride(int(np.prod(v.reference.shape))))


def _in_half(golden: Golden, mine: list[Verdict], rest: list[Verdict]) -> Diagnosis | None:
    """Whether a float32 dump was computed in half precision: its tensors are rounded to it; or its
    errors are as large as those of float16 sums, at every tensor with sums and nowhere else."""
    there = [v for v in mine if f"{HALVES}/{v.reference.tensor}" in golden.fingerprints]
    if any(v.kept is None or v.dtype != "float32" for v in there):
        return None
    costs = np.array([golden.fingerprints[f"{HALVES}/{v.reference.tensor}"][:, 0] for v in there])
    kept = [v.kept for v in there if v.kept is not None]
    errors = np.array(
        [np.sqrt(np.mean((k - v.reference.double) ** 2)) for k, v in zip(kept, there, strict=True)]
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        apart = np.log2(errors[:, None] / costs)  # (tensors, ways)
    for dtype, mistake in HALF_TENSORS.items():
        alike = np.all(apart[:, WAYS[dtype]] <= LIKE)
        if alike and all(np.array_equal(rounded(numbers, dtype), numbers) for numbers in kept):
            return Diagnosis(mistake, rest[0], len(rest), len(rest))
    sums = costs[:, 0]  # NaN where they were not measured
    noise = np.array([v.reference.noise for v in there])
    costly = sums > noise
    beside = any(not v.agrees for v, cost in zip(there, sums, strict=True) if cost == 0)
    if costly.sum() >= SEVERAL and not beside and np.all(np.abs(apart[costly, 0]) <= LIKE):
        return Diagnosis(HALF_SUMS, rest[0], 0, 0)
    return None


def _untied(golden: Golden, mine: list[Verdict], rest: list[Verdict]) -> Diagnosis | None:
    """Whether everything is right up to ln_f, and the logits are completely different."""
    v, tied = rest[0], golden.manifest["model"]["config"]["tie_word_embeddings"]
    if (
        not tied
        or v.reference.tensor != "logits"
        or v.kept is None
        or not np.isfinite(v.kept).all()
    ):
        return None
    far = np.sqrt(np.mean((v.kept - v.reference.double) ** 2)) > v.reference.rms / 2
    if far and v.kept.any() and any(m.reference.tensor == "ln_f" for m in mine):
        return Diagnosis(UNTIED, v, 1, 1)
    return None
