"""The texts in `data/snapshots` equal the package's current output: a review shows each change."""

import difflib
import itertools

import pytest
from snapshots import FOLDER, MAKER, missing, snapshots

KEPT = sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*") if path.is_file())
LINES = 20  # of a difference that are shown


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return snapshots(tmp_path_factory.mktemp("snapshots"))


@pytest.mark.parametrize("name", KEPT)
def test_a_text_is_what_is_made_now(made, name):
    if missing(name):
        pytest.skip(missing(name))
    assert name in made, f"{FOLDER / name}: nothing makes it. Run: {MAKER}"
    kept = (FOLDER / name).read_text(encoding="utf-8")
    found = difflib.unified_diff(
        kept.splitlines(), made[name].splitlines(), f"{name} in git", "as it is now", "", "", 1, ""
    )
    difference = "\n".join(itertools.islice(found, LINES))
    if difference:
        pytest.fail(f"{difference}\nIf that was meant, run: {MAKER}", pytrace=False)


def test_no_text_is_missing(made):
    assert set(made) <= set(KEPT), f"run: {MAKER}"
