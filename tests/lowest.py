"""Print the lowest supported versions of the dependencies, as arguments for pip.

    pip install $(python tests/lowest.py) -e '.[test]'
    python tests/lowest.py --check      # are these versions installed?

They are the bounds in pyproject.toml, their only source. Standard library only, also for Python
3.10, which has no tomllib.
"""

import re
import sys
from pathlib import Path

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


def bounds(text=None):
    """The lowest version by name, of the `dependencies` in a pyproject.toml's text.

    >>> bounds('dependencies = [\\n  "numpy>=2.0",\\n  "onnx>=1.17",  # why\\n]\\n')
    {'numpy': '2.0', 'onnx': '1.17'}
    """
    text = PYPROJECT.read_text(encoding="utf-8") if text is None else text
    block = re.search(r"^dependencies = \[\n(.*?)^\]", text, re.DOTALL | re.MULTILINE)
    lines = block.group(1).splitlines() if block else []
    found = [re.match(r'\s*"([\w-]+)>=([\d.]+)",', line) for line in lines]
    if not found or None in found:
        sys.exit(f"{PYPROJECT}: dependencies: expected a NAME>=VERSION on each line")
    return {match[1]: match[2] for match in found if match}


def check():
    """One line for each package that is installed in another version."""
    from importlib.metadata import distributions

    here = {found.metadata["Name"].lower(): found.version for found in distributions()}
    wrong = [f"{name}: {here.get(name)} is installed, expected {bound}"
             for name, bound in bounds().items()
             if not f"{here.get(name)}.".startswith(f"{bound}.")]  # fmt: skip
    return "\n".join(wrong)


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        sys.exit(check() or 0)
    print(*(f"{name}=={bound}" for name, bound in bounds().items()))
