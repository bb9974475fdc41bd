"""The code blocks of README and docs, which `.ci/run` and `test_readme.py` run."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
# Pages whose commands and Python are run, in this order and in one folder.
PAGES = (
    "README.md",
    *(
        f"docs/{name}.md"
        for name in (
            "index", "start-run", "start-deploy", "start-port", "run", "explain", "onnx", "train",
            "golden", "convert", "reference/errors", "reference/names",
        )
    ),
)  # fmt: skip


def blocks(page, language):
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def shell():
    """Every command line without its comment; of the README also those in its table."""
    lines = [
        line
        for page in PAGES
        for block in blocks(page, "sh")
        for line in block.splitlines()
        if line
    ]
    table = re.findall(r"^\| .* \| `(npgpt2 [^`]+)` \|", README, re.MULTILINE)
    return list(dict.fromkeys(re.sub(r"\s+# .*", "", line) for line in [*lines, *table]))


def setup():
    """The two commands that set everything up."""
    return [line for line in shell() if ".venv" in line]


def usage():
    """All other commands."""
    return [line for line in shell() if ".venv" not in line]


if __name__ == "__main__":
    print("\n".join(globals()[sys.argv[1]]()))
