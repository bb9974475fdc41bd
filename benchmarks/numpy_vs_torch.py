"""Compare npgpt2 with transformers on the same random checkpoint of GPT-2's 124M shape.

    pip install torch==2.13.0 transformers==5.23.0
    python -m benchmarks.numpy_vs_torch [--rounds 5] [--json FILE]

float32, batch 1, the same work in both:

    prefill   1,024 tokens, logits of the last position only
    kept      the same, with a KV cache
    decode    128 greedy tokens after a prompt of 32
    cold      a new process: load tokenizer and model, generate one token

and the peak memory (resident size) of each process.

Every measurement is a separate process, the two engines in turn. Compare ratios of medians within
one run only: the seconds of one machine say nothing about another.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

PREFILL, PROMPT, DECODE = 1024, 32, 128
ENGINES = ("npgpt2", "transformers")

# task → unit, sign and goal of the ratio, and whether the memory goal applies. It does not apply to
# "kept": the cache of 1,024 tokens alone takes 0.15 of the checkpoint's bytes.
TASKS = {
    "prefill": ("tokens/s", ">=", 1.0, True),
    "kept": ("tokens/s", ">=", 1.0, False),
    "decode": ("tokens/s", ">=", 2.0, True),
    "cold": ("seconds", "<=", 0.1, True),
}
MEMORY_GOAL = 1.2  # times the checkpoint's bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="processes per engine (default: 5)")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        engine, task, folder = args.worker
        print(json.dumps(WORKERS[engine](task, folder)))
        return
    with tempfile.TemporaryDirectory() as folder:
        size = make_checkpoint(Path(folder))
        figures = measure(folder, args.rounds)
    report(figures, size, args.rounds)
    if args.json:
        args.json.write_text(json.dumps({"checkpoint": size, **figures}, indent=1) + "\n")


def make_checkpoint(folder: Path) -> int:
    """Write a random checkpoint with a vocabulary of 50,257 tokens; returns its size in bytes."""
    from npgpt2 import GPT2, GPT2Config
    from npgpt2.checkpoints.checkpoint import save
    from npgpt2.tokenizer.byte_pair import byte_alphabet

    model = GPT2.from_random(GPT2Config())
    save(folder, model.config, model.params)
    # The shape of GPT-2's vocabulary, not its words: 256 bytes, 50,000 pairs, one special token.
    letters = list(byte_alphabet())
    merges = [(a, b) for a in letters for b in letters][:50_000]
    vocab = [*letters, *(a + b for a, b in merges), "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(vocab)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(map(" ".join, merges)) + "\n")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    return (folder / "model.safetensors").stat().st_size


def measure(folder: str, rounds: int) -> dict[str, dict[str, list[float]]]:
    """{task: {engine: values}}: tokens/s or seconds, and bytes as "memory, TASK"."""
    figures: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for round_ in range(rounds + 1):  # the first fills the disk caches and does not count
        for task in TASKS:
            for engine in ENGINES:
                print(f"\rround {round_} of {rounds}: {task}, {engine}   ", end="", file=sys.stderr)
                value, peak = run(engine, task, folder)
                if round_:
                    figures[task][engine].append(value)
                    figures[f"memory, {task}"][engine].append(peak)
    print("\r" + " " * 60, end="\r", file=sys.stderr)
    return {task: dict(engines) for task, engines in figures.items()}


def run(engine: str, task: str, folder: str) -> tuple[float, float]:
    """Run one process; returns its result and its peak resident size in bytes."""
    command = [sys.executable, "-m", "benchmarks.numpy_vs_torch", "--worker", engine, task, folder]
    if task == "cold":
        command = COLD[engine](folder)
    started = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"},
    )  # fmt: skip
    out, err = process.stdout.read(), process.stderr.read()  # type: ignore[union-attr]
    _, status, usage = os.wait4(process.pid, 0)
    elapsed = time.perf_counter() - started
    if status:
        sys.exit(f"{engine}, {task}: failed\n{err}")
    scale = 1 if platform.system() == "Darwin" else 1024
    return (elapsed if task == "cold" else json.loads(out)), usage.ru_maxrss * scale


def typical(repeats: int, work: Callable[[], Any]) -> float:
    """Median seconds; the first repetition is a warmup and does not count."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def npgpt2_worker(task: str, folder: str) -> float:
    from npgpt2.base.blas import choose_kernel

    choose_kernel()  # as in the command line
    import numpy as np

    from npgpt2 import GPT2

    model = GPT2.from_pretrained(folder)
    ids = np.random.default_rng(0).integers(0, 50257, (1, PREFILL))
    if task in ("prefill", "kept"):
        cache = task == "kept"
        return PREFILL / typical(5, lambda: model(ids, logits_to_keep=1, use_cache=cache))

    def decode() -> None:
        step = model.stepper(room=PROMPT + DECODE)
        token = step(ids[:, :PROMPT]).argmax(-1)[:, None]
        for _ in range(DECODE):
            token = step(token).argmax(-1)[:, None]

    return DECODE / typical(4, decode)


def transformers_worker(task: str, folder: str) -> float:
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.tensor(np.random.default_rng(0).integers(0, 50257, (1, PREFILL)))
    with torch.inference_mode():
        if task in ("prefill", "kept"):
            cache = task == "kept"
            return PREFILL / typical(5, lambda: model(ids, logits_to_keep=1, use_cache=cache))

        def decode() -> None:
            out = model(ids[:, :PROMPT], logits_to_keep=1, use_cache=True)
            for _ in range(DECODE):
                token = out.logits[:, -1].argmax(-1)[:, None]
                out = model(token, past_key_values=out.past_key_values, use_cache=True)

        return DECODE / typical(4, decode)


TRANSFORMERS_COLD = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
prompt = tokenizer("The meaning of life is", return_tensors="pt")
out = model.generate(**prompt, max_new_tokens=1, do_sample=False)
print(tokenizer.decode(out[0, -1:]))
"""

COLD = {
    "npgpt2": lambda folder: [
        sys.executable, "-m", "npgpt2", "generate", "The meaning of life is",
        "--model", folder, "--max-new-tokens", "1", "--temperature", "0",
    ],
    "transformers": lambda folder: [sys.executable, "-c", TRANSFORMERS_COLD, folder],
}  # fmt: skip
WORKERS = {"npgpt2": npgpt2_worker, "transformers": transformers_worker}


def report(figures: dict[str, dict[str, list[float]]], size: int, rounds: int) -> None:
    from importlib.metadata import version

    packages = ("numpy", "torch", "transformers")
    print(", ".join(f"{name} {version(name)}" for name in packages)
          + f", Python {platform.python_version()}; {os.cpu_count()} processors; "
          f"medians of {rounds} processes each, in turn\n")  # fmt: skip
    row = "{:<16}{:>12}{:>14}{:>9}  {}".format
    print(row("", "npgpt2", "transformers", "ratio", "goal"))
    for task, (unit, sign, goal, _) in TASKS.items():
        ours, theirs = (statistics.median(figures[task][engine]) for engine in ENGINES)
        reached = (ours / theirs >= goal) if sign == ">=" else (ours / theirs <= goal)
        print(row(f"{task}, {unit}", f"{ours:.3g}", f"{theirs:.3g}", f"{ours / theirs:.3f}",
                  f"{sign} {goal:g} {'reached' if reached else 'MISSED'}"))  # fmt: skip
    print(f"\npeak memory / checkpoint size of {size / 1e6:.0f} MB (goal: <= {MEMORY_GOAL})")
    for task, (*_, meant) in TASKS.items():
        ours, theirs = (statistics.median(figures[f"memory, {task}"][e]) for e in ENGINES)
        verdict = "reached" if ours / size <= MEMORY_GOAL else "MISSED"
        verdict = verdict if meant else "no goal: the cache of 1,024 tokens alone takes 0.15"
        print(
            row(task, f"{ours / size:.2f}", f"{theirs / size:.2f}", f"{ours / theirs:.3f}", verdict)
        )


if __name__ == "__main__":
    main()
