"""Run what README and docs show."""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from readme_commands import PAGES, README, blocks, setup, usage
from safetensors.numpy import save_file

from npgpt2 import GPT2, __version__
from npgpt2.golden.cases import CASES, Subject

ROOT = Path(__file__).parents[2]
WEB_MODULES = os.environ.get("WEB_MODULES")


def test_two_commands_do_all_set_up():
    first, second = setup()
    assert first.endswith('.venv/bin/npgpt2 generate "O Romeo,"')
    assert second.endswith(".venv/bin/pytest")


SENTENCES = [
    "Python is what the interpreter reads.",
    "Rain fell on the roof all night.",
    "Every gradient points up the hill, so we walk the other way.",
]


# What the Python of a page prints, in part.
PRINTED = {
    "README.md": ["(1, 2, 2048) (1, 8, 2, 2) KVCache(layers=6"],
    "docs/run.md": [" | length\n", "(1, 3, 2048) float32"],
    "docs/onnx.md": ["OnnxModel(model_gqa.onnx, fp32, CPUExecutionProvider"],
}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The results of every command, run in the order of the pages, in one folder."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "lang.txt").write_text("\n".join(SENTENCES * 7) + "\n")
    (folder / "TEXT").write_text(" ".join(f"{i} {line}" for i in range(60) for line in SENTENCES))
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in SENTENCES))
    (folder / "DIR").symlink_to(ROOT / "tests/data/tiny")
    shown = {}
    model = GPT2.from_pretrained(ROOT / "tests/data/tiny")
    CASES["eight"].compute(
        Subject(model), lambda name, a: shown.__setitem__(f"eight/{name}", a.copy())
    )
    save_file(shown, folder / "DUMP")
    if WEB_MODULES:
        (folder / "node_modules").symlink_to(WEB_MODULES)
    there = (command for command in usage() if not wants_npm(command) and not serves(command))
    results = {command: run(command, folder) for command in there}
    return results, folder


def serves(command):
    """Whether a command runs until it is stopped; `tests/serve` tests those."""
    return command.startswith("npgpt2 serve")


def wants_npm(command):
    """Whether a command needs npm's packages, which WEB_MODULES names. Nothing is installed."""
    return command.startswith("npm ") or ("--live" in command and not WEB_MODULES)


def run(command, folder):
    words = shlex.split(command)
    assert words[0] == "npgpt2"
    return subprocess.run(
        [sys.executable, "-m", "npgpt2", *words[1:]], capture_output=True, text=True, cwd=folder
    )


@pytest.mark.slow
@pytest.mark.parametrize("command", [command for command in usage() if not serves(command)])
def test_a_command(command, done):
    results, _ = done
    if wants_npm(command):
        if not WEB_MODULES:
            pytest.skip("packages of npm: WEB_MODULES names no folder with them")
        for package in shlex.split(command)[2:]:
            name, _, version = package.rpartition("@")
            about = json.loads((Path(WEB_MODULES) / name / "package.json").read_text())
            assert about["version"] == version
        return
    result = results[command]
    assert result.returncode == 0, result.stderr
    written = "rows in" in result.stderr  # of batch, whose results are files
    assert result.stdout.strip() or written
    assert "error" not in result.stderr


@pytest.mark.slow
def test_the_first_lesson_is_learnt(done):
    [lesson] = [out for command, out in done[0].items() if "--model lang" in command]
    assert lesson.stdout.startswith(" what the interpreter reads.")


AFTER_COMMANDS = "docs/start-port.md"  # its Python reads what its commands wrote


@pytest.mark.parametrize("page", [page for page in PAGES if page != AFTER_COMMANDS])
def test_the_python(page, capsys):
    """The blocks of a page share a folder: one finds the files that an earlier one wrote."""
    for block in blocks(page, "python"):
        exec(compile(block, page, "exec"), {})
    out = capsys.readouterr().out
    for words in PRINTED.get(page, ()):
        assert words in out


@pytest.mark.slow
def test_a_port_with_a_mistake(done, monkeypatch):
    """`check` says of the dump of the page's Python what the page says that it does."""
    monkeypatch.chdir(done[1])
    for block in blocks(AFTER_COMMANDS, "python"):
        exec(compile(block, AFTER_COMMANDS, "exec"), {})
    [shown] = blocks(AFTER_COMMANDS, "console")
    command, *lines = shown.splitlines()
    result = run(command.removeprefix("$ "), done[1])
    assert result.returncode == 1
    for line in lines:
        assert line == "…" or f"{line}\n" in result.stdout


@pytest.mark.slow
def test_the_javascript(done):
    """It writes what `generate` writes."""
    if not WEB_MODULES:
        pytest.skip("packages of npm: WEB_MODULES names no folder with them")
    [program] = [block for page in PAGES for block in blocks(page, "js")]
    folder = done[1]
    (folder / "generate.mjs").write_text(program)
    node = subprocess.run(["node", "generate.mjs"], cwd=folder, capture_output=True, text=True)
    text = GPT2.from_pretrained("shakespeare").generate(
        "O Romeo,", max_new_tokens=20, temperature=0
    )
    assert node.stdout == f"{text[0]}\n", node.stderr


def test_every_block_is_on_a_page_that_is_run():
    """`console` shows what is run elsewhere, `{code-cell}` is run while the site is built."""
    pages = {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")}
    elsewhere = {"docs/cuda.md"}  # tests/project/test_cuda_check.py
    assert [
        page
        for page in sorted(pages - set(PAGES) - elsewhere)
        if any(blocks(page, language) for language in ("sh", "python", "js"))
    ] == []
    assert pages >= set(PAGES) - {"README.md"}


def test_the_readme_is_short():
    assert README.count("\n") <= 150
    rooms = README.partition("\n## Rooms\n")[2].partition("\n## ")[0]
    assert rooms.count("\n| `") <= 15


def anchors(page):
    """The anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {"#" + re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_lead_somewhere():
    wrong = []
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for path, anchor in re.findall(r"\]\(([^)#:]*)(#[^)]*)?\)", page.read_text("utf-8")):
            target = page.parent / path if path else page
            if not target.exists() or (anchor and anchor not in anchors(target)):
                wrong.append((page.name, path + anchor))
    assert wrong == []


def test_the_changelog_begins_with_this_version():
    changes = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert re.search(r"^## (\S+)", changes, re.MULTILINE)[1] == __version__


def paragraphs(path, most):
    doc = ast.get_docstring(ast.parse(path.read_text("utf-8")))
    return " ".join(" ".join(doc.split("\n\n")[:most]).split())


def rows(page):
    text = (ROOT / page).read_text("utf-8")
    return dict(re.findall(r"^\| `([\w/.]+)` \| (.+) \|$", text, re.MULTILINE))


def test_the_rooms_are_the_tree_in_the_words_of_their_docstrings():
    """Two paragraphs for each folder; one for a single file, and in the README."""
    expected, first = {}, {}
    for package in ("npgpt2", "export/npgpt2_onnx"):
        for path in (ROOT / package).rglob("*/__init__.py"):
            name = f"{path.parent.relative_to(ROOT).as_posix()}/"
            expected[name], first[name] = paragraphs(path, 2), paragraphs(path, 1)
        for path in (ROOT / package).glob("[!_]*.py"):
            name = path.relative_to(ROOT).as_posix()
            expected[name] = first[name] = paragraphs(path, 1)
    said = rows("docs/architecture.md")
    assert {name: text for name, text in said.items() if "npgpt2" in name} == expected
    others = {name for name in said.keys() - expected.keys() if "/" in name}
    assert others == {"tests/", "benchmarks/"}
    short = {name: text for name, text in rows("README.md").items() if "npgpt2" in name}
    assert short.items() <= first.items()
    folders = {name for name in expected if name.endswith("/")}
    assert folders - short.keys() == {"npgpt2/checkpoints/formats/"}
