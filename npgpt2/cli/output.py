"""Output of the commands: lines, notes, progress, tables, files."""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from npgpt2.base.errors import FileError, MissingPackage, OptionError, printable

T = TypeVar("T")

EVERY = 30  # seconds between two progress lines


def require_place(option: str, file: str) -> None:
    """Check that the file of an option can be written, before the slow work starts.

    Raises:
        OptionError: the name is empty or `-`.
        FileError: it is a folder, or its folder does not exist.
    """
    from npgpt2.base.files import require_parent

    if file in ("", "-"):
        raise OptionError(option, f"got {file!r}, expected the name of a file to write")
    if os.path.isdir(file):  # Path.is_dir raises where a name is too long
        raise FileError(f"{file}: is a folder, expected the name of a file to write")
    require_parent(Path(file))


def say(lines: Iterable[str]) -> None:
    """Print lines. After a closed pipe the command still finishes: its exit code counts, too."""
    try:
        for line in lines:
            print(line)
        sys.stdout.flush()
    except BrokenPipeError:
        discard_output()


def discard_output() -> None:
    """Drop the rest of the output after a closed pipe; Python would try to write it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def note(text: str) -> None:
    """Print a note to standard error, for the user and not for a pipe."""
    print(f"npgpt2: {text}", file=sys.stderr, flush=True)


def progress(
    loop: Iterable[T],
    what: str,
    total: int | None = None,
    size: Callable[[T], int] = lambda item: 1,
    unit: str = "it",
) -> Iterator[T]:
    """Iterate over a loop and report its progress if it takes over two seconds.

    A terminal shows a bar (with the extra `progress`). Otherwise a line appears at most every half
    minute, after the item that was running at that time.

    Args:
        total: sum of all sizes; by default the number of items.
        size: function that returns the size of an item.
        unit: what the sizes count, such as " rows".
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
    """Return tqdm's bar if there is a terminal and tqdm is installed, else `Lines` (same methods).

    Args:
        begun: start time on the monotonic clock; None: now, and `done` was done in an earlier run.
        options: passed to tqdm only.
    """
    what = one_line(what)
    if sys.stderr.isatty():
        try:
            # Imported only here: the import takes longer than many commands.
            from tqdm import tqdm
        except ImportError:
            note(f"{what} … (pip install 'npgpt2[progress]' shows a bar)")
        else:
            drawn = tqdm(
                desc=what, initial=done, total=total, leave=False, file=sys.stderr, unit=unit,
                **_shape(), **options,
            )  # fmt: skip
            if begun is not None:  # tqdm estimates the time left from there
                drawn.start_t -= time.monotonic() - begun
            return drawn
    return Lines(what, done, total, unit, begun)


def _shape() -> dict[str, int]:
    """Return tqdm's size options for a terminal that reports no columns, as some do in containers
    and CI: tqdm would draw nothing there."""
    try:
        columns = os.get_terminal_size(sys.stderr.fileno()).columns
    except OSError:
        columns = 0
    return {} if columns else {"ncols": 80, "nrows": 24}


class Lines:
    """The report of a progress bar as a line every half minute. Its methods are tqdm's."""

    def __init__(
        self, what: str, done: int, total: int | None, unit: str, begun: float | None
    ) -> None:
        self._what, self._more = what, ""
        self._done, self._total, self._unit = done, total, "" if unit == "it" else unit
        self._before = done if begun is None else 0  # done by an earlier run: no part of the speed
        self._begun = time.monotonic() if begun is None else begun
        self._next = self._begun + EVERY
        self.update(0)

    def update(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        if now >= self._next:
            self._next = now + EVERY
            with suppress(OSError):  # a closed stderr must not stop the work
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
        """Do nothing: a printed line needs no clearing."""

    def close(self) -> None:
        """Do nothing: there is no bar to remove."""


def _in_words(seconds: float) -> str:
    for unit, name in ((3600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds:.0f} s"


def require_matplotlib() -> None:
    """Check for matplotlib before the slow work starts. Raises MissingPackage."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise MissingPackage("--plot: needs matplotlib. Run: pip install 'npgpt2[plot]'") from None


def table(rows: Iterable[Iterable[Any]], right: str) -> Iterable[str]:
    """Yield the lines of a table; `right` has r or l for each column's alignment."""
    lines = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (
            cell.rjust(w) if side == "r" else cell.ljust(w)
            for cell, w, side in zip(line, widths, right, strict=True)
        )
        yield "  ".join(cells).rstrip()


def one_line(text: str) -> str:
    """Make a text with words from files safe for a terminal: on one line and not too long."""
    if len(text) > 2000:
        text = f"{text[:1000]} … {text[-1000:]}"
    return printable(text)
