"""Compare a port's values with a golden folder: what agrees, the first difference, its cause."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from npgpt2.base.arrays import Array
from npgpt2.base.errors import GoldenError
from npgpt2.golden.compare import Verdict, compare
from npgpt2.golden.diagnose import Diagnosis, diagnose
from npgpt2.golden.dump import Dumped, read_dump
from npgpt2.golden.fingerprints import HALVES, WAYS
from npgpt2.golden.folder import DOUBLE, Golden, load_golden
from npgpt2.golden.mistakes import Mistake
from npgpt2.model.config import GPT2Config

if TYPE_CHECKING:
    from npgpt2.base.document import Page

HINTED = 10  # unknown names that get a hint: finding the nearest name is slow


@dataclass(frozen=True)
class Report:
    """The result of `check`.

    Attributes:
        verdicts: one for each compared tensor, in the order of computation.
        unknown: names in the dump that the golden folder does not have → the nearest known name.
        missing: number of golden tensors that are not in the dump.
        first: the first verdict that does not agree.
        diagnoses: at most one for each case.
    """

    golden: Golden
    verdicts: list[Verdict]
    unknown: dict[str, str]
    missing: int
    first: Verdict | None
    diagnoses: list[Diagnosis]

    def __repr__(self) -> str:
        agree = sum(v.agrees for v in self.verdicts)
        first = f", first difference {self.first.reference.name}" if self.first else ""
        why = f", mistake {self.mistake.name!r}" if self.mistake else ""
        return f"Report({agree:,} of {len(self.verdicts):,} tensors agree{first}{why})"

    def __str__(self) -> str:
        """The lines that `npgpt2 golden check` prints."""
        from npgpt2.golden.report import in_words

        return "\n".join(in_words(self))

    def page(self) -> "Page":
        """An HTML page with the errors over layers and tensors."""
        from npgpt2.golden.page import page

        return page(self)

    def _repr_html_(self) -> str:
        """In a notebook: the page."""
        return self.page()._repr_html_()

    @property
    def agrees(self) -> bool:
        return self.first is None and not self.unknown

    @property
    def mistake(self) -> Mistake | None:
        """The one to fix first."""
        return self.diagnoses[0].mistake if self.diagnoses else None


def check(dump: str | Path, against: str | Path) -> Report:
    """Compare a port's dump with a golden folder.

    Args:
        dump: a safetensors or npz file, or a folder of raw files with an index.tsv. It uses the
            names of the golden folder and may contain only some of them.
        against: a golden folder.

    Raises:
        FileError, GoldenError: one of the two cannot be read, or the dump contains no name of the
            golden folder.
    """
    golden = load_golden(Path(against))
    dumped, known = read_dump(Path(dump)), golden.references
    for name in known:  # so that a golden folder's own tensor file can be checked
        dumped.pop(name + DOUBLE, None)
    if not dumped.keys() & known.keys():
        name = next(iter(dumped), "nothing")
        example = _nearest(name, known) or next(iter(known))
        raise GoldenError(
            f"{dump}: has {name}{' …' if len(dumped) > 1 else ''}, expected a case and a tensor, "
            f"such as {example}. 'npgpt2 golden list' lists all names"
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
    """The most similar known name, or "". A name without a case is looked up in `eight` first."""
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
    """Twice the largest error of half precision at a tensor, as measured in `eight`."""
    costs = golden.fingerprints.get(f"{HALVES}/{tensor}")
    if costs is None or dtype not in WAYS:
        return 0.0
    return 2.0 * float(costs[WAYS[dtype], 1])


def _real(golden: Golden, name: str) -> Array | None:
    """Mask of the case `padded`, False at padding, in a shape that broadcasts over a tensor."""
    reference = golden.references[name]
    if reference.dtype.kind != "f":
        return None
    mask = golden.references["padded/attention_mask"]
    rows, tokens = mask.shape
    probs = name.endswith(".probs")
    return mask.single.reshape((rows, 1, tokens, 1) if probs else (rows, tokens, 1))
