"""Ctrl-C before a command starts or after it ends: exit at once, with a newline and code 130."""

import os
import signal
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import NoReturn


def hear() -> None:
    """From now on, Ctrl-C ends this process at once, unless it ignores Ctrl-C (as a shell script's
    `&` makes it)."""
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        with suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGINT, end)


def end(*_: object) -> "NoReturn":
    """Exit without an exception, which in the middle of an import crashes some libraries."""
    with suppress(OSError):  # stderr is closed
        os.write(2, b"\n")
    os._exit(130)
