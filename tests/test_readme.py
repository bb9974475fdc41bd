"""What the README says is run."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from readme_commands import README, blocks, setup, usage

ROOT = Path(__file__).parents[1]


def test_two_commands_do_all_set_up():
    first, second = setup()
    assert first.endswith("--model tests/data/tiny")
    assert second.endswith(".venv/bin/pytest")


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """A path that the README's export writes."""
    folder = tmp_path_factory.mktemp("readme") / "OUT"
    [command] = [command for command in usage() if " export " in command]
    assert run(command, folder).returncode == 0
    return folder


def run(command, folder):
    words = shlex.split(command)
    assert words[0] == "npgpt2"
    places = {"DIR": str(ROOT / "tests/data/tiny"), "OUT": str(folder)}
    arguments = [places.get(word, word) for word in words[1:]]
    return subprocess.run(
        [sys.executable, "-m", "npgpt2", *arguments], capture_output=True, text=True, cwd=ROOT
    )


@pytest.mark.parametrize("command", usage())
def test_a_command(command, out, tmp_path):
    done = run(command, tmp_path / "OUT" if " export " in command else out)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert "error" not in done.stderr


def test_the_python(capsys):
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), {})
    out = capsys.readouterr().out
    assert "(1, 3, 512) (1, 4, 3, 3) KVCache(" in out
    assert "OnnxModel(model_gqa.onnx, fp32, CPUExecutionProvider" in out


def test_the_file_tour_is_the_tree():
    tour = README.partition("## File tour")[2]
    toured = re.findall(r"^\| `([\w/.]+)` \|", tour, re.MULTILINE)
    for path in toured:
        assert (ROOT / path).exists(), path
    for package in ("npgpt2", "export/npgpt2_onnx"):
        modules = {f"{package}/{path.name}" for path in (ROOT / package).glob("[!_]*.py")}
        assert modules <= set(toured)
