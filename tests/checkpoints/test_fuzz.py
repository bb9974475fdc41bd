"""Readers of files from strangers: inputs that once broke one, and a short run of damage on each.

Longer: python -m tests.fuzz TARGET
"""

import mmap
import os
import sys
import time

import pytest

if sys.platform != "linux":
    pytest.skip("memory is measured by Linux's /proc", allow_module_level=True)

from fuzz.run import cases, fuzz, read, write
from fuzz.targets import TARGETS, Target
from fuzz.worker import Worker

from npgpt2.base.errors import CheckpointError


@pytest.mark.parametrize("name", TARGETS)
def test_what_once_broke_a_reader(name):
    with Worker(TARGETS[name].check) as worker:
        found = {path.name: worker.run(files) for path, files in cases(name).items()}
    assert not {case: outcome.fault for case, outcome in found.items() if outcome.fault}
    accepted = {case for case, outcome in found.items() if not outcome.refused}
    assert accepted == {case for case in found if case.startswith("sound")}


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_the_reader_stands_damage(name):
    target = TARGETS[name]
    report = fuzz(target, target.seeds(), seed=1, inputs=200)
    assert not report.faults, "python -m tests.fuzz finds it again"
    assert report.inputs == 200
    assert report.accepted >= len(target.seeds())  # what is undamaged is read
    assert report.kept > len(target.seeds())  # and damage goes somewhere


# ── a fault is seen ──────────────────────────────────────────────────────────────────────────────


def faulty(path):
    """A reader with many faults: the first byte of a file says which."""
    match (path / "file").read_bytes()[:1] if path.is_dir() and any(path.iterdir()) else b"":
        case b"c":
            raise IndexError("planted")
        case b"s":
            start = time.process_time()
            while time.process_time() < start + 1.1:
                pass
        case b"m":
            bytearray(200_000_000)
        case b"u":
            mmap.mmap(-1, 200_000_000).close()  # taken, and never touched
        case b"d":
            os.abort()
        case b"l":
            raise ValueError("two\nlines")
        case b"w":
            time.sleep(60)
        case b"r":
            raise CheckpointError("refused")


def broken(path):
    """A reader that looks at a byte which it has not asked for."""
    for file in path.glob("file"):
        file.read_bytes()[2]


FAULTS = {
    b"c": "IndexError: planted",
    b"s": "takes 1.1 s, expected 1 at most",
    b"m": "takes 200 MB, expected 100 at most",
    b"u": "takes 200 MB, expected 100 at most",
    b"d": "the process died: exit code -6",
    b"l": "ValueError: two\nlines",
    b"w": "hangs: no end after 2 s",
}


@pytest.fixture(scope="module")
def worker():
    with Worker(faulty) as process:
        yield process


@pytest.mark.parametrize("byte", FAULTS)
def test_a_planted_fault_is_seen(worker, byte, monkeypatch):
    if byte == b"w":
        monkeypatch.setattr("fuzz.worker.HANG", 2.0)
    assert FAULTS[byte] in worker.run({"file": byte}).fault
    monkeypatch.undo()
    assert not worker.run({"file": b"x"}).fault  # by the next process, where this one is gone


def test_a_refusal_is_none_and_a_large_file_may_take_its_size(worker):
    assert worker.run({"file": b"r"})[:2] == ("", True)
    assert worker.run({"file": b"m" + bytes(120_000_000)}).fault == ""


def test_damage_finds_a_fault_and_it_is_opened_again(tmp_path):
    report = fuzz(Target(list, broken), [{"file": b"abc"}], seed=3, inputs=300)
    ((fault, files),) = report.faults.items()  # one kind, however often
    assert "IndexError" in fault
    write(tmp_path / "input", files)
    assert read(tmp_path / "input") == files
    with Worker(broken) as worker:
        assert worker.run(files).fault.splitlines()[-1] == fault.splitlines()[-1]
