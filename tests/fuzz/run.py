"""Run one target: damage inputs, open them, keep those that reach new lines, report."""

import random
import re
import sys
import time
from pathlib import Path
from typing import NamedTuple

from fuzz.mutate import mutate
from fuzz.worker import Worker

CORPUS = Path(__file__).parent / "corpus"


class Report(NamedTuple):
    """The report of a run. `faults`: text of each kind of fault → first input that showed it."""

    inputs: int
    accepted: int
    kept: int
    seconds: float
    megabytes: float
    faults: dict[str, dict[str, bytes]]


def fuzz(target, seeds, seed=0, seconds=None, inputs=None, progress=lambda *counts: None):
    """Open a reader's seeds, then damaged ones, until the time or the number of inputs is up."""
    rng, end = random.Random(seed), time.monotonic() + (seconds or 1e9)
    waiting, pool, sound, faults = list(seeds), [], [], {}
    count = accepted = 0
    slowest = highest = 0.0
    with Worker(target.check, trace=True) as worker:
        while waiting or ((inputs is None or count < inputs) and time.monotonic() < end):
            first = bool(waiting)
            # What is accepted is worth as much damage as all the rest, which is most of it.
            start = rng.choice(sound if sound and rng.random() < 0.5 else pool or seeds)
            files = waiting.pop() if first else mutate(rng, start, pool, target.words)
            outcome = worker.run(files)
            count += 1
            accepted += not (outcome.refused or outcome.fault)
            slowest = max(slowest, outcome.seconds)
            highest = max(highest, outcome.megabytes)
            if outcome.fault:
                faults.setdefault(_kind(outcome.fault), (outcome.fault, files))
            elif first or outcome.new:
                pool.append(files)
                if not outcome.refused:
                    sound.append(files)
            progress(count, accepted, len(faults))
    return Report(count, accepted, len(pool), slowest, highest, dict(faults.values()))


def _kind(fault):
    """A key for a kind of fault: its location, or its words without numbers and names."""
    places = re.findall(r"(?m)^  File .*$", fault)
    return "\n".join(places[-2:]) or re.sub(r"\d+|'.*", "", fault)


def cases(name):
    """The corpus of a target: folder → files."""
    return {path: read(path) for path in sorted((CORPUS / name).glob("*")) if path.is_dir()}


def read(folder):
    """Return the input in a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def write(folder, files):
    """Write an input to a folder, to inspect it and open it again."""
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)


class Line:
    """The current counts on one line of a terminal, updated every half second."""

    def __init__(self, name, seconds):
        self._name, self._seconds, self._start = name, seconds, time.monotonic()
        self._next = 0.0 if sys.stderr.isatty() else float("inf")

    def __call__(self, count, accepted, faults):
        passed = time.monotonic() - self._start
        if passed > self._next:
            self._next = passed + 0.5
            bar = "█" * int(30 * passed / self._seconds)
            text = f"{count:,} inputs, {accepted:,} accepted, {faults} faults"
            print(f"\r{self._name} {bar:░<30} {text}", end="\033[K", file=sys.stderr, flush=True)
