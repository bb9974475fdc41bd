"""The lowest ONNX Runtime version that a graph needs, which is stored in its metadata.

The opset determines it, or an operator that is newer or was wrong before. The tables were measured
by tests/data/make_onnxruntime_table.py (CPU): every kind of graph, in the first and the last
release of each minor version from 1.19 on. A graph of a later opset stores no version.
"""

import re

from onnx import ModelProto

AT_LEAST = "onnxruntime_at_least"  # in the metadata: "1.22"

# For opsets of ai.onnx up to this number: the first release that loads them. 1.19 is the lowest
# measured release, because it is the first that works with NumPy 2.
OPSETS = {21: "1.19", 22: "1.21", 23: "1.23", 25: "1.24", 26: "1.25", 28: "1.32"}
# By operator: the first release that is correct in every use of the exporter.
OPERATORS = {
    "ArgMax": "1.20",  # before: not for int64
    "GroupQueryAttention": "1.20",  # before: wrong values for several tokens after a past
    "MultiHeadAttention": "1.21.1",  # before: wrong values for rows of a batch
    "MatMulNBits": "1.22",  # before: no 8 bits, which wte has in int4 as well
}


def at_least(model: ModelProto) -> str | None:
    """Return the version, such as "1.22"; None if the opset is not in the table.

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
    """Return whether version `here` would load this graph if it had a lower opset.

    That holds if only the opset requires the later version `asked`.
    """
    operators = all(numbers(release) <= numbers(here) for release in _of_operators(model))
    return asked in OPSETS.values() and operators


def _of_operators(model: ModelProto) -> set[str]:
    return {OPERATORS[node.op_type] for node in model.graph.node if node.op_type in OPERATORS}


def numbers(version: str) -> tuple[int, ...]:
    """Return a version as up to four integers for comparison; a suffix is ignored.

    >>> numbers("1.9") < numbers("1.22.0") < numbers("1.32.0.dev20261101")
    True
    >>> numbers("nightly")
    ()
    """
    found = re.match(r"\d{1,9}(\.\d{1,9}){0,3}", version)
    return tuple(map(int, found.group().split("."))) if found else ()
