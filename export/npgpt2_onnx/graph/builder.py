"""Build an ONNX graph: values are Python objects that get their names when they are tapped.

A node's name is its path (`/h.3/attn/c_attn/MatMul`). A value's name is its tap name
(`h.3.attn.c_attn`), else that of its node. So a graph in Netron looks like forward.py.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from npgpt2.base.arrays import Array
from npgpt2_onnx.graph.versions import AT_LEAST, at_least

MICROSOFT = "com.microsoft"
FLOAT: int = TensorProto.FLOAT
FLOAT16: int = TensorProto.FLOAT16
INT64: int = TensorProto.INT64
INT32: int = TensorProto.INT32
UINT8: int = TensorProto.UINT8

Axis = int | str | None  # a length, or the name of a variable one


@dataclass(eq=False)
class Value:
    """One array of the graph. `node` computes it; None for an input or an initializer."""

    name: str = ""
    node: "Node | None" = None


@dataclass(eq=False)
class Node:
    op: str
    inputs: list[Value | None]
    outputs: list[Value | None]
    attributes: dict[str, Any]
    name: str
    domain: str


@dataclass(frozen=True)
class Tensor:
    """An initializer whose bytes are in a file next to the graph."""

    name: str
    dtype: int
    shape: tuple[int, ...]
    location: str
    offset: int
    nbytes: int

    def proto(self) -> TensorProto:
        proto = TensorProto(name=self.name, data_type=self.dtype, dims=self.shape)
        proto.data_location = TensorProto.EXTERNAL
        for key in ("location", "offset", "length"):
            text = self.nbytes if key == "length" else getattr(self, key)
            proto.external_data.add(key=key, value=str(text))
        return proto


@dataclass
class _Parts:
    """The state that all views of one graph share."""

    inputs: list[Any] = field(default_factory=list)
    outputs: list[tuple[Value, int, Sequence[Axis]]] = field(default_factory=list)
    initializers: dict[str, TensorProto] = field(default_factory=dict)
    constants: dict[str, Value] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    taps: dict[str, Value] = field(default_factory=dict)
    used: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Graph:
    """A view of a graph at a path; `at` returns a view of a longer path.

    >>> g = Graph(opset=17)
    >>> x = g.input("x", FLOAT, ["n"])
    >>> y = g.at("h.0").at("mlp").tap("act", g.at("h.0").at("mlp").op("Tanh", x))
    >>> g.output(y, FLOAT, ["n"])
    >>> [(n.name, list(n.input), list(n.output)) for n in g.model("tanh").graph.node]
    [('/h.0/mlp/Tanh', ['x'], ['h.0.mlp.act'])]
    """

    opset: int
    float: int = FLOAT  # what matrices are multiplied in
    fused: bool = False  # use ONNX Runtime's own operators
    skip: bool = False  # use its SkipLayerNormalization as well
    path: str = ""
    parts: _Parts = field(default_factory=_Parts, repr=False)

    def at(self, part: str) -> "Graph":
        return replace(self, path=f"{self.path}/{part}")

    def op(self, kind: str, *inputs: Value | None, domain: str = "", **attributes: Any) -> Value:
        """Add a node with one output."""
        return self.ops(kind, *inputs, outputs=1, domain=domain, **attributes)[0]

    def ops(
        self,
        kind: str,
        *inputs: Value | None,
        outputs: int | Sequence[Value | None],
        domain: str = "",
        **attributes: Any,
    ) -> list[Value]:
        """Add a node with this many new outputs, or with these, where None omits one."""
        made = [Value() for _ in range(outputs)] if isinstance(outputs, int) else list(outputs)
        node = Node(kind, list(inputs), list(made), attributes, self._fresh(kind), domain)
        for value in made:
            if value is not None:
                value.node = node
        self.parts.nodes.append(node)
        return [value for value in made if value is not None]

    def _fresh(self, kind: str) -> str:
        name = f"{self.path}/{kind}"
        count = self.parts.used[name] = self.parts.used.get(name, 0) + 1
        return name if count == 1 else f"{name}_{count}"

    def remove(self, node: Node) -> None:
        """Remove a node whose work a fused node does."""
        self.parts.nodes.remove(node)

    def tap(self, name: str, value: Value) -> Value:
        """Name a value as `npgpt2.model.forward.Tap` names the array."""
        value.name = _dotted(f"{self.path}/{name}")
        self.taps[value.name] = value
        return value

    @property
    def taps(self) -> dict[str, Value]:
        """Every tapped value, by its name."""
        return self.parts.taps

    def input(self, name: str, dtype: int, shape: Sequence[Axis]) -> Value:
        self.parts.inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return Value(name)

    def output(self, value: Value, dtype: int, shape: Sequence[Axis]) -> None:
        self.parts.outputs.append((value, dtype, shape))

    def initializer(self, proto: TensorProto) -> Value:
        """Add a parameter, stored inside or outside the graph's file."""
        self.parts.initializers[proto.name] = proto
        return Value(proto.name)

    def option(self, name: str, value: Array) -> Value:
        """Add an input with a default. Clients do not see it among the required inputs.

        (It is an initializer that is also listed as an input, ONNX IR 4 and later.)
        """
        proto = onnx.numpy_helper.from_array(value, name)
        self.parts.initializers[name] = proto
        return self.input(name, proto.data_type, value.shape)

    def constant(self, value: Any, dtype: Any = np.int64) -> Value:
        """Add a small array; equal ones are stored once."""
        array = np.asarray(value, dtype)
        name = f"{array.dtype}{array.tolist()}".replace(" ", "")
        if name not in self.parts.constants:
            proto = onnx.numpy_helper.from_array(array, name)
            self.parts.constants[name] = self.initializer(proto)
        return self.parts.constants[name]

    def model(self, name: str, metadata: Mapping[str, str] | None = None) -> ModelProto:
        """Return the finished graph, with the version that it needs. Same calls give same bytes."""
        for node in self.parts.nodes:
            stem = _dotted(node.name)
            for i, value in enumerate(node.outputs):
                if value is not None and not value.name:
                    value.name = stem if i == 0 else f"{stem}.{i}"
        graph = GraphProto(name=name)
        graph.node.extend(_proto(node) for node in self._needed())
        graph.initializer.extend(self.parts.initializers.values())
        graph.input.extend(self.parts.inputs)
        graph.output.extend(
            helper.make_tensor_value_info(value.name, dtype, shape)
            for value, dtype, shape in self.parts.outputs
        )
        domains = {node.domain for node in graph.node} - {""}
        opsets = [helper.make_opsetid("", self.opset)]
        opsets += [helper.make_opsetid(domain, 1) for domain in sorted(domains)]
        model = helper.make_model(
            graph,
            opset_imports=opsets,
            ir_version=helper.find_min_ir_version_for(opsets, ignore_unknown=True),
            producer_name="npgpt2",
        )
        least = at_least(model)
        own = {} if least is None else {AT_LEAST: least}
        helper.set_model_props(model, {**own, **(metadata or {})})
        return model

    def _needed(self) -> Iterator[Node]:
        """Return the nodes that an output depends on, in order."""
        wanted = {id(value) for value, *_ in self.parts.outputs}
        kept = []
        for node in reversed(self.parts.nodes):
            if any(id(value) in wanted for value in node.outputs if value is not None):
                wanted |= {id(value) for value in node.inputs if value is not None}
                kept.append(node)
        return reversed(kept)


def _dotted(path: str) -> str:
    """'/h.3/attn/c_attn' → 'h.3.attn.c_attn'."""
    return path.lstrip("/").replace("/", ".")


def _proto(node: Node) -> NodeProto:
    proto = NodeProto(op_type=node.op, name=node.name, domain=node.domain)
    proto.input.extend("" if value is None else value.name for value in node.inputs)
    proto.output.extend("" if value is None else value.name for value in node.outputs)
    proto.attribute.extend(
        helper.make_attribute(key, value) for key, value in sorted(node.attributes.items())
    )
    return proto
