"""A golden folder: the same references in three views, each for another reader.

    golden.safetensors        every tensor in float32, and in float64 as NAME:float64
    raw/CASE.bin, index.tsv   those in float32 as little-endian bytes, for who has no library: one
                              file a case, in which a tensor begins at a multiple of 64 bytes
    manifest.json             what they are: conventions in words, cases, where they come from
    fingerprints.safetensors  what each of the usual mistakes gives in their place
    SHA256SUMS                of all these files, as sha256sum writes and checks them

Written twice on one machine the bytes are the same.
"""

import hashlib
import json
import re
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.numpy import load_file

from npgpt2.base.arrays import Array
from npgpt2.base.errors import FileError, GoldenError
from npgpt2.base.files import read_file, read_json, sha256_of
from npgpt2.checkpoints.checkpoint import save_tensors
from npgpt2.golden.reference import Reference

SCHEMA = 1
TENSORS, INDEX, MANIFEST = "golden.safetensors", "index.tsv", "manifest.json"
FINGERPRINTS, SUMS, RAW = "fingerprints.safetensors", "SHA256SUMS", "raw"
DOUBLE = ":float64"
SHAPE = re.compile(r"\d{1,18}(x\d{1,18})*")
LINE = re.compile(r"(?P<sha256>[0-9a-f]{64})  (?P<name>\S+)")
ALIGNED = 64  # bytes: where a tensor begins in a raw file
COLUMNS = (
    "name", "dtype", "shape", "stride", "file", "offset", "bytes", "sha256", "atol", "rtol",
    "noise", "mean", "mean_atol", "rms", "rms_atol", "sha256_of_all",
)  # fmt: skip


class Golden(NamedTuple):
    """What a golden folder says.

    Attributes:
        manifest: see `npgpt2.golden.write`.
        references: by name, in the order of the data's flow.
        fingerprints: by name, an array (mistakes, slice): what each mistake gives there. The
            mistakes are the manifest's, in its order.
    """

    manifest: dict[str, Any]
    references: dict[str, Reference]
    fingerprints: dict[str, Array]


def save_golden(folder: Path, golden: Golden) -> None:
    """Fill an empty folder."""
    tensors: dict[str, Array] = {}
    rows: list[tuple[str, ...]] = [COLUMNS]
    (folder / RAW).mkdir()
    for case, references in groupby(golden.references.values(), key=lambda r: r.case):
        path = f"{RAW}/{case}.bin"
        with (folder / path).open("wb") as file:
            for r in references:
                numbers = r.single if r.stride > 1 else r.single.reshape(r.shape)
                tensors[r.name] = numbers
                if r.dtype.kind == "f":
                    tensors[r.name + DOUBLE] = r.double.reshape(numbers.shape)
                file.write(bytes(-file.tell() % ALIGNED))
                data = r.single.astype(r.dtype.newbyteorder("<")).tobytes()
                rows.append(_row(r, path, file.tell(), data))
                file.write(data)
    save_tensors(folder / TENSORS, tensors)
    save_tensors(folder / FINGERPRINTS, golden.fingerprints)
    manifest = json.dumps(golden.manifest, indent=2, ensure_ascii=False) + "\n"
    (folder / MANIFEST).write_bytes(manifest.encode())
    (folder / INDEX).write_bytes("".join("\t".join(row) + "\n" for row in rows).encode())
    sums = [f"{sha256_of(folder / name)}  {name}\n" for name in _files(folder)]
    (folder / SUMS).write_bytes("".join(sums).encode())


def _files(folder: Path) -> list[str]:
    """All but SHA256SUMS itself; what `new_folder` keeps there is gone when it is done."""
    paths = (p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir())
    return sorted(path for path in paths if path not in (SUMS, "pid"))


def _row(r: Reference, path: str, offset: int, data: bytes) -> tuple[str, ...]:
    bounds = (r.atol, r.rtol, r.noise, r.mean, r.mean_atol, r.rms, r.rms_atol)
    return (
        r.name, r.dtype.name, "x".join(map(str, r.shape)), str(r.stride), path, str(offset),
        str(len(data)), hashlib.sha256(data).hexdigest(), *map(repr, bounds), r.sha256,
    )  # fmt: skip


def load_golden(folder: Path) -> Golden:
    """Read a golden folder, every byte of it held against its checksum.

    Raises:
        FileError: a file is missing or cannot be read.
        GoldenError: a checksum differs, or the folder is of another schema.
    """
    check_sums(folder)
    manifest = read_json(folder / MANIFEST, GoldenError)
    if manifest.get("schema") != f"npgpt2.golden/{SCHEMA}":
        raise GoldenError(
            f"{folder}: has the schema {manifest.get('schema')!r}, expected "
            f"'npgpt2.golden/{SCHEMA}'. Read it with the version that wrote it, or write it again"
        )
    try:
        tensors, fingerprints = load_file(folder / TENSORS), load_file(folder / FINGERPRINTS)
        references = {}
        head, *lines = (folder / INDEX).read_text(encoding="utf-8").splitlines()
        for line in lines:
            row = dict(zip(head.split("\t"), line.split("\t"), strict=True))
            references[row["name"]] = _reference(row, tensors)
    except (SafetensorError, KeyError, ValueError) as error:  # nothing that its sums would allow
        raise GoldenError(f"{folder}: is damaged ({error}). Write it again") from None
    return Golden(manifest, references, fingerprints)


def _reference(row: dict[str, str], tensors: dict[str, Array]) -> Reference:
    name = row["name"]
    single = tensors[name].reshape(-1)
    return Reference(
        name, parse_shape(row["shape"]), single.dtype, int(row["stride"]), single,
        tensors.get(name + DOUBLE, single).reshape(-1), float(row["noise"]), float(row["mean"]),
        float(row["rms"]), float(row["mean_atol"]), float(row["rms_atol"]), row["sha256_of_all"],
    )  # fmt: skip


def parse_shape(text: str) -> tuple[int, ...]:
    """A shape as index.tsv has it. Raises ValueError: it is none.

    >>> parse_shape("1x8x64")
    (1, 8, 64)
    """
    if not SHAPE.fullmatch(text):
        raise ValueError(f"the shape {text!r}")
    return tuple(int(n) for n in text.split("x"))


def check_sums(folder: Path) -> None:
    """Hold every file against SHA256SUMS.

    Raises:
        FileError: a file is missing or cannot be read.
        GoldenError: one differs, or is not listed.
    """
    if not (folder / SUMS).is_file():
        raise FileError(
            f"{folder}: is no golden folder, it has no {SUMS}, expected one that "
            "'npgpt2 golden write' made"
        )
    text = read_file(folder / SUMS).decode("utf-8", "replace")
    lines = [LINE.fullmatch(line) for line in text.split("\n")[:-1]]
    sums = {line["name"]: line["sha256"] for line in lines if line}
    there = {*_files(folder)}
    odd = [f"{name} is missing" for name in sorted({*sums} - there)]
    odd += [f"{name} is not listed" for name in sorted(there - {*sums})]
    if odd or not all(lines) or not text.endswith("\n"):
        raise GoldenError(
            f"{folder}: {', '.join(odd) or 'its lines are damaged'}, expected the files that "
            f"{SUMS} lists. Write the folder again"
        )
    for name, expected in sums.items():
        if sha256_of(folder / name) != expected:
            raise GoldenError(
                f"{folder / name}: has another sha256 than {SUMS} says: one of the two was "
                "changed or cut. Write the folder again"
            )
