import dataclasses
import re

import pytest

from npgpt2 import GenerationOptions
from npgpt2.base.errors import OptionError
from npgpt2.base.options import described, option, require
from npgpt2.engines import ModelSpec
from npgpt2.serve.settings import Settings as ServerSettings
from npgpt2.train import Settings as TrainSettings

NAN, INFINITY = float("nan"), float("inf")


@described
@dataclasses.dataclass
class Options:
    """Some.

    >>> 1 + 1
    2
    """

    rows: int = option(1, "rows at a time (default: {default})", "N", least=1, most=4)
    share: float = option(0.25, "of all (default: {default})", "P", above=0, below=1)
    most: float | None = option(None, "no more than", least=0)
    name: str | None = option(None, "what it is called")
    kind: str = option("a", "which", choices=("a", "b"))
    quick: bool = option(False, "at once", flag="--now")
    names: tuple[str, ...] = option((), "some names")


@pytest.mark.parametrize(("name", "good", "bad", "expected"), [
    ("rows", [1, 4], [0, 5, 1.0, True, None, "1", 10**400], "an integer from 1 to 4"),
    ("share", [0.5, 1e-9], [0, 1, NAN, INFINITY, None, "0.5", True], "a number above 0 to below 1"),
    ("most", [None, 0, 10**30, 1e300], [-1, NAN, INFINITY, 10**400], "a number from 0"),
    ("name", [None, "", "x"], [5, b"x", ("x",)], "a string"),
    ("kind", ["b"], ["c", "", None, 1], "one of a, b"),
    ("quick", [True], [1, None, "yes"], "true or false"),
    ("names", [5, None], [], ""),
])  # fmt: skip
def test_what_a_field_takes(name, good, bad, expected):
    for value in good:
        require(Options(**{name: value}))
    for value in bad:
        with pytest.raises(OptionError) as caught:
            require(Options(**{name: value}))
        assert str(caught.value) == f"{name}: got {value!r}, expected {expected}"


def test_the_docstring_has_the_fields():
    lines = Options.__doc__.splitlines()
    assert lines[0] == "Some."
    assert lines[lines.index("Attributes:") + 1 :][:2] == [
        "    rows: rows at a time (default: 1)", "    share: of all (default: 0.25)"
    ]  # fmt: skip


@pytest.mark.parametrize("options", [GenerationOptions, ModelSpec, ServerSettings, TrainSettings])
def test_every_default_is_good_and_what_is_expected_names_no_other_number(options):
    require(options())
    for f in dataclasses.fields(options):
        template = f.metadata.get("expected", "")
        assert not re.search(r"\d", re.sub(r"\{[^}]*\}", "", template)) or f.name in (
            "repetition_penalty",  # 1e100, which format writes otherwise
        )
