"""Wheels in pieces, for a machine without network to which only small files can be carried.

Where there is a network they are downloaded and cut; on the bare machine they are put together,
held against their checksums and unpacked. That needs the standard library alone, and may be
repeated: what is there already is left as it is.
"""

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MANIFEST = "pieces.json"
DONE = ".joined.json"  # in a site: the wheels that were unpacked there, with their sha256
PACKAGES = ("onnxruntime-gpu",)
PYTHON = "3.12"
# pip compares these names, not the numbers in them: each that a wheel may bear has to be said.
PLATFORMS = tuple(f"manylinux{v}_x86_64" for v in ("_2_28", "_2_27", "_2_17", "2014"))

Manifest = list[dict[str, Any]]  # by wheel: "name", "bytes", "sha256", and "pieces" with the same


class PiecesError(Exception):
    """What is missing or damaged, a line for each, with what to do."""


# ── where there is a network ─────────────────────────────────────────────────────────────────────


def make(
    folder: Path, packages: Sequence[str], python: str, platforms: Sequence[str], size: int
) -> Manifest:
    """Download the newest wheels of packages and cut them; `size` is a piece's most bytes."""
    with tempfile.TemporaryDirectory() as wheels:
        download(packages, Path(wheels), python, platforms)
        return split(sorted(Path(wheels).glob("*.whl")), folder, size)


def download(packages: Sequence[str], folder: Path, python: str, platforms: Sequence[str]) -> None:
    """Wheels for another Python and platform, without what they depend on."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--implementation=cp", f"--python-version={python}"]
    command += [f"--platform={name}" for name in platforms]
    done = subprocess.run([*command, f"--dest={folder}", *packages], capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise PiecesError(f"{', '.join(packages)}: was not downloaded ({last})")


def split(wheels: Sequence[Path], folder: Path, size: int) -> Manifest:
    """Cut wheels into files of at most `size` bytes, and write the manifest beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest = []
    for wheel in wheels:
        pieces, whole = [], hashlib.sha256()
        with wheel.open("rb") as file:
            while data := file.read(size):
                name = f"{wheel.name}.{len(pieces) + 1:02}"
                (folder / name).write_bytes(data)
                whole.update(data)
                digest = hashlib.sha256(data).hexdigest()
                pieces.append({"name": name, "bytes": len(data), "sha256": digest})
        manifest.append({
            "name": wheel.name, "bytes": wheel.stat().st_size, "sha256": whole.hexdigest(),
            "needs": needs(wheel), "pieces": pieces,
        })  # fmt: skip
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


def needs(wheel: Path) -> list[str]:
    """What a wheel's metadata ask for, those of its extras included."""
    with zipfile.ZipFile(wheel) as archive:
        found = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        lines = archive.read(found[0]).decode().splitlines() if found else []
    return [line.partition(": ")[2] for line in lines if line.startswith("Requires-Dist: ")]


def described(manifest: Manifest) -> str:
    """A table of the pieces, and what has to be on the other machine beside them."""
    rows = [f"{'piece':<84}{'bytes':>12}  part of"]
    for wheel in manifest:
        rows += [f"{p['name']:<84}{p['bytes']:>12,}  {wheel['name']}" for p in wheel["pieces"]]
    rows.append(f"{MANIFEST:<84}{'':>12}  all: it goes along with the first")
    for wheel in manifest:
        rows.append(f"{wheel['name']} needs, there: {', '.join(wheel['needs']) or 'nothing'}")
    return "\n".join(rows)


# ── on the bare machine ──────────────────────────────────────────────────────────────────────────


def join(folders: Sequence[Path], site: Path) -> list[str]:
    """Put the wheels in some folders together and unpack them; a line for each wheel.

    Raises:
        PiecesError: the manifest or pieces are missing or damaged, or a wheel is of another
            Python; nothing of that wheel was unpacked.
    """
    manifest = read_manifest(folders)
    record = site / DONE
    done: dict[str, str] = json.loads(record.read_text()) if record.is_file() else {}
    told, wrong = [], []
    for wheel in manifest:
        if done.get(wheel["name"]) == wheel["sha256"]:
            told.append(f"{wheel['name']}: is in {site} already")
            continue
        paths, faults = found(wheel, folders)
        if not is_for(wheel["name"], sys.version_info[:2]):
            mine = ".".join(map(str, sys.version_info[:2]))
            faults = [f"{wheel['name']}: is not for Python {mine}. "
                      f"Make the pieces with --python-version {mine}"]  # fmt: skip
        if faults:
            wrong += faults
            continue
        with tempfile.TemporaryDirectory() as work:
            unpack(put_together(wheel, paths, Path(work)), site)
        done[wheel["name"]] = wheel["sha256"]
        record.write_text(json.dumps(done, indent=1) + "\n")
        told.append(f"{wheel['name']}: unpacked in {site}")
    if wrong:
        raise PiecesError("\n".join(wrong))
    return told


def read_manifest(folders: Sequence[Path]) -> Manifest:
    places = [folder / MANIFEST for folder in folders if (folder / MANIFEST).is_file()]
    if not places:
        where = ", ".join(map(str, folders))
        raise PiecesError(f"{MANIFEST}: is not in {where}. Copy it there, beside the pieces")
    manifest: Manifest = json.loads(places[0].read_text())
    return manifest


def found(wheel: dict[str, Any], folders: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """Where a wheel's pieces lie, and what is wrong with them."""
    paths, faults = [], []
    for piece in wheel["pieces"]:
        places = [folder / piece["name"] for folder in folders]
        there = [path for path in places if path.is_file()]
        good = next((path for path in there if sha256(path) == piece["sha256"]), None)
        if good:
            paths.append(good)
        elif there:
            faults.append(f"{there[0]}: is damaged. Copy it again")
        else:
            faults.append(f"{piece['name']}: is missing. Copy it to {folders[0]}")
    return paths, faults


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(1 << 20):
            digest.update(data)
    return digest.hexdigest()


def put_together(wheel: dict[str, Any], pieces: Sequence[Path], folder: Path) -> Path:
    """The wheel itself, in `folder`."""
    whole = folder / wheel["name"]
    with whole.open("wb") as file:
        for piece in pieces:
            file.write(piece.read_bytes())
    if sha256(whole) != wheel["sha256"]:
        raise PiecesError(f"{MANIFEST}: is of other pieces than these. Make and copy all of them")
    return whole


def is_for(wheel: str, python: tuple[int, int]) -> bool:
    """Whether a version of CPython takes a wheel, by its name.

    >>> [is_for(f"a-1.0-{tags}-any.whl", (3, 12))
    ...  for tags in ("py3-none", "py2.py3-none", "cp312-cp312", "cp38-abi3", "cp311-cp311")]
    [True, True, True, True, False]
    """
    tags, abi = wheel.split("-")[-3:-1]
    return abi == "abi3" or not {"py3", "cp{}{}".format(*python)}.isdisjoint(tags.split("."))


def unpack(wheel: Path, site: Path) -> None:
    """Add a wheel's files to a site, where others may have files in the same folders.

    pip would remove these: with --target, it replaces whole folders, such as the `nvidia` that all
    packages nvidia-* share.
    """
    site.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    data = site / f"{'-'.join(wheel.name.split('-')[:2])}.data"
    for part in ("purelib", "platlib"):  # what the format keeps apart, and belongs in the site
        if (data / part).is_dir():
            shutil.copytree(data / part, site, dirs_exist_ok=True)
    shutil.rmtree(data, ignore_errors=True)
