"""Folders are written whole or not at all: what stands at the target, beside it, and when."""

import os
import shutil
import signal
import stat
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
from command_line import uncovered
from patience import PATIENCE

from npgpt2.base import files
from npgpt2.base.errors import FileError
from npgpt2.base.files import new_folder, require_space


def always(folder):
    return True


def never(folder):
    return False


def fill(target, text="new", replaces=always):
    """Write a folder with a file and a folder in it."""
    with new_folder(target, replaces) as work:
        (work / "inner").mkdir()
        (work / "inner" / "data").write_text(text)
        (work / "note").write_text(text)


def fail(target, error):
    """Begin to write a folder, and end by an error."""
    with new_folder(target, always) as work:
        (work / "note").write_text("half")
        raise error


def content(folder):
    """Every file below a folder: its name and bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def filled(text="new"):
    return {"inner/data": text.encode(), "note": text.encode()}


def beside(target):
    return sorted(path.name for path in target.parent.iterdir())


@pytest.fixture
def target(tmp_path):
    return tmp_path / "out"


# ── the target ───────────────────────────────────────────────────────────────────────────────────


def test_it_appears_when_the_block_ends(target):
    with new_folder(target, never) as work:
        (work / "note").write_text("x")
        assert not target.exists()
        assert work.parent == target.parent
    assert content(target) == {"note": b"x"}
    assert beside(target) == ["out"]


def test_parents_are_made(tmp_path):
    fill(tmp_path / "a" / "b" / "c")
    assert content(tmp_path) == {f"a/b/c/{name}": data for name, data in filled().items()}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_of_a_block_that_fails_nothing_remains(target, error):
    for there in (False, True):
        if there:
            fill(target, "old")
        with pytest.raises(error):
            fail(target, error)
        assert beside(target) == ["out"] * there
    assert content(target) == filled("old")


def test_a_folder_that_is_there_is_replaced_where_the_caller_says_so(target):
    fill(target, "old")
    (target / "more").write_text("")
    with pytest.raises(FileError, match=r"out: already exists.*"):
        fill(target, replaces=never)
    assert content(target) == filled("old") | {"more": b""}
    asked = []
    with new_folder(target, lambda folder: asked.append(folder) or True) as work:
        assert content(target) == filled("old") | {"more": b""}
        (work / "only").write_text("")
    assert set(asked) == {target}
    assert content(target) == {"only": b""}
    assert beside(target) == ["out"]


def test_an_empty_folder_is_taken(target):
    target.mkdir()
    fill(target, replaces=never)
    assert content(target) == filled()


def test_a_folder_that_comes_meanwhile_stays(target):
    def meanwhile():
        with new_folder(target, never) as work:
            (work / "mine").write_text("")
            target.mkdir()
            (target / "theirs").write_text("")

    with pytest.raises(FileError, match="out: already exists"):
        meanwhile()
    assert content(target) == {"theirs": b""}
    assert beside(target) == ["out"]


KINDS = {
    "a file": lambda path: path.write_text("mine"),
    "an empty file": Path.touch,
    "a FIFO": os.mkfifo,
    "a link to a folder": lambda path: path.symlink_to("elsewhere"),
    "a link to an empty folder": lambda path: path.symlink_to("empty"),
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
}


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_what_is_no_folder_stays(target, make):
    fill(target.with_name("elsewhere"), "theirs")
    target.with_name("empty").mkdir()
    make(target)
    before = os.lstat(target)
    with pytest.raises(FileError, match="out: is not a folder, expected a folder or a new path"):
        fill(target)
    assert os.lstat(target)[:8] == before[:8]
    assert beside(target) == ["elsewhere", "empty", "out"]
    assert content(target.with_name("elsewhere")) == filled("theirs")


@pytest.mark.parametrize("name", ["/", "x" * 300, "file/below"])
def test_names_that_cannot_be(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(FileError):
        fill(tmp_path / name)
    assert beside(tmp_path / "file") == ["file"]


@pytest.mark.parametrize("name", ["with space", "ünï 漢 🙂", "-x", "~x", ".dot", "a\nb", "x" * 240])
def test_names_that_can(tmp_path, name):
    fill(tmp_path / name)
    assert beside(tmp_path / name) == [name]
    assert content(tmp_path / name) == filled()


def test_the_folder_one_stands_in(tmp_path, monkeypatch):
    """`-o .` in an empty folder: refused, or filled; a shell there must not be left in a folder
    that is gone."""
    monkeypatch.chdir(tmp_path)
    try:
        fill(Path("."), replaces=never)
    except FileError:
        assert beside(tmp_path / "x") == []
    else:
        assert content(Path(".")) == filled()
    assert os.path.samefile(".", tmp_path)


def test_a_block_may_change_the_folder_it_stands_in(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with new_folder(Path("out"), never) as work:
        (work / "note").touch()
        os.chdir(tmp_path)
    assert content(tmp_path) == {"here/out/note": b""}


# ── modes ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_the_umask_is_kept(target, umask):
    before = os.umask(umask)
    try:
        fill(target)
    finally:
        os.umask(before)
    for path in (target, *target.rglob("*")):
        mode = 0o777 if path.is_dir() else 0o666
        assert stat.S_IMODE(path.stat().st_mode) == mode & ~umask, path


def test_the_mode_of_a_folder_that_is_replaced_is_kept(target):
    """A group's folder stays the group's."""
    fill(target, "old")
    target.chmod(0o2770)
    fill(target)
    assert stat.S_IMODE(target.stat().st_mode) == 0o2770


# ── the disk ─────────────────────────────────────────────────────────────────────────────────────


def test_everything_is_on_the_disk_before_it_appears(target, monkeypatch):
    fill(target, "old")
    synced = []

    def record(handle, real=os.fsync):
        synced.append((os.fstat(handle).st_ino, content(target)))
        real(handle)

    monkeypatch.setattr(os, "fsync", record)
    fill(target)
    numbers = {path: path.stat().st_ino for path in (target, *target.rglob("*"))}
    early = [number for number, seen in synced if seen == filled("old")]
    assert sorted(early) == sorted(numbers.values())
    assert synced[-1] == (target.parent.stat().st_ino, filled())  # the new name is there as well


@pytest.mark.parametrize("errno_", [5, 28])
def test_a_disk_that_fails_at_the_end(target, monkeypatch, errno_):
    fill(target, "old")

    def fail(handle):
        raise OSError(errno_, os.strerror(errno_))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(FileError, match=os.strerror(errno_)):
        fill(target)
    assert content(target) == filled("old")
    assert beside(target) == ["out"]


FULL = """
import resource, signal, sys
from pathlib import Path
from npgpt2.base.files import new_folder
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
with new_folder(Path(sys.argv[1]), lambda folder: True) as work:
    (work / "note").write_bytes(bytes(1000))
"""


@pytest.mark.parametrize("size", [0, 500])
def test_a_disk_that_is_full(target, size):
    """As a limit on the size of files; 0: not even the note of who writes finds room."""
    fill(target, "old")
    done = python(FULL, target, size)
    assert "npgpt2.base.errors.FileError" in done.stderr
    assert content(target) == filled("old")
    assert beside(target) == ["out"]


Usage = namedtuple("Usage", "total used free")


def test_room_on_the_disk(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: asked.append(path) or Usage(9, 9, 1234))
    require_space(tmp_path, 1234)
    with pytest.raises(FileError) as caught:
        require_space(tmp_path / "to" / "come", 1_234_567)
    assert str(caught.value) == f"{tmp_path}: no space: needs 1,234,567 bytes, free 1,234"
    assert asked == [tmp_path, tmp_path]


# ── processes that are killed, and others ────────────────────────────────────────────────────────


def python(code, *args):
    argv = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.run(argv, capture_output=True, text=True, env=uncovered(), timeout=PATIENCE)


def test_what_a_killed_process_left_is_cleared(target):
    left = target.with_name(".out.new")
    (left / "inner" / "deep").mkdir(parents=True)
    for name in ("pid", "note", "inner/data", "inner/deep/x", "other"):
        (left / name).write_text("left")
    (left / "link").symlink_to(target.parent)
    fill(target)
    assert content(target) == filled()
    assert beside(target) == ["out"]


def test_a_link_under_the_working_name_is_not_followed(target, tmp_path):
    """In a folder that others write in, it could point anywhere: that place was cleared."""
    fill(tmp_path / "precious", "theirs")
    target.with_name(".out.new").symlink_to("precious")
    try:
        fill(target)
    except FileError:
        assert not target.exists()
    assert content(tmp_path / "precious") == filled("theirs")


@pytest.mark.parametrize("good", [True, False], ids=["then written", "then failing"])
def test_a_kill_between_two_renames_is_recovered(target, good):
    fill(target, "old")
    target.rename(target.with_name(".out.old"))
    fill(target.with_name(".out.new"), "half")
    if good:
        fill(target)
    else:
        with pytest.raises(ZeroDivisionError):
            fail(target, ZeroDivisionError)
    assert content(target) == filled("new" if good else "old")
    assert beside(target) == ["out"]


def test_a_kill_before_the_old_one_is_gone(target):
    fill(target, "newer")
    fill(target.with_name(".out.old"), "older")
    with pytest.raises(ZeroDivisionError):
        fail(target, ZeroDivisionError)
    assert content(target) == filled("newer")
    fill(target)
    assert content(target) == filled()
    assert beside(target) == ["out"]


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt, SystemExit])
def test_an_end_between_the_two_renames(target, monkeypatch, error):
    """By the disk, Ctrl-C or SIGTERM: the old one stands again."""
    fill(target, "old")
    rename, calls = Path.rename, []

    def stop(self, to):
        calls.append(self.name)
        if len(calls) == 2:
            raise error
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", stop)
    with pytest.raises((FileError, KeyboardInterrupt, SystemExit)):
        fill(target)
    assert len(calls) >= 2
    assert target.is_dir()
    assert content(target) in (filled("old"), filled("new"))
    assert beside(target) == ["out"]


def test_a_second_writer_is_told_of_the_first(target):
    fill(target, "old")
    with new_folder(target, always) as work:
        (work / "note").write_text("first")
        with pytest.raises(FileError) as caught:
            fill(target)
        assert f"process {os.getpid()} is writing there. Wait for it, or end it" in str(
            caught.value
        )
        assert (work / "note").read_text() == "first"
    assert content(target) == {"note": b"first"}
    assert beside(target) == ["out"]


def test_a_second_writer_that_begins_while_the_first_ends(target, monkeypatch):
    """The first has its folder in place and clears up: not what the second has begun."""
    fill(target, "old")
    work, begun = target.with_name(".out.new"), []

    def sync(handle, real=os.fsync):
        real(handle)
        if os.fstat(handle).st_ino == target.parent.stat().st_ino:
            second = new_folder(target, always)
            try:
                (second.__enter__() / "theirs").write_text("second")
            except FileError:  # told to wait: as good
                return
            begun.append(second)

    monkeypatch.setattr(os, "fsync", sync)
    fill(target)
    monkeypatch.undo()
    assert content(target) == filled()
    if begun:
        assert (work / "theirs").read_text() == "second"
        begun[0].__exit__(None, None, None)
        assert content(target) == {"theirs": b"second"}
    assert beside(target) == ["out"]


HOLD = """
import sys, time
from pathlib import Path
from npgpt2.base.files import new_folder
with new_folder(Path(sys.argv[1]), lambda folder: True) as work:
    (work / "half").write_text("x")
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(files.fcntl is None, reason="no locks on this system")
def test_a_writer_that_is_killed(target):
    fill(target, "old")
    argv = [sys.executable, "-c", HOLD, str(target)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=uncovered()) as process:
        assert process.stdout.readline() == "ready\n"
        with pytest.raises(FileError, match=f"process {process.pid} is writing there"):
            fill(target)
        process.send_signal(signal.SIGKILL)
    assert content(target) == filled("old")
    assert beside(target) == [".out.new", "out"]
    fill(target)
    assert content(target) == filled()
    assert beside(target) == ["out"]


def test_locks_that_the_system_has_not(target, monkeypatch):
    monkeypatch.setattr(files, "fcntl", None)
    fill(target, "old")
    fill(target)
    assert content(target) == filled()
    assert beside(target) == ["out"]
