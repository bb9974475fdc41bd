"""Every write path, when a call fails or the process is stopped: the target is old or new, whole.

Most faults run in forks of one warm process, see `faults.py`. With NPGPT2_FAULTS=all every call is
tried with every error, which takes minutes; `python tests/faults.py --kills 200` kills more.
"""

import io
import locale
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from command_line import runner, uncovered
from faults import AFTER, BEFORE, COMMANDS, TINY, Fault, Stand, content, kill, make_given, warm
from patience import PATIENCE
from safetensors.numpy import save

from npgpt2 import cli
from npgpt2.base import files
from npgpt2.base.errors import FileError
from npgpt2.checkpoints.formats.safetensors_file import WRITTEN, write

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes by fork here")
EVERY = os.environ.get("NPGPT2_FAULTS") == "all"
DEAR = {"bench": 3, "train": 7, "train --resume": 7}  # they draw a picture each time
TRIED = 10


@pytest.fixture(scope="module")
def process():
    with warm() as found:
        yield found


@pytest.fixture(scope="module")
def given(process, tmp_path_factory):
    return make_given(process, tmp_path_factory.mktemp("faults").resolve() / "given")


@pytest.fixture(scope="module")
def stand(process, given, tmp_path_factory):
    """Return a function: the name of a command → its `Stand`."""
    made = {}

    def find(name):
        if name not in made:
            folder = tmp_path_factory.mktemp("stand").resolve()
            made[name] = Stand(name, process, given, folder)
        return made[name]

    return find


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_call_that_fails(stand, name):
    tried = stand(name)
    faults = tried.faults(None if EVERY else DEAR.get(name, TRIED))
    wrong = [text for fault in faults if (text := tried.fails(fault))]
    assert wrong == []


def test_what_is_seen_of_what_is_written(process, stand):
    """Otherwise the tests above would test nothing."""
    calls = {call for call, _ in stand("convert over another").calls}
    wanted = {"open", "look", "mkdir", "rename", "sync", "remove", "chmod"}
    if process.library is None:
        pytest.skip("no C compiler: 'write', 'close' and what is not Python were not seen to fail")
    assert calls == wanted | {"write", "close", "copy"}
    native = [path for call, path in stand("generate --graph-cache").calls if call == "write"]
    assert any(path.endswith("model.onnx_data") for path in native)


SWIFT = [name for name in COMMANDS if name not in DEAR and "--force" in COMMANDS[name].argv]


@pytest.mark.slow
def test_kills(stand):
    ends, wrong = kill([stand(name) for name in SWIFT], 24, seed=1)
    assert wrong == []
    assert ends["SIGKILL, code -9"] == 24


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("name", ["convert over another", "golden write"])
def test_told_to_end_between_any_two_calls_of_the_last_ones(stand, name, end):
    """While folders change places and the old one is removed: nothing is left over."""
    tried = stand(name)
    swap = next(at for at, (call, _) in enumerate(tried.calls, 1) if call == "rename")
    last = range(swap, len(tried.calls) + 1)
    moments = [Fault(at, 0, end, moment) for at in last for moment in (BEFORE, AFTER)]
    found = [tried.ends(fault) for fault in (moments if EVERY else moments[:: len(moments) // 8])]
    assert [text for _, text in found if text] == []
    assert 128 + end in {code for code, _ in found}


def test_told_to_end_when_the_folder_was_just_made(stand):
    tried = stand("convert")
    codes = []
    for at in range(1, 6):
        for moment in (BEFORE, AFTER):
            code, wrong = tried.ends(Fault(at, 0, signal.SIGTERM, moment))
            assert wrong == ""
            codes.append(code)
    # At first there is nothing to clear up: it ends as any process does.
    begun = codes.index(143)
    assert codes == [-signal.SIGTERM] * begun + [143] * (len(codes) - begun)


def test_signals_are_as_before_when_a_command_is_over(capsys):
    numbers = signal.SIGTERM, signal.SIGHUP, signal.SIGINT
    before = [signal.getsignal(number) for number in numbers]
    assert runner(capsys)("info")[0] == 0
    assert [signal.getsignal(number) for number in numbers] == before


def test_nohup_is_respected(capsys, monkeypatch):
    seen = []
    monkeypatch.setattr(
        cli.info, "run", lambda _: seen.append(signal.getsignal(signal.SIGHUP)) or 0
    )
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert runner(capsys)("info")[0] == 0
    finally:
        signal.signal(signal.SIGHUP, before)
    assert seen == [signal.SIG_IGN]


def test_a_program_calls_a_command_in_a_thread_of_its_own(capsys):
    """There no signal handler can be set."""
    codes = []
    thread = threading.Thread(target=lambda: codes.append(cli.main(["tokenize", "x"])))
    thread.start()
    thread.join()
    assert codes == [0]


# ── a file that a person names ───────────────────────────────────────────────────────────────────


def test_a_link_that_is_named_stays_and_its_file_is_replaced(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "report").write_text("old")
    (tmp_path / "far" / "report").chmod(0o640)
    (tmp_path / "link").symlink_to("far/report")
    with files.output(tmp_path / "link") as work:
        work.write_text("new")
        assert (tmp_path / "link").read_text() == "old"
    assert os.readlink(tmp_path / "link") == "far/report"
    assert (tmp_path / "far" / "report").read_text() == "new"
    assert stat.S_IMODE((tmp_path / "far" / "report").stat().st_mode) == 0o640
    assert os.listdir(tmp_path / "far") == ["report"]


def test_a_pipe_that_is_named_is_written_to(tmp_path):
    """As with /dev/stdout. Root could replace a device by a file."""
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    with files.output(tmp_path / "pipe") as work:
        work.write_text("new")
    assert os.read(reader, 10) == b"new"
    os.close(reader)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert os.listdir(tmp_path) == ["pipe"]


def test_a_report_that_cannot_be_written_leaves_the_one_before(stand, capsys, monkeypatch):
    there = stand("golden check --html")
    there.begin()
    page = there.place / "out"
    page.write_text("old")
    monkeypatch.setattr(files, "fsync", lambda path: (_ for _ in ()).throw(OSError(28, "full")))
    golden = there.given / "golden"
    code, _, err = runner(capsys)(
        "golden", "check", golden / "golden.safetensors", "--against", golden, "--html", page
    )
    assert (code, err) == (4, f"npgpt2: error: {page}: full\n")
    assert content(there.place).keys() == {"out"}
    assert page.read_text() == "old"


# ── safetensors ──────────────────────────────────────────────────────────────────────────────────


def test_a_file_of_tensors_is_the_librarys_to_the_byte():
    """Every dtype, tensors without axes or values, names that JSON escapes."""
    numbers, tensors = np.random.default_rng(0), {}
    for i, name in enumerate(WRITTEN):
        dtype = np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
        for j, shape in enumerate([(), (3,), (0, 4), (2, 3, 5)]):
            array = np.asarray(numbers.random(shape) * 99).astype(dtype)
            tensors[f'{(7 * i + j) % 13} é "{name}" {j}\n\x7f'] = array
    for wanted in (tensors, {}):
        file = io.BytesIO()
        write(file, wanted)
        assert file.getvalue() == save(wanted, {"format": "pt"})


def test_big_endian_and_transposed_tensors_are_written_as_they_are_meant():
    x = np.arange(6, dtype=">f4").reshape(2, 3)
    one, other = io.BytesIO(), io.BytesIO()
    write(one, {"x": x.T})
    write(other, {"x": np.ascontiguousarray(x.T.astype("<f4"))})
    assert one.getvalue() == other.getvalue()


def test_a_writer_that_is_killed_leaves_no_name_that_the_next_does_not_take(stand):
    """The library writes files named .tmpXXXXXX."""
    tried = stand("checkpoint.save")
    names = {Path(path).name for call, path in tried.calls if call == "open"}
    assert {re.sub(r"^\.(.*)\.new$", r"\1", name) for name in names} == {
        "config.json", "generation_config.json", "model.safetensors",
    }  # fmt: skip


# ── what the output does not depend on ───────────────────────────────────────────────────────────


WRITES = {
    "convert": "convert {tiny} -o {out} --dtype float16",
    "export": "export {tiny} -o {out} --precision int8 --no-verify",
    "golden": "golden write {out} --model {tiny} --cases eight",
}
ALIKE = """
import os, sys
from npgpt2 import cli
os.umask(int(sys.argv[1], 8))
for argv in sys.argv[2:]:
    code = cli.main(argv.split(" "))
    if code: sys.exit(code)
"""


def outputs(folder, source=TINY, umask=0o022, cwd=None, **env):
    """The three folders as another process writes them: contents with modes."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("COV", "LC_", "LANG"))}
    lines = [line.format(tiny=source, out=folder / name) for name, line in WRITES.items()]
    argv = [sys.executable, "-c", ALIKE, f"{umask:o}", *lines]
    done = subprocess.run(
        argv, env=kept | env, cwd=cwd, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    return content(folder)


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    return outputs(tmp_path_factory.mktemp("usual"), PYTHONHASHSEED="0")


def some_locales():
    """C, UTF-8, and a locale with another lower case of I or a decimal comma."""
    found = ["C", "C.UTF-8"]
    for name in ("tr_TR.UTF-8", "az_AZ.UTF-8", "de_DE.UTF-8"):
        before = locale.setlocale(locale.LC_ALL)
        try:
            locale.setlocale(locale.LC_ALL, name)
            found.append(name)
        except locale.Error:
            pass
        finally:
            locale.setlocale(locale.LC_ALL, before)
    return found


@pytest.mark.parametrize("name", some_locales())
def test_the_locale_and_the_order_of_hashes(usual, tmp_path, name):
    """In the C locale, Python must not use UTF-8 mode either."""
    env = {"LC_ALL": name, "PYTHONHASHSEED": "7"}
    if name == "C":
        env |= {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    assert outputs(tmp_path / "ünï", **env) == usual


def test_the_umask_changes_modes_alone(usual, tmp_path):
    close = outputs(tmp_path / "out", umask=0o077)
    assert {name: what.split()[1] for name, what in close.items()} == {
        name: what.split()[1] for name, what in usual.items()
    }
    for found, modes in (
        (close, {"-rw-------", "drwx------"}),
        (usual, {"-rw-r--r--", "drwxr-xr-x"}),
    ):
        assert {what.split()[0] for what in found.values()} == modes


def test_what_else_lies_in_the_folder_and_where_one_stands(usual, tmp_path):
    source = shutil.copytree(TINY, tmp_path / "source")
    for name in ("notes.txt", ".hidden", "I'm odd ü\n", ".model.safetensors.new", ".tmpAbCdEf",
                 "pytorch_model.bin.part", "model.safetensors.part", "checkpoint.bak"):  # fmt: skip
        (source / name).write_bytes(b"\x80junk")
    for name in ("onnx", "checkpoint-7", ".git", ".source.new"):
        (source / name).mkdir()
        (source / name / "config.json").write_text("{")
    os.symlink("nowhere", source / "dangling")
    (tmp_path / "elsewhere").mkdir()
    assert outputs(tmp_path / "out", source=Path("../source"), cwd=tmp_path / "elsewhere") == usual


@pytest.mark.parametrize("engine", ["numpy", "onnx"])
def test_greedy_text_does_not_depend_on_threads(given, engine):
    texts = set()
    for threads in ("1", "2"):
        model = [TINY] if engine == "numpy" else [given / "onnx", "--engine", "onnx", "--threads"]
        model += [threads] * (engine == "onnx")
        argv = [sys.executable, "-m", "npgpt2", "generate", "The king", "--temperature", "0",
                "--max-new-tokens", "40", "--model", *map(str, model)]  # fmt: skip
        env = uncovered() | {"OPENBLAS_NUM_THREADS": threads}
        done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, done.stderr
        texts.add(done.stdout)
    assert len(texts) == 1


def test_a_disk_that_fails_says_which_of_its_files(tmp_path, monkeypatch):
    """It was 'None: …', from the note of the writing process in a run's folder."""

    def full(self, text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match=f"^{tmp_path}: No space left"), files.held(tmp_path):
        pass
