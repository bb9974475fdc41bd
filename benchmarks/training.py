"""Compare a training step with PyTorch's, on the same model.

    pip install torch==2.13.0 transformers==5.23.0
    python -m benchmarks.training [--rounds 5] [--json FILE]

A step is forward pass, backward pass, gradient clipping and AdamW, in float32; PyTorch runs
transformers' GPT-2 with its default attention, not compiled. Two shapes:

    small     6 layers, 192 wide, 2,048 tokens, rows 16 × 256; also with dropout 0.1
    124M      GPT-2's smallest, rows 1 × 256

It also measures the peak memory of each process, with and without gradient checkpointing (in
PyTorch, transformers' `gradient_checkpointing_enable`).

Every measurement is a separate process, the engines in turn, on two threads. Compare ratios of
medians within one run only: the seconds of one machine say nothing about another.
"""

import argparse
import atexit
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import Any

THREADS = 2
SPEED_GOAL, MEMORY_GOAL, CHECKPOINTING_GOAL = 0.8, 1.2, 0.5
SMALL = {"vocab_size": 2048, "n_positions": 256, "n_embd": 192, "n_layer": 6, "n_head": 6}
# task → config, rows, dropout, steps
TASKS: dict[str, tuple[dict[str, int], int, float, int]] = {
    "small": (SMALL, 16, 0.0, 5),
    "small, dropout": (SMALL, 16, 0.1, 5),
    "124M": ({"n_positions": 256}, 1, 0.0, 4),
}
LENGTH = 256
ENGINES = ("npgpt2", "npgpt2, checkpointing", "torch", "torch, checkpointing")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="processes per engine (default: 5)")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        engine, task = args.worker
        step = (ours if engine.startswith("npgpt2") else theirs)(engine, *TASKS[task][:3])
        times = []
        for _ in range(TASKS[task][3]):
            started = time.perf_counter()
            step()
            times.append(time.perf_counter() - started)
        scale = 1 if platform.system() == "Darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
        rate = TASKS[task][1] * LENGTH / statistics.median(times[1:])  # the first is a warmup
        print(json.dumps([rate, peak]))
        return
    figures = measure(args.rounds)
    report(figures, args.rounds)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


def measure(rounds: int) -> dict[str, dict[str, dict[str, list[float]]]]:
    """{task: {engine: {"tokens/s": figures, "bytes": figures}}}"""
    figures: Any = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for round_ in range(1, rounds + 1):
        for task in TASKS:
            for engine in ENGINES:
                print(
                    f"\rround {round_} of {rounds}: {task}, {engine:<24}", end="", file=sys.stderr
                )
                done = subprocess.run(
                    [sys.executable, "-m", "benchmarks.training", "--worker", engine, task],
                    capture_output=True,
                    text=True,
                    env={**os.environ, "TRANSFORMERS_VERBOSITY": "error"},
                )
                if done.returncode:
                    sys.exit(f"{engine}, {task}: failed\n{done.stderr}")
                rate, peak = json.loads(done.stdout)
                figures[task][engine]["tokens/s"].append(rate)
                figures[task][engine]["bytes"].append(peak)
    print("\r" + " " * 60, end="\r", file=sys.stderr)
    return json.loads(json.dumps(figures))


def ours(engine: str, shape: dict[str, int], rows: int, dropout: float) -> Any:
    from npgpt2.base.blas import choose_kernel

    choose_kernel()  # as in the command line
    import numpy as np

    from npgpt2 import GPT2, GPT2Config
    from npgpt2.train import Settings
    from npgpt2.train.corpus import Batch
    from npgpt2.train.loop import workers
    from npgpt2.train.loss import Gradients
    from npgpt2.train.ops import Drop
    from npgpt2.train.optimizer import AdamW
    from npgpt2.train.state import Arrays

    config = GPT2Config(**shape, embd_pdrop=dropout, attn_pdrop=dropout, resid_pdrop=dropout)
    arrays = Arrays.of(GPT2.from_random(config).params, Settings())
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (rows, LENGTH + 1))
    batch = Batch(ids[:, :-1], ids[:, 1:])
    shares = min(THREADS, rows)
    process = ExitStack()
    atexit.register(process.close)  # the threads live as long as the process
    pool = process.enter_context(workers(THREADS, shares))
    gradients = Gradients(arrays.params, config, shares, pool, "checkpointing" in engine)
    optimizer = AdamW(*arrays[:3], clip=1.0, each=pool.map, shares=THREADS)

    def step() -> None:
        gradients.add(batch, rows * LENGTH, Drop(0.0, step=optimizer.steps))
        total = gradients.total()
        optimizer.step(total, 1e-4, optimizer.norm(total))
        total.array[...] = 0.0

    return step


def theirs(engine: str, shape: dict[str, int], rows: int, dropout: float) -> Any:
    import numpy as np
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.set_num_threads(THREADS)
    config = GPT2Config(**shape, embd_pdrop=dropout, attn_pdrop=dropout, resid_pdrop=dropout)
    config.use_cache = False
    model = GPT2LMHeadModel(config).train()
    if "checkpointing" in engine:
        model.gradient_checkpointing_enable()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    ids = torch.tensor(np.random.default_rng(0).integers(0, config.vocab_size, (rows, LENGTH)))

    def step() -> None:
        optimizer.zero_grad()
        model(ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def report(figures: dict[str, dict[str, dict[str, list[float]]]], rounds: int) -> None:
    from importlib.metadata import version

    packages = ("numpy", "torch", "transformers")
    print(", ".join(f"{name} {version(name)}" for name in packages)
          + f", Python {platform.python_version()}; {os.cpu_count()} processors; "
          f"medians of {rounds} processes each, in turn\n")  # fmt: skip

    def median(task: str, engine: str, what: str) -> float:
        return statistics.median(figures[task][engine][what])

    row = "{:<34}{:>12}{:>14}{:>9}  {}".format
    print(row("tokens/s of a full step", "npgpt2", "torch", "ratio", "goal"))
    for task in TASKS:
        a, b = (median(task, engine, "tokens/s") for engine in ("npgpt2", "torch"))
        verdict = f">= {SPEED_GOAL:g} {'reached' if a / b >= SPEED_GOAL else 'MISSED'}"
        print(row(task, f"{a:.0f}", f"{b:.0f}", f"{a / b:.2f}", verdict))
    for task in TASKS:
        a, b = (median(task, engine, "tokens/s") for engine in (ENGINES[1], ENGINES[3]))
        print(row(f"{task}, checkpointing", f"{a:.0f}", f"{b:.0f}", f"{a / b:.2f}", ""))
    print("\n" + row("peak memory, MB", "npgpt2", "torch", "ratio", "goal"))
    for task in TASKS:
        a, b = (median(task, engine, "bytes") for engine in ("npgpt2", "torch"))
        verdict = f"<= {MEMORY_GOAL:g} {'reached' if a / b <= MEMORY_GOAL else 'MISSED'}"
        print(row(task, f"{a / 1e6:.0f}", f"{b / 1e6:.0f}", f"{a / b:.2f}", verdict))
    print("\n" + row("npgpt2, gradient checkpointing, MB", "with", "without", "ratio", "goal"))
    for task in TASKS:
        a, b = (median(task, engine, "bytes") for engine in (ENGINES[1], ENGINES[0]))
        goal = CHECKPOINTING_GOAL
        verdict = f"<= {goal:g} {'reached' if a / b <= goal else 'MISSED'}"
        print(row(task, f"{a / 1e6:.0f}", f"{b / 1e6:.0f}", f"{a / b:.2f}", verdict))


if __name__ == "__main__":
    main()
