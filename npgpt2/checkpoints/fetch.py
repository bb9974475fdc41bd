"""Download a model from the hub: resume interrupted files, and compare the size and checksum of
each file with the hub's.

`huggingface_hub` compares only sizes, and a new process starts a file again. Here a partial file
has another name until it is complete and verified.
"""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from npgpt2.base.errors import FileBusy, FileError
from npgpt2.base.files import (
    Progress,
    drop_alone,
    is_same,
    put_alone,
    read_file,
    sha256_of,
    take_alone,
)
from npgpt2.checkpoints import hub
from npgpt2.checkpoints.formats.find import weight_map

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling


class Fetched(NamedTuple):
    """The folder, and the number and bytes of its files; all match the hub's checksums."""

    folder: Path
    files: int
    nbytes: int


def fetch(
    name: str,
    out: str | Path | None = None,
    revision: str | None = None,
    token: str | None = None,
    force: bool = False,
    progress: Progress = lambda loop, what: loop,
) -> Fetched:
    """Download a model, or the missing files of one.

    config.json is downloaded last, and removed first if a file changes: a folder with a config.json
    is complete.

    Args:
        name: name of the model on the hub, such as "gpt2".
        out: the folder to create; None for the hub's cache, where `resolve` and transformers look.
        revision: branch, tag or commit.
        token: access token of the hub, instead of HF_TOKEN.
        force: replace files in `out` that differ from the hub's.
        progress: wraps the loops over bytes that are checked.

    Raises:
        FileError: there is no such model; the hub does not answer; a download was wrong twice; a
            file in `out` differs from the hub's; the disk is full.
        CheckpointError: the index of the weights is damaged, or names files outside the folder.
        MissingPackage: `huggingface_hub` is not installed.
    """
    if not hub.REPO_ID.fullmatch(name):
        raise FileError(f"{name!r}: is not a hub name, expected one such as gpt2 or user/model")
    if out is not None and os.path.lexists(out) and not os.path.isdir(out):
        raise FileError(f"{out}: is not a folder, expected a folder or a new path")
    hub.require_library(f"{name}: names on the hub need")
    try:
        with hub.told(name, revision, out):
            return _fetch(name, out, revision, token, force, progress)
    except hub.Unreachable as error:
        raise FileError(str(error)) from None


def _fetch(
    name: str,
    out: str | Path | None,
    revision: str | None,
    token: str | None,
    force: bool,
    progress: Progress,
) -> Fetched:
    info = hub.ask(name, revision, token, sums=True)
    known = {file.rfilename: file for file in info.siblings or ()}
    folder = _blobs(name) if out is None else Path(out)

    def place(file: str) -> Path:
        return folder / (_sum(known[file]) if out is None else file)

    def lacking(files: Iterable[str]) -> list[str]:
        """The files that are missing or differ from the hub's."""
        found = []
        for file in files:
            path = place(file)
            text = _difference(path, known[file], progress) if path.exists() else "is not there"
            if text and path.exists() and out is not None and not force:
                raise FileError(f"{path}: {text}. Choose another folder, or --force to replace it")
            if text:
                found.append(file)
        return found

    def download(files: Iterable[str]) -> None:
        for file in files:
            if out is not None:  # a folder without config.json is incomplete
                place("config.json").unlink(missing_ok=True)
            _download(name, info.sha, known[file], place(file), token, progress)

    main = hub.weights_of(name, info)
    files = [file for file in (*hub.FILES, main) if file in known]
    first = lacking(files)
    download(file for file in first if file != "config.json")
    if main in hub.INDICES:
        shards = sorted(set(weight_map(place(main)).values()))
        for file in shards:
            if file not in known:
                raise FileError(f"{name}: {main} names {file}, but the hub has no such file. "
                                "Tell the model's owner")  # fmt: skip
        files += shards
        download(lacking(shards))
    if "config.json" in first or not place("config.json").exists():
        download(["config.json"])
    if out is None:
        folder = hub.into_cache(name, info, revision, token, weights=True)
        if folder.name != info.sha:
            raise FileError(f"{name}: has changed on the hub meanwhile. Fetch it again")
        for file in files:  # a cache that was copied has no links
            path = folder / file
            apart = not is_same(path, place(file))
            if apart and (text := _difference(path, known[file], progress)):
                raise FileError(f"{path}: {text}. Remove it and fetch again")
    return Fetched(folder, len(files), sum(known[file].size or 0 for file in files))


def _blobs(name: str) -> Path:
    """The cache folder with a model's files, named by their checksums
    (https://huggingface.co/docs/huggingface_hub/guides/manage-cache)."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    cache = Path(constants.HF_HUB_CACHE)
    return cache / repo_folder_name(repo_id=name, repo_type="model") / "blobs"


def _sum(file: "RepoSibling") -> str:
    """The checksum of a file: SHA-256 for a large file, else git's blob id, a SHA-1 of its length
    and bytes (https://git-scm.com/book/en/v2/Git-Internals-Git-Objects)."""
    return file.lfs.sha256 if file.lfs else str(file.blob_id)


def _difference(path: Path, file: "RepoSibling", progress: Progress) -> str:
    """A message how a file differs from the hub's; "" if it does not."""
    size, expected = path.stat().st_size, _sum(file)
    if size != file.size:
        return f"has {size:,} bytes, expected the hub's {file.size:,}"
    if file.lfs:
        kind, got = "sha256", sha256_of(path, progress)
    else:
        kind, got = "git's sha1", hashlib.sha1(b"blob %d\0" % size + read_file(path)).hexdigest()
    return "" if got == expected else f"{kind} is {got[:12]}…, expected the hub's {expected[:12]}…"


def _download(
    name: str,
    commit: str | None,
    file: "RepoSibling",
    path: Path,
    token: str | None,
    progress: Progress,
) -> None:
    """Download one file and verify it. A wrong file may come from an old partial download, so it is
    downloaded a second time.

    Raises:
        FileError: it is wrong both times.
        FileBusy: another process is downloading it.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    url = hf_hub_url(name, file.rfilename, revision=commit)
    part = path.with_name(f".{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(2):
        with part.open("ab") as target:
            take_alone(target)
            if not part.exists() or os.fstat(target.fileno()).st_ino != part.stat().st_ino:
                raise FileBusy(f"{path}: another process has just written it. Fetch again")
            have = target.tell()
            if have < (file.size or 0):
                # Without the expected size: on a mismatch it would blame the network.
                http_get(
                    url,
                    target,
                    resume_size=have,
                    headers=build_hf_headers(token=token),
                    displayed_filename=file.rfilename,
                )
            target.flush()
            difference = _difference(part, file, progress)
            if difference:
                drop_alone(target)
                continue
            put_alone(target, path)
            return
    raise FileError(
        f"{name}: {file.rfilename} {difference}. Try again later, or tell the model's owner"
    )
