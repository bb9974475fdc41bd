"""Inputs of the commands: the model that a command line names, and text."""

import argparse
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from npgpt2.base.errors import FileError, InputError
from npgpt2.cli.options import add_options, options_of
from npgpt2.cli.output import note, progress
from npgpt2.engines import ModelSpec, open_model

if TYPE_CHECKING:
    from npgpt2.generation.language_model import LanguageModel
    from npgpt2.gpt2 import GPT2
    from npgpt2.heads import HeadModel


def add_model(parser: argparse.ArgumentParser) -> None:
    add_options(parser, ModelSpec, "model", default=os.environ.get("NPGPT2_MODEL") or None)
    add_options(parser, ModelSpec, "revision")


def add_engine(parser: argparse.ArgumentParser) -> None:
    """Add the engine's options: NumPy runs a checkpoint, ONNX Runtime an exported folder."""
    engine = parser.add_argument_group("engine")
    add_options(engine, ModelSpec, "engine", "device", "precision", "threads", "graph_cache")


def spec_of(args: argparse.Namespace) -> ModelSpec:
    """Return the model that a command line names, and the options to open it with."""
    given = options_of(args, ModelSpec)
    if not hasattr(args, "engine"):  # a command with NumPy as its only engine
        given["engine"] = "numpy"
    return ModelSpec(**given)


def load_engine(args: argparse.Namespace) -> "LanguageModel":
    spec = spec_of(args)
    with _hint_at_graphs(spec):
        return open_model(spec, tell=note, progress=progress)


def load_head(args: argparse.Namespace) -> "HeadModel":
    spec = spec_of(args)
    with _hint_at_graphs(spec):
        return open_model(spec, head=True, tell=note, progress=progress)


@contextmanager
def _hint_at_graphs(spec: ModelSpec) -> Iterator[None]:
    """Add a hint to the error if the NumPy engine is given an exported folder."""
    try:
        yield
    except FileError as error:
        if spec.engine == "numpy" and spec.model and any(Path(spec.model).glob("onnx/*.onnx")):
            raise FileError(f"{error}. It has ONNX graphs: --engine onnx runs them") from None
        raise


def load_model(args: argparse.Namespace, **how: Any) -> "GPT2":
    """Load a checkpoint for a command that runs only on NumPy."""
    spec = replace(spec_of(args), **how)
    return cast("GPT2", open_model(spec, tell=note, progress=progress))


def model_folder(args: argparse.Namespace, weights: bool = True) -> Path:
    return spec_of(args).folder(weights, note)


def named(source: str) -> Path:
    """Return an existing path as it is, else the folder of the embedded model or the hub's."""
    from npgpt2.checkpoints.hub import resolve

    return Path(source) if os.path.exists(source) else resolve(source)


def standard_input() -> BinaryIO:
    """Raises FileError if standard input is closed."""
    if sys.stdin is None:
        raise FileError("standard input: is closed, expected text")
    return sys.stdin.buffer


def given_document(argument: str) -> str:
    """Return the text of an argument TEXT|FILE: that of a file if there is one of this name.

    Raises:
        FileError: the argument looks like a file name, but there is no such file.
    """
    from npgpt2.base.files import read_text

    if os.path.isfile(argument):  # Path.is_file raises if a text is too long for a name
        note(f"reading the file {argument}")
        return read_text(Path(argument))
    if re.fullmatch(r"\.{0,2}/\S+|\S+\.(txt|text|md|jsonl?|csv|html?|log)", argument):
        raise FileError(
            f"{argument}: no such file, but it looks like a file name. "
            "To use it as text, pass it on standard input (-)"
        )
    return given_text(argument, "TEXT")


def given_file(name: str) -> str:
    """Return the text of a file; `-` reads standard input."""
    from npgpt2.base.files import read_text

    return given_text(name, "") if name == "-" else read_text(Path(name))


def given_text(argument: str, what: str) -> str:
    """Return the text of an argument; `-` reads standard input.

    Raises:
        InputError: the text is not UTF-8.
        FileError: standard input is closed.
    """
    from npgpt2.base.files import utf8

    if argument == "-":
        return utf8(standard_input().read(), "standard input")
    try:
        return utf8(os.fsencode(argument), what)
    except UnicodeEncodeError as error:
        raise InputError(
            f"{what}: a lone surrogate at character {error.start}, expected text"
        ) from None


def given_prompt(argument: str, what: str) -> str:
    """Return `given_text` without the newline that a shell adds at the end of standard input."""
    text = given_text(argument, what)
    if argument == "-":
        text = text.removesuffix("\n").removesuffix("\r")
    return text
