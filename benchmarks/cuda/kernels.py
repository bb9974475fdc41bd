"""Which execution provider ran which node: nothing falls to the CPU unnoticed.

ONNX Runtime gives a node that a GPU has no kernel for to the CPU and says nothing; each time, what
it reads and writes goes over the bus. Its profile says where every node ran.
"""

import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cuda.models import Options, Steps, no_kernel
from benchmarks.cuda.sessions import may_refuse, opened
from npgpt2_onnx import OnnxModel
from npgpt2_onnx.graph.names import KINDS
from npgpt2_onnx.graph.precision import PRECISIONS
from npgpt2_onnx.run.session import PROVIDERS, require_graphs

ROWS, PROMPT = 2, 24

# What may run on the CPU beside a GPU: lengths and positions, which ONNX Runtime computes where
# the next node's shape is wanted; who sees whom, which follows from them; and counts over the mask,
# for which CUDA lacks kernels of whole numbers. They are whole numbers or truth values, at most one
# for each pair of a row's tokens; the same operators on floats are work.
SMALL = {
    "Add", "Cast", "Concat", "ConstantOfShape", "Equal", "Expand", "Gather", "GatherND", "Identity",
    "LessOrEqual", "Mul", "Range", "ReduceMax", "ReduceMin", "ReduceSum", "Reshape", "Shape",
    "Slice", "Squeeze", "Sub", "Unsqueeze", "Where",
}  # fmt: skip
WHOLE = {"int64", "int32", "bool"}  # as the profile names them


def steps(options: Options) -> Steps:
    for precision in PRECISIONS:
        for kind in KINDS:
            measure = partial(graph, options, precision, kind)
            if no_kernel(options, precision, kind):
                measure = partial(may_refuse, measure)
            yield f"{precision} {kind}", measure


def graph(options: Options, precision: str, kind: str) -> dict[str, Any]:
    """A prompt and a step behind it, as `OnnxModel` runs them.

    Returns:
        see `sorted_out`. Where the device is known to have no kernel, work elsewhere is no fault.
    """
    path = require_graphs(options.graphs)[precision, kind]
    with tempfile.TemporaryDirectory() as folder:
        session = opened(path, options.device, profile=Path(folder) / "profile")
        step = OnnxModel(session).stepper(room=PROMPT + 1)
        ids = np.arange(ROWS * PROMPT).reshape(ROWS, PROMPT) % session.config.vocab_size
        step(ids)
        step(ids[:, :1])
        events = json.loads(Path(session.ort.end_profiling()).read_text())
    found = sorted_out(events, PROVIDERS[options.device])
    found["good"] |= no_kernel(options, precision, kind)
    return found


def sorted_out(events: Sequence[dict[str, Any]], provider: str) -> dict[str, Any]:
    """What a profile says of its nodes.

    Returns:
        nodes: how many ran on each provider. copies: between host and device, by operator.
        small: those elsewhere than on `provider` that may be, by operator. work: those that may
        not. good: there are none of the last, and `provider` ran any.
    """
    nodes = Counter[str]()
    copies, small, work = Counter[str](), Counter[str](), Counter[str]()
    for event in events:
        if event.get("cat") != "Node" or not event["name"].endswith("_kernel_time"):
            continue
        about = event["args"]
        operator = about["op_name"]
        nodes[about["provider"]] += 1
        if operator.startswith("Memcpy"):
            copies[operator] += 1
        elif about["provider"] != provider:
            (small if is_small(about) else work)[operator] += 1
    good = not work and nodes[provider] > 0
    return {"nodes": nodes, "copies": copies, "small": small, "work": work, "good": good}


def is_small(about: dict[str, Any]) -> bool:
    """Whether a node only computes lengths, positions, counts, or who sees whom."""
    shapes = [pair for value in about["output_type_shape"] for pair in value.items()]
    whole = all(kind in WHOLE for kind, _ in shapes)
    numbers = sum(int(np.prod(shape)) for _, shape in shapes)
    return about["op_name"] in SMALL and whole and numbers <= (PROMPT + 1) ** 2
