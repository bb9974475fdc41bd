"""log.jsonl: a line a step, and a line a validation."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from npgpt2.errors import FileError
from npgpt2.files import replaced

Line = dict[str, Any]


def read(path: Path) -> list[Line]:
    """Its whole lines."""
    return [json.loads(line) for line in _whole(path)]


def cut(path: Path, step: int) -> None:
    """Leave out what comes after a step: a run that goes on from there writes it again."""
    kept = [line for line in _whole(path) if json.loads(line)["step"] <= step]
    with replaced(path) as work:
        work.write_bytes(b"".join(line + b"\n" for line in kept))


def _whole(path: Path) -> Iterator[bytes]:
    """Up to the first that is none: a run may be killed in the midst of a line."""
    if not path.exists():
        return
    for line in path.read_bytes().split(b"\n")[:-1]:  # a sample may hold Unicode's other newlines
        try:
            json.loads(line)
        except ValueError:
            return
        yield line


@contextmanager
def writing(path: Path) -> Iterator[Callable[[Line], None]]:
    """A function that adds a line, on the disk at once."""

    def write(line: Line) -> None:
        try:
            file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        except OSError as error:
            raise FileError(f"{path}: {error.strerror or error}") from None

    with path.open("ab", buffering=0) as file:
        yield write
