"""The README's blocks of code, for those who run them: `.ci/run` and `test_readme.py`."""

import re
import sys
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def shell():
    """Every command line of the README, without its comment."""
    lines = [line for block in blocks("sh") for line in block.splitlines() if line.strip()]
    return [re.sub(r"\s+# .*", "", line) for line in lines]


def setup():
    """The two commands that do all set-up."""
    return [line for line in shell() if ".venv" in line]


def usage():
    """The others."""
    return [line for line in shell() if ".venv" not in line]


if __name__ == "__main__":
    print("\n".join(globals()[sys.argv[1]]()))
