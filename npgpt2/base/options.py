"""Options as fields of a dataclass: each default, range and text of help stands once, at the field.

The command line makes its arguments of them, and the dataclass holds its values against them.
"""

import inspect
import sys
from collections.abc import Mapping
from dataclasses import Field, field, fields
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args

from npgpt2.base.errors import OptionError

MOST = 2**31 - 1  # of whole numbers that count what is in memory
T = TypeVar("T")

KINDS = (bool, int, float, str)


def option(
    default: Any,
    help: str,  # noqa: A002  (as argparse calls it)
    metavar: str | None = None,
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    expected: str = "",
    choices: tuple[str, ...] | None = None,
    flag: str = "",
) -> Any:
    """A field. `require` looks at those of type `bool`, `int`, `float` and `str`, also `| None`.

    Args:
        default: None: nothing is said.
        help: `{default}` in it stands for the default.
        metavar: what stands for the value, in help.
        least, most: the range of a number, its ends included.
        above, below: the same without its ends.
        expected: the range in words, where it is not said as usual; `{least}` in it, and so on.
        choices: the texts that it may be.
        flag: what its argument is called, if not as the field.
    """
    return field(default=default, metadata=dict(locals()))


def help_of(f: "Field[Any]") -> str:
    """What a field says of itself."""
    given = kind_of(f) in (int, float) and f.default is not None
    text = f.metadata["help"].format(default=f"{f.default:g}" if given else f.default)
    return str(text)


def described(options: type[T]) -> type[T]:
    """A dataclass whose docstring has what its fields say of themselves."""
    lines = [f"    {f.name}: {help_of(f)}" for f in fields(options) if f.metadata]  # type: ignore[arg-type]
    options.__doc__ = "\n".join(
        [inspect.cleandoc(options.__doc__ or ""), "", "Attributes:", *lines]
    )
    return options


def kind_of(f: "Field[Any]") -> Any:
    """A field's type, None aside."""
    kinds = get_args(f.type) if isinstance(f.type, UnionType) else (f.type,)
    return next(kind for kind in kinds if kind is not NoneType)


def require(options: Any) -> None:
    """Raises OptionError where a field is not of its type, or outside its range.

    >>> from dataclasses import dataclass
    >>> @dataclass
    ... class Options:
    ...     rows: int = option(1, "rows at a time", least=1, most=4)
    >>> require(Options(rows=5))
    Traceback (most recent call last):
    npgpt2.base.errors.OptionError: rows: got 5, expected a whole number from 1 to 4
    """
    for f in fields(options):
        value, kind = getattr(options, f.name), kind_of(f)
        if not f.metadata or kind not in KINDS or (value is None and isinstance(f.type, UnionType)):
            continue
        number = kind in (int, float)
        good = isinstance(value, (int, kind) if number else kind)
        if good and number:  # to Python a bool is an int
            good = not isinstance(value, bool) and _is_in_range(value, kind, f.metadata)
        elif good and f.metadata["choices"]:
            good = value in f.metadata["choices"]
        if not good:
            raise OptionError(f.name, f"got {value!r}, expected {_in_words(kind, f.metadata)}")


def _is_in_range(value: float, kind: Any, said: Mapping[str, Any]) -> bool:
    return (
        (kind is int or abs(value) <= sys.float_info.max)  # NaN is not
        and (said["least"] is None or value >= said["least"])
        and (said["most"] is None or value <= said["most"])
        and (said["above"] is None or value > said["above"])
        and (said["below"] is None or value < said["below"])
    )


def _in_words(kind: Any, said: Mapping[str, Any]) -> str:
    if said["expected"] or said["choices"]:
        return str(said["expected"].format(**said) or f"one of {', '.join(said['choices'])}")
    words = {bool: "true or false", str: "a text", int: "a whole number", float: "a number"}[kind]
    befores = {"least": "from", "above": "above", "most": "to", "below": "to below"}
    for name, before in befores.items():
        if (end := said[name]) is not None:
            words += f" {before} {end if kind is int else format(end, 'g')}"
    return words
