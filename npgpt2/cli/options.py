"""Command-line arguments made from the fields of a dataclass: see `npgpt2.base.options`."""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

from npgpt2.base.options import KINDS, help_of, kind_of


def whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected an integer") from None


def number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number") from None


FILTERS = ("temperature", "top_k", "top_p", "min_p")  # in the order in which they run
TYPES = {int: whole, float: number}


def add_options(
    parser: argparse._ActionsContainer, options: type, *names: str, **changes: Any
) -> None:
    """Add an argument for each of these fields. An argument that is not given is None.

    Args:
        changes: replace arguments of `add_argument`.
    """
    known = {f.name: f for f in fields(options)}
    for name in names:
        f = known[name]
        kind, meta = kind_of(f), f.metadata
        arguments: dict[str, Any] = {"dest": name, "default": None, "help": help_of(f)}
        if kind is bool:
            arguments["action"] = f"store_{str(not f.default).lower()}"
        elif kind not in KINDS:
            arguments |= {"action": "append", "metavar": meta["metavar"]}
        else:
            arguments |= {"metavar": meta["metavar"], "choices": meta["choices"]}
            arguments["type"] = TYPES.get(kind, str)
        flag = meta["flag"] or f"--{name.replace('_', '-')}"
        parser.add_argument(flag, **{**arguments, **changes})


def options_of(args: argparse.Namespace, options: type) -> dict[str, Any]:
    """Return the fields that the command line gave, by name."""
    values = {f.name: getattr(args, f.name, None) for f in fields(options)}
    return {name: value for name, value in values.items() if value is not None}


def add_several(parser: argparse._ActionsContainer, flag: str, **arguments: Any) -> None:
    """Add an option that takes several values: `--precision int8 int4`, or repeated, or both.

    Args:
        arguments: of `add_argument`; `type` or `choices` tell a value from what follows it.
    """
    parser.add_argument(flag, action="append", **arguments)


def repeated(parser: argparse.ArgumentParser, words: Sequence[str]) -> Iterator[str]:
    """`--precision int8 int4 DIR` as `--precision int8 --precision int4 DIR`.

    argparse's nargs="+" would take DIR for a third value.
    """
    flag, is_first = "", False
    for word in words:
        if word.startswith("-"):
            flag, is_first = word.partition("=")[0], "=" not in word
        elif is_first:
            is_first = False
        elif is_value(parser, flag, word):
            yield flag
        else:
            flag = ""
        yield word


def is_value(parser: argparse.ArgumentParser, flag: str, word: str) -> bool:
    """Whether a word is a value of an option that takes several."""
    action = parser._option_string_actions.get(flag)
    if not isinstance(action, argparse._AppendAction):
        return False
    if action.choices is not None:
        return word in action.choices
    try:
        return callable(action.type) and action.type(word) is not None
    except argparse.ArgumentTypeError:
        return False
