"""Say what a checkpoint's folder is, and all that is wrong with it.

The config, every tensor's place and numbers, checksums where the format has them, the vocabulary:
all of it is read, and every fault is told, not the first alone. Exit code 1 where there is one.
"""

import argparse

from npgpt2.cli.inputs import named
from npgpt2.cli.output import one_line, progress, say

HELP = "what a checkpoint's folder is, and all that is wrong with it"
EXAMPLES = """examples:
  npgpt2 check DIR
  npgpt2 check shakespeare"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", metavar="DIR",
        help="a checkpoint's folder, or the name of one; of nanoGPT and llm.c also the file",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    from npgpt2.checkpoints.check import check

    report = check(named(args.folder), progress)
    lines = [f"{part:<12}{one_line(fact)}" for part, fact in report.facts]
    lines += [f"fault       {one_line(fault)}" for fault in report.faults]
    count = len(report.faults)
    verdict = "sound" if not count else f"{count} fault{'s' if count > 1 else ''}"
    say([*lines, f"{args.folder}: {verdict}"])
    return 1 if count else 0
