"""The command `npgpt2`: parse, call, print. One file for each command; `options`, `inputs` and
`output` serve them all.

No other folder imports it or receives an argparse namespace.

Results go to standard output; notes, timings and errors to standard error. An error is one line.

Exit codes: 0 success, 1 a check failed, 2 usage error, 3 bad input, 4 reading or writing failed,
129 SIGHUP, 130 Ctrl-C (or a training run that was stopped and saved its state), 143 SIGTERM.
"""

import argparse
import os
import re
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

from npgpt2 import __version__
from npgpt2.base import errors, interrupt
from npgpt2.base.blas import choose_kernel
from npgpt2.base.options import nearest
from npgpt2.cli import (
    batch,
    bench,
    check,
    classify,
    convert,
    explain,
    export,
    fetch,
    generate,
    golden,
    info,
    inspect,
    score,
    serve,
    tokenize,
    train,
    verify,
)
from npgpt2.cli.options import repeated
from npgpt2.cli.output import discard_output, one_line

COMMANDS = (
    generate, tokenize, inspect, score, classify, explain, serve, batch, train, export, verify,
    golden, fetch, convert, check, bench, info,
)  # fmt: skip


class Parser(argparse.ArgumentParser):
    """`ArgumentParser` with one-line errors, and with options that take several values."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        words = sys.argv[1:] if args is None else args
        return super().parse_known_args([*repeated(self, words)], namespace)

    def error(self, message: str) -> NoReturn:
        text = one_line(message.removeprefix("argument ").rstrip("."))
        if choice := re.fullmatch(r"(.*): invalid choice: (.*) \(choose from (.*)\)", text):
            name, got, choices = choice.groups()  # each Python puts other quotation marks
            text = f"{name}: got {got}, expected one of {choices.replace(chr(39), '')}"
        end = "" if text.endswith("?") else "."
        self.exit(2, f"npgpt2: error: {text}{end} See '{self.prog} --help'\n")


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="npgpt2",
        description="GPT-2 without PyTorch.",
        epilog="example: npgpt2 generate 'O Romeo,'",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"npgpt2 {__version__}")
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", parser_class=Parser
    )
    for module in COMMANDS:
        name = module.__name__.rpartition(".")[2]
        command = commands.add_parser(
            name,
            help=module.HELP,
            description=(module.__doc__ or "").strip(),
            epilog=module.EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        module.add_arguments(command)
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
        command.set_defaults(run=module.run, parser=command)
    return parser


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser, and those of its commands: for those who list all options."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from parsers(command)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    choose_kernel()  # before NumPy is imported
    if sys.stderr is None:  # closed: print would write to standard output instead
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    if sys.stdout is None:
        print(
            "npgpt2: error: standard output: is closed, expected a file, pipe or terminal",
            file=sys.stderr,
        )
        return 4
    for stream in (sys.stdout, sys.stderr):  # the same bytes in every locale and on every system
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace", newline="\n")
    warnings.showwarning = _show_warning
    # Damaged weights make NumPy warn. The loader has warned already, and the logits are checked.
    warnings.filterwarnings("ignore", category=RuntimeWarning, module="npgpt2")
    args = argparse.Namespace(debug=False)
    try:
        with _cleared_up():
            args, left = build_parser().parse_known_args(argv)
            if left:
                hint = _hint(left, args.parser)
                args.parser.error(f"unrecognized arguments: {' '.join(left)}{hint}")
            code = int(args.run(args))
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `| head -1`: the reader wants no more output
        discard_output()
        return 0
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except Exception as error:
        if isinstance(error.__cause__, SystemExit):  # a signal came during an import: the
            raise error.__cause__ from None  # library raised ImportError from it
        if isinstance(error.__cause__, KeyboardInterrupt):
            print(file=sys.stderr)
            return 130
        try:
            sys.stdout.flush()
        except OSError:  # the disk is full: probably the cause of the error itself
            discard_output()
        text, code = _explain(error)
        with suppress(BrokenPipeError):
            if args.debug:
                traceback.print_exc()
            print(f"npgpt2: error: {one_line(text)}", file=sys.stderr)
        return code


@contextmanager
def _cleared_up() -> Iterator[None]:
    """Let a command remove unfinished files when a signal stops it, as Ctrl-C does.

    A command without unfinished files ends at once; on Ctrl-C, only while it imports.
    """
    names = "SIGTERM", "SIGHUP", "SIGBREAK"  # SIGBREAK: Windows closes the window
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    ours = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]  # not nohup
    before = signal.getsignal(signal.SIGINT)
    keys = before in (signal.default_int_handler, interrupt.end)
    if threading.current_thread() is not threading.main_thread():  # another program calls `main`
        ours, keys = [], False

    received: list[int] = []

    def unfinished() -> bool:
        files = sys.modules.get("npgpt2.base.files")  # None or incomplete during its import
        return bool(getattr(files, "is_unfinished", bool)())

    def stop(number: int, _: Any) -> None:
        if not unfinished():
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        if not received:  # a second signal does not interrupt the cleanup
            received.append(number)
            sys.exit(128 + number)

    def stop_here(_: int, frame: FrameType | None) -> None:
        if _importing(frame) and not unfinished():
            interrupt.end()
        raise KeyboardInterrupt

    for number in ours:
        signal.signal(number, stop)
    if keys:
        signal.signal(signal.SIGINT, stop_here)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)
        if keys:
            signal.signal(signal.SIGINT, before)
        if received:  # also if it came in a callback that swallows exceptions
            sys.exit(128 + received[0])


def _hint(words: Sequence[str], parser: argparse.ArgumentParser) -> str:
    """What may have been meant by words that a command does not know."""
    if not any(word.startswith("-") for word in words):
        return ": give one text, in quotes"
    flag = next((word.partition("=")[0] for word in words if word.startswith("--")), "")
    near = nearest(flag, parser._option_string_actions) if flag else ""
    return f". Did you mean {near}?" if near else ""


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _explain(error: Exception) -> tuple[str, int]:
    """Return the error's text in one line, and the exit code."""
    if isinstance(error, errors.OptionError):
        positional = error.option.isupper()  # as in the usage line
        flag = error.option if positional else "--" + error.option.replace("_", "-")
        return f"{flag}: {error.text}", 2
    if isinstance(error, (errors.FileError, errors.MissingPackage)):
        return str(error), 4
    if isinstance(error, errors.CheckFailed):
        return str(error), 1
    if isinstance(error, errors.NpGPT2Error):
        return str(error), 3
    if isinstance(error, OSError):
        return f"{error.filename or 'system'}: {error.strerror or error}", 4
    if isinstance(error, MemoryError):
        return f"memory: not enough ({error})", 4
    return f"{type(error).__name__}: {error}. This is a bug: run again with --debug", 3


def _show_warning(message: Any, *_: Any, **__: Any) -> None:
    print(f"npgpt2: warning: {one_line(str(message))}", file=sys.stderr)
