"""Ctrl-C where no command is at work yet, or none any more: a newline, exit code 130, at once."""

import os
import signal
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import NoReturn


def hear() -> None:
    """End this process so from now on; unless it was told to ignore Ctrl-C, as `&` in a shell's
    script does."""
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        with suppress(ValueError):  # in a thread that is not the main one
            signal.signal(signal.SIGINT, end)


def end(*_: object) -> "NoReturn":
    """Without an exception: in the middle of an import that brings some libraries down."""
    with suppress(OSError):  # nobody reads
        os.write(2, b"\n")
    os._exit(130)
