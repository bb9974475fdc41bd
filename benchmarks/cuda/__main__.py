"""The CUDA check's command line.

    python -m benchmarks.cuda pieces DIR             # where there is a network
    python -m benchmarks.cuda join DIR --to SITE     # where there is none
    PYTHONPATH=SITE:.:export python -m benchmarks.cuda run --json FILE
    python -m benchmarks.cuda table FILE

`docs/cuda.md` says more.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.cuda import pieces

MEGABYTE = 1_000_000
MOST = 60  # MB of a piece


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 0 passed, 1 a check failed or pieces are missing, 2 usage."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cuda", description=(__doc__ or "").splitlines()[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for add in (_pieces, _join, _run, _table, _section):
        add(commands)
    args = parser.parse_args(argv)
    try:
        code: int = args.act(args)
    except pieces.PiecesError as error:
        print(error, file=sys.stderr)
        return 1
    return code


def _pieces(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("pieces", help="download wheels and cut them")
    parser.add_argument("folder", type=Path, metavar="DIR", help="where the pieces go")
    parser.add_argument("--packages", nargs="+", default=pieces.PACKAGES, metavar="NAME")
    parser.add_argument("--python-version", default=pieces.PYTHON, metavar="X.Y")
    parser.add_argument("--platform", nargs="+", default=pieces.PLATFORMS, metavar="NAME")
    parser.add_argument("--piece-size", type=_size, default=30, metavar="MB",
                        help=f"of a piece at most, up to {MOST} (default: 30)")  # fmt: skip
    parser.set_defaults(act=make_pieces)


def _size(text: str) -> float:
    size = float(text)
    if not 0.001 <= size <= MOST:
        raise argparse.ArgumentTypeError(f"got {text}, expected at most {MOST}")
    return size


def make_pieces(args: argparse.Namespace) -> int:
    size = int(args.piece_size * MEGABYTE)
    made = pieces.make(args.folder, args.packages, args.python_version, args.platform, size)
    print(pieces.described(made))
    return 0


def _join(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("join", help="put pieces together and unpack the wheels")
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="where pieces lie")
    parser.add_argument("--to", type=Path, required=True, metavar="SITE",
                        help="the folder for PYTHONPATH")  # fmt: skip
    parser.set_defaults(act=join_pieces)


def join_pieces(args: argparse.Namespace) -> int:
    print("\n".join(pieces.join(args.folders, args.to)))
    return 0


def _run(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("run", help="do the check")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--shape", choices=("tiny", "124M", "1.5B"), default="124M",
                        help="of the model that is checked (default: 124M)")  # fmt: skip
    parser.add_argument("--minutes", type=float, default=8.0, help="of time in all (default: 8)")
    parser.add_argument("--batches", type=int, nargs="+", metavar="ROWS")
    parser.add_argument("--contexts", type=int, nargs="+", metavar="TOKENS")
    parser.add_argument("--only", nargs="+", default=[], metavar="SECTION",
                        help="only these, and the models that they need")  # fmt: skip
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep the models there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there")
    parser.set_defaults(act=run)


def run(args: argparse.Namespace) -> int:
    from npgpt2.base.blas import choose_kernel

    choose_kernel()  # as the command line does
    from benchmarks.cuda.check import SECTIONS, check
    from benchmarks.cuda.models import Options
    from benchmarks.cuda.table import table

    if unknown := set(args.only) - set(SECTIONS):
        print(f"--only: got {', '.join(sorted(unknown))}, expected of {', '.join(SECTIONS)}",
              file=sys.stderr)  # fmt: skip
        return 2
    with tempfile.TemporaryDirectory() as temporary:
        options = Options(args.device, args.shape, str((args.work or Path(temporary)).absolute()))
        if args.shape == "tiny":
            options = replace(options, large="tiny", batches=(1, 3), contexts=(4, 24), new=4)
        for name in ("batches", "contexts"):
            if given := getattr(args, name):
                options = replace(options, **{name: tuple(given)})
        report = check(options, args.minutes, args.only, args.json)
    print(table(report))
    return 1 if report["faults"] else 0


def _table(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("table", help="a report as Markdown")
    parser.add_argument("file", type=Path, metavar="FILE.json")
    parser.set_defaults(act=print_table)


def print_table(args: argparse.Namespace) -> int:
    from benchmarks.cuda.table import table

    try:
        report = json.loads(args.file.read_text())
    except (OSError, ValueError) as error:
        print(f"{args.file}: {error}, expected what 'run --json' wrote", file=sys.stderr)
        return 1
    print(table(report))
    return 0


def _section(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("section")  # a process of `run`
    parser.add_argument("told")
    parser.set_defaults(act=do_section)


def do_section(args: argparse.Namespace) -> int:
    from npgpt2.base.blas import choose_kernel

    choose_kernel()
    from benchmarks.cuda.check import section_main

    section_main(args.told)
    return 0


if __name__ == "__main__":
    sys.exit(main())
