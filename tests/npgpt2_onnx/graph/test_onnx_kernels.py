"""Every node that the exporter can write, held against the kernels of ONNX Runtime's providers.

A node without a kernel for its type is no error: ONNX Runtime runs it on the CPU and copies its
inputs there and its outputs back. So what has none is listed here, by operator, version and type.
"""

import itertools
import json
from functools import cache
from pathlib import Path
from typing import NamedTuple

import onnxruntime as ort
import pytest
from onnx import TensorProto
from onnxruntime.capi import onnxruntime_pybind11_state as binding

from npgpt2 import GPT2Config
from npgpt2.base.errors import FileError
from npgpt2.model.ops import ACTIVATIONS
from npgpt2_onnx.graph.language_model import OPSET, build, inside, states_and_maps
from npgpt2_onnx.graph.layout import layout
from npgpt2_onnx.graph.names import KINDS
from npgpt2_onnx.graph.precision import PRECISIONS
from npgpt2_onnx.run.session import PROVIDERS, choose, graph_file, loads

TABLE = json.loads((Path(__file__).parents[2] / "data" / "kernels.json").read_text())
KERNELS = TABLE["kernels"]
# As far as the table reaches. onnxruntime 1.32 loads opset 28 and has newer versions of operators,
# on the CPU: of onnxruntime-gpu there is none yet, so nothing is known of its kernels.
HERE, THERE = ([*map(int, v.split(".")[:2])] for v in (ort.__version__, TABLE["onnxruntime"]))
OPSETS = [n for n in range(OPSET, TABLE["opset"] + 1) if loads(n)]
GRAPHS = list(itertools.product(KINDS, PRECISIONS, OPSETS))
ATTENTION = ("Attention", "com.microsoft.GroupQueryAttention", "com.microsoft.MultiHeadAttention")
# A width that quantized blocks do not divide, so that the rows looked up are cut.
SMALL = {"vocab_size": 23, "n_positions": 16, "n_embd": 24, "n_layer": 1, "n_head": 3}

KEY = {"Where": 1}  # the input whose type picks the kernel; else the 1st
RESULT = {"Shape": "int64", "Equal": "bool", "LessOrEqual": "bool"}  # else of the key's type

# What carries floats and has no kernel, as `Node.kernel` names it, and what happens then.
FLOATS = {
    "cpu": {  # ONNX Runtime casts to float32 and back: right, and slower than fp32.
        "Add-14 float16", "Gemm-13 float16", "MatMul-13 float16", "Mul-14 float16",
        "com.microsoft.FastGelu-1 float16", "com.microsoft.MultiHeadAttention-1 float16",
    },
    "cuda": {  # It would run on the CPU, the whole cache copied to and fro: `choose` avoids it.
        "com.microsoft.GroupQueryAttention-1 float",
    },
    "webgpu": {
        # On the CPU, likewise: portable graphs for WebGPU are of an opset below 23 …
        "Attention-23 float", "Attention-23 float16", "Attention-24 float", "Attention-24 float16",
        # … and all others below 25.
        "Cast-25 float→float16", "Cast-25 float16→float",
        "Shape-25 float", "Shape-25 float16", "Transpose-25 float", "Transpose-25 float16",
    },
}  # fmt: skip

# Bookkeeping of masks, positions and shapes, in int64 and bool: a few numbers a call. On the CPU
# everything has a kernel, on CUDA too (ONNX Runtime still puts some beside the shapes on the CPU).
INTEGERS = {
    "cpu": set(),
    "cuda": set(),
    "webgpu": {
        "Add", "Cast", "Concat", "Equal", "Gather", "LessOrEqual", "Mul", "Range", "ReduceMax",
        "ReduceMin", "ReduceSum", "Reshape", "Shape", "Slice", "Squeeze", "Sub", "Unsqueeze",
        "Where",
    },
}  # fmt: skip


class Node(NamedTuple):
    graph: str
    name: str
    op: str  # with its domain
    since: int  # the operator's version
    types: tuple[str, ...]  # that pick the kernel: one, of a Cast two
    inputs: tuple[str, ...]

    def __str__(self):
        return f"{self.graph}: {self.name} ({self.kernel})"

    @property
    def kernel(self):
        return f"{self.op}-{self.since} {'→'.join(self.types)}"

    @property
    def floats(self):
        return all(t.startswith("float") for t in self.types)

    def has_kernel(self, device):
        entry = KERNELS.get(self.op, {"since": [], device: ""})
        versions = entry.get(f"{device} since", entry["since"])
        return self.since in versions and set(self.types) <= set(entry[device].split())


def full_name(domain, op):
    return f"{domain}.{op}" if domain else op


@cache
def schemas():
    """Every version of every operator, as the installed onnxruntime knows them."""
    found = {}
    for schema in binding.get_all_operator_schema():
        found.setdefault(full_name(schema.domain, schema.name), []).append(schema)
    return found


def schema(op, opset):
    """The version of an operator that an opset has, in the table's onnxruntime."""
    opset = 1 if op.startswith("com.microsoft.") else opset
    known = [s for s in schemas()[op] if s.since_version <= opset]
    if HERE > THERE and op in KERNELS:
        known = [s for s in known if s.since_version in KERNELS[op]["since"]]
    return max(known, key=lambda s: s.since_version)


@cache
def nodes(kind, precision, opset):
    """The nodes of all graphs of a kind, precision and opset."""
    p = PRECISIONS[precision]
    found = []
    for act, cross, attentions in itertools.product(ACTIVATIONS, (False, True), (False, True)):
        if (cross or attentions) and act != "gelu_new":
            continue
        config = GPT2Config(**SMALL, activation_function=act, add_cross_attention=cross,
                            bos_token_id=None, eos_token_id=None)  # fmt: skip
        shown = inside(config) if kind == "portable" else states_and_maps(config, kind)
        where = layout(config, p, "x.onnx_data")
        model = build(config, p, kind, where, opset, shown if attentions else ())
        name = f"{kind} {precision} opset {opset} {act}{' cross' * cross}{' taps' * attentions}"
        found += read(model.graph, name, opset)
    return found


def read(graph, name, opset):
    """A graph's nodes, with the types that flow into them."""
    types = {v.name: v.type.tensor_type.elem_type for v in graph.input}
    types |= {v.name: v.data_type for v in graph.initializer}
    types = {k: TensorProto.DataType.Name(v).lower() for k, v in types.items()}
    found = []
    for node in graph.node:
        key = types[node.input[KEY.get(node.op_type, 0)]]
        out = RESULT.get(node.op_type, key)
        if node.op_type == "Cast":
            out = TensorProto.DataType.Name(node.attribute[0].i).lower()
        types |= dict.fromkeys(node.output, out)
        op = full_name(node.domain, node.op_type)
        picks = (key, out) if op == "Cast" else (key,)
        since = schema(op, opset).since_version
        found.append(Node(name, node.name, op, since, picks, tuple(node.input)))
    return found


@pytest.fixture(scope="module")
def everything():
    return [node for graph in GRAPHS for node in nodes(*graph)]


@pytest.mark.slow
def test_the_table_knows_every_node_and_nothing_else(everything):
    unknown = {str(n) for n in everything if n.since not in KERNELS.get(n.op, {}).get("since", [])}
    assert not unknown, "look up where it has kernels and add it to data/kernels.json"
    if OPSETS[-1] >= TABLE["opset"]:
        assert {n.op for n in everything} == set(KERNELS)


@pytest.mark.skipif(
    "TensorrtExecutionProvider" in ort.get_available_providers(),
    reason="onnxruntime-gpu crashes while listing its kernels where TensorRT is not installed",
)
@pytest.mark.skipif(
    HERE < THERE,
    reason=f"the table is that of onnxruntime {TABLE['onnxruntime']}",
)
def test_the_cpu_column_is_what_onnxruntime_registers():
    registered = {}
    for kernel in binding.get_all_opkernel_def():
        if kernel.provider == "CPUExecutionProvider":
            registered.setdefault(full_name(kernel.domain, kernel.op_name), []).append(kernel)
    for op, entry in KERNELS.items():
        for since in entry["since"]:
            slot = schema(op, since).inputs[KEY.get(op.split(".")[-1], 0)].typeStr
            types = set()
            for kernel in registered[op]:
                first, last = kernel.version_range
                if since == first or first < since <= last < 2**31 - 1:  # that is: without an end
                    types |= set(kernel.type_constraints[slot])
            claimed = {f"tensor({t})" for t in entry["cpu"].split()}
            assert claimed <= types, f"{op}-{since}"
            assert {"tensor(float)", "tensor(float16)"} & types <= claimed, f"{op}-{since}"


@pytest.mark.parametrize("device", FLOATS)
def test_floats_stay_on_the_device(everything, device):
    lost = {n.kernel: str(n) for n in everything if n.floats and not n.has_kernel(device)}
    assert not [lost[name] for name in lost.keys() - FLOATS[device]], f"no kernel on {device}"
    if OPSETS[-1] >= TABLE["opset"]:
        assert lost.keys() == FLOATS[device]


@pytest.mark.parametrize("device", INTEGERS)
def test_only_bookkeeping_falls_to_the_cpu(everything, device):
    lost = {n.op: str(n) for n in everything if not n.floats and not n.has_kernel(device)}
    assert not [lost[op] for op in lost.keys() - INTEGERS[device]], f"no kernel on {device}"
    assert lost.keys() == INTEGERS[device]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_portable_graph_is_portable(precision):
    """Operators of ai.onnx, but for quantized weights; all floats on either kind of GPU."""
    foreign = {"com.microsoft.MatMulNBits"}
    allowed = foreign if PRECISIONS[precision].bits else set()
    for opset in OPSETS:
        for node in nodes("portable", precision, opset):
            assert not node.op.startswith("com.microsoft.") or node.op in allowed, str(node)
            if node.floats:
                assert node.has_kernel("cuda"), str(node)
                assert node.has_kernel("webgpu") or opset >= 23, str(node)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_group_query_attention_has_no_bias(precision):
    """CUDA's kernel refuses it: input 10."""
    found = [n for opset in OPSETS for n in nodes("gqa", precision, opset) if n.op == ATTENTION[1]]
    assert found
    assert not [str(n) for n in found if any(n.inputs[10:11])]


@pytest.mark.parametrize("device", PROVIDERS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_choose_takes_a_graph_whose_attention_runs_there(tmp_path, device, precision):
    good = {kind for kind in KINDS if attention_runs(kind, precision, device)}
    for count in (1, 2, 3):
        for kinds in itertools.combinations(KINDS, count):
            folder = tmp_path / "-".join(kinds)
            (folder / "onnx").mkdir(parents=True)
            for kind in kinds:
                (folder / "onnx" / graph_file(PRECISIONS[precision], kind)).touch()
            if good.isdisjoint(kinds):
                with pytest.raises(FileError, match=f"do not run on {device}"):
                    choose(folder, device)
            else:
                assert choose(folder, device)[1] in good, kinds
    best = {"cpu": "gqa", "cuda": "gqa" if precision == "fp16" else "mha"}
    assert choose(folder, device)[1] == best[device]


def attention_runs(kind, precision, device):
    """Whether attention has a kernel there; on the CPU, float16 may be cast to float32."""
    found = [n for opset in OPSETS for n in nodes(kind, precision, opset) if "/attn/" in n.name]
    found = [n for n in found if n.op in (*ATTENTION, "MatMul", "Softmax")]
    assert found
    if device == "cpu":
        found = [n._replace(types=("float",)) for n in found]
    return all(node.has_kernel(device) for node in found)
