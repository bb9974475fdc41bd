"""Describe a checkpoint, and report everything that is wrong with it.

It reads the config, the place and values of every tensor, the checksums if the format has them, and
the vocabulary. It reports every fault, not only the first. The exit code is 1 if there is a fault.
"""

import argparse

from npgpt2.cli.inputs import named
from npgpt2.cli.output import one_line, progress, say

HELP = "describe a checkpoint, and report everything that is wrong with it"
EXAMPLES = """examples:
  npgpt2 check DIR
  npgpt2 check shakespeare"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", metavar="DIR",
        help="a checkpoint's folder, or a model name; for nanoGPT and llm.c also the file",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    from npgpt2.checkpoints.check import check

    report = check(named(args.folder), progress)
    lines = [f"{part:<12}{one_line(fact)}" for part, fact in report.facts]
    lines += [f"fault       {one_line(fault)}" for fault in report.faults]
    count = len(report.faults)
    verdict = "no faults" if not count else f"{count} fault{'s' if count > 1 else ''}"
    say([*lines, f"{args.folder}: {verdict}"])
    return 1 if count else 0
