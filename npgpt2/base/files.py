"""Files: small untrusted files are read with checks; folders are written whole or not at all."""

import hashlib
import json
import os
import shutil
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from npgpt2.base.errors import FileBusy, FileError, InputError
from npgpt2.base.impostors import refuse_impostor

try:
    import fcntl
except ImportError:  # Windows, see docs/platforms.md: two writers do not detect each other
    fcntl = None  # type: ignore[assignment]

Progress = Callable[[Iterable[Any], str], Iterable[Any]]

MAX_BYTES = 2**28  # of a file read at once; the largest vocabularies have a tenth of it


@contextmanager
def named_errors(path: Path, inside: bool = False) -> Iterator[None]:
    """Turn an OSError in the block into a FileError that names `path`; with `inside`, the file in
    that folder which failed, if known."""
    try:
        yield
    except FileError:
        raise
    except OSError as problem:
        where = (inside and problem.filename) or path
        raise FileError(f"{where}: {problem.strerror or problem}") from None


def read_json(path: Path, error: type[Exception]) -> dict[str, Any]:
    """Read one JSON object from a file.

    Raises:
        FileError: the file cannot be read.
        error: see `parse_json`.
    """
    return parse_json(read_file(path), str(path), error)


def parse_json(data: bytes, source: str, error: type[Exception]) -> dict[str, Any]:
    """Parse one JSON object. Duplicate keys and a byte-order mark are errors.

    Raises:
        error: the data are not UTF-8, not JSON, not an object, or have a key twice.
    """
    refuse_impostor(source, data, "JSON", error)
    if data.startswith(b"\xef\xbb\xbf"):
        raise error(f"{source}: starts with a byte-order mark, expected UTF-8. Save it without one")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = dict(pairs)
        if len(keys) < len(pairs):
            twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
            raise error(f"{source}: key {twice!r} occurs twice, expected once")
        return keys

    try:
        values = json.loads(data.decode("utf-8"), object_pairs_hook=unique)
    except UnicodeDecodeError as problem:
        raise error(
            f"{source}: not UTF-8 at byte {problem.start}, expected JSON. Download again"
        ) from None
    except error:
        raise
    except (ValueError, RecursionError) as problem:  # ValueError: also for a number of 5,000 digits
        raise error(f"{source}: not JSON ({problem}). Download again") from None
    if not isinstance(values, dict):
        raise error(
            f"{source}: got a JSON {type(values).__name__}, expected an object. Download again"
        )
    return values


def read_file(path: Path) -> bytes:
    """The bytes of a regular file.

    Raises:
        FileError: it is not a regular file, is larger than `MAX_BYTES`, or cannot be read.
    """
    with named_errors(path):
        size = require_regular(path)
        if size > MAX_BYTES:
            raise FileError(f"{path}: has {size:,} bytes, expected {MAX_BYTES:,} at most")
        return path.read_bytes()


def read_text(path: Path) -> str:
    """The user's own text, of any size and from any kind of file.

    Raises:
        FileError: the file cannot be read.
        InputError: the file is not UTF-8.
    """
    with named_errors(path):
        return utf8(path.read_bytes(), str(path))


def utf8(data: bytes, where: str) -> str:
    """Decode UTF-8. Raises InputError: the bytes are not UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where}: not UTF-8 at byte {error.start}, expected text. Convert it first (iconv)"
        ) from None


def require_regular(path: Path) -> int:
    """The size of a regular file. Call it before opening: a FIFO blocks, a device never ends.

    Raises:
        FileError: it is a folder, a FIFO, a device or a socket, or a broken link.
    """
    try:
        info = path.stat()
    except FileNotFoundError:
        if path.is_symlink():  # a partly cleared hub cache
            raise FileError(
                f"{path}: is a link to {os.readlink(path)}, which is not there. Download again"
            ) from None
        raise
    if not stat.S_ISREG(info.st_mode):
        kind = "a folder" if stat.S_ISDIR(info.st_mode) else "not a regular file"
        raise FileError(f"{path}: is {kind}, expected a file")
    return info.st_size


def is_beside(name: str) -> bool:
    """Whether a name read from a file is a plain file name, which cannot leave the folder.

    >>> is_beside("model-00001-of-00002.safetensors"), is_beside("../x"), is_beside("")
    (True, False, False)
    """
    return name not in ("", ".", "..") and not set(name) & set("/\\\0")


def sha256_of(path: Path, progress: Progress = lambda loop, what: loop) -> str:
    """The hex sha256 of a file of any size. Raises FileError: the file cannot be read."""
    digest = hashlib.sha256()
    with named_errors(path):
        blocks = range(0, require_regular(path), 1 << 20)
        with path.open("rb") as file:
            for _ in progress(blocks, f"checking {path.name}"):
                digest.update(file.read(1 << 20))
    return digest.hexdigest()


def is_same(one: Path, other: Path) -> bool:
    """Whether two paths are the same file or folder, also through links or on a file system that
    ignores case."""
    try:
        return one.samefile(other)
    except OSError:  # one of them does not exist
        return one.resolve() == other.resolve()


# ── writing ──────────────────────────────────────────────────────────────────────────────────────

_begun: list[object] = []


@contextmanager
def unfinished() -> Iterator[None]:
    """Mark the block as writing: it cleans up after itself when it fails."""
    _begun.append(None)
    try:
        yield
    finally:
        _begun.pop()


def is_unfinished() -> bool:
    return bool(_begun)


@contextmanager
def new_folder(target: Path, replaces: Callable[[Path], bool]) -> Iterator[Path]:
    """Yield a folder to fill. It appears at `target` when the block ends without an error.

    Until then it is next to `target`, under a name that begins with a dot. If the block fails,
    nothing remains; if the process is killed, the next call cleans up. An existing folder stays
    complete until the new one is.

    Args:
        replaces: called with an existing folder that is not empty; if it returns False or raises,
            nothing is written.

    Raises:
        FileError: the target is not a folder, may not be replaced, or another process is writing
            to it; or the disk is full.
    """
    target = Path(os.path.abspath(target))
    if not target.name:
        raise FileError(f"{target}: is the root folder, expected a folder to create")
    old = _old(target)
    with named_errors(target, inside=True):
        if old.is_dir() and not target.exists():  # a process was killed between two renames
            old.rename(target)
        require_replaceable(target, replaces)
        target.parent.mkdir(parents=True, exist_ok=True)
        with unfinished(), _alone(target.with_name(f".{target.name}.new")) as work:
            yield work
            _sync(work)
            require_replaceable(target, replaces)
            _swap(work, target)


def require_replaceable(target: Path, replaces: Callable[[Path], bool]) -> None:
    """Raises FileError if `new_folder` may not write to `target`."""
    if not target.exists() and not target.is_symlink():
        return
    if target.is_symlink() or not target.is_dir():
        raise FileError(f"{target}: is not a folder, expected a folder or a new path")
    if target.samefile("."):
        raise FileError(f"{target}: is the current folder, expected another")
    if any(target.iterdir()) and not replaces(target):
        raise FileError(
            f"{target}: already exists, expected a new folder. "
            "To replace it, use --force or force=True"
        )


def holds_only(folder: Path, known: Callable[[str], bool], what: str) -> bool:
    """True if `known` accepts every name in a folder, so that it may be replaced.

    Raises:
        FileError: the folder contains something else. `what` names the expected contents.
    """
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not known(name):
            raise FileError(
                f"{folder}: already exists and contains {name}, expected only {what}. "
                "It is not replaced. Choose another folder"
            )
    return True


@contextmanager
def _alone(work: Path) -> Iterator[Path]:
    """An empty folder, locked for this process, and removed afterwards unless it was renamed.

    The lock is on the folder itself and ends with the process.
    """
    handle = _locked(work)
    mine = os.fstat(handle).st_ino if fcntl else work.stat().st_ino
    try:
        for left in work.iterdir():  # left by a killed process
            _remove(left)
        (work / "pid").write_text(str(os.getpid()))
        yield work
    finally:
        if work.exists() and work.stat().st_ino == mine:
            _clear(work)
        _release(handle)


def _clear(folder: Path) -> None:
    """Remove a folder as far as possible. Ctrl-C takes effect only afterwards."""
    try:
        shutil.rmtree(folder, ignore_errors=True)
    except BaseException as end:
        shutil.rmtree(folder, ignore_errors=True)
        if not isinstance(end, OSError):  # rmtree raises it if a handle cannot be closed
            raise


def _remove(path: Path) -> None:
    """Remove a file, a folder with its contents, or a link but not its target."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _locked(work: Path) -> int:
    """Create the folder, or take over one that a killed process left; returns the lock's handle."""
    if work.is_symlink():  # it could point anywhere
        work.unlink()
    try:
        work.mkdir(exist_ok=True)
        if not fcntl:
            return -1
        handle = os.open(work, os.O_RDONLY)
    except BaseException:  # Ctrl-C as well
        with suppress(OSError):  # if not empty, it belongs to another process
            work.rmdir()
        raise
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            who = (work / "pid").read_text() if (work / "pid").exists() else "another"
            raise FileBusy(
                f"{work}: process {who} is writing there. Wait for it, or end it"
            ) from None
        if not work.exists() or os.fstat(handle).st_ino != work.stat().st_ino:
            raise FileBusy(f"{work}: another process is writing there. Wait for it")
    except BaseException:
        os.close(handle)
        raise
    return handle


def _release(handle: int) -> None:
    """Unlock. Errors are ignored: everything was synced before."""
    with suppress(OSError):
        os.close(handle)


def _sync(folder: Path) -> None:
    """Remove the pid file, and wait until a folder's files are on the disk."""
    (folder / "pid").unlink()
    for path in sorted(folder.rglob("*")):
        fsync(path)
    fsync(folder)


def fsync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    if path.is_dir() and not fcntl:
        return  # Windows has no handles of folders
    handle = os.open(path, os.O_RDONLY if fcntl else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _swap(work: Path, target: Path) -> None:
    """Move a finished folder to its target; remove the old one only afterwards."""
    old = _old(target)
    _clear(old)
    try:
        if target.exists():
            work.chmod(stat.S_IMODE(target.stat().st_mode))
            target.rename(old)
        work.rename(target)
        fsync(target.parent)
    finally:  # also after an error or Ctrl-C: restore the old one, or remove it
        if old.exists() and not target.exists():
            os.rename(old, target)
        _clear(old)


def _old(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Lock a folder for writing, and remove what a killed process left in it.

    Raises:
        FileBusy: another process is writing to the folder.
    """
    folder = folder.resolve()  # `_locked` removes a link
    with named_errors(folder):
        handle = _locked(folder)
    with unfinished():
        try:
            with named_errors(folder, inside=True):
                (folder / "pid").write_text(str(os.getpid()))
                for left in folder.glob(".*.new"):
                    _remove(left)
            yield
        finally:
            (folder / "pid").unlink(missing_ok=True)
            _release(handle)


@contextmanager
def replaced(path: Path, own: str = "") -> Iterator[Path]:
    """Yield a path to write. The file replaces `path` when the block ends without an error.

    Args:
        own: part of its temporary name, for when several may write the file at the same time.

    Raises:
        FileError: the file cannot be written; the old file stays.
    """
    work = path.with_name(f".{path.name}{own}.new")
    with unfinished():
        try:
            with named_errors(path):
                yield work
                fsync(work)
                mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o666 & ~_umask()
                work.chmod(mode)
                work.replace(path)
                fsync(path.parent)
        finally:
            with suppress(OSError):  # it exists only after an error
                work.unlink()


def require_parent(path: Path) -> None:
    """Raises FileError if the folder that a file would be written to does not exist."""
    if not path.absolute().parent.is_dir():
        raise FileError(f"{path}: its folder does not exist, expected one to write to")


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 with \\n as newline on every system."""
    path.write_text(text, encoding="utf-8", newline="\n")


def take_alone(file: BinaryIO) -> None:
    """Lock a file that is being written, until it is closed.

    Raises:
        FileBusy: another process has locked it.
    """
    if not fcntl:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise FileBusy(f"{file.name}: another process is writing there. Wait for it") from None


def drop_alone(file: BinaryIO) -> None:
    """Remove a file that `take_alone` locked."""
    _let_go(file).unlink()


def put_alone(file: BinaryIO, path: Path) -> None:
    """Move a file that `take_alone` locked to `path`, and wait until it is on the disk."""
    work = _let_go(file)
    fsync(work)
    work.replace(path)
    fsync(path.parent)


def _let_go(file: BinaryIO) -> Path:
    """The file's path. Windows cannot move or remove an open file, so it is closed there."""
    if not fcntl:
        file.close()
    return Path(file.name)


@contextmanager
def output(path: Path) -> Iterator[Path]:
    """As `replaced`, for a file that the user named: follows links, and writes directly to a pipe
    or a device."""
    if path.exists() and not path.is_file():
        yield path
    else:
        with replaced(Path(os.path.realpath(path))) as work:
            yield work


def _umask() -> int:
    """The umask of this process. Reading it needs setting it."""
    umask = os.umask(0o077)
    os.umask(umask)
    return umask


def require_space(folder: Path, needed: int) -> None:
    """Raises FileError if a folder's disk has less than `needed` bytes free. It need not exist."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise FileError(f"{folder}: no space: needs {needed:,} bytes, free {free:,}")
