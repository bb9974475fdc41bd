"""Which of the usual mistakes gives a port's numbers."""

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

INSIDE = 2.0  # how many times its bound a fingerprint may be missed by: both sides have noise
LIKE, SEVERAL = 3.0, 5  # as large an error: within a factor of 2³, in so many tensors at least

HALF_SUMS = Mistake(
    "float16 accumulation",
    "your errors are as large, tensor by tensor, as sums in float16 make them: keep sums in "
    "float32, and look whether weights or results are rounded to bfloat16 on their way",
)
HALF_TENSORS = {
    dtype: Mistake(
        f"{dtype} tensors",
        f"your tensors are rounded to {dtype} on their way: where that is meant, dump them in "
        f"{dtype}, and they are held to its bounds",
    )
    for dtype in reversed(WAYS)  # what bfloat16 can say, float16 mostly can
}
UNTIED = Mistake(
    "untied head",
    "your logits are no product of ln_f's output with wte: this model's head is tied, logits = "
    "ln_f · wteᵀ, and its checkpoint has no lm_head.weight",
)
OTHER_INPUT = Mistake("other inputs", "you read other inputs: feed those of the golden folder")


@dataclass(frozen=True)
class Diagnosis:
    """Why a port differs in a case.

    Attributes:
        first: the first tensor of the case that differs, in the order of the data's flow.
        explained: how many of the tensors from there on the mistake gives.
        of: how many were dumped.
        then: the first that it does not give.
    """

    mistake: Mistake
    first: Verdict
    explained: int
    of: int
    then: str = ""


def diagnose(golden: Golden, verdicts: list[Verdict]) -> Iterator[Diagnosis]:
    """At most one for each case; that of the first case is the one to mend first."""
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
    """The mistake that gives the most from the first tensor that differs on; of equals, the
    nearest."""
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
    """Whether a mistake gives something wrong where a port is wrong, and not NaN alone."""
    if v.kept is None or v.bounds is None:
        return False
    given = golden.fingerprints[v.reference.name][n].astype(np.float64)
    right, bounds = (_thinned(v, numbers) for numbers in (v.reference.double, v.bounds))
    if np.isnan(given).all():
        return False
    with np.errstate(invalid="ignore"):
        return not bool(np.all(np.abs(given - right) <= bounds))


def _miss(golden: Golden, v: Verdict, n: int) -> float:
    """How far a port is from what a mistake gives, in units of the bound; NaN is where NaN is."""
    if v.kept is None or v.bounds is None:
        return np.inf
    given = golden.fingerprints[v.reference.name][n].astype(np.float64)
    if v.lost and np.isfinite(given).all():
        return np.inf  # perhaps where no number is kept
    kept, bounds = (_thinned(v, numbers) for numbers in (v.kept, v.bounds))
    with np.errstate(invalid="ignore"):
        wide = bounds + v.reference.rtol * np.abs(given)
        miss = np.where(np.isnan(kept) & np.isnan(given), 0.0, np.abs(kept - given) / wide)
    return float(np.where(np.isnan(miss), np.inf, miss).max())


def _thinned(v: Verdict, numbers: Array) -> Array:
    """Those that fingerprints keep, of a tensor that is kept whole."""
    if v.reference.stride > 1:
        return numbers
    return sliced(numbers, stride(int(np.prod(v.reference.shape))))


def _in_half(golden: Golden, mine: list[Verdict], rest: list[Verdict]) -> Diagnosis | None:
    """Whether a dump in float32 has the numbers of half precision: rounded to it; or with errors as
    large as sums in float16 make, wherever there are sums and nowhere else."""
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
    """Whether all is right up to ln_f, and the logits are something else altogether."""
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
