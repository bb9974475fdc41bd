"""Every graph in every precision beside NumPy with the same weights, on the device.

What is compared are the cases of `npgpt2_onnx.write.verify` (a prompt and steps behind it, chunks,
batches, padding on both sides), and a text that is written the way `OnnxModel` writes one.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np

from benchmarks.cuda.models import Options, Steps, no_kernel
from benchmarks.cuda.sessions import may_refuse, opened
from npgpt2 import GPT2
from npgpt2_onnx import OnnxModel
from npgpt2_onnx.graph.names import KINDS
from npgpt2_onnx.graph.precision import PRECISIONS
from npgpt2_onnx.run.exported import Exported
from npgpt2_onnx.run.session import Session, require_graphs
from npgpt2_onnx.write.verify import BOUNDS, check_weights, compare, reference

# Of float32 on CUDA, as parts of the largest value. By default its products are TF32: inputs are
# rounded to 10 bits, as many as float16 has. Without, what remains is another order of summing.
TF32, EXACT = BOUNDS["fp16"], 5e-5
PROMPT, WRITTEN = 12, 12  # tokens of the text


def steps(options: Options) -> Steps:
    """In float32 on CUDA once more without TF32: what is left then is no rounding of inputs."""
    for precision in PRECISIONS:
        model = cache(partial(numpy_model, options, precision))
        yield f"{precision} weights", partial(weights, options, precision)
        for kind in KINDS:
            measure = partial(graph, options, precision, kind, model)
            if no_kernel(options, precision, kind):
                yield f"{precision} {kind}", partial(may_refuse, measure)
                continue
            yield f"{precision} {kind}", measure
            if precision == "fp32" and options.device == "cuda":
                yield f"{precision} {kind} without TF32", partial(measure, tf32=False)


def numpy_model(options: Options, precision: str) -> GPT2:
    """With the weights that a precision's graphs read, rounded or not.

    In float64 for float32's sake; beside the others' errors those of float32 are nothing.
    """
    path = require_graphs(options.graphs)[precision, "portable"]
    model = reference(Exported.open(path), "float64" if precision == "fp32" else "float32")
    assert isinstance(model, GPT2)
    return model


def weights(options: Options, precision: str) -> dict[str, Any]:
    """What the graphs read beside the checkpoint: the largest rounding error of any parameter."""
    model = GPT2.from_pretrained(options.checkpoint)
    path = require_graphs(options.graphs)[precision, "portable"]
    rows = check_weights(Exported.open(path), model)
    wrong = [row.parameter for row in rows if not row.good]
    return {"rounding": max(row.error for row in rows), "wrong": wrong, "good": not wrong}


def graph(
    options: Options, precision: str, kind: str, model: Callable[[], GPT2], tf32: bool = True
) -> dict[str, Any]:
    """The worst of a graph's cases.

    Returns:
        logits, presents: the largest error, as a part of the largest value. written: the same of
            the text's logits. same_text: whether greedy choices were equal all along. top1:
            whether they were wherever the first one's lead is clear. good: all within the limit.
    """
    path, more = require_graphs(options.graphs)[precision, kind], {} if tf32 else {"use_tf32": "0"}
    session = opened(path, options.device, provider_options=more)
    limit = BOUNDS[precision]
    if options.device == "cuda" and precision == "fp32":
        limit = TF32 if tf32 else EXACT
    rows = list(compare(session, model(), bound=limit))
    error, same = text(session, model())
    worst = max(rows, key=lambda row: max(row.logits, row.presents))
    return {
        "logits": max(row.logits for row in rows),
        "presents": max(row.presents for row in rows),
        "written": error,
        "same_text": same,
        "top1": all(row.arg_max for row in rows),
        "limit": limit,
        "worst_case": worst.case,
        "good": all(row.good for row in rows) and error <= limit,
    }


def text(session: Session, model: GPT2) -> tuple[float, bool]:
    """NumPy writes, greedily and two rows at once, and the graph reads along as it would write.

    Returns:
        The largest error of any logits, and whether the graph would have written the same.
    """
    ids = np.random.default_rng(1).integers(0, model.config.vocab_size, (2, PROMPT))
    room = PROMPT + WRITTEN
    ours, theirs = OnnxModel(session).stepper(room=room), model.stepper(room=room)
    worst, same = 0.0, True
    for _ in range(WRITTEN):
        got, want = ours(ids), theirs(ids)
        error = float(np.abs(got - want).max() / np.abs(want).max())
        worst = max(worst, error if np.isfinite(error) else np.inf)
        ids = want.argmax(-1)[:, None]
        same &= bool((got.argmax(-1)[:, None] == ids).all())
    return worst, same
