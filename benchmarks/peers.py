"""Compare npgpt2 with other CPU implementations of GPT-2, each in its own process, in turn.

    pip install torch==2.13.0 transformers==5.23.0
    python -m venv PEERS && PEERS/bin/pip install 'transformers<5' torch ctranslate2 \\
        llama-cpp-python gguf openvino nncf optimum optimum-onnx onnxruntime
    python -m benchmarks.peers --python PEERS/bin/python [--plot FILE.png] [--json FILE]

A random checkpoint of the 124M shape, greedy decoding, one thread per core. `TASKS` lists the tasks
and `benchmarks.engines` the engines. If this Python lacks an engine, those given with --python are
tried; if none has it, the packages to install are printed. --work keeps the converted checkpoints.
Compare ratios of medians within one run only.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.engines import ENGINES, MODULES, WIDTH, Engine, Write


class Task(NamedTuple):
    """Measures decode of `tokens` tokens after each row's first; if 0, prefill of the prompt."""

    rows: int
    prompt: int
    tokens: int
    repeats: int


TASKS = {
    "decode": Task(1, 32, 128, 3),
    "prefill": Task(1, 1024, 0, 4),
    "decode at 1,000": Task(1, 984, 32, 3),
    "batch 8": Task(8, 32, 32, 3),
    "batch 32": Task(32, 32, 16, 3),
}
# The engines of npgpt2 that a peer of each precision is compared with.
OURS = {
    "float32": ("npgpt2 onnx fp32", "npgpt2 numpy"),
    "bfloat16": ("npgpt2 onnx int8",),
    "int8": ("npgpt2 onnx int8",),
    "int4": ("npgpt2 onnx int4",),
}
Figures = dict[str, dict[str, float]]  # {engine: {what: median}}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="processes per engine (default: 3)")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="npgpt2, and these")
    parser.add_argument("--tasks", nargs="+", default=[*TASKS], metavar="TASK", help="only these")
    parser.add_argument("--python", nargs="+", default=[], help="other interpreters to search")
    parser.add_argument("--work", type=Path, help="keep converted checkpoints in this folder")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="plot them")
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        name, folder, *tasks = args.worker
        print(json.dumps(work(name, Path(folder), tasks)))
        return
    for option, names, known in (("only", args.only, ENGINES), ("tasks", args.tasks, TASKS)):
        if unknown := set(names) - set(known):
            parser.error(
                f"--{option}: got {', '.join(sorted(unknown))}, expected {', '.join(known)}"
            )
    if args.plot:
        import matplotlib  # noqa: F401  (fails now, not after the measurement)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.work or Path(temporary)
        make_checkpoint(folder)
        found = interpreters(args.only, [sys.executable, *args.python])
        runs = measure(folder, found, args.rounds, args.tasks)
    figures = {name: medians(rounds) for name, rounds in runs.items()}
    about = machine(runs) | {"another text": others(runs)}
    if args.json:  # first, so that no later error loses the results
        whole = {"machine": about, "rounds": args.rounds, "medians": figures, "runs": runs}
        args.json.write_text(json.dumps(whole, indent=1) + "\n")
    say(report(figures, about, args.rounds))
    if args.plot:
        draw(figures, about, args.plot)


def make_checkpoint(folder: Path) -> None:
    from benchmarks.numpy_vs_torch import make_checkpoint as make

    path = folder / "checkpoint"
    if not (path / "tokenizer_config.json").exists():  # it is written last
        path.mkdir(parents=True, exist_ok=True)
        make(path)


def interpreters(only: list[str], pythons: list[str]) -> dict[str, str]:
    """For each engine the first interpreter that can import what it needs."""
    found = {}
    for name, engine in ENGINES.items():
        if only and name not in only and not name.startswith("npgpt2"):
            continue
        modules = [MODULES.get(package, package) for package in engine.packages]
        code = f"import {', '.join(modules)}"
        for python in pythons:
            if not subprocess.run([python, "-c", code], capture_output=True).returncode:
                found[name] = python
                break
        else:
            say(f"{name}: is not installed. Run: pip install {' '.join(engine.packages)}")
    return found


# ── measuring ────────────────────────────────────────────────────────────────────────────────────


def measure(
    folder: Path, found: dict[str, str], rounds: int, tasks: list[str]
) -> dict[str, list[dict[str, Any]]]:
    """{engine: the results of its processes}, and "limits", those of the machine itself."""
    runs: dict[str, list[dict[str, Any]]] = {"limits": []}
    for name, python in found.items():
        progress(f"converting: {name}")
        if run(python, name, folder, []) is not None:
            runs[name] = []
    for n in range(rounds):
        for name in runs:
            progress(f"round {n + 1} of {rounds}: {name}")
            one = run(found.get(name, sys.executable), name, folder, tasks)
            if one is not None:
                runs[name].append(one)
    progress("")
    return {name: rounds_ for name, rounds_ in runs.items() if rounds_}


def run(python: str, name: str, folder: Path, tasks: list[str]) -> dict[str, Any] | None:
    """The result of one process. If it failed: None, after printing its last line of stderr."""
    kernels = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")  # each process chooses its own
    around = {name: value for name, value in os.environ.items() if name not in kernels}
    quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "PYTHONWARNINGS": "ignore"}
    begun = time.time()
    done = subprocess.run(
        [python, "-m", "benchmarks.peers", "--worker", name, str(folder), *tasks],
        capture_output=True, text=True, env=around | quiet,
    )  # fmt: skip
    if done.returncode:
        say(f"\n{name}: failed: {(done.stderr.strip().splitlines() or ['killed'])[-1]}")
        return None
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if "first token" in found:
        found["first token"] -= begun
    return found


def work(name: str, folder: Path, tasks: list[str]) -> dict[str, Any]:
    """The work of one process; without tasks it only converts the checkpoint."""
    if name == "limits":
        from npgpt2.base.blas import choose_kernel

        choose_kernel()
        from npgpt2.base.blas import describe
        from npgpt2.bench import measure as limits

        return limits({"variant": None}) | {"BLAS": describe()}
    engine = ENGINES[name]
    if not tasks:
        engine.make(folder)
        return {}
    return write_all(engine, engine.open(folder), tasks)


def write_all(engine: Engine, write: Write, tasks: list[str]) -> dict[str, Any]:
    """Tokens per second by task; "first token" is a time of day, in seconds since the epoch."""
    from importlib.metadata import PackageNotFoundError, version

    write(prompts(1, 32), 0)
    found: dict[str, Any] = {"first token": time.time(), "versions": {}}
    for package in engine.packages:
        with suppress(PackageNotFoundError):  # importable, but not installed
            found["versions"][package] = version(package)
    found["text"] = write(prompts(1, 32), 7)[2]
    found["MB"] = highest()
    for task in tasks:
        if engine.tasks and task not in engine.tasks:
            continue
        rows, length, tokens, repeats = TASKS[task]
        times = [write(prompts(rows, length), tokens)[:2] for _ in range(repeats)]
        first, rest = (statistics.median(t[i] for t in times[1:]) for i in range(2))
        found[task] = rows * tokens / rest if tokens else rows * length / first
        if rows == 1:
            found["MB"] = highest()
    return found


def highest() -> float:
    """Peak resident size in MB."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


def prompts(rows: int, length: int) -> Any:
    import numpy as np

    return np.arange(rows * length).reshape(rows, length) * 7919 % WIDTH


def medians(runs: list[dict[str, Any]]) -> dict[str, float]:
    return {
        what: statistics.median(one[what] for one in runs)
        for what, value in runs[0].items()
        if isinstance(value, float)
    }


def machine(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The machine, and the versions of the packages."""
    from npgpt2.cli.info import machine as described

    versions: dict[str, list[str]] = {}  # interpreters may have different versions of a package
    for one, *_ in runs.values():
        for package, number in one.get("versions", {}).items():
            known = versions.setdefault(package, [])
            known += [number] if number not in known else []
    return {"machine": described(), "versions": versions}


def others(runs: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Engines that generate another text than NumPy; rounded weights are a usual reason."""
    text = runs["npgpt2 numpy"][0]["text"] if "npgpt2 numpy" in runs else []
    found = []
    for name, (one, *_) in runs.items():
        theirs = one.get("text", [])
        if theirs != text[: len(theirs)]:
            found.append(name)
    return found


# ── report ───────────────────────────────────────────────────────────────────────────────────────


def report(figures: Figures, about: dict[str, Any], rounds: int) -> str:
    limits = figures.get("limits", {"bandwidth": 0, "arithmetic": 0})
    versions = ", ".join(
        f"{name} {' and '.join(numbers)}" for name, numbers in sorted(about["versions"].items())
    )
    tasks = [task for task in TASKS if any(task in row for row in figures.values())]
    lines = [
        about["machine"], versions,
        f"limits: memory reads {limits['bandwidth'] / 1e9:.0f} GB/s, float32 products "
        f"{limits['arithmetic'] / 1e9:.0f} GFLOP/s; medians of {rounds} processes each, in turn",
        f"generated another text than NumPy: {', '.join(about['another text']) or 'none'}",
        "", line("tokens/s", [*tasks, "first token, s", "MB"]),
    ]  # fmt: skip
    for kind in OURS:
        for name in of_kind(figures, kind):
            row = figures[name]
            lines.append(line(name, [f"{row[t]:,.0f}" if t in row else "" for t in tasks]
                              + [f"{row['first token']:.2f}", f"{row['MB']:,.0f}"]))  # fmt: skip
    lines += ["", line("npgpt2 / other", [*tasks, "first token"])]
    for kind, ours in OURS.items():
        for mine in (name for name in ours if name in figures):
            for name in of_kind(figures, kind):
                if name not in ours:
                    cells = [
                        ratio(figures[mine], figures[name], t) for t in (*tasks, "first token")
                    ]
                    lines.append(line(f"{mine.removeprefix('npgpt2 ')} / {name}", cells))
    return "\n".join(lines)


def of_kind(figures: Figures, kind: str) -> list[str]:
    return [name for name, engine in ENGINES.items() if engine.kind == kind and name in figures]


def ratio(ours: dict[str, float], theirs: dict[str, float], what: str) -> str:
    return f"{ours[what] / theirs[what]:.2f}" if what in ours and what in theirs else ""


def line(name: str, cells: list[str]) -> str:
    return f"{name:<32}" + "".join(f"{cell:>16}" for cell in cells)


def draw(figures: Figures, about: dict[str, Any], path: Path) -> None:
    """Plot one panel per task and one bar per engine: npgpt2 in strong colours, others pale."""
    from matplotlib.figure import Figure

    tasks = [task for task in TASKS if any(task in row for row in figures.values())]
    names = [name for kind in OURS for name in of_kind(figures, kind)][::-1]
    colours = {kind: f"C{n}" for n, kind in enumerate(OURS)}
    figure = Figure(figsize=(3 * len(tasks) + 2, 0.3 * len(names) + 1.2), layout="constrained")
    for axes, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        values = [figures[name].get(task, 0) for name in names]
        bars = axes.barh(
            names, values, color=[colours[ENGINES[name].kind] for name in names],
        )  # fmt: skip
        for name, bar in zip(names, bars, strict=True):
            bar.set_alpha(1.0 if name.startswith("npgpt2") else 0.45)
        axes.bar_label(bars, [f"{v:,.0f}" if v else "" for v in values], padding=2, fontsize=8)
        axes.set_title(f"{task}, tokens/s", fontsize=10)
        axes.set_xlim(right=1.2 * max(values))
        axes.tick_params(labelleft=axes.get_subplotspec().is_first_col(), labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"GPT-2 124M. {about['machine']}", fontsize=10)
    figure.savefig(path, format="png", dpi=120)


def progress(text: str) -> None:
    print(f"\r{text:<60}", end="" if text else "\r", file=sys.stderr, flush=True)


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    main()
