"""The exported graphs, the commands' --help and the public names, as texts for git.

A review shows every change of them. `data/make_snapshots.py` writes them, and `test_snapshots.py`
compares each with the current output. They have no weights: only names, types and shapes.
"""

import argparse
import inspect
import json
import os
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
from cases import HEAD_CASES, formula_tensors
from onnx import AttributeProto, TensorProto, helper, numpy_helper
from onnx_cases import save

from npgpt2 import GPT2Config
from npgpt2.cli import build_parser, parsers
from npgpt2_onnx import export
from npgpt2_onnx.graph.layout import layout
from npgpt2_onnx.graph.lens import build_lens
from npgpt2_onnx.graph.names import KINDS
from npgpt2_onnx.graph.precision import PRECISIONS
from npgpt2_onnx.run.session import graphs_in, loads

FOLDER = Path(__file__).parent / "data" / "snapshots"
MAKER = "python tests/data/make_snapshots.py"

# A width that the blocks of quantized weights do not divide, so that the rows looked up are cut.
CONFIG = {
    "vocab_size": 23, "n_positions": 16, "n_embd": 24, "n_layer": 1, "n_head": 3,
    "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
OPSETS = (17, 23, 28)  # the lowest, the first with Attention, the newest of onnxruntime 1.32
PACKAGES = ("npgpt2", "npgpt2.train", "npgpt2.golden", "npgpt2_onnx")
OF_THE_DAY = ("npgpt2", "onnx", "checkpoint_sha256")  # in the metadata, and not of the graph


def snapshots(work: Path) -> dict[str, str]:
    """Every text that the installed versions can make, by its file's name under FOLDER.

    Args:
        work: an empty folder, for checkpoints and exports.
    """
    texts = {f"help/{name}.txt": text for name, text in helps()}
    texts |= {f"graphs/{name}.txt": show(model) for name, model in graphs(work)}
    texts["options.txt"] = "".join(f"{line}\n" for line in option_forms())
    return texts | {"api.txt": "".join(f"{line}\n" for line in public_names())}


def missing(name: str) -> str:
    """Why the installed versions cannot make a text; '' if they can."""
    stem = name.removesuffix(".txt").rpartition("-")[2]
    if not name.startswith("graphs/") or loads_here(int(stem)):
        return ""
    return f"onnx and onnxruntime that are installed have no opset {stem}"


def loads_here(opset: int) -> bool:
    return opset <= onnx.defs.onnx_opset_version() and loads(opset)


# ── graphs ───────────────────────────────────────────────────────────────────────────────────────


def graphs(work: Path) -> Iterator[tuple[str, onnx.ModelProto]]:
    """The graphs by name, which ends in their opset."""
    every = {"precisions": [*PRECISIONS], "graphs": [*KINDS]}
    for opset in filter(loads_here, OPSETS):
        yield from _exported(work / str(opset), f"-{opset}", {}, opset=opset, **every)
    for option in ("attentions", "taps"):
        yield from _exported(work / option, f"-{option}-17", {}, **{option: True})
    # Only behind the last of several attentions is anything left out.
    yield from _exported(work / "layers", "-layers-17", {"n_layer": 2}, graphs=[*KINDS])
    encoder = {"add_cross_attention": True, "activation_function": "gelu"}
    yield from _exported(work / "encoder", "-encoder-17", encoder, graphs=[*KINDS])
    for case in ("sequences", "tokens", "answers", "choices"):
        yield from _exported(work / case, f"-{case}-17", HEAD_CASES[case][0])
    if loads_here(23):
        head = HEAD_CASES["sequences"][0]
        yield from _exported(work / "head", "-sequences-23", head, opset=23)
    config, single = GPT2Config(**CONFIG), PRECISIONS["fp32"]
    yield "lens-fp32-17", build_lens(config, single, layout(config, single, "model.onnx_data"))


def _exported(
    work: Path, suffix: str, switches: dict[str, object], **options: object
) -> Iterator[tuple[str, onnx.ModelProto]]:
    config = GPT2Config(**CONFIG | switches)
    source = save(config, work / "checkpoint", formula_tensors(config))
    found = graphs_in(export(source, work / "out", proof=False, **options))
    for (precision, kind), path in found.items():
        yield f"{kind}-{precision}{suffix}", onnx.load(path, load_external_data=False)


def show(model: onnx.ModelProto) -> str:
    """A graph as text: opsets, metadata, inputs, outputs, initializers and nodes."""
    graph = model.graph
    domains = [f"{entry.domain or 'ai.onnx'} {entry.version}" for entry in model.opset_import]
    lines = [f"IR {model.ir_version}, {', '.join(domains)}", "", "metadata"]
    lines += [f"  {entry.key}: {_said(entry.key, entry.value)}" for entry in model.metadata_props]
    for title, values in (("inputs", graph.input), ("outputs", graph.output)):
        lines += ["", title, *map(_value, values)]
    lines += ["", "initializers", *map(_initializer, graph.initializer)]
    lines += ["", "nodes", *map(_node, graph.node)]
    return "\n".join(lines) + "\n"


def _said(key: str, value: str) -> str:
    """An entry of the metadata; of the config, only what differs from GPT-2's."""
    if key == "config":
        usual = GPT2Config().to_dict()
        own = {k: v for k, v in json.loads(value).items() if k not in usual or usual[k] != v}
        return json.dumps(own, sort_keys=True)
    return "…" if key in OF_THE_DAY else value


def _value(value: onnx.ValueInfoProto) -> str:
    kind = value.type.tensor_type
    axes = [d.dim_param or str(d.dim_value) for d in kind.shape.dim]
    return f"  {value.name} {_dtype(kind.elem_type)} ({', '.join(axes)})"


def _initializer(proto: TensorProto) -> str:
    """Type and shape of a stored tensor, values of a small constant."""
    text = f"  {proto.name} {_dtype(proto.data_type)} ({', '.join(map(str, proto.dims))})"
    outside = {entry.key: entry.value for entry in proto.external_data}
    if outside:
        return f"{text} in {outside['location']}"
    return f"{text} = {_number(numpy_helper.to_array(proto))}"


def _node(node: onnx.NodeProto) -> str:
    """NAME: OPERATOR(inputs) → outputs, attributes. Outputs named like the node are omitted."""
    op = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    line = f"  {node.name}: {op}({', '.join(name or '-' for name in node.input)})"
    if [*node.output] != [node.name.lstrip("/").replace("/", ".")]:
        line += f" → {', '.join(name or '-' for name in node.output)}"
    return line + "".join(f" {a.name}={_attribute(a)}" for a in node.attribute)


def _attribute(attribute: AttributeProto) -> str:
    value = helper.get_attribute_value(attribute)
    if attribute.name == "to":
        return _dtype(value)
    if isinstance(value, bytes):
        return value.decode()
    return _number(np.array(value, np.float32 if attribute.type == AttributeProto.FLOAT else None))


def _number(array: np.ndarray) -> str:
    """Numbers as short as possible in their own type, the same with every NumPy."""
    if array.ndim:
        return f"[{', '.join(map(_number, array))}]"
    return str(array[()])


def _dtype(number: int) -> str:
    return TensorProto.DataType.Name(number).lower()


# ── --help ───────────────────────────────────────────────────────────────────────────────────────


class Layout(argparse.RawDescriptionHelpFormatter):
    """Write options as Python 3.13 does: `-o, --out DIR`, not `-o DIR, --out DIR`."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        value = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{', '.join(action.option_strings)} {value}"


def helps() -> Iterator[tuple[str, str]]:
    """Every command's --help, by the command with - for spaces: 100 wide, no colours."""
    with mock.patch.dict(os.environ, COLUMNS="100", PYTHON_COLORS="0"):
        for parser in parsers(build_parser()):
            if parser.formatter_class is argparse.RawDescriptionHelpFormatter:
                parser.formatter_class = Layout
            yield parser.prog.replace(" ", "-"), parser.format_help()


def option_forms() -> Iterator[str]:
    """Each option of several commands: its forms, and which commands have each.

    An option with one line has one form everywhere.
    """
    forms: dict[str, dict[str, list[str]]] = {}
    for parser in parsers(build_parser()):
        for action in parser._actions:
            if action.option_strings and action.dest not in ("help", "debug"):
                takes = "" if action.nargs == 0 else f" {action.metavar or action.dest.upper()}"
                if action.choices:
                    takes = f" {{{','.join(action.choices)}}}"
                several = " …" if isinstance(action, argparse._AppendAction) else ""
                flag = action.option_strings[-1]
                known = forms.setdefault(flag, {}).setdefault(f"{flag}{takes}{several}", [])
                known.append(parser.prog.removeprefix("npgpt2 "))
    for _, found in sorted(forms.items()):
        if sum(map(len, found.values())) > 1:
            yield from (f"{form}: {', '.join(commands)}" for form, commands in found.items())


# ── what can be imported ─────────────────────────────────────────────────────────────────────────


def public_names() -> Iterator[str]:
    """A line for each name in a package's `__all__`, and for each method and field of a class."""
    for package in PACKAGES:
        module = import_module(package)
        for name in sorted(set(module.__all__) - {"__version__"}):
            yield from _described(f"{package}.{name}", getattr(module, name))


def _described(name: str, value: Any) -> Iterator[str]:
    if not inspect.isclass(value):
        yield f"{name}({_arguments(value)})" if callable(value) else name
        return
    above = " < ".join(base.__name__ for base in value.__mro__[1:-1])
    yield f"class {name}({_arguments(value)})" + (f" < {above}" if above else "")
    ours = [base for base in value.__mro__ if base.__module__.startswith("npgpt2")]
    for own in sorted({own for base in ours for own in vars(base) if not own.startswith("_")}):
        member = inspect.getattr_static(value, own)
        called = callable(getattr(value, own, None))
        kind = "class " if isinstance(member, classmethod) else ""
        yield f"  {kind}{own}" + (f"({_arguments(getattr(value, own))})" if called else "")


def _arguments(function: Any) -> str:
    """Names, order and defaults; each Python writes annotations in another way."""
    try:
        signature = inspect.signature(function)
    except ValueError:  # of what Python itself makes
        return "…"
    bare = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    return re.sub(r"<function \S+ at 0x\w+>", "<function>", str(inspect.Signature(bare))[1:-1])
