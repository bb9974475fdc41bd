"""Tokens per second of ONNX Runtime, by precision, rows and tokens of the prompt.

Each cell is measured twice: as `OnnxModel` runs, which makes its cache on the host and brings
logits there with every step, and the graph alone, with everything on the device.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from benchmarks.cuda.models import LARGE, Options, Steps, make_large
from benchmarks.numpy_vs_torch import typical
from npgpt2.bench import bytes_read
from npgpt2_onnx import OnnxModel
from npgpt2_onnx.graph import names
from npgpt2_onnx.run.session import Session

FLOATS, WHOLE = ("fp32", "fp16"), ("int8", "int4")


def steps(options: Options) -> Steps:
    """The floats first: where time is short, it is the others that are left out."""
    yield from cells(options, options.graphs, (*FLOATS, *WHOLE))


def large_steps(options: Options) -> Steps:
    yield "graphs", partial(make_large, options)
    yield from cells(options, options.large_graphs, LARGE)


def cells(options: Options, folder: Path, precisions: Sequence[str]) -> Steps:
    """The most rows last: they take as long as all others together."""
    for batches, precision in product((options.batches[:-1], options.batches[-1:]), precisions):
        model = cache(partial(OnnxModel.from_pretrained, folder, precision, device=options.device))
        for batch, context in product(batches, options.contexts):
            name = f"{precision}, {batch} rows, {context} tokens"
            yield name, partial(cell, model, batch, context, options.new)


def cell(opened: Callable[[], OnnxModel], batch: int, context: int, new: int) -> dict[str, Any]:
    """Prefill and decode, in tokens per second.

    Returns:
        prefill, decode: of `OnnxModel`. graph_prefill, graph_decode: of the graph alone.
        bytes: what a step of decode reads at least, weights and cache.
    """
    model = opened()
    session = model.session
    prompt = np.arange(batch * context).reshape(batch, context) * 7919 % model.config.vocab_size
    prefill, decode = whole(model, prompt, new)
    graph_prefill = typical(4, alone(session, batch, 0, context))
    graph_decode = typical(1 + new, alone(session, batch, context, 1))
    return {
        "precision": session.precision.name, "kind": session.kind,
        "batch": batch, "context": context,
        "prefill": prompt.size / prefill, "decode": batch / decode,
        "graph_prefill": prompt.size / graph_prefill, "graph_decode": batch / graph_decode,
        "bytes": bytes_read(model, batch * context, session.dtype.itemsize),
    }  # fmt: skip


def whole(model: OnnxModel, prompt: np.ndarray, new: int) -> tuple[float, float]:
    """Seconds of a prompt and of a step behind it, as `OnnxModel` does them."""
    room = prompt.shape[1] + new
    prefill = typical(3, lambda: model.stepper(room=room)(prompt))
    step = model.stepper(room=room)
    step(prompt)
    return prefill, typical(new, lambda: step(prompt[:, :1]))


def alone(session: Session, batch: int, past: int, new: int) -> Callable[[], None]:
    """A run of `new` tokens behind `past` others, whose cache holds whatever the memory held."""
    config, binding = session.config, session.ort.io_binding()
    shared = session.kind == "gqa"  # past and present are one place in memory
    for layer in range(config.n_layer):
        shape = [batch, config.heads_left(layer), past + new if shared else past, config.head_dim]
        for before, after in zip(names.past(layer), names.present(layer), strict=True):
            value = ort.OrtValue.ortvalue_from_shape_and_type(
                shape, session.dtype.type, session.device, 0
            )
            binding.bind_ortvalue_input(before, value)
            if shared:
                binding.bind_ortvalue_output(after, value)
            else:
                binding.bind_output(after, session.device)
    positions = np.arange(past, past + new)[None].repeat(batch, 0)
    for name, array in (
        (names.INPUT_IDS, positions % config.vocab_size),
        (names.ATTENTION_MASK, np.ones((batch, past + new), np.int64)),
        (names.POSITION_IDS, positions),
    ):
        binding.bind_ortvalue_input(
            name, ort.OrtValue.ortvalue_from_numpy(array, session.device, 0)
        )
    binding.bind_output(names.LOGITS, session.device)

    def run() -> None:
        session.ort.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return run
