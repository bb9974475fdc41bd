"""Options as fields of a dataclass. Each field defines its default, range and help text once.

The command line builds its arguments from the fields, and the dataclass validates its values.
"""

import inspect
import sys
from collections.abc import Iterable, Mapping
from dataclasses import Field, field, fields
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args

from npgpt2.base.errors import OptionError

MOST = 2**31 - 1  # upper limit of integers that count things in memory
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
    doc: str = "",
) -> Any:
    """A field. `require` validates those of type `bool`, `int`, `float` or `str`, also `| None`.

    Args:
        default: the default value; None means not given.
        help: help text; may contain `{default}`.
        metavar: placeholder for the value in the help.
        least, most: range of a number, ends included.
        above, below: range of a number, ends excluded.
        expected: the range in words, instead of the usual words; may contain `{least}` etc.
        choices: the allowed strings.
        flag: name of the command-line argument, if it differs from the field.
        doc: the text for Python's docstring, if it differs from `help`.
    """
    return field(default=default, metadata=dict(locals()))


def help_of(f: "Field[Any]") -> str:
    """The help text of a field, with its default filled in."""
    given = kind_of(f) in (int, float) and f.default is not None
    text = f.metadata["help"].format(default=f"{f.default:g}" if given else f.default)
    return str(text)


def described(options: type[T]) -> type[T]:
    """A class decorator that adds the help texts of the fields to the docstring."""
    named = (f for f in fields(options) if f.metadata)  # type: ignore[arg-type]
    lines = [f"    {f.name}: {f.metadata['doc'] or help_of(f)}" for f in named]
    options.__doc__ = "\n".join(
        [inspect.cleandoc(options.__doc__ or ""), "", "Attributes:", *lines]
    )
    return options


def kind_of(f: "Field[Any]") -> Any:
    """A field's type, without None."""
    kinds = get_args(f.type) if isinstance(f.type, UnionType) else (f.type,)
    return next(kind for kind in kinds if kind is not NoneType)


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that was probably meant, or "".

    >>> nearest("--temp", ["--top-p", "--temperature"]), nearest("samples", ["num_samples"])
    ('--temperature', 'num_samples')
    """
    names = list(known)
    holding = [one for one in names if name.strip("-") in one]
    return next(iter(holding or get_close_matches(name, names, 1, 0.7)), "")


def require(options: Any) -> None:
    """Raises OptionError if a field has the wrong type or is outside its range.

    >>> from dataclasses import dataclass
    >>> @dataclass
    ... class Options:
    ...     rows: int = option(1, "rows at a time", least=1, most=4)
    >>> require(Options(rows=5))
    Traceback (most recent call last):
    npgpt2.base.errors.OptionError: rows: got 5, expected an integer from 1 to 4
    """
    for f in fields(options):
        value, kind = getattr(options, f.name), kind_of(f)
        if not f.metadata or kind not in KINDS or (value is None and isinstance(f.type, UnionType)):
            continue
        number = kind in (int, float)
        good = isinstance(value, (int, kind) if number else kind)
        if good and number:  # in Python, a bool is an int
            good = not isinstance(value, bool) and _is_in_range(value, kind, f.metadata)
        elif good and f.metadata["choices"]:
            good = value in f.metadata["choices"]
        if not good:
            raise OptionError(f.name, f"got {value!r}, expected {_in_words(kind, f.metadata)}")


def _is_in_range(value: float, kind: Any, said: Mapping[str, Any]) -> bool:
    return (
        (kind is int or abs(value) <= sys.float_info.max)  # excludes NaN and infinity
        and (said["least"] is None or value >= said["least"])
        and (said["most"] is None or value <= said["most"])
        and (said["above"] is None or value > said["above"])
        and (said["below"] is None or value < said["below"])
    )


def _in_words(kind: Any, said: Mapping[str, Any]) -> str:
    if said["expected"] or said["choices"]:
        return str(said["expected"].format(**said) or f"one of {', '.join(said['choices'])}")
    words = {bool: "true or false", str: "a string", int: "an integer", float: "a number"}[kind]
    befores = {"least": "from", "above": "above", "most": "to", "below": "to below"}
    for name, before in befores.items():
        if (end := said[name]) is not None:
            words += f" {before} {end if kind is int else format(end, 'g')}"
    return words
