"""Parts of input files, and their rows.

A part is a range of one file, small enough for memory and large enough to sort by length. It has
the place of its rows, not the rows: each worker reads them, and no process reads a whole file. The
same files always give the same parts, so that a killed run can be resumed.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from npgpt2.base.errors import FileError, MissingPackage
from npgpt2.base.files import named_errors, require_regular

ROWS = 64  # most rows of a part: half a minute of work for one core, with the 124M shape
BYTES = 4 << 20  # of a part; rows are never split
MAX_LINE = 16 << 20  # most bytes of one line
CHUNK = 8 << 20  # bytes read at a time to count lines

COLUMNS = ("prompt", "text")  # the column with a row's text: the first of these that it has
KINDS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}

Counting = Callable[[Iterable[Path], str], Iterable[Path]]


class Part(NamedTuple):
    """Some rows of one file.

    Attributes:
        number: index of the part, from 0.
        first: index of its first row in the whole input, from 0.
        rows: number of rows, or of lines in a .jsonl file.
        start: in a .jsonl file the first byte, in a Parquet file the first row in its row group.
        group: the row group of a Parquet file.
    """

    number: int
    file: str
    first: int
    rows: int
    start: int
    group: int = 0


class Row(NamedTuple):
    """One row: its prompt, as text or ids, or an error."""

    number: int
    id: Any = None
    prompt: str | list[int] | None = None
    error: str | None = None


def files_of(source: Path) -> list[Path]:
    """The input files of a path, sorted by name.

    Raises:
        FileError: it is neither such a file nor a folder with one.
    """
    expected = f"expected {', '.join(KINDS)} or a folder of these"
    with named_errors(source):
        if not source.is_dir():
            require_regular(source)
            if source.suffix not in KINDS:
                raise FileError(f"{source}: ends in {source.suffix!r}, {expected}")
            return [source]
        found = sorted(p for p in source.iterdir() if p.suffix in KINDS and p.name[0] != ".")
    if not found:
        raise FileError(f"{source}: has no such file, {expected}")
    return found


def parts_of(
    files: Iterable[Path], most: int, progress: Counting = lambda loop, what: loop
) -> Iterator[Part]:
    """Split files into parts of at most `most` rows, in one pass over them.

    Raises:
        FileError, MissingPackage: a file cannot be read, or has no text column.
    """
    number = first = 0
    for file in progress(list(files), "counting rows"):
        with named_errors(file):
            require_regular(file)
            counted = _lines if KINDS[file.suffix] == "jsonl" else _row_groups
            for rows, start, group in counted(file, most):
                yield Part(number, str(file), first, rows, start, group)
                number, first = number + 1, first + rows


def rows_of(part: Part) -> list[Row]:
    """Read the rows of a part. A bad row has an `error`; a blank line is not a row.

    Raises:
        FileError: the file has changed since its rows were counted.
    """
    file = Path(part.file)
    kind = KINDS[file.suffix]
    with named_errors(file):
        found = list((_read_lines if kind == "jsonl" else _read_columns)(file, part))
    if len(found) != part.rows:
        raise FileError(f"{file}: has changed since its rows were counted. Start a new run")
    return [row for row in found if row is not None]


# ── lines of JSON ────────────────────────────────────────────────────────────────────────────────


def _lines(file: Path, most: int) -> Iterator[tuple[int, int, int]]:
    """(lines, first byte, 0) of each part."""
    start = lines = 0  # of this part
    last = end = 0  # end of the last complete line, and of what was read
    with file.open("rb") as handle:
        while chunk := handle.read(CHUNK):
            ends = np.flatnonzero(np.frombuffer(chunk, np.uint8) == ord("\n")) + end + 1
            end += len(chunk)
            while len(ends):
                enough = int(np.searchsorted(ends, start + BYTES)) + 1
                take = min(most - lines, enough, len(ends))
                lines, last, ends = lines + take, int(ends[take - 1]), ends[take:]
                if lines == most or last - start >= BYTES:
                    yield lines, start, 0
                    start, lines = last, 0
    lines += end > last
    if lines:
        yield lines, start, 0


def _read_lines(file: Path, part: Part) -> Iterator[Row | None]:
    with file.open("rb") as handle:
        handle.seek(part.start)
        for number in range(part.first, part.first + part.rows):
            line = handle.readline(MAX_LINE + 1)
            if not line:
                return
            if len(line) > MAX_LINE:
                _skip(handle, line)
                yield Row(number, error=f"line: is longer than {MAX_LINE:,} bytes")
            else:
                yield row_of(line.removeprefix(b"\xef\xbb\xbf"), number)


def _skip(handle: BinaryIO, line: bytes) -> None:
    """Skip to the end of a line that is too long."""
    while line and not line.endswith(b"\n"):
        line = handle.readline(CHUNK)


def row_of(line: bytes, number: int) -> Row | None:
    """Parse a line into a row; None for a blank line.

    >>> row_of(b'{"id": "a", "prompt": "O Romeo"}', 7)
    Row(number=7, id='a', prompt='O Romeo', error=None)
    >>> row_of(b'{"id": "b"}', 8).error
    'prompt: is missing, expected a field "prompt" or "text"'
    """
    if not line.strip():
        return None
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as problem:
        return Row(number, error=f"line: not UTF-8 at byte {problem.start}")
    except (ValueError, RecursionError) as problem:  # ValueError: also a number of 5,000 digits
        said = "nested too deep" if isinstance(problem, RecursionError) else str(problem)
        return Row(number, error=f"line: is not JSON ({said})")
    if isinstance(value, dict):
        name = next((name for name in COLUMNS if name in value), None)
        return _checked(number, value.get("id"), name, value.get(name or ""))
    return _checked(number, None, "line", value)


def _checked(number: int, id_: Any, name: str | None, prompt: Any) -> Row:
    if id_ is not None and not isinstance(id_, (str, int, float)):
        return Row(number, error=f"id: got a {type(id_).__name__}, expected text or a number")
    if isinstance(id_, float) and not math.isfinite(id_):
        return Row(number, error=f"id: got {id_}, expected text or a number")
    if name is None:
        return Row(number, id_, error='prompt: is missing, expected a field "prompt" or "text"')
    ids = isinstance(prompt, list) and all(type(token) is int for token in prompt)
    if not ids and not isinstance(prompt, str):
        shown = "null" if prompt is None else f"a {type(prompt).__name__}"
        return Row(number, id_, error=f"{name}: got {shown}, expected text or ids")
    return Row(number, id_, prompt)


# ── Parquet ──────────────────────────────────────────────────────────────────────────────────────


def parquet() -> Any:
    """The module pyarrow.parquet. Raises MissingPackage."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise MissingPackage("parquet: needs pyarrow. Run: pip install 'npgpt2[batch]'") from None
    return pyarrow.parquet


def _opened(file: Path) -> Any:
    library = parquet()
    try:
        return library.ParquetFile(file)
    except OSError:
        raise
    except Exception as problem:  # pyarrow has a class for each kind of damage
        text = str(problem).partition("\n")[0]
        raise FileError(f"{file}: is not a Parquet file ({text})") from None


def _column(file: Path, names: list[str]) -> str:
    name = next((name for name in COLUMNS if name in names), None)
    if name is None:
        raise FileError(
            f"{file}: got columns {', '.join(names) or 'none'}, expected {' or '.join(COLUMNS)}"
        )
    return name


def has_whole_ids(file: Path) -> bool:
    """Whether the column `id` of a Parquet file has an integer type that fits into int64."""
    parquet()
    import pyarrow.types

    with named_errors(file), _opened(file) as opened:
        schema = opened.schema_arrow
        kind = schema.field("id").type if "id" in schema.names else None
        return kind is not None and pyarrow.types.is_integer(kind) and str(kind) != "uint64"


def _row_groups(file: Path, most: int) -> Iterator[tuple[int, int, int]]:
    """(rows, first row in its group, group) of each part."""
    with _opened(file) as opened:
        _column(file, opened.schema_arrow.names)
        for group in range(opened.num_row_groups):
            rows = opened.metadata.row_group(group).num_rows
            for start in range(0, rows, most):
                yield min(most, rows - start), start, group


def _read_columns(file: Path, part: Part) -> Iterator[Row | None]:
    with _opened(file) as opened:
        names = opened.schema_arrow.names
        wanted = [_column(file, names), *(["id"] if "id" in names else [])]
        seen = 0
        for batch in opened.iter_batches(part.rows, row_groups=[part.group], columns=wanted):
            begin, end = max(part.start, seen), min(part.start + part.rows, seen + batch.num_rows)
            if begin < end:
                for n, values in enumerate(batch.slice(begin - seen, end - begin).to_pylist()):
                    number = part.first + begin - part.start + n
                    yield _checked(number, values.get("id"), wanted[0], values[wanted[0]])
            seen += batch.num_rows
            if seen >= part.start + part.rows:
                return
