"""The pages of `docs/` as a site: what is made from the code, and what a browser shows."""

import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from browser import picture

from npgpt2 import GPT2Config
from npgpt2.cli import COMMANDS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS))
PAGES = sorted(path.relative_to(DOCS).with_suffix("").as_posix() for path in DOCS.rglob("*.md"))


def source(page):
    pytest.importorskip("sphinx", reason="the extra 'docs' is not installed")
    import from_code

    return from_code.expand((DOCS / f"{page}.md").read_text("utf-8"))


def test_every_page_is_in_the_table_of_contents():
    listed = re.findall(r"^([\w/-]+)$", (DOCS / "index.md").read_text("utf-8"), re.MULTILINE)
    assert sorted([*listed, "index"]) == PAGES


def test_the_reference_is_the_codes():
    commands = source("reference/commands")
    for module in COMMANDS:
        assert f"## npgpt2 {module.__name__.rpartition('.')[2]}\n" in commands
    assert "`--temperature T`\n: " in commands
    for name in GPT2Config.__dataclass_fields__:
        said = re.search(rf"^`{name}: .+`\n: (.+)$", source("reference/config"), re.MULTILINE)
        assert len(said[1]) > 5
    assert "| `OptionError` | `ValueError` | 2 |" in source("reference/errors")
    assert "| `h.N.attn.probs` | `B × H × T × S` |" in source("reference/names")
    folder = source("reference/folder")
    assert (
        "| `past_key_values.N.key` | `(batch_size, 4, past_sequence_length, 16)` | `float32` |"
        in folder
    )
    assert "### model_gqa.onnx" in folder
    golden = source("reference/golden")
    assert "| erf GELU | your GELU is the erf form" in golden
    rows = [line for line in golden.splitlines() if line.startswith("| ")]
    assert len(rows) == len(set(rows)) > 60
    assert "## npgpt2 golden write\n" in commands
    assert "`--cases NAME …`" in commands


@pytest.mark.parametrize("page", PAGES)
def test_nothing_of_the_code_is_left_over(page):
    """No placeholder, template or name of a class; no | that ends a cell of a table."""
    text = source(page)
    assert not re.search(r"from the code: \w+ -->|%\(|<class '|^\*\(", text, re.MULTILINE)
    assert not re.search(r"^(?!\|).*`[^`\n]*\\\|[^`\n]*`", text, re.MULTILINE)


def test_every_public_name_is_in_the_reference():
    text = (DOCS / "reference/python.md").read_text("utf-8")
    for package in ("npgpt2", "npgpt2.train", "npgpt2.golden", "npgpt2_onnx"):
        for name in set(import_module(package).__all__) - {"__version__"}:
            assert f"{package}.{name}" in text


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Built without a warning; where SITE names one that was, that one."""
    if "SITE" in os.environ:
        return Path(os.environ["SITE"])
    pytest.importorskip("furo", reason="the extra 'docs' is not installed")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "docs", folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_no_page_asks_another_server(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > len(PAGES)
    for page in pages:
        loaded = re.findall(
            r"<(?:script|img|link|iframe)\b[^>]*?(?:src|href)=\"(.*?)\"", page.read_text()
        )
        assert [url for url in loaded if ":" in url or url.startswith("//")] == [], page


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light")])
def test_on_every_screen(site, watched, width, scheme):
    """Each page fits its width, makes no request beyond the folder, and no error."""
    page = watched.open((site / "index.html").as_uri(), width, scheme)
    for name in PAGES:
        page.goto((site / f"{name}.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        dark = (
            page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
        )
        assert dark == (scheme == "dark")
        picture(page, f"{name.replace('/', '-')}-{width}-{scheme}", least=500, dense=20_000)
    assert all(url.startswith(site.as_uri()) for url in watched.requests)


@pytest.mark.slow
def test_search_needs_no_server(site, watched):
    page = watched.open((site / "index.html").as_uri())
    page.fill("input[name=q]", "perplexity")
    page.press("input[name=q]", "Enter")
    page.locator("#search-results li a", has_text="Glossary").first.wait_for()
    assert all(url.startswith(site.as_uri()) for url in watched.requests)
