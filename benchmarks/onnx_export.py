"""What exporting costs, and what the export is worth beside optimum's.

    python -m venv OPT && OPT/bin/pip install torch==2.13.0
    OPT/bin/pip install optimum==2.1.0 optimum-onnx==0.1.0 transformers==4.57.6
    python -m benchmarks.onnx_export --optimum OPT/bin/python [--rounds 5] [--json FILE]

On a random checkpoint of GPT-2's 124M shape, batch 1:

    export    time and bytes of an export, the weights copied or shared; int4
    memory    highest resident size while a 6 GB checkpoint (gpt2-xl's shape) is written
    prefill   1,024 tokens, the last position's logits wanted
    decode    128 greedy tokens after a prompt of 32

Prefill and decode run in this environment's onnxruntime, optimum's graph with its presents bound
as the next past. Every measurement is a process of its own, in turn; what counts is the ratio of
the medians within one run. Beside decode stands what memory allows: the bytes of weights that one
token reads, at the bandwidth measured in the same run. Without --optimum only our own are run.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks.numpy_vs_torch import DECODE, PREFILL, PROMPT, make_checkpoint, typical

PRECISIONS = ("fp32", "int8", "int4")
GOALS = {  # of the ratio to optimum's
    ("prefill", "fp32"): 1.5,
    ("decode", "fp32"): 2.2,
    ("decode", "int8"): 5.5,
    ("decode", "int4"): 7.5,
}
XL = {"n_embd": 1600, "n_layer": 48, "n_head": 25}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--optimum", metavar="PYTHON", help="of an environment with optimum-onnx")
    parser.add_argument("--rounds", type=int, default=5, help="processes of each kind (default: 5)")
    parser.add_argument("--no-xl", action="store_true", help="leave the 6 GB checkpoint out")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        kind, task, folder = args.worker
        print(json.dumps(WORKERS[kind](task, folder)))
        return
    with tempfile.TemporaryDirectory() as work:
        figures = exporting(Path(work), args.no_xl)
        figures |= running(Path(work), args.optimum, args.rounds)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


# ── what exporting costs ─────────────────────────────────────────────────────────────────────────


def exporting(work: Path, no_xl: bool) -> dict[str, Any]:
    """Times of `npgpt2_onnx.export` itself, after its imports; bytes; memory of the process."""
    # In a process of its own: a child's highest resident size begins with its parent's.
    size = worker("make", "checkpoint", make(work / "checkpoint"))
    say(versions())
    say(f"\nexport of a checkpoint of {size / 1e6:.0f} MB (124M shape), medians of 5")
    row = "{:<34}{:>8}{:>14}  {}".format
    found: dict[str, Any] = {"checkpoint bytes": size}
    for name, most_seconds, most_megabytes in (
        ("fp32", 2.0, 1.05 * size / 1e6),
        ("fp32, with the proof by running", None, None),
        ("int4", 30.0, None),
        ("share", 0.1, 1.0),
    ):
        runs = [worker("export", name, work) for _ in range(5)]
        seconds, written, peak = (statistics.median(run[i] for run in runs) for i in range(3))
        found[f"export {name}"] = {"seconds": seconds, "bytes": written, "peak": peak}
        notes = [
            verdict(seconds, most_seconds, "s"),
            verdict(written / 1e6, most_megabytes, "MB"),
            f"peak {peak / 1e6:.0f} MB",
        ]
        say(
            row(name, f"{seconds:.2f} s", f"{written / 1e6:.2f} MB", "; ".join(filter(None, notes)))
        )
    if not no_xl:
        size = make_large(work / "xl")
        seconds, written, peak = worker("export", "xl", work)
        found["export xl"] = {"seconds": seconds, "bytes": written, "peak": peak}
        say(row(f"fp32 of {size / 1e9:.1f} GB", f"{seconds:.1f} s", f"{written / 1e6:.0f} MB",
                f"peak {peak / 1e6:.0f} MB, {verdict(peak / 1e6, 400, 'MB')}"))  # fmt: skip
        for path in sorted((work / "xl").iterdir()):
            path.unlink()
    return found


def verdict(value: float, goal: float | None, unit: str) -> str:
    if goal is None:
        return ""
    return f"goal <= {goal:.4g} {unit} {'reached' if value <= goal else 'MISSED'}"


def export_worker(task: str, folder: str) -> tuple[float, int, int]:
    """Seconds, bytes written, and the highest resident size."""
    import resource
    import shutil

    from npgpt2_onnx import export

    work = Path(folder)
    source, out = work / ("xl" if task == "xl" else "checkpoint"), work / f"out {os.getpid()}"
    options: dict[str, Any] = {"proof": "proof" in task}
    if task == "int4":
        options["precisions"] = ["int4"]
    before = sum(path.stat().st_size for path in source.iterdir())
    started = time.perf_counter()
    if task == "share":
        out = export(source, share_weights=True, force=True, **options)
    else:
        export(source, out, **options)
    seconds = time.perf_counter() - started
    if task == "share":
        written = sum(path.stat().st_size for path in source.iterdir()) - before
        for path in source.glob("*.onnx"):
            path.unlink()
        (source / "genai_config.json").unlink()
    else:
        written = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
        shutil.rmtree(out)
    scale = 1 if platform.system() == "Darwin" else 1024
    return seconds, written, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def make_large(folder: Path) -> int:
    """A checkpoint of gpt2-xl's shape, written piece by piece; its bytes."""
    import numpy as np

    from npgpt2 import GPT2Config
    from npgpt2.params import param_shapes

    config = GPT2Config(**XL)  # type: ignore[arg-type]
    header, end = {}, 0
    for name, shape in param_shapes(config).items():
        size = 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    piece = (np.random.default_rng(0).standard_normal(1 << 22) * 0.02).astype("<f4").tobytes()
    with (make(folder) / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for at in range(0, end, len(piece)):
            file.write(piece[: end - at])
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    return end


# ── what the export is worth ─────────────────────────────────────────────────────────────────────


def running(work: Path, optimum: str | None, rounds: int) -> dict[str, Any]:
    from npgpt2_onnx import export

    export(work / "checkpoint", work / "ours", precisions=PRECISIONS, proof=False)
    kinds = list(PRECISIONS)
    if optimum:
        subprocess.run(
            [optimum, "-m", "optimum.commands.optimum_cli", "export", "onnx", "--model",
             str(work / "checkpoint"), "--task", "text-generation-with-past",
             str(work / "optimum")],
            check=True, capture_output=True, env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
        kinds.insert(0, "optimum")
    figures: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for round_ in range(rounds + 1):  # the first fills the caches of the disk and does not count
        for task in ("prefill", "decode"):
            for kind in kinds:
                print(f"\rround {round_} of {rounds}: {task}, {kind}   ", end="", file=sys.stderr)
                value = worker(kind, task, work)
                if round_:
                    figures[task][kind].append(value)
        if round_:
            figures["bandwidth"]["GB/s"].append(worker("bandwidth", "read", work) / 1e9)
    print("\r" + " " * 60, end="\r", file=sys.stderr)
    bandwidth = statistics.median(figures["bandwidth"]["GB/s"])
    say(
        f"\ntokens/s, medians of {rounds} processes each, in turn; memory gave {bandwidth:.0f} GB/s"
    )
    row = "{:<10}{:<10}{:>10}{:>10}{:>16}  {}".format
    say(row("", "", "tokens/s", "ratio", "of memory's", "goal"))
    for task in ("prefill", "decode"):
        medians = {kind: statistics.median(values) for kind, values in figures[task].items()}
        for kind, value in medians.items():
            ratio = value / medians["optimum"] if "optimum" in medians else None
            goal = GOALS.get((task, kind))
            share = ""
            if task == "decode" and kind in PRECISIONS:
                read = bytes_read(work / "ours", kind)
                share = f"{value * read / 1e9 / bandwidth:.0%}"
            note = ""
            if goal and ratio:
                note = f">= {goal} {'reached' if ratio >= goal else 'MISSED'}"
            say(row(task, kind, f"{value:.4g}", f"{ratio:.2f}" if ratio else "", share, note))
    return {task: dict(kinds) for task, kinds in figures.items()}


def bytes_read(folder: Path, precision: str) -> int:
    """Bytes of weights that one token reads: all but wpe."""
    from npgpt2_onnx.precision import PRECISIONS as KNOWN

    data = folder / "onnx" / f"model{KNOWN[precision].suffix}.onnx_data"
    return data.stat().st_size - 1024 * 768 * 4


def our_worker(precision: str) -> Any:
    def work(task: str, folder: str) -> float:
        from npgpt2_onnx import OnnxModel

        model = OnnxModel.from_pretrained(Path(folder) / "ours", precision)
        return measure(task, lambda: model.stepper(room=PROMPT + DECODE))

    return work


def optimum_worker(task: str, folder: str) -> float:
    """optimum's graph: every position's logits, presents bound as the next past."""
    import numpy as np
    import onnxruntime as ort

    session = ort.InferenceSession(
        str(Path(folder) / "optimum" / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    pasts = [i.name for i in session.get_inputs() if i.name.startswith("past")]
    presents = [o.name for o in session.get_outputs()][1:]
    empty = ort.OrtValue.ortvalue_from_numpy(np.zeros((1, 12, 0, 64), np.float32))

    def stepper() -> Any:
        state = {"past": [empty] * len(pasts), "seen": 0}

        def step(ids: Any) -> Any:
            total = state["seen"] + ids.shape[1]
            binding = session.io_binding()
            binding.bind_cpu_input("input_ids", np.ascontiguousarray(ids))
            binding.bind_cpu_input("attention_mask", np.ones((1, total), np.int64))
            binding.bind_cpu_input("position_ids", np.arange(state["seen"], total)[None])
            for name, value in zip(pasts, state["past"], strict=True):
                binding.bind_ortvalue_input(name, value)
            for name in ("logits", *presents):
                binding.bind_output(name, "cpu")
            session.run_with_iobinding(binding)
            logits, *state["past"] = binding.get_outputs()
            state["seen"] = total
            return logits.numpy()[:, -1]

        return step

    return measure(task, stepper)


def measure(task: str, stepper: Any) -> float:
    """Tokens per second."""
    import numpy as np

    ids = np.random.default_rng(0).integers(0, 50257, (1, PREFILL))
    if task == "prefill":
        return PREFILL / typical(5, lambda: stepper()(ids))

    def decode() -> None:
        step = stepper()
        token = step(ids[:, :PROMPT]).argmax(-1)[:, None]
        for _ in range(DECODE):
            token = step(token).argmax(-1)[:, None]

    return DECODE / typical(4, decode)


def bandwidth_worker(task: str, folder: str) -> float:
    """Bytes per second of reading 0.5 GB, by BLAS on all cores."""
    import numpy as np

    x = np.ones(1 << 27, np.float32)
    return x.nbytes / typical(9, lambda: np.dot(x, x))


WORKERS = {
    "make": lambda task, folder: make_checkpoint(Path(folder)),
    "export": export_worker,
    "optimum": optimum_worker,
    "bandwidth": bandwidth_worker,
    **{precision: our_worker(precision) for precision in PRECISIONS},
}


def worker(kind: str, task: str, work: Path) -> Any:
    """One process."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.onnx_export", "--worker", kind, task, str(work)],
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{kind}, {task}: failed\n{done.stderr}")
    return json.loads(done.stdout)


def make(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def versions() -> str:
    from importlib.metadata import version

    packages = ("numpy", "onnx", "onnxruntime")
    named = ", ".join(f"{name} {version(name)}" for name in packages)
    return f"{named}, Python {platform.python_version()}; {os.cpu_count()} processors"


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    main()
