"""Other systems: hide what Windows lacks (`windows.py`); file names suit every file system."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import uncovered
from patience import watched

from npgpt2.base import files
from npgpt2.base.errors import FileError, OptionError
from npgpt2.checkpoints.convert import convert
from npgpt2_onnx import export

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests/data/tiny"
HERE, THERE = [], ["tests/windows.py"]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="hides what Linux has")


def start(*words):
    env = uncovered()
    argv = [sys.executable, *map(str, words)]
    return subprocess.Popen(argv, env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def python(*words):
    with watched(start(*words)) as process:
        out, err = process.communicate()
    assert process.returncode == 0, (words, err.decode())
    return out


# ── what is hidden ───────────────────────────────────────────────────────────────────────────────

HIDDEN = """
import os, signal, sys
from pathlib import Path

def refused(call, *args, **options):
    try:
        call(*args, **options)
    except Exception as error:
        return type(error)

for name in ("fcntl", "resource", "pwd", "termios"):
    assert refused(__import__, name) is ModuleNotFoundError, name
for name in ("fork", "geteuid", "mkfifo", "O_DIRECTORY", "sched_getaffinity", "killpg", "pread"):
    assert not hasattr(os, name), name
found = {name for name in dir(signal) if name.startswith("SIG") and "_" not in name}
assert found == {"SIGABRT", "SIGBREAK", "SIGFPE", "SIGILL", "SIGINT", "SIGSEGV", "SIGTERM"}, found
here = Path(sys.argv[1])
(here / "a").write_text("é\\n")
assert (here / "a").read_bytes() == "é\\r\\n".encode("cp1252")
(here / "folder").mkdir()
(here / "b").touch()
assert refused(os.open, here / "folder", os.O_RDONLY) is PermissionError
assert refused((here / "link").symlink_to, "a") is OSError
assert refused(Path.rename, here / "a", here / "b") is FileExistsError
assert refused(Path.replace, here / "a", here / "folder") is PermissionError
for name in ("x:y", "x ", "x.", "NUL", "com1.txt", "a?b"):
    assert refused((here / name).write_text, "") is OSError, name
    assert refused((here / name).mkdir) is OSError, name
(here / "folder" / "c").touch()
with (here / "folder" / "c").open():
    assert refused(Path.rename, here / "folder", here / "other") is PermissionError
    assert refused(Path.unlink, here / "folder" / "c") is PermissionError
(here / "folder").rename(here / "other")
import mmap
with (here / "a").open("rb") as file:
    held = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
assert refused(Path.replace, here / "b", here / "a") is PermissionError
held.close()
(here / "b").replace(here / "a")
"""


def test_what_windows_lacks_is_hidden(tmp_path):
    """Otherwise the tests below would test nothing."""
    python(*THERE, "-c", HIDDEN, tmp_path)


EVERY_MODULE = """
import importlib, pathlib, sys
for package, root in (("npgpt2", "npgpt2"), ("npgpt2_onnx", "export/npgpt2_onnx")):
    for path in sorted(pathlib.Path(root).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        name = ".".join((package, *(part for part in parts if part != "__init__")))
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            assert error.name == "ray", error
assert sys.modules["npgpt2.base.files"].fcntl is None
"""


def test_every_module_is_imported():
    python(*THERE, "-c", EVERY_MODULE)


# ── the commands ─────────────────────────────────────────────────────────────────────────────────

TRAIN = (
    "--steps 2 --threads 1 --vocab-size 300 --n-layer 1 --n-head 2 --n-embd 8 --n-positions 16 "
    "--batch-size 2"
)
COMMANDS = f"""
generate KING --temperature 0 --max-new-tokens 20
tokenize KING --json
inspect --model {TINY}
score {TINY}/generation_config.json --model {TINY} --json
convert {TINY} -o OUT/half --dtype float16
convert {TINY} -o OUT/half --dtype bfloat16 --max-shard-size 100KB --force
check OUT/half
export {TINY} -o OUT/onnx --precision int8
export {TINY} -o OUT/onnx --force --triton OUT/triton
generate KING --model OUT/onnx --engine onnx --temperature 0 --max-new-tokens 5
verify OUT/onnx --against {TINY}
golden write OUT/golden --model {TINY} --cases eight
golden check OUT/golden/golden.safetensors --against OUT/golden
explain KING --model {TINY} -o OUT/page.html --max-new-tokens 3 --seed 1
tokenize KING --model {TINY} --html OUT/tokens.html
batch OUT/in.jsonl -o OUT/batch --task generate --seed 1 --model {TINY} --workers 2
batch OUT/in.jsonl -o OUT/batch --task generate --seed 1 --model {TINY} --workers 2 --resume
train OUT/text.txt -o OUT/run {TRAIN}
train -o OUT/run --resume
""".strip().splitlines()
# Seconds stand in them; or OpenBLAS's kernel, which nobody chooses where NumPy is there before.
APART = {"run/log.jsonl", "run/loss.png", "golden/manifest.json", "golden/SHA256SUMS"}
ONE_AFTER_THE_OTHER = """
import sys
from npgpt2.cli import main
for line in sys.argv[1:]:
    assert main(line.split()) == 0, line
    print("=====")
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Every command here and there: its messages, and the folder that it writes."""
    found = []
    for how in (HERE, THERE):
        folder = tmp_path_factory.mktemp("out")
        words = (TINY / "merges.txt").read_text(encoding="utf-8").split()
        (folder / "text.txt").write_text(" ".join(words[:900]), encoding="utf-8")
        (folder / "in.jsonl").write_text('"The king"\n"The queen"\n')
        lines = [command.replace("OUT", str(folder)) for command in COMMANDS]
        out = python(*how, "-c", ONE_AFTER_THE_OTHER, *lines)
        found.append((out.replace(str(folder).encode(), b"OUT").split(b"=====\n"), folder))
    return found


@pytest.mark.parametrize("number", range(len(COMMANDS)), ids=COMMANDS)
def test_a_command_says_the_same(done, number):
    (here, _), (there, _) = done
    assert len(here) == len(there) == len(COMMANDS) + 1
    varies = re.compile(rb"\d+\.\d+ s|golden: [\d,]+ bytes")
    assert varies.sub(b"", here[number]) == varies.sub(b"", there[number])


def content(folder):
    """Every file below a folder, without the paths and times in it."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in APART:
            data = path.read_bytes().replace(str(folder).encode(), b"OUT")
            found[name] = re.sub(rb'("seconds": |OUT/\S+",\s+\d+,\s+)[\d.]+', rb"\1", data)
    return found


def test_every_file_is_the_same_to_the_byte(done):
    (_, here), (_, there) = done
    here, there = content(here), content(there)
    assert here.keys() == there.keys()
    assert [name for name in here if here[name] != there[name]] == []


def test_a_server_serves_and_ends():
    with watched(start(*THERE, "serve", "--model", TINY, "--port", "0")) as process:
        said = iter(process.stderr.readline, b"")
        ready = next(line for line in said if b"Ctrl-C ends it" in line)
        place = re.search(rb"(http://\S+),", ready)[1].decode()
        ask = f"import urllib.request; print(urllib.request.urlopen('{place}/readyz').status)"
        assert python("-c", ask) == b"200\n"
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate()
    assert (process.returncode, rest) == (130, b"npgpt2: the server has stopped\n")


# ── names ────────────────────────────────────────────────────────────────────────────────────────


def bad(names):
    """Names that one folder cannot have side by side, or that Windows does not allow."""
    forbidden = re.compile(
        r'.*[<>:"|?*\\\x00-\x1f].*|.*[. ]|(con|prn|aux|nul|(com|lpt)\d)(\..*)?', re.IGNORECASE
    )
    seen = {}
    for name in names:
        seen.setdefault(name.casefold(), []).append(name)
    twice = [found for found in seen.values() if len(found) > 1]
    return twice + [n for n in names if any(forbidden.fullmatch(part) for part in n.split("/"))]


def test_what_is_bad_of_names():
    assert bad(["a/b", "A/b", "c"]) == [["a/b", "A/b"]]
    assert bad(["x:y", "a/nul.txt", "a /b", "console", "a.b"]) == ["x:y", "a/nul.txt", "a /b"]


def test_names_of_the_repository():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True)
    if listed.returncode:
        pytest.skip("no git repository here")
    names = listed.stdout.decode().split("\0")[:-1]
    assert len(names) > 200
    assert bad(names) == []


def test_names_that_are_written(done):
    for _, folder in done:
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*")]
        assert len(names) > 60
        assert bad(names) == []


# ── one folder under two names ───────────────────────────────────────────────────────────────────


@pytest.fixture
def spelled(tmp_path, monkeypatch):
    """A checkpoint's folder, and the same path spelled in another way, as on a file system that
    ignores case: here a link, which hides that both paths are one folder."""
    folder = tmp_path / "model"
    folder.mkdir()
    for path in TINY.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (tmp_path / "Model").symlink_to("model")
    monkeypatch.setattr(Path, "resolve", lambda self, strict=False: self.absolute())
    assert (tmp_path / "Model").resolve() != folder.resolve()
    return folder, tmp_path / "Model"


def test_a_source_under_another_name_is_not_written_over(spelled):
    folder, other = spelled
    before = content(folder)
    with pytest.raises(FileError, match="the source is in this folder"):
        convert(folder, other, force=True)
    with pytest.raises(FileError, match="is the checkpoint itself"):
        export(folder, other, force=True)
    assert content(folder) == before


def test_weights_are_shared_in_a_folder_under_another_name(spelled):
    folder, other = spelled
    export(folder, other, share_weights=True, proof=False)
    assert (folder / "model.onnx").exists()
    with pytest.raises(OptionError, match="must be in the checkpoint's folder"):
        export(folder, folder.parent / "none", share_weights=True)


def test_what_is_the_same(tmp_path):
    (tmp_path / "a").touch()
    (tmp_path / "b").symlink_to("a")
    assert files.is_same(tmp_path / "a", tmp_path / "b")
    assert files.is_same(tmp_path / "no" / ".." / "none", tmp_path / "none")
    assert not files.is_same(tmp_path / "a", tmp_path / "none")
