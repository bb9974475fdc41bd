"""Small files from strangers: read whole, within a bound, and never waited for."""

import json
import stat
from collections import Counter
from pathlib import Path
from typing import Any

from npgpt2.errors import FileError

MAX_BYTES = 2**28  # of a file that is read whole; the largest vocabularies have a tenth of it


def read_json(path: Path, error: type[Exception]) -> dict[str, Any]:
    """One JSON object from a file.

    Raises:
        FileError: the file cannot be read.
        error: see `parse_json`.
    """
    return parse_json(read_file(path), str(path), error)


def parse_json(data: bytes, source: str, error: type[Exception]) -> dict[str, Any]:
    """One JSON object, with duplicate keys refused and a byte-order mark said.

    Raises:
        error: it is not UTF-8, not JSON, not an object, or names a key twice.
    """
    if data.startswith(b"\xef\xbb\xbf"):
        raise error(f"{source}: starts with a byte-order mark, expected UTF-8. Save it without")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = dict(pairs)
        if len(keys) < len(pairs):
            twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
            raise error(f"{source}: key {twice!r} stands there twice, expected once")
        return keys

    try:
        values = json.loads(data.decode("utf-8"), object_pairs_hook=unique)
    except UnicodeDecodeError as problem:
        raise error(
            f"{source}: not UTF-8 at byte {problem.start}, expected JSON. Download again"
        ) from None
    except error:
        raise
    except (ValueError, RecursionError) as problem:  # ValueError: also a number of 5,000 digits
        raise error(f"{source}: not JSON ({problem}). Download again") from None
    if not isinstance(values, dict):
        raise error(
            f"{source}: got a JSON {type(values).__name__}, expected an object. Download again"
        )
    return values


def read_file(path: Path) -> bytes:
    """The bytes of a regular file.

    Raises:
        FileError: it is not one, is larger than `MAX_BYTES`, or cannot be read.
    """
    try:
        size = require_regular(path)
        if size > MAX_BYTES:
            raise FileError(f"{path}: has {size:,} bytes, expected {MAX_BYTES:,} at most")
        return path.read_bytes()
    except FileError:
        raise
    except OSError as problem:
        raise FileError(f"{path}: {problem.strerror or problem}") from None


def require_regular(path: Path) -> int:
    """The size of a regular file. Asked before one is opened: a FIFO waits, a device never ends.

    Raises:
        FileError: it is a folder, a FIFO, a device or a socket.
    """
    info = path.stat()
    if not stat.S_ISREG(info.st_mode):
        kind = "a folder" if stat.S_ISDIR(info.st_mode) else "not a regular file"
        raise FileError(f"{path}: is {kind}, expected a file")
    return info.st_size
