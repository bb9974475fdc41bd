"""What a model would say if it stopped between two blocks: the stream there through ln_f and head.

nostalgebraist 2020, "interpreting GPT: the logit lens",
https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru. A graph beside model.onnx and over the same file
of weights, which runs on what that one puts out of its inside.

Axes: N hidden states, C n_embd, V vocabulary, K tokens named for each state.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import ModelProto

from npgpt2 import GPT2, ops
from npgpt2.config import GPT2Config
from npgpt2.errors import CheckFailed
from npgpt2.ops import Array
from npgpt2.pictures.record import lens_logits
from npgpt2_onnx.builder import FLOAT, INT64, Graph
from npgpt2_onnx.data import Layout, weights
from npgpt2_onnx.graph import OPSET
from npgpt2_onnx.ops import dot_rows, layer_norm
from npgpt2_onnx.precision import Precision
from npgpt2_onnx.session import PROVIDERS, runtime_error
from npgpt2_onnx.verify import BOUNDS

HIDDEN, PROBS, IDS = "hidden", "probs", "ids"  # the graph's input and outputs


def build_lens(
    config: GPT2Config, precision: Precision, layout: Layout, opset: int = OPSET, top: int = 5
) -> ModelProto:
    """The graph: `hidden` (N, C) → `probs` (N, K) float32 and `ids` (N, K) int64, best first.

    N is any number from 1. Reads no weights: `layout` says where they lie, which is where
    model.onnx has them.

    Args:
        top: K; the whole vocabulary where that is smaller.

    >>> from npgpt2_onnx.data import layout
    >>> from npgpt2_onnx.precision import PRECISIONS
    >>> config, fp32 = GPT2Config(), PRECISIONS["fp32"]
    >>> lens = build_lens(config, fp32, layout(config, fp32, "model.onnx_data")).graph
    >>> [proto.name for proto in lens.initializer if proto.external_data]
    ['wte.weight', 'ln_f.weight', 'ln_f.bias']
    """
    g = Graph(opset, precision.float)
    hidden = g.input(HIDDEN, FLOAT, ["N", config.n_embd])
    head = "wte.weight" if config.tie_word_embeddings else "lm_head.weight"
    read = (head, "ln_f.weight", "ln_f.bias")
    p: Any = weights(g, config, precision, layout, read.__contains__)
    row = g.op("Unsqueeze", hidden, g.constant([0]))  # (1, N, C): a batch of one row
    norm = p["ln_f.weight"], p["ln_f.bias"]
    x = layer_norm(g.at("ln_f"), row, *norm, eps=config.layer_norm_epsilon)
    logits = dot_rows(g.at("lm_head"), x, p[head], config.vocab_size)
    probs = g.op("Softmax", g.op("Squeeze", logits, g.constant([0])), axis=-1)
    k = min(top, config.vocab_size)
    best = g.ops("TopK", probs, g.constant([k]), outputs=2, axis=-1)
    for name, value, dtype in zip((PROBS, IDS), best, (FLOAT, INT64), strict=True):
        g.output(g.tap(name, value), dtype, ["N", k])
    return g.model("gpt2_lens")


def check_lens(path: Path, model: GPT2) -> None:
    """Run a lens in float32 on the states between a model's blocks, beside NumPy.

    Raises:
        CheckFailed: it names other tokens, or other probabilities.
        CheckpointError: onnxruntime does not run it.
    """
    hidden = _states(model)
    probs, ids = _run(path, hidden)
    logits = lens_logits(model, hidden)
    truth = ops.softmax(logits)
    best = -np.sort(-truth, -1)[:, : ids.shape[1]]
    # Logits that are off by δ move a probability by no more than a part of 2δ.
    bound = 2 * BOUNDS["fp32"] * max(1.0, float(np.abs(logits).max()))
    for found in (probs, np.take_along_axis(truth, ids, -1)):
        error = float(np.abs(found - best).max())
        if not error <= bound:  # NaN, too
            raise CheckFailed(
                f"{path.name}: the probabilities of the most probable tokens differ by "
                f"{error:.2g}, expected at most {bound:.2g}. Nothing was kept"
            )


def _states(model: GPT2) -> Array:
    """(N, C) float32: the stream before, between and behind the blocks, of a few tokens."""
    config, found = model.config, []

    def keep(name: str, array: Array) -> None:
        if name.endswith(("embed", "resid_mlp")):
            found.append(array[0].astype(np.float32))

    ids = np.random.default_rng(0).integers(0, config.vocab_size, (1, min(4, config.n_positions)))
    model(ids, tap=keep)
    return np.concatenate(found)


def _run(path: Path, hidden: Array) -> tuple[Array, Array]:
    options = ort.SessionOptions()
    options.log_severity_level = 4  # errors come as exceptions
    try:
        session = ort.InferenceSession(str(path), options, providers=[PROVIDERS["cpu"]])
        probs, ids = session.run([PROBS, IDS], {HIDDEN: hidden})
    except Exception as error:  # onnxruntime's own family, one class for each code
        raise runtime_error(path, error) from None
    return probs, ids
