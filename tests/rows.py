"""Rows for `npgpt2 batch`, and its results."""

import json
import random
import subprocess
import sys
from pathlib import Path

from patience import PATIENCE

TINY = "tests/data/tiny"
MERCY = "The quality of mercy is not strained. It droppeth as the gentle rain from heaven"

# Of a run that takes a few seconds.
OPTIONS = ["--task", "generate", "--seed", 3, "--max-new-tokens", 12, "--workers", 2]


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def prompts(count, seed=0):
    """Rows of many lengths, with ids."""
    chosen, words = random.Random(seed), MERCY.split()
    for n in range(count):
        text = " ".join(chosen.choice(words) for _ in range(chosen.randrange(1, 20)))
        yield {"id": f"row {n}", "prompt": text}


def results(out):
    """The results of all parts, in their order."""
    return [
        json.loads(line)
        for path in sorted(Path(out).glob("part-*.jsonl"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]


def batch(*arguments, code=0, env=None):
    """Run `npgpt2 batch ARGUMENTS --model TINY` in its own process; return its messages."""
    command = [sys.executable, "-m", "npgpt2", "batch", *map(str, arguments)]
    if "--model" not in arguments:
        command += ["--model", TINY]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, env=env)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    return done.stderr


def parts_in(out):
    return len(list(out.glob("part-*.jsonl"))) if out.exists() else 0
