"""What the README says is run."""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from readme_commands import README, blocks, setup, usage
from safetensors.numpy import save_file

from npgpt2 import GPT2, __version__
from npgpt2.golden.cases import CASES, Subject

ROOT = Path(__file__).parents[2]
WEB_MODULES = os.environ.get("WEB_MODULES")


def test_two_commands_do_all_set_up():
    first, second = setup()
    assert first.endswith('.venv/bin/npgpt2 generate "O Romeo, "')
    assert second.endswith(".venv/bin/pytest")


SENTENCES = [
    "Python is what the interpreter reads.",
    "Rain fell on the roof all night.",
    "Every gradient points up the hill, so we walk the other way.",
]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Every command of the README, run in its order, in one folder."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "lang.txt").write_text("\n".join(SENTENCES * 7) + "\n")
    (folder / "TEXT").write_text(" ".join(f"{i} {line}" for i in range(60) for line in SENTENCES))
    (folder / "DIR").symlink_to(ROOT / "tests/data/tiny")
    shown = {}
    model = GPT2.from_pretrained(ROOT / "tests/data/tiny")
    CASES["eight"].compute(
        Subject(model), lambda name, a: shown.__setitem__(f"eight/{name}", a.copy())
    )
    save_file(shown, folder / "DUMP")
    if WEB_MODULES:
        (folder / "node_modules").symlink_to(WEB_MODULES)
    return {command: run(command, folder) for command in usage() if not wants_npm(command)}


def wants_npm(command):
    """Packages of npm are those that WEB_MODULES names; nothing is installed here."""
    return command.startswith("npm ") or ("--live" in command and not WEB_MODULES)


def run(command, folder):
    words = shlex.split(command)
    assert words[0] == "npgpt2"
    return subprocess.run(
        [sys.executable, "-m", "npgpt2", *words[1:]], capture_output=True, text=True, cwd=folder
    )


@pytest.mark.slow
@pytest.mark.parametrize("command", usage())
def test_a_command(command, done):
    if wants_npm(command):
        if not WEB_MODULES:
            pytest.skip("packages of npm: WEB_MODULES names no folder with them")
        for package in shlex.split(command)[2:]:
            name, _, version = package.rpartition("@")
            about = json.loads((Path(WEB_MODULES) / name / "package.json").read_text())
            assert about["version"] == version
        return
    result = done[command]
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()
    assert "error" not in result.stderr


@pytest.mark.slow
def test_the_first_lesson_is_learnt(done):
    [lesson] = [out for command, out in done.items() if "--model lang" in command]
    assert lesson.stdout.startswith(" what the interpreter reads.")


def test_the_python(capsys):
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), {})
    out = capsys.readouterr().out
    assert "(1, 3, 2048) (1, 8, 3, 3) KVCache(layers=6" in out
    assert "OnnxModel(model_gqa.onnx, fp32, CPUExecutionProvider" in out


def test_links_lead_somewhere():
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    links = [(page, link) for page in pages
             for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text("utf-8"))]  # fmt: skip
    assert len(links) >= 4
    assert [(page.name, link) for page, link in links if not (page.parent / link).exists()] == []


def test_the_changelog_begins_with_this_version():
    changes = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert re.search(r"^## (\S+)", changes, re.MULTILINE)[1] == __version__


def paragraphs(path, most):
    doc = ast.get_docstring(ast.parse(path.read_text("utf-8")))
    return " ".join(" ".join(doc.split("\n\n")[:most]).split())


def test_the_rooms_are_the_tree_in_the_words_of_their_docstrings():
    """Two paragraphs of each folder; of a file that stands beside them, one."""
    table = README.partition("\n## Rooms\n")[2].partition("\n## ")[0]
    said = dict(re.findall(r"^\| `([\w/.]+)` \| (.+) \|$", table, re.MULTILINE))
    expected = {}
    for package in ("npgpt2", "export/npgpt2_onnx"):
        for path in (ROOT / package).rglob("*/__init__.py"):
            expected[f"{path.parent.relative_to(ROOT).as_posix()}/"] = paragraphs(path, 2)
        for path in (ROOT / package).glob("[!_]*.py"):
            expected[path.relative_to(ROOT).as_posix()] = paragraphs(path, 1)
    assert {name: text for name, text in said.items() if "npgpt2" in name} == expected
    assert said.keys() - expected.keys() == {"tests/", "benchmarks/"}
