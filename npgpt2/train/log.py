"""log.jsonl: one line per step, and one line per validation."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from npgpt2.base.files import named_errors, replaced

Line = dict[str, Any]


def read(path: Path) -> list[Line]:
    """The complete lines of a log."""
    return [line for _, line in _whole(path)]


def cut(path: Path, step: int) -> None:
    """Remove the lines after a step: a run that resumes from this step writes them again."""
    kept = [raw for raw, line in _whole(path) if line["step"] <= step]
    with replaced(path) as work:
        work.write_bytes(b"".join(raw + b"\n" for raw in kept))


def _whole(path: Path) -> Iterator[tuple[bytes, Line]]:
    """(raw line, parsed line) of each line, up to the first that a killed run left incomplete."""
    if not path.exists():
        return
    for raw in path.read_bytes().split(b"\n")[:-1]:  # a sample may contain other Unicode newlines
        try:
            yield raw, json.loads(raw)
        except ValueError:
            return


@contextmanager
def writing(path: Path) -> Iterator[Callable[[Line], None]]:
    """A function that appends a line, without a buffer."""

    def write(line: Line) -> None:
        data = json.dumps(line, ensure_ascii=False).encode() + b"\n"
        with named_errors(path):
            while data:  # a full disk takes a part first, and reports the error on the next write
                data = data[file.write(data) :]

    file = path.open("ab", buffering=0)
    try:
        yield write
    finally:
        with suppress(OSError):  # every line was written, and synced before a checkpoint
            file.close()
