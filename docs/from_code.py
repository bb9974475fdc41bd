"""The parts of the pages that are made from the code: commands, fields, errors, names, files.

In a page a line `<!-- from the code: NAME -->` stands for what the function of that name returns,
as Markdown. The extension replaces it, and a line *(…)* after it for those who read the page as a
file, before Sphinx parses the page.
"""

import argparse
import re
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto
from sphinx.pycode import ModuleAnalyzer

from npgpt2.base import errors
from npgpt2.cli import _explain, build_parser, parsers
from npgpt2.golden.cases import CASES
from npgpt2.golden.mistakes import forward_mistakes
from npgpt2.model import taps
from npgpt2.model.config import GPT2Config
from npgpt2_onnx import export
from npgpt2_onnx.graph.names import KINDS
from npgpt2_onnx.graph.precision import PRECISIONS

ROOT = Path(__file__).parents[1]
PLACE = re.compile(r"^<!-- from the code: (\w+) -->\n(?:\n\*\([^)]*\)\*\n)?", re.MULTILINE)


def commands() -> str:
    """Each command: what it does, its options by group, examples."""
    return "\n".join(_command(parser) for parser in parsers(build_parser()))


def _command(parser: argparse.ArgumentParser) -> str:
    text = escape(parser.description or "")
    if re.search(r"^\S+ {3}", text, re.MULTILINE):  # a list in columns
        text = re.sub(r"^(\S+) {2,}", r"- `\1`: ", text, flags=re.MULTILINE)
    lines = [f"## {parser.prog}\n", text, ""]
    for group in parser._action_groups:
        options = [
            f"{_form(action)}\n: {escape((action.help or '') % vars(action))}\n"
            for action in group._group_actions
            if action.dest != "help" and not isinstance(action, argparse._SubParsersAction)
        ]
        if options:
            lines += [f"**{escape(group.title or '')}**\n", *options]
    if parser.epilog:
        text = re.sub(r"^examples?:\s*", "", parser.epilog)
        lines += ["```console", *(f"$ {line.strip()}" for line in text.splitlines()), "```", ""]
    return "\n".join(lines)


def _form(action: argparse.Action) -> str:
    """An option as one types it."""
    value = action.metavar or (f"{{{','.join(action.choices)}}}" if action.choices else "")
    value = str(value or ("" if action.nargs == 0 else action.dest.upper()))
    if isinstance(action, argparse._AppendAction):
        value = f"{value} …" if action.type or action.choices else value
    value = {"?": f"[{value}]", "+": f"{value} …", "*": f"[{value} …]"}.get(
        str(action.nargs), value
    )
    if not action.option_strings:
        return code(value)
    return ", ".join(code(f"{flag} {value}".strip()) for flag in action.option_strings)


def config_fields() -> str:
    """The fields of config.json, with the comment that stands at each in the source."""
    comments = ModuleAnalyzer.for_module(GPT2Config.__module__).find_attr_docs()
    said = {name: lines[0] for (_, name), lines in comments.items()}
    values, lines = GPT2Config(), []
    for f in fields(GPT2Config):
        kind = (
            f.type.__name__
            if isinstance(f.type, type)
            else str(f.type).replace("collections.abc.", "")
        )
        form = f"{f.name}: {kind} = {getattr(values, f.name)!r}"
        lines.append(f"{code(form)}\n: {escape(said[f.name])}\n")
    return "\n".join(lines)


def error_classes() -> str:
    """Each class of errors: the built-in that it also is, and the exit code of a command."""
    rows = []
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, errors.NpGPT2Error):
            error = kind("option", "text") if kind is errors.OptionError else kind("text")
            plain = [c for c in kind.__mro__ if c.__module__ == "builtins"]
            other = ", ".join(
                code(c.__name__) for c in plain if c not in (*Exception.__mro__, LookupError)
            )
            exits = "" if kind is errors.NpGPT2Error else str(_explain(error)[1])
            rows.append((code(kind.__name__), other, exits, escape(kind.__doc__ or "")))
    return table(("error", "is also a", "exit code", "meaning"), rows)


def tap_names() -> str:
    """The names of a forward pass's arrays, in the order of computation."""
    blocks = [tap._replace(name=f"h.N.{tap.name}") for tap in taps.BLOCK]
    rows = [
        (code(tap.name), code(" × ".join(tap.axes)), escape(tap.words))
        for tap in (*taps.BEFORE, *blocks, *taps.AFTER)
    ]
    return table(("name", "shape", "what"), rows)


def golden_cases() -> str:
    """The cases of a golden folder."""
    rows = [(code(name), escape(case.words), escape(case.names)) for name, case in CASES.items()]
    return table(("case", "what", "tensors"), rows)


def golden_mistakes() -> str:
    """What `golden check` recognises in a forward pass."""
    rows = [(escape(m.name), escape(m.sentence)) for m in forward_mistakes(GPT2Config())]
    return table(("mistake", "what check says"), dict.fromkeys(rows))


def graph_inputs() -> str:
    """The inputs and outputs of each kind of graph, as they are in an exported folder."""
    lines = []
    with tempfile.TemporaryDirectory() as work:
        folder = export(ROOT / "tests/data/tiny", f"{work}/tiny", graphs=list(KINDS), proof=False)
        for path in sorted((folder / "onnx").glob("*.onnx")):
            graph = onnx.load(path, load_external_data=False).graph
            lines += [f"### {path.name}\n"]
            for what, values in (("input", graph.input), ("output", graph.output)):
                lines += [table((what, "shape", "dtype"), _values(values))]
    return "\n".join(lines)


def _values(values: Sequence[onnx.ValueInfoProto]) -> list[tuple[str, str, str]]:
    """Those of all layers as one, N."""
    rows = {}
    for value in values:
        kind = value.type.tensor_type
        axes = ", ".join(d.dim_param or str(d.dim_value) for d in kind.shape.dim)
        dtype = TensorProto.DataType.Name(kind.elem_type).lower()
        name = re.sub(r"\.\d+\.", ".N.", value.name)
        rows[name] = (code(name), code(f"({axes})"), code("float32" if dtype == "float" else dtype))
    return list(rows.values())


def precisions() -> str:
    """The names of `--precision`, and of the files that each becomes."""
    rows = []
    for name, precision in PRECISIONS.items():
        stem = f"model{precision.suffix}"
        graphs = ", ".join(code(f"{stem}{kind}.onnx") for kind in KINDS.values())
        rows.append((code(name), graphs, code(f"{stem}.onnx_data")))
    return table(("precision", f"graphs: {', '.join(KINDS)}", "their weights"), rows)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown; cells are Markdown already."""
    lines = [head, ["---"] * len(head), *rows]
    escaped = ([re.sub(r"(?<!\\)\|", r"\|", cell) for cell in cells] for cells in lines)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in escaped)


def code(text: str) -> str:
    return f"`{text}`"


def escape(text: str) -> str:
    """Plain text as Markdown; names between backquotes, and options, are code."""
    text = re.sub(r"(?<![`\w-])(--\w[\w-]*)", r"`\1`", text)
    parts = re.split(r"(`[^`]+`)", text)
    parts[::2] = [re.sub(r"([\\|*_<>\[\]])", r"\\\1", part) for part in parts[::2]]
    return "".join(parts)


MADE = (
    commands, config_fields, error_classes, tap_names, golden_cases, golden_mistakes, graph_inputs,
    precisions,
)  # fmt: skip


def expand(text: str) -> str:
    """A page's source with these parts in place, and links out of `docs/` to what is built here."""
    makers = {maker.__name__: maker for maker in MADE}
    text = text.replace("../weights/shakespeare/README.md)", "shakespeare.md)")
    return PLACE.sub(lambda place: makers[place[1]](), text)


def setup(app: Any) -> dict[str, bool]:
    def read(_: Any, __: str, source: list[str]) -> None:
        source[0] = expand(source[0])

    app.connect("source-read", read)
    return {"parallel_read_safe": True}
