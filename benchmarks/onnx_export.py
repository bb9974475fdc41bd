"""Measure the ONNX export: seconds, bytes, memory.

    python -m benchmarks.onnx_export [--no-xl] [--json FILE]

It exports a random checkpoint of GPT-2's 124M shape with copied weights, with the proof by running,
in int4, and with shared weights; and it measures the memory of exporting a 6 GB checkpoint
(gpt2-xl's shape). Every measurement is a separate process. `benchmarks.peers` measures the graphs.
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
from pathlib import Path
from typing import Any

from benchmarks.numpy_vs_torch import make_checkpoint

XL = {"n_embd": 1600, "n_layer": 48, "n_head": 25}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--no-xl", action="store_true", help="skip the 6 GB checkpoint")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        kind, task, folder = args.worker
        print(json.dumps(WORKERS[kind](task, folder)))
        return
    with tempfile.TemporaryDirectory() as work:
        figures = exporting(Path(work), args.no_xl)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


def exporting(work: Path, no_xl: bool) -> dict[str, Any]:
    """Seconds of `npgpt2_onnx.export` after its imports; bytes; peak memory of the process."""
    # In a separate process, since the peak resident size of a child starts at its parent's.
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
    """Seconds, bytes written, and the peak resident size in bytes."""
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
    """Write a checkpoint of gpt2-xl's shape piece by piece; returns its size in bytes."""
    import numpy as np

    from npgpt2 import GPT2Config
    from npgpt2.model.params import param_shapes

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


WORKERS = {"make": lambda task, folder: make_checkpoint(Path(folder)), "export": export_worker}


def worker(kind: str, task: str, work: Path) -> Any:
    """Run one process and return its result."""
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
