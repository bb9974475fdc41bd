"""Print the lowest supported versions of the dependencies, as pip takes them.

    pip install $(python tests/lowest.py) -e '.[test]'

They are the bounds in pyproject.toml, where they stand once. Standard library only, also of Python
3.10, which has no tomllib.
"""

import re
import sys
from pathlib import Path

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


def lowest(text):
    """The requirements in `dependencies` of a pyproject.toml's text, each at its bound.

    >>> lowest('dependencies = [\\n  "numpy>=2.0",\\n  "onnx>=1.17",  # why\\n]\\n')
    ['numpy==2.0', 'onnx==1.17']
    """
    block = re.search(r"^dependencies = \[\n(.*?)^\]", text, re.DOTALL | re.MULTILINE)
    lines = block.group(1).splitlines() if block else []
    found = [re.match(r'\s*"([\w-]+)>=([\d.]+)",', line) for line in lines]
    if not found or None in found:
        sys.exit(f"{PYPROJECT}: dependencies: expected a NAME>=VERSION on each line")
    return [f"{match[1]}=={match[2]}" for match in found if match]


if __name__ == "__main__":
    print(*lowest(PYPROJECT.read_text(encoding="utf-8")))
