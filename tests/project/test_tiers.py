"""The quick tests cover every test file, so that plain `pytest` tests every room."""

import ast
from pathlib import Path

LATE = {"test_large.py"}  # what is there for .ci/long alone


def is_late(decorators):
    return any(mark in ast.dump(one) for one in decorators for mark in ("'slow'", "'long'"))


def quick_tests(source):
    """The number of tests in a file that are neither slow nor long."""
    body = ast.parse(source).body
    marks = [node for node in body if ast.unparse(node).startswith("pytestmark")]
    tests = [node for node in body
             if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]  # fmt: skip
    return 0 if is_late(marks) else sum(not is_late(test.decorator_list) for test in tests)


def test_every_file_has_a_quick_test():
    found = {
        path.name: path.read_text("utf-8") for path in Path(__file__).parents[1].rglob("test_*.py")
    }
    assert len(found) > 50
    assert {name for name, source in found.items() if not quick_tests(source)} == LATE


def test_a_file_without_one_is_seen():
    slow = "@pytest.mark.slow\ndef test_a(): pass\n"
    assert quick_tests(slow) == 0
    assert quick_tests(f"{slow}def test_b(): pass\n") == 1
    assert quick_tests("pytestmark = pytest.mark.long\ndef test_b(): pass\n") == 0
