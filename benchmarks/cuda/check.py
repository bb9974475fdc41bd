"""The check: sections of steps, each in processes of its own, within a budget of time.

A process that fails may have spoilt its GPU for what comes behind: the rest of a section is done by
another one. The report is written again after every step, so that a run that is killed loses
nothing; what there was no time for is named in it.
"""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.cuda import kernels, machine, models, parity, pytorch, speed
from benchmarks.cuda.models import Options, Steps
from npgpt2.base.files import replaced

Report = dict[str, Any]
Row = dict[str, Any]

SCHEMA = "npgpt2.cuda/1"
GRACE = 15  # seconds that a step may take beyond its section's end
TRIES = 3  # steps that fail one after another, behind which a section is given up


class Section(NamedTuple):
    """Some steps, and their share of the time: what one leaves, the next ones have."""

    steps: Callable[[Options], Steps]
    share: float
    needed: tuple[str, ...] = ()  # packages that need not be there
    proof: bool = False  # whether the check fails where this is not all there and good
    gate: str = ""  # the step without which nothing that follows can be done
    after: tuple[str, ...] = ()  # sections that make what this one reads


SECTIONS = {
    "machine": Section(machine.steps, 0.06, gate="onnxruntime"),
    "models": Section(models.steps, 0.08, gate="graphs"),
    "parity": Section(parity.steps, 0.26, proof=True, after=("models",)),
    "kernels": Section(kernels.steps, 0.1, proof=True, after=("models",)),
    "speed": Section(speed.steps, 0.18, after=("models",)),
    "torch": Section(pytorch.steps, 0.12, pytorch.NEEDED),
    "large": Section(speed.large_steps, 0.2, gate="graphs"),
}


def check(
    options: Options, minutes: float, only: Sequence[str] = (), file: Path | None = None
) -> Report:
    """Run the sections; the report, as it is in `file`.

    Args:
        only: these, and those that make what they read; none: all.

    Returns:
        sections: for each its "rows", one for each step that was done, with "failed" where it
            raised; "left_out", the steps there was no time for; "missing", what to install first.
        faults: why the check is not passed, a line each; empty where it is.
    """
    wanted = {*only}.union(*(SECTIONS[name].after for name in only)) or {*SECTIONS}
    chosen = {name: section for name, section in SECTIONS.items() if name in wanted}
    seconds = (60 * minutes - GRACE) / sum(section.share for section in chosen.values())
    report: Report = {"schema": SCHEMA, "options": asdict(options), "minutes": minutes,
                      "only": [*only], "begun": time.strftime("%Y-%m-%d %H:%M:%S"),
                      "sections": {}}  # fmt: skip
    for name, section in chosen.items():  # all at once: a run may be killed in the first
        absent = [p for p in section.needed if importlib.util.find_spec(p) is None]
        missing = f"pip install {' '.join(absent)}" if absent else ""
        steps = [] if absent else [step for step, _ in section.steps(options)]
        report["sections"][name] = {"rows": [], "left_out": steps, "missing": missing}
    end = time.time()
    for name, section in chosen.items():
        end += seconds * section.share
        entry = report["sections"][name]
        for row in rows_of(name, options, entry["left_out"], end):
            entry["rows"].append(row)
            entry["left_out"].remove(row["step"])
            written(report, file)
            if "failed" in row and row["step"] == section.gate:
                end = seconds = 0.0  # long ago
    return written(report, file)


def rows_of(section: str, options: Options, steps: Sequence[str], end: float) -> Iterator[Row]:
    """Every step's row, by as many processes as it takes, until `end`, a time of day."""
    waiting, failures = [*steps], 0
    while waiting and failures < TRIES and time.time() < end:
        for row in apart(section, options, waiting, end):
            waiting.remove(row["step"])
            # That memory is too small for one cell is an answer.
            failed = "failed" in row and not row.get("out_of_memory")
            failures = failures + 1 if failed else 0
            yield row


def apart(section: str, options: Options, waiting: Sequence[str], end: float) -> Iterator[Row]:
    """`work` in a process of its own; where that dies, the step it died in has failed."""
    told = json.dumps([section, asdict(options), list(waiting), end])
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.cuda", "section", told], stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    timer = threading.Timer(max(0.0, end + GRACE - time.time()), process.kill)
    timer.start()
    left = list(waiting)
    try:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                row = json.loads(line)
                left.remove(row["step"])
                yield row
        if process.wait() and left:
            yield {"step": left[0], "failed": death(process.returncode, end)}
    finally:
        timer.cancel()
        process.kill()
        process.wait()


def death(code: int, end: float) -> str:
    """Why a process ended, by its exit status."""
    if code == -signal.SIGKILL and time.time() > end:
        return f"took more than {GRACE} s beyond its section's time"
    return f"its process ended with {code}" if code > 0 else f"its process got signal {-code}"


def work(section: str, options: Options, waiting: Sequence[str], end: float) -> Iterator[Row]:
    """Do steps until one fails or the time is over."""
    if options.device == "cuda":
        machine.libraries()
    for step, measure in SECTIONS[section].steps(options):
        if step not in waiting:
            continue
        if time.time() > end:
            return
        print(f"{section}: {step}", file=sys.stderr, flush=True)
        begun = time.perf_counter()
        try:
            row = measure()
        except Exception as error:  # of any library
            row = failure(error)
        yield {"step": step, **row, "seconds": round(time.perf_counter() - begun, 3)}
        if "failed" in row:
            return


def failure(error: Exception) -> Row:
    text = " ".join(f"{type(error).__name__}: {error}".split())[:400]
    full = isinstance(error, MemoryError) or any(
        words in text.lower() for words in ("out of memory", "failed to allocate", "bad_alloc")
    )
    return {"failed": text, "out_of_memory": full}


def section_main(told: str) -> None:
    """What a process does: a row for each line of standard output, where nothing else goes."""
    section, options, waiting, end = json.loads(told)
    for name in ("batches", "contexts"):
        options[name] = tuple(options[name])
    with os.fdopen(os.dup(1), "w") as out:
        os.dup2(2, 1)  # what libraries print
        for row in work(section, Options(**options), waiting, end):
            print(json.dumps(row), file=out, flush=True)


# ── the report ───────────────────────────────────────────────────────────────────────────────────


def written(report: Report, file: Path | None) -> Report:
    """With what follows from its rows; in the file, whole."""
    rows = report["sections"].get("machine", {}).get("rows", [])
    bandwidth = next((row["bandwidth"] for row in rows if row.get("bandwidth")), None)
    for section in report["sections"].values():
        for row in section["rows"]:
            for rate in ("decode", "graph_decode"):
                if bandwidth and rate in row:
                    steps_a_second = row[rate] / row["batch"]
                    row[f"{rate}_of_bandwidth"] = row["bytes"] * steps_a_second / bandwidth
    report["faults"] = faults(report)
    if file is not None:
        with replaced(file) as path:
            path.write_text(json.dumps(report, indent=1) + "\n")
    return report


def faults(report: Report) -> list[str]:
    """What stands against the device: steps of a proof that are wrong, failed, or were left out.

    A speed that was not measured is no fault, but a section of which nothing was measured is one;
    where packages are missing, only if it was asked for by name.
    """
    found = []
    for name, section in report["sections"].items():
        proof, gate, before = SECTIONS[name].proof, SECTIONS[name].gate, len(found)
        for row in section["rows"]:
            if "failed" in row and (proof or row["step"] == gate):
                found.append(f"{name}: {row['step']}: {row['failed']}")
            elif proof and not row["good"]:
                told = {key: row[key] for key in row if key not in ("step", "good", "seconds")}
                found.append(f"{name}: {row['step']}: {json.dumps(told)}")
        if proof and section["left_out"]:
            found.append(f"{name}: was left out: {', '.join(section['left_out'])}")
        excused = section["missing"] and name not in report["only"]
        if len(found) == before and not excused and not any(answered(section["rows"], gate)):
            found.append(f"{name}: {section['missing'] or 'none of its steps succeeded'}")
    return found


def answered(rows: Sequence[Row], gate: str) -> Iterator[bool]:
    """For each step whether it gave an answer, as full memory is one; a gate opens, no more."""
    for row in rows:
        yield row["step"] != gate and ("failed" not in row or row.get("out_of_memory", False))
