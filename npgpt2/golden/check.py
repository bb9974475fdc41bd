"""A port's numbers against a golden folder: what agrees, the first that does not, and why."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from pathlib import Path

from npgpt2.base.arrays import Array
from npgpt2.base.errors import GoldenError
from npgpt2.golden.compare import Verdict, compare
from npgpt2.golden.diagnose import Diagnosis, diagnose
from npgpt2.golden.dump import Dumped, read_dump
from npgpt2.golden.fingerprints import HALVES, WAYS
from npgpt2.golden.folder import DOUBLE, Golden, load_golden
from npgpt2.golden.mistakes import Mistake
from npgpt2.model.config import GPT2Config

HINTED = 10  # names that are not known get a hint; finding one takes a while


@dataclass(frozen=True)
class Report:
    """What `check` found.

    Attributes:
        verdicts: in the order of the data's flow.
        unknown: names in the dump that the golden folder does not have, each with the nearest.
        missing: how many of its tensors are not in the dump.
        first: the first that differs.
        diagnoses: at most one for each case.
    """

    golden: Golden
    verdicts: list[Verdict]
    unknown: dict[str, str]
    missing: int
    first: Verdict | None
    diagnoses: list[Diagnosis]

    @property
    def agrees(self) -> bool:
        return self.first is None and not self.unknown

    @property
    def mistake(self) -> Mistake | None:
        """The one to mend first."""
        return self.diagnoses[0].mistake if self.diagnoses else None


def check(dump: str | Path, against: str | Path) -> Report:
    """Compare a port's dump with a golden folder.

    Args:
        dump: a safetensors or npz file, or a folder of raw files with an index.tsv. Its names are
            those of the golden folder; not all need be there.
        against: a golden folder.

    Raises:
        FileError, GoldenError: one of the two cannot be read, or the dump has no name that the
            golden folder has.
    """
    golden = load_golden(Path(against))
    dumped, known = read_dump(Path(dump)), golden.references
    for name in known:  # a golden folder's own tensors agree with themselves
        dumped.pop(name + DOUBLE, None)
    if not dumped.keys() & known.keys():
        name = next(iter(dumped), "nothing")
        example = _nearest(name, known) or next(iter(known))
        raise GoldenError(
            f"{dump}: has {name}{' …' if len(dumped) > 1 else ''}, expected a case and a tensor, "
            f"such as {example}. 'npgpt2 golden list' has all names"
        )
    verdicts = list(_verdicts(golden, dumped))
    others = [name for name in dumped if name not in known]
    unknown = dict.fromkeys(others, "")
    for name in islice(others, HINTED):
        unknown[name] = _nearest(name, known)
    first = next((v for v in verdicts if not v.agrees), None)
    diagnoses = list(diagnose(golden, verdicts))
    return Report(golden, verdicts, unknown, len(known) - len(verdicts), first, diagnoses)


def _nearest(name: str, known: Iterable[str]) -> str:
    """The name that was meant, perhaps: in `eight`, if no case is named."""
    plain = name.replace("transformer.", "")
    spelled = [f"eight/{plain}", plain, name]
    found = (m for s in spelled for m in get_close_matches(s, known, 1, 0.8))
    return next(found, "")


def _verdicts(golden: Golden, dumped: Mapping[str, Dumped]) -> Iterator[Verdict]:
    config = GPT2Config.from_dict(golden.manifest["model"]["config"])
    for name, reference in golden.references.items():
        if name not in dumped:
            continue
        layer = re.match(r"h\.(\d+)\.", reference.tensor)
        heads = config.heads_left(int(layer[1])) if layer else 1
        tensor = dumped[name]
        yield compare(
            reference, tensor, heads, _half_cost(golden, reference.tensor, tensor.dtype),
            _real(golden, name) if reference.case == "padded" else None,
        )  # fmt: skip


def _half_cost(golden: Golden, tensor: str, dtype: str) -> float:
    """The largest error that half precision makes at a tensor, twice; measured in `eight`."""
    costs = golden.fingerprints.get(f"{HALVES}/{tensor}")
    if costs is None or dtype not in WAYS:
        return 0.0
    return 2.0 * float(costs[WAYS[dtype], 1])


def _real(golden: Golden, name: str) -> Array | None:
    """Where a token of the case `padded` is no padding, to be broadcast over a tensor."""
    reference = golden.references[name]
    if reference.dtype.kind != "f":
        return None
    mask = golden.references["padded/attention_mask"]
    rows, tokens = mask.shape
    probs = name.endswith(".probs")
    return mask.single.reshape((rows, 1, tokens, 1) if probs else (rows, tokens, 1))
