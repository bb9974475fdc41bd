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


@pytest.mark.parametrize("command", usage())
def test_a_command(command):
    words = shlex.split(command)
    assert words[0] == "npgpt2"
    arguments = [str(ROOT / "tests/data/tiny") if word == "DIR" else word for word in words[1:]]
    done = subprocess.run(
        [sys.executable, "-m", "npgpt2", *arguments], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert "error" not in done.stderr


def test_the_python(capsys):
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), {})
    out = capsys.readouterr().out
    assert "(1, 3, 512) (1, 4, 3, 3) KVCache(" in out


def test_the_file_tour_is_the_tree():
    toured = re.findall(r"^\| `([\w/.]+)` \|", README, re.MULTILINE)
    for path in toured:
        assert (ROOT / path).exists(), path
    modules = {f"npgpt2/{path.name}" for path in (ROOT / "npgpt2").glob("[!_]*.py")}
    assert modules <= set(toured)
