"""log.jsonl: a line a step, and a line a validation."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from npgpt2.base.files import named_errors, replaced

Line = dict[str, Any]


def read(path: Path) -> list[Line]:
    """Its whole lines."""
    return [line for _, line in _whole(path)]


def cut(path: Path, step: int) -> None:
    """Leave out what comes after a step: a run that goes on from there writes it again."""
    kept = [raw for raw, line in _whole(path) if line["step"] <= step]
    with replaced(path) as work:
        work.write_bytes(b"".join(raw + b"\n" for raw in kept))


def _whole(path: Path) -> Iterator[tuple[bytes, Line]]:
    """(as it stands there, what it says), up to the first that a kill cut in its midst."""
    if not path.exists():
        return
    for raw in path.read_bytes().split(b"\n")[:-1]:  # a sample may hold Unicode's other newlines
        try:
            yield raw, json.loads(raw)
        except ValueError:
            return


@contextmanager
def writing(path: Path) -> Iterator[Callable[[Line], None]]:
    """A function that adds a line, on the disk at once."""

    def write(line: Line) -> None:
        data = json.dumps(line, ensure_ascii=False).encode() + b"\n"
        with named_errors(path):
            while data:  # a disk that becomes full takes a part of it, and only then is an error
                data = data[file.write(data) :]

    file = path.open("ab", buffering=0)
    try:
        yield write
    finally:
        with suppress(OSError):  # every line was written, and synced before a checkpoint
            file.close()
