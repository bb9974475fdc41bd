"""The output folder: one file for each part, and the settings of the run.

    OUT/_batch.json               the settings, the input files, the number of parts
    OUT/_input.jsonl              the rows, if they came from standard input
    OUT/part-00000000.jsonl       the results of part 0, in the order of its rows

The file of a part appears when the whole part is done. So after a run was killed all files are
complete, and only the missing parts are left. `cat OUT/part-*.jsonl` has the order of the input.
"""

import json
import os
import re
import shutil
import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from npgpt2.base.errors import FileError
from npgpt2.base.files import held, named_errors, read_json, replaced, require_space, write_text
from npgpt2.bulk.parts import parquet
from npgpt2.bulk.tasks import Result

SCHEMA = "npgpt2.batch/1"
# Readers of Parquet folders skip names with a leading underscore.
MANIFEST, INPUT = "_batch.json", "_input.jsonl"


@dataclass(frozen=True)
class Settings:
    """The settings of a run. A resumed run must have the same settings.

    Attributes:
        task: "generate", "score" or "embed".
        format: of the results, "jsonl" or "parquet".
        model: the folder of the model.
        engine: the fields of `npgpt2.engines.ModelSpec` except `model`.
        options: the fields of `GenerationOptions`, with `seed` set; empty for other tasks.
        inputs: path, size in bytes and modification time of each input file.
        whole_ids: in Parquet, ids are integers; otherwise text.
    """

    task: str
    format: str
    whole_ids: bool
    model: str
    engine: dict[str, Any]
    options: dict[str, Any]
    inputs: list[list[Any]]


def inputs_of(files: Sequence[Path]) -> list[list[Any]]:
    found = []
    for file in files:
        with named_errors(file):
            info = file.stat()
            found.append([str(file.absolute()), info.st_size, info.st_mtime_ns])
    return found


def keep_input(out: Path, rows: BinaryIO) -> Path:
    """Copy standard input into the folder of a run, which may need to read it again."""
    with named_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    with held(out), replaced(out / INPUT) as work, work.open("wb") as file:
        shutil.copyfileobj(rows, file)
    return out / INPUT


def begin(out: Path, settings: Settings, most: int, parts: int, rows: int) -> None:
    """Write the settings of a run before it starts; `most` is the largest number of rows a part."""
    about = {"schema": SCHEMA, **asdict(settings), "most": most, "parts": parts, "rows": rows}
    with replaced(out / MANIFEST) as work:
        write_text(work, json.dumps(about, indent=1, ensure_ascii=False) + "\n")


def told(out: Path) -> dict[str, Any] | None:
    """The settings of the run in a folder; None if there is no run yet.

    Raises:
        FileError: the folder has other files.
    """
    if not (out / MANIFEST).exists():
        ours = re.compile(rf"pid|{INPUT}|\..*\.new")  # of a run that was killed at its start
        if out.exists() and not all(ours.fullmatch(path.name) for path in out.iterdir()):
            raise FileError(f"{out}: has other files, expected a batch run or none. Name another")
        return None
    about = read_json(out / MANIFEST, FileError)
    if about.get("schema") != SCHEMA:
        raise FileError(f"{out / MANIFEST}: has schema {about.get('schema')!r}, expected {SCHEMA}")
    return about


def require_same(out: Path, about: dict[str, Any], settings: Settings) -> None:
    """Raises FileError if the settings of a resumed run differ from those of its first start."""
    now = json.loads(json.dumps(asdict(settings)))
    for name, value in now.items():
        if about.get(name) == value:
            continue
        old, new = about.get(name), value
        if isinstance(old, dict) and isinstance(new, dict):
            name = next(key for key in {**old, **new} if old.get(key) != new.get(key))
            old, new = old.get(name), new.get(name)
        if name == "inputs":
            raise FileError(f"{out}: the input has changed since this run began. Start a new run")
        raise FileError(
            f"{out}: got {name} {new!r}, expected {old!r} as at the start of the run. Use the "
            "same value, or another folder"
        )


def part_file(out: Path, number: int, kind: str) -> Path:
    return out / f"part-{number:08d}.{kind}"


def parts_there(out: Path, kind: str) -> set[int]:
    """The numbers of the finished parts."""
    pattern = re.compile(rf"part-(\d{{8,}})\.{kind}")
    found = (pattern.fullmatch(path.name) for path in out.iterdir())
    return {int(match[1]) for match in found if match}


def write_part(out: Path, number: int, settings: Settings, results: Sequence[Result]) -> None:
    """Write the results of a part, whole or not at all. Two processes may write the same part: a
    node that Ray has given up may still be running."""
    path = part_file(out, number, settings.format)
    own = f".{socket.gethostname()}-{os.getpid()}"
    if settings.format == "jsonl":
        lines = [json.dumps(r, ensure_ascii=False, allow_nan=False) + "\n" for r in results]
        data = "".join(lines).encode("utf-8", "backslashreplace")  # an id may have lone surrogates
        require_space(out, len(data))
        with replaced(path, own) as work:
            work.write_bytes(data)
        return
    table = _table(settings, results)
    require_space(out, table.nbytes)
    with replaced(path, own) as work:
        parquet().write_table(table, work)


def errors_in(out: Path, number: int, kind: str) -> int:
    """The number of rows of a part that failed."""
    path = part_file(out, number, kind)
    with named_errors(path):
        if kind == "parquet":
            table = parquet().read_table(path, columns=["error"])
            return int(table.num_rows - table["error"].null_count)
        with path.open("rb") as file:
            return sum("error" in json.loads(line) for line in file)


# The Parquet columns of each task, between `row`, `id` and `error`.
COLUMNS = {
    "generate": {"text": "string", "ids": "list<int32>", "finish_reason": "string"},
    "score": {
        "tokens": "int64", "nats": "float64", "perplexity": "float64", "bits_per_byte": "float64"
    },
    "embed": {"tokens": "int64", "embedding": "list<float32>"},
}  # fmt: skip


def _table(settings: Settings, results: Sequence[Result]) -> Any:
    """The results as a table with the same schema for all parts; missing values are null."""
    import pyarrow as pa

    def typed(name: str) -> Any:
        inner = re.fullmatch(r"list<(\w+)>", name)
        return pa.list_(pa.type_for_alias(inner[1])) if inner else pa.type_for_alias(name)

    id_type = "int64" if settings.whole_ids else "string"
    columns = {"row": "int64", "id": id_type, **COLUMNS[settings.task], "error": "string"}
    rows = []
    for result in results:
        row = dict(result)
        if not settings.whole_ids and row.get("id") is not None:
            row["id"] = str(row["id"])
        for name, value in row.items():
            if isinstance(value, str):  # a lone surrogate is not valid UTF-8
                row[name] = value.encode("utf-8", "backslashreplace").decode()
        rows.append(row)
    schema = pa.schema([(name, typed(kind)) for name, kind in columns.items()])
    return pa.Table.from_pylist(rows, schema=schema)
