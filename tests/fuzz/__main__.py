"""python -m tests.fuzz TARGET: fuzz one reader, or open one input again."""

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # as pytest does for the tests

from fuzz.run import Line, cases, fuzz, read, write
from fuzz.targets import TARGETS
from fuzz.worker import Worker


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("folder", nargs="?", type=Path, help="an input to open again")
    parser.add_argument("--seconds", type=float, default=600, help="of the run (default: 600)")
    parser.add_argument("--seed", type=int, default=0, help="of the damage (default: 0)")
    arguments = parser.parse_args()
    name, target = arguments.target, TARGETS[arguments.target]
    if arguments.folder:
        with Worker(target.check) as worker:
            outcome = worker.run(read(arguments.folder))
        print(outcome.fault or ("refused" if outcome.refused else "accepted"))
        print(f"{outcome.seconds:.3f} s, {outcome.megabytes:.1f} MB")
        return bool(outcome.fault)
    seeds = [*target.seeds(), *cases(name).values()]
    line = Line(name, arguments.seconds)
    report = fuzz(target, seeds, arguments.seed, arguments.seconds, progress=line)
    print(
        f"\n{name}: {report.inputs:,} inputs, {report.accepted:,} accepted, "
        f"{report.inputs - report.accepted:,} refused, {report.kept} kept for new lines; "
        f"slowest {report.seconds:.2f} s, most memory {report.megabytes:.0f} MB, "
        f"{len(report.faults)} kinds of faults"
    )
    for fault, files in report.faults.items():
        folder = Path(tempfile.mkdtemp(prefix=f"fuzz-{name}-")) / "input"
        write(folder, files)
        print(f"\n{fault}\nAgain: python -m tests.fuzz {name} {folder}")
    return bool(report.faults)


if __name__ == "__main__":
    sys.exit(main())
