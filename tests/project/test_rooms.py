"""The rooms of the packages. `lint-imports` checks who imports whom."""

from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_reference_is_read_in_one_sitting():
    files = (ROOT / "npgpt2" / "model").glob("*.py")
    assert 1000 < sum(path.read_text("utf-8").count("\n") for path in files) <= 1200


def test_each_room_has_its_own_tests():
    for package, tests in (("npgpt2", "tests"), ("export/npgpt2_onnx", "tests/npgpt2_onnx")):
        rooms = [path.parent.name for path in (ROOT / package).glob("*/__init__.py")]
        assert len(rooms) >= 3
        for room in rooms:
            assert list((ROOT / tests / room).glob("test_*.py")), room
