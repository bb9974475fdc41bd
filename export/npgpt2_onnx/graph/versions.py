"""The least ONNX Runtime that a graph needs, which it says of itself.

It is that of its opset, or of an operator that came later or was wrong before. What is below was
measured: every kind of graph in the first and the last release of each minor version from 1.19 on,
by tests/data/make_onnxruntime_table.py (CPU). A graph of a later opset says nothing, and whoever
opens it finds out.
"""

import re

from onnx import ModelProto

AT_LEAST = "onnxruntime_at_least"  # in the metadata: "1.22"

# By opset of ai.onnx, up to it, the first release that loads it. 1.19 is the lowest that was
# measured: the first that runs with NumPy 2, as this package does.
OPSETS = {21: "1.19", 22: "1.21", 23: "1.23", 25: "1.24", 26: "1.25", 28: "1.32"}
# By operator, the first release that is right in all that the exporter asks of it.
OPERATORS = {
    "ArgMax": "1.20",  # before, none of int64
    "GroupQueryAttention": "1.20",  # before, several tokens behind a past got other numbers
    "MultiHeadAttention": "1.21.1",  # before, rows of a batch got other numbers
    "MatMulNBits": "1.22",  # before, none of 8 bits, which wte has in int4 as well
}


def at_least(model: ModelProto) -> str | None:
    """The version, such as "1.22"; None where the opset is later than the table.

    >>> from npgpt2_onnx.graph.builder import FLOAT, Graph
    >>> def graph(opset, kind):
    ...     g = Graph(opset)
    ...     g.output(g.op(kind, g.input("x", FLOAT, [1])), FLOAT, [1])
    ...     return g.model("g")
    >>> at_least(graph(17, "Tanh")), at_least(graph(17, "MatMulNBits"))
    ('1.19', '1.22')
    """
    [opset] = [entry.version for entry in model.opset_import if not entry.domain]
    known = [release for reaches, release in OPSETS.items() if opset <= reaches]
    if not known:
        return None
    return max([known[0], *_of_operators(model)], key=numbers)


def lower_opset_helps(model: ModelProto, asked: str, here: str) -> bool:
    """Whether version `here` would load a graph that asks for a later one, made in a lower opset.

    That is where the opset alone is what asks for it.
    """
    operators = all(numbers(release) <= numbers(here) for release in _of_operators(model))
    return asked in OPSETS.values() and operators


def _of_operators(model: ModelProto) -> set[str]:
    return {OPERATORS[node.op_type] for node in model.graph.node if node.op_type in OPERATORS}


def numbers(version: str) -> tuple[int, ...]:
    """A version, to be compared: up to four numbers, before anything but numbers and dots.

    >>> numbers("1.9") < numbers("1.22.0") < numbers("1.32.0.dev20261101")
    True
    >>> numbers("nightly")
    ()
    """
    found = re.match(r"\d{1,9}(\.\d{1,9}){0,3}", version)
    return tuple(map(int, found.group().split("."))) if found else ()
