"""A golden folder: the same references in several formats.

    golden.safetensors        every tensor in float32, and in float64 as NAME:float64
    raw/CASE.bin, index.tsv   the float32 tensors as little-endian bytes, readable without a
                              library: one file per case, tensors aligned to 64 bytes
    manifest.json             conventions in words, the cases, how the folder was made
    fingerprints.safetensors  the values that each of the usual mistakes gives instead
    SHA256SUMS                checksums of all these files, in the format of sha256sum

Writing a folder twice on the same machine gives the same bytes.
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
ALIGNED = 64  # bytes: alignment of a tensor in a raw file
COLUMNS = (
    "name", "dtype", "shape", "stride", "file", "offset", "bytes", "sha256", "atol", "rtol",
    "noise", "mean", "mean_atol", "rms", "rms_atol", "sha256_of_all",
)  # fmt: skip


class Golden(NamedTuple):
    """The contents of a golden folder.

    Attributes:
        manifest: see `npgpt2.golden.write`.
        references: by name, in the order of computation.
        fingerprints: by name, an array (mistakes, slice): the values that each mistake gives. The
            mistakes are those of the manifest, in its order.
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
    """All files but SHA256SUMS, and but `new_folder`'s own file, which it removes at the end."""
    paths = (p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir())
    return sorted(path for path in paths if path not in (SUMS, "pid"))


def _row(r: Reference, path: str, offset: int, data: bytes) -> tuple[str, ...]:
    bounds = (r.atol, r.rtol, r.noise, r.mean, r.mean_atol, r.rms, r.rms_atol)
    return (
        r.name, r.dtype.name, "x".join(map(str, r.shape)), str(r.stride), path, str(offset),
        str(len(data)), hashlib.sha256(data).hexdigest(), *map(repr, bounds), r.sha256,
    )  # fmt: skip


def load_golden(folder: Path) -> Golden:
    """Read a golden folder and verify the checksum of every file.

    Raises:
        FileError: a file is missing or cannot be read.
        GoldenError: a checksum differs, or the folder has another schema.
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
    except (SafetensorError, KeyError, ValueError) as error:  # only with forged checksums
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
    """Parse a shape of index.tsv. Raises ValueError: it is not a shape.

    >>> parse_shape("1x8x64")
    (1, 8, 64)
    """
    if not SHAPE.fullmatch(text):
        raise ValueError(f"the shape {text!r}")
    return tuple(int(n) for n in text.split("x"))


def check_sums(folder: Path) -> None:
    """Verify every file against SHA256SUMS.

    Raises:
        FileError: a file is missing or cannot be read.
        GoldenError: a file differs, or is not listed.
    """
    if not (folder / SUMS).is_file():
        raise FileError(
            f"{folder}: is not a golden folder, it has no {SUMS}, expected a folder that "
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
            f"{folder}: {', '.join(odd) or f'the lines of {SUMS} are damaged'}, expected the files "
            f"that {SUMS} lists. Write the folder again"
        )
    for name, expected in sums.items():
        if sha256_of(folder / name) != expected:
            raise GoldenError(
                f"{folder / name}: its sha256 differs from the one in {SUMS}: one of the two files "
                "was changed or truncated. Write the folder again"
            )
