"""What several commands share: the model they are told to use, text from outside, progress."""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from npgpt2.errors import FileError, InputError, MissingPackage, OptionError, printable

if TYPE_CHECKING:
    from npgpt2.gpt2 import GPT2
    from npgpt2.heads import GPT2WithHead, HeadModel
    from npgpt2.language_model import LanguageModel

T = TypeVar("T")

EVERY = 30  # seconds between two lines about what takes long


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        metavar="MODEL",
        default=os.environ.get("NPGPT2_MODEL") or None,
        help="a checkpoint folder (config.json, model.safetensors, vocabulary) or a name on the "
        "hub, such as gpt2; by default $NPGPT2_MODEL, else shakespeare, a small model that is "
        "part of this package",
    )
    parser.add_argument("--revision", help="branch, tag or commit of a model on the hub")


def add_precision(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dtype",
        choices=("float32", "float64"),
        default="float32",
        help="what to compute in (default: %(default)s)",
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="refuse weights that hold NaN or infinity; otherwise a warning",
    )


def add_engine(parser: argparse.ArgumentParser) -> None:
    """What computes: NumPy on a checkpoint, or ONNX Runtime on what was exported from one."""
    engine = parser.add_argument_group("engine")
    engine.add_argument(
        "--engine",
        choices=("numpy", "onnx"),
        default="numpy",
        help="numpy runs a checkpoint, onnx a folder that 'npgpt2 export' wrote "
        "(default: %(default)s)",
    )
    engine.add_argument(
        "--device", choices=("cpu", "cuda"), help="of the onnx engine (default: cpu)"
    )
    engine.add_argument(
        "--precision",
        choices=("fp32", "fp16", "int8", "int4"),
        help="of the onnx engine (default: the first of these that the folder has)",
    )
    engine.add_argument(
        "--threads",
        type=whole,
        metavar="N",
        help="of the onnx engine (default: one for each core)",
    )
    engine.add_argument(
        "--graph-cache",
        metavar="DIR",
        help="of the onnx engine: keep the optimized graph there (of floats twice the weights' "
        "bytes), to open faster the next time",
    )


def add_filters(options: "argparse._ArgumentGroup") -> None:
    """How a token is chosen, in the order in which the filters run."""
    options.add_argument(
        "--temperature",
        type=number,
        metavar="T",
        help="0 is greedy, below 1 sharper, above 1 flatter (default: 0.8)",
    )
    options.add_argument(
        "--top-k",
        type=whole,
        metavar="K",
        help="only the K most probable tokens (default: no limit)",
    )
    options.add_argument(
        "--top-p",
        type=number,
        metavar="P",
        help="only the fewest tokens that have probability P together; 1 is no "
        "limit (default: 0.95)",
    )
    options.add_argument(
        "--min-p",
        type=number,
        metavar="P",
        help="only tokens P times as probable as the best, at least (default: no limit)",
    )


def load_engine(args: argparse.Namespace) -> "LanguageModel":
    model: LanguageModel = _load(args, load_model, "OnnxModel")
    return model


def load_head(args: argparse.Namespace) -> "HeadModel":
    model: HeadModel = _load(args, load_with_head, "OnnxWithHead")
    return model


def _load(
    args: argparse.Namespace, in_numpy: Callable[[argparse.Namespace], Any], in_onnx: str
) -> Any:
    """By the engine that was asked for: a loader, or a class of npgpt2_onnx."""
    if args.engine == "numpy":
        for name in ("device", "precision", "threads", "graph_cache"):
            if getattr(args, name) is not None:
                raise OptionError(name, "is an option of the onnx engine. Add --engine onnx")
        try:
            return in_numpy(args)
        except FileError as error:
            if args.model and any(Path(args.model).glob("onnx/*.onnx")):
                raise FileError(
                    f"{error}. It has ONNX graphs: add --engine onnx to run them"
                ) from None
            raise
    if args.dtype != "float32" or args.strict:
        raise OptionError(
            "strict" if args.strict else "dtype",
            "is an option of the NumPy engine. Leave it out, or --engine onnx",
        )
    if args.graph_cache == "":
        raise OptionError("graph_cache", "got '', expected a folder")
    import npgpt2_onnx

    model = getattr(npgpt2_onnx, in_onnx).from_pretrained(
        model_folder(args, weights=False),
        args.precision,
        device=args.device or "cpu",
        threads=args.threads,
        cache_dir=args.graph_cache,
    )
    session = model.session
    note(f"{session.path.name} ({session.precision.name}) on {session.provider}")
    return model


def model_folder(args: argparse.Namespace, weights: bool = True) -> Path:
    from npgpt2.hub import EMBEDDED, embedded, resolve

    if args.model is not None:
        return resolve(args.model, args.revision, weights=weights)
    if args.revision is not None:
        raise OptionError("revision", "is of a model on the hub. Name it with --model")
    note(f"no --model: taking {EMBEDDED}, which is part of this package")
    return embedded()  # whatever lies in this folder under that name


def model_name(args: argparse.Namespace) -> str:
    """What a page calls a model that was named by a path, by its name on the hub, or not at all."""
    from npgpt2.hub import EMBEDDED

    name = Path(args.model or EMBEDDED).absolute().name
    return os.fsencode(name).decode("utf-8", "replace")  # a folder's may be any bytes


def named(source: str) -> Path:
    """A path as it is; what is none, by its name: the embedded model, or the hub's."""
    from npgpt2.hub import resolve

    return Path(source) if os.path.exists(source) else resolve(source)


def load_model(args: argparse.Namespace) -> "GPT2":
    from npgpt2.gpt2 import GPT2

    return GPT2.from_pretrained(
        model_folder(args), args.dtype, strict=args.strict, progress=progress
    )


def load_with_head(args: argparse.Namespace) -> "GPT2WithHead":
    from npgpt2.heads import GPT2WithHead

    return GPT2WithHead.from_pretrained(
        model_folder(args), args.dtype, strict=args.strict, progress=progress
    )


def given_text(argument: str, what: str) -> str:
    """An argument of the command line; `-` is standard input.

    Raises:
        InputError: it is not UTF-8.
        FileError: standard input is closed.
    """
    if argument == "-":
        if sys.stdin is None:
            raise FileError("standard input: is closed, expected text")
        return decode(sys.stdin.buffer.read(), "standard input")
    try:
        return decode(os.fsencode(argument), what)
    except UnicodeEncodeError as error:
        raise InputError(
            f"{what}: a lone surrogate at character {error.start}, expected text"
        ) from None


def given_prompt(argument: str, what: str) -> str:
    """`given_text`, less one newline at the end of standard input: a shell puts it there."""
    text = given_text(argument, what)
    if argument == "-":
        text = text.removesuffix("\n").removesuffix("\r")
    return text


def decode(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where}: not UTF-8 at byte {error.start}, expected text. Convert it first (iconv)"
        ) from None


def read_file(path: Path) -> str:
    try:
        return decode(path.read_bytes(), str(path))
    except OSError as error:
        raise FileError(f"{path}: {error.strerror or error}") from None


def require_place(option: str, file: str) -> None:
    """Asked before anything takes long: whether the file of an option could be written.

    Raises:
        OptionError: it names none.
        FileError: its folder is not there.
    """
    if file in ("", "-"):
        raise OptionError(option, f"got {file!r}, expected the name of a file to write")
    if os.path.isdir(file):  # Path.is_dir raises where a name is too long
        raise FileError(f"{file}: is a folder, expected the name of a file to write")
    if not Path(file).absolute().parent.is_dir():
        raise FileError(f"{file}: its folder is not there, expected one to write to")


def write_file(file: str, text: str) -> None:
    """A text, whole or not at all. Raises FileError where it cannot be written."""
    from npgpt2.files import output, write_text

    with output(Path(file)) as work:
        write_text(work, text)


def say(lines: Iterable[str]) -> None:
    """Print lines. A reader that goes away has what it wanted; what follows is done all the same,
    and the exit code tells what was found."""
    try:
        for line in lines:
            print(line)
        sys.stdout.flush()
    except BrokenPipeError:
        discard_output()


def discard_output() -> None:
    """Nobody takes the rest; without this Python would try to write it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def note(text: str) -> None:
    """A line for the person, not for the pipe."""
    print(f"npgpt2: {text}", file=sys.stderr, flush=True)


def progress(
    loop: Iterable[T],
    what: str,
    total: int | None = None,
    size: Callable[[T], int] = lambda item: 1,
    unit: str = "it",
) -> Iterator[T]:
    """A bar on a terminal for what takes over two seconds (with the extra `progress`); elsewhere a
    line each half minute, once the item is done that took so long.

    Args:
        total: of all sizes; by default the loop's length.
        size: how much an item is.
    """
    shown, begun, done = None, time.monotonic(), 0
    if total is None and isinstance(loop, Sized):
        total = len(loop)
    for item in loop:
        if shown is None and time.monotonic() > begun + 2:
            shown = bar(what, done, total, unit, begun)
        yield item
        done += size(item)
        if shown is not None:
            shown.update(size(item))
    if shown is not None:
        shown.close()


def bar(
    what: str, done: int, total: int | None, unit: str, begun: float | None = None, **options: Any
) -> Any:
    """tqdm's bar where there are a terminal and tqdm, else `Lines`, which are used in the same way.

    Args:
        begun: on the monotonic clock, when nothing was done yet; None: now, and what is done was
            done before.
        options: of tqdm's alone.
    """
    what = one_line(what)
    if sys.stderr.isatty():
        try:
            # When it is needed: importing it takes longer than many a command.
            from tqdm import tqdm
        except ImportError:
            note(f"{what} … (pip install 'npgpt2[progress]' shows a bar)")
        else:
            drawn = tqdm(
                desc=what, initial=done, total=total, leave=False, file=sys.stderr, unit=unit,
                **_shape(), **options,
            )  # fmt: skip
            if begun is not None:  # the time left is reckoned from there
                drawn.start_t -= time.monotonic() - begun
            return drawn
    return Lines(what, done, total, unit, begun)


def _shape() -> dict[str, int]:
    """For tqdm, which asks the terminal and draws nothing where it says that it has no columns and
    no rows. Some do, of containers or in CI."""
    try:
        columns = os.get_terminal_size(sys.stderr.fileno()).columns
    except OSError:
        columns = 0
    return {} if columns else {"ncols": 80, "nrows": 24}


class Lines:
    """What a bar says, as a line each half minute. Its methods are tqdm's."""

    def __init__(
        self, what: str, done: int, total: int | None, unit: str, begun: float | None
    ) -> None:
        self._what, self._more = what, ""
        self._done, self._total, self._unit = done, total, "" if unit == "it" else unit
        self._before = done if begun is None else 0  # what the time since then was not spent on
        self._begun = time.monotonic() if begun is None else begun
        self._next = self._begun + EVERY
        self.update(0)

    def update(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        if now >= self._next:
            self._next = now + EVERY
            with suppress(OSError):  # nobody reads: no reason to end
                note(self._line(now - self._begun))

    def _line(self, seconds: float) -> str:
        if not self._total:
            return f"{self._what}: {self._done:,}{self._unit}{self._more}"
        share, new = self._done / self._total, self._done - self._before
        left = seconds * (self._total - self._done) / new if new else 0.0
        return (
            f"{self._what}: {self._done:,} of {self._total:,}{self._unit} ({100 * share:.0f} %)"
            f"{self._more}{f', about {_in_words(left)} left' if left > 0 else ''}"
        )

    def set_description_str(self, text: str, refresh: bool = True) -> None:
        self._what = text

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        self._more = f", {text}"

    def clear(self) -> None:
        """A line that is printed needs no clearing."""

    def close(self) -> None:
        """There is nothing to remove."""


def _in_words(seconds: float) -> str:
    for unit, name in ((3600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds:.0f} s"


def require_matplotlib() -> None:
    """Asked before anything takes long. Raises MissingPackage."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise MissingPackage("--plot: needs matplotlib. Run: pip install 'npgpt2[plot]'") from None


def cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def table(rows: Iterable[Iterable[Any]], right: str) -> Iterable[str]:
    """Columns side by side; `right` says r or l for each."""
    lines = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (
            cell.rjust(w) if side == "r" else cell.ljust(w)
            for cell, w, side in zip(line, widths, right, strict=True)
        )
        yield "  ".join(cells).rstrip()


def whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number") from None


def number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number") from None


def one_line(text: str) -> str:
    """Text with words from files in it, fit for a terminal: not too long, and on one line."""
    if len(text) > 2000:
        text = f"{text[:1000]} … {text[-1000:]}"
    return printable(text)
