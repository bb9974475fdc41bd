"""Arguments that are the fields of a dataclass: see `npgpt2.base.options`."""

import argparse
from dataclasses import fields
from typing import Any

from npgpt2.base.options import KINDS, help_of, kind_of


def whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number") from None


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
    """Add an argument for each of these fields. One that is not given is None.

    Args:
        changes: to what `add_argument` is told.
    """
    known = {f.name: f for f in fields(options)}
    for name in names:
        f = known[name]
        kind, said = kind_of(f), f.metadata
        told: dict[str, Any] = {"dest": name, "default": None, "help": help_of(f)}
        if kind is bool:
            told["action"] = f"store_{str(not f.default).lower()}"
        elif kind not in KINDS:
            told |= {"action": "append", "metavar": said["metavar"]}
        else:
            told |= {"metavar": said["metavar"], "choices": said["choices"]}
            told["type"] = TYPES.get(kind, str)
        flag = said["flag"] or f"--{name.replace('_', '-')}"
        parser.add_argument(flag, **{**told, **changes})


def options_of(args: argparse.Namespace, options: type) -> dict[str, Any]:
    """Of these fields, those that the command line gave."""
    values = {f.name: getattr(args, f.name, None) for f in fields(options)}
    return {name: value for name, value in values.items() if value is not None}
