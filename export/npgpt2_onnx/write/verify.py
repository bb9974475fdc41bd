"""Verify an export: compare its weights with the checkpoint's and its graphs with NumPy.

NumPy uses the weights that the graph reads, rounded or not. So the differences come only from the
graph's own arithmetic, and one bound holds for every checkpoint. `quality` measures on a text what
the rounding of the weights costs.

Axes: B batch, T new tokens, P past, H heads, D head_dim, V vocabulary.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort

from npgpt2 import GPT2, GPT2Config, GPT2WithHead
from npgpt2.base.arrays import Array
from npgpt2.base.errors import CheckFailed, InputError
from npgpt2.generation.scoring import log_softmax
from npgpt2.model.ops import softmax
from npgpt2.model.params import Params, build_tree, named_parameters
from npgpt2.pictures.record import lens_logits
from npgpt2_onnx.graph import names
from npgpt2_onnx.graph.lens import HIDDEN, IDS, PROBS
from npgpt2_onnx.run.exported import Exported
from npgpt2_onnx.run.session import PROVIDERS, Session, runtime_error
from npgpt2_onnx.write.data import in_place, read

Progress = Callable[[Iterable[Any], str], Iterable[Any]]

# Bounds for the largest |Δ| of logits, keys and values, relative to the largest value. fp16
# multiplies in half precision. int8 and int4 kernels round each block of activations to 8 bits,
# which changed one value by 0.07 in narrow models. A graph with a wrong node is off by about 1.
BOUNDS = {"fp32": 5e-6, "fp16": 1e-2, "int8": 0.15, "int4": 0.15}

# What a precision may cost on a text: relative increase of perplexity, mean KL divergence in nats,
# and the lowest top-1 agreement.
QUALITY = {
    "fp32": (1e-6, 1e-9, 0.9999),
    "fp16": (1e-4, 1e-5, 0.998),
    "int8": (1e-3, 5e-4, 0.985),
    "int4": (1e-2, 1e-2, 0.0),
}


class Difference(NamedTuple):
    """The largest differences of one case, relative to the largest value."""

    graph: str
    case: str
    logits: float
    presents: float
    bound: float
    arg_max: bool  # same top-1 token wherever its margin is clear

    @property
    def good(self) -> bool:
        return self.logits <= self.bound and self.presents <= self.bound and self.arg_max


class Rounding(NamedTuple):
    """The largest difference between a parameter of a graph and the checkpoint's."""

    graph: str
    parameter: str
    error: float  # the largest |Δ|
    good: bool  # no value differs by more than rounding explains


class Quality(NamedTuple):
    """What a precision costs on a text."""

    graph: str
    perplexity: float
    change: float  # relative to float32's
    kl: float  # mean over positions of KL(float32 ‖ this), nats
    top1: float  # top-1 agreement, a part of 1
    good: bool


# ── weights ──────────────────────────────────────────────────────────────────────────────────────


def check_weights(graph: Exported, against: GPT2 | GPT2WithHead) -> list[Rounding]:
    """Compare every parameter that a graph reads with the checkpoint's: equal, or rounded."""
    stored, rows = read(graph), []
    for name, original in named_parameters(against.params):
        got, slack = stored.get(name, (np.empty(0), np.empty(0)))
        error, good = math.inf, False
        if got.shape == original.shape and np.isfinite(got).all():
            delta = np.abs(got - original)
            error, good = float(delta.max()), bool((delta <= slack).all())
        rows.append(Rounding(graph.path.name, name, error, good))
    return rows


# ── arithmetic ───────────────────────────────────────────────────────────────────────────────────


@dataclass
class _Pair:
    """A graph and the NumPy model with the same weights; both get the same inputs."""

    session: Session
    model: GPT2
    generator: np.random.Generator
    bound: float

    def ids(self, rows: int, tokens: int) -> Array:
        return self.generator.integers(0, self.model.config.vocab_size, (rows, tokens))

    def _encoder(self, rows: int) -> dict[str, Any]:
        """Return encoder states and their mask for a model with cross-attention."""
        if not self.model.config.add_cross_attention:
            return {}
        shape = (rows, 5, self.model.config.n_embd)
        mask = np.ones(shape[:2], np.int64)
        mask[0, -2:] = 0
        return {
            "encoder_hidden_states": self.generator.standard_normal(shape).astype(self.model.dtype),
            "encoder_attention_mask": mask,
        }

    def compare(self, case: str, *steps: Array, mask: Array | None = None) -> Difference:
        """Run the steps, a prompt first, through both; return the largest difference of all."""
        cache, past = None, None
        worst, worst_present, same = 0.0, 0.0, True
        bound, encoder = self.bound, self._encoder(len(steps[0]))
        for ids in steps:
            if mask is not None and past is not None:
                mask = np.concatenate([mask, np.ones(ids.shape, bool)], 1)
            ours = self.model(
                ids, past_key_values=cache, attention_mask=mask, use_cache=True, **encoder
            )
            cache = ours.past_key_values
            assert cache is not None
            cross = [
                tuple(array.astype(self.session.dtype) for array in pair)
                for pair in cache.cross.values()
            ]
            logits, past = self.session.forward(
                ids, mask=mask, past=past, cross=cross, cross_mask=cache.cross_mask
            )
            encoder = {}  # its keys and values are in the KV cache now
            new = slice(None) if mask is None else mask[:, -ids.shape[1] :]
            worst = max(worst, _error(logits[new], ours.logits[new]))
            same &= _same_arg_max(logits[new], ours.logits[new], bound)
            for layer, pair in enumerate(past):
                for array, reference in zip(pair, cache[layer], strict=True):
                    error = _presents_error(self, array, reference, mask)
                    worst_present = max(worst_present, error)
        return Difference(self.session.path.name, case, worst, worst_present, bound, same)


def _presents_error(pair: _Pair, got: Array, want: Array, mask: Array | None) -> float:
    """Return the error of keys or values (B, H, S, D), without padding."""
    if mask is None:
        return _error(got, want)
    real = [want[row, :, mask[row]] for row in range(len(want))]
    if pair.session.kind == "gqa":  # real tokens come first, padding last
        count = mask.sum(1)
        found = [got[row, :, : count[row]].swapaxes(0, 1) for row in range(len(got))]
    else:
        found = [got[row, :, mask[row]] for row in range(len(got))]
    return _error(np.concatenate(found), np.concatenate(real))


def _error(got: Array, want: Array, scale: float = 1e-30) -> float:
    """Return the largest |Δ| relative to the largest value, at least `scale`; infinite for NaN."""
    if got.shape != want.shape:
        return math.inf
    error = float(np.abs(got - want).max() / max(np.abs(want).max(), scale))
    return error if math.isfinite(error) else math.inf


def _same_arg_max(got: Array, want: Array, bound: float, scale: float = 0.0) -> bool:
    """Return whether the top-1 tokens agree wherever the margin exceeds twice the bound."""
    top = np.sort(want.reshape(-1, want.shape[-1]), -1)[:, -2:]
    clear = top[:, -1] - top[:, 0] > 2 * bound * max(np.abs(want).max(), scale)
    chosen = got.reshape(-1, want.shape[-1]).argmax(-1), want.reshape(-1, want.shape[-1]).argmax(-1)
    return bool((chosen[0] == chosen[1])[clear].all())


def compare(
    session: Session, model: GPT2, quick: bool = False, bound: float | None = None
) -> Iterator[Difference]:
    """Compare a graph with the NumPy model that has the same weights, case by case.

    Args:
        quick: only a prompt with two steps, and an empty KV cache again, as `export` checks.
        bound: of the errors; None: the one in BOUNDS, which holds on a CPU.
    """
    n = model.config.n_positions
    bound = BOUNDS[session.precision.name] if bound is None else bound
    pair = _Pair(session, model, np.random.default_rng(0), bound)
    prompt = max(1, min(n // 2, 8 if quick else 64))
    steps = [pair.ids(1, 1) for _ in range(min(n - prompt, 2 if quick else 8))]
    yield pair.compare("prompt, then steps", pair.ids(1, prompt), *steps)
    yield pair.compare("empty past again", pair.ids(1, 1))
    if quick:
        return
    if n >= 4:
        yield pair.compare("chunks", *(pair.ids(1, k) for k in (n // 4, n // 4, 1, n // 4)))
    if n < 3:
        return
    prompt = min(prompt, n - 2)
    yield pair.compare("batch", pair.ids(3, prompt), pair.ids(3, 1), pair.ids(3, 1))
    pads = np.array([prompt - 1, prompt // 2, 0])[:, None]
    left = np.arange(prompt) >= pads
    for side, mask in (("left", left), ("right", left[:, ::-1])):
        if session.kind == "gqa" and side == "left":
            continue  # the graph refuses it; the runner moves padding to the right
        steps = [pair.ids(3, 1)] * 2
        yield pair.compare(f"batch padded {side}", pair.ids(3, prompt), *steps, mask=mask)


def compare_head(session: Session, model: GPT2WithHead) -> Iterator[Difference]:
    """Compare every output of a graph with another head, case by case."""
    n, generator = model.config.n_positions, np.random.default_rng(0)
    chooses = model.config.head == "multiple_choice_head"
    tokens = min(n, 24)
    pads = np.array([0, tokens // 2, tokens - 1])[:, None]
    masks = {
        "a row": np.ones((1, tokens), bool),
        "a token": np.ones((1, 1), bool),
        "batch": np.ones((3, tokens), bool),
        "batch padded right": np.arange(tokens) < tokens - pads,
        "batch padded left": np.arange(tokens) >= pads,
    }
    bound = BOUNDS[session.precision.name]
    for case, mask in masks.items():
        ids = generator.integers(0, model.config.vocab_size, mask.shape)
        if model.config.pad_token_id is not None:
            ids[~mask] = model.config.pad_token_id
            ids[0, [-1, tokens // 2 % ids.shape[1]]] = model.config.pad_token_id  # unmasked as well
        chosen = None
        if chooses:
            last = (np.arange(mask.shape[1]) * mask).argmax(1)
            # Two rows of choices; the second has the reverse order.
            last, mask, ids = (np.stack([x, x[::-1]]) for x in (last, mask, ids))
            chosen = last
        feeds = {names.INPUT_IDS: ids, names.ATTENTION_MASK: mask.astype(np.int64)}
        if chosen is not None:
            feeds[names.MC_TOKEN_IDS] = chosen
        got = session.outputs(feeds)
        worst, same = 0.0, True
        scale = _typical(model, ids, mask)
        for name, array in model(ids, attention_mask=mask, mc_token_ids=chosen).items():
            # For outputs of single tokens, compare the real tokens: nobody reads the others.
            real = mask if array.shape[: mask.ndim] == mask.shape else slice(None)
            worst = max(worst, _error(got[name][real], array[real], scale))
            if name == names.LOGITS:
                same &= _same_arg_max(got[name][real], array[real], bound, scale)
        yield Difference(session.path.name, case, worst, 0.0, bound, same)


def _typical(model: GPT2WithHead, ids: Array, mask: Array) -> float:
    """Return the size of a head's output if the signs of its terms were random. A head has few
    outputs, and all of them may be near zero by chance."""
    t = ids.shape[-1]
    x = model.states(ids.reshape(-1, t), mask.reshape(-1, t))
    return float(np.sqrt((x**2 @ (model.dense.weight**2).T).max()))


def model_of(config: GPT2Config, params: Params) -> GPT2 | GPT2WithHead:
    """Return the NumPy model for the config's head."""
    return (GPT2 if config.head == "lm_head" else GPT2WithHead)(config, params)


def reference(graph: Exported, dtype: str = "float64") -> GPT2 | GPT2WithHead:
    """Return the NumPy model with the weights that a graph reads."""
    arrays = {name: array.astype(dtype, copy=False) for name, (array, _) in read(graph).items()}
    return model_of(graph.config, build_tree(arrays))


def verify(
    graphs: Mapping[tuple[str, str], Path],
    progress: Progress = lambda loop, what: loop,
    quick: bool = False,
) -> list[Difference]:
    """Compare graphs, by (precision, kind), with NumPy.

    Raises:
        FileError, CheckpointError: a graph does not load.
    """
    rows: list[Difference] = []
    last: Exported | None = None
    for path in progress(list(graphs.values()), "verifying"):
        session = Session(path)
        graph, bound = session.graph, BOUNDS[session.precision.name]
        if not in_place(graph):
            rows.append(
                Difference(path.name, "misplaced weights", math.inf, math.inf, bound, False)
            )
            continue
        if last is None or (last.config, last.tensors) != (graph.config, graph.tensors):
            model, last = reference(graph, "float32" if quick else "float64"), graph
        if isinstance(model, GPT2):
            rows += compare(session, model, quick)
        else:
            rows += compare_head(session, model)
    return rows


# ── quality ──────────────────────────────────────────────────────────────────────────────────────


def quality(
    ids: Sequence[int],
    sessions: Sequence[Session],
    model: GPT2,
    window: int | None = None,
    progress: Progress = lambda loop, what: loop,
) -> list[Quality]:
    """Measure perplexity, KL divergence and top-1 agreement on a text, in windows without overlap.

    Args:
        model: the float32 model to compare with.
        window: tokens per window; None: the whole context.
    """
    size = min(window or model.config.n_positions, len(ids))
    if size < 2:
        raise InputError(f"text: has {len(ids)} tokens, expected at least two")
    windows = np.asarray(ids)[: len(ids) // size * size].reshape(-1, size)
    base, sums = 0.0, np.zeros((len(sessions), 3))  # nats, KL, same top-1
    for row in progress(list(windows[:, None]), "measuring on the text"):
        truth = log_softmax(model(row, use_cache=False).logits)
        base -= _picked(truth, row)
        for i, session in enumerate(sessions):
            ours = log_softmax(session.forward(row)[0])
            kl = (np.exp(truth) * (truth - ours)).sum()
            same = (truth.argmax(-1) == ours.argmax(-1)).sum()
            sums[i] += [-_picked(ours, row), kl, same]
    scored = windows[:, 1:].size
    found = []
    for session, (nats, kl, same) in zip(sessions, sums, strict=True):
        change = math.expm1((nats - base) / scored)
        most, most_kl, least = QUALITY[session.precision.name]
        mean_kl, top1 = kl / windows.size, same / windows.size
        good = change <= most and mean_kl <= most_kl and top1 >= least
        perplexity = math.exp(min(nats / scored, 700))
        found.append(Quality(session.path.name, perplexity, change, mean_kl, top1, good))
    return found


def _picked(logprobs: Array, ids: Array) -> float:
    return float(np.take_along_axis(logprobs[:, :-1], ids[:, 1:, None], -1).sum())


def check_lens(path: Path, model: GPT2) -> None:
    """Compare a float32 lens graph with NumPy on the hidden states between the blocks.

    Raises:
        CheckFailed: it returns other tokens or other probabilities.
        CheckpointError: onnxruntime cannot run it.
    """
    hidden = _stream(model)
    probs, ids = _run_lens(path, hidden)
    logits = lens_logits(model, hidden)
    truth = softmax(logits)
    best = -np.sort(-truth, -1)[:, : ids.shape[1]]
    # An error δ in the logits changes a probability by at most 2δ, relative.
    bound = 2 * BOUNDS["fp32"] * max(1.0, float(np.abs(logits).max()))
    for found in (probs, np.take_along_axis(truth, ids, -1)):
        error = float(np.abs(found - best).max())
        if not error <= bound:  # NaN, too
            raise CheckFailed(
                f"{path.name}: the probabilities of the most probable tokens differ by "
                f"{error:.2g}, expected at most {bound:.2g}. Nothing was written"
            )


def _stream(model: GPT2) -> Array:
    """Return the residual stream of a few tokens at every block boundary, (N, C) float32."""
    config, found = model.config, []

    def keep(name: str, array: Array) -> None:
        if name.endswith(("embed", "resid_mlp")):
            found.append(array[0].astype(np.float32))

    ids = np.random.default_rng(0).integers(0, config.vocab_size, (1, min(4, config.n_positions)))
    model(ids, tap=keep)
    return np.concatenate(found)


def _run_lens(path: Path, hidden: Array) -> tuple[Array, Array]:
    options = ort.SessionOptions()
    options.log_severity_level = 4  # errors come as exceptions
    try:
        session = ort.InferenceSession(str(path), options, providers=[PROVIDERS["cpu"]])
        probs, ids = session.run([PROBS, IDS], {HIDDEN: hidden})
    except Exception as error:  # onnxruntime's own family, one class for each code
        raise runtime_error(path, error) from None
    return probs, ids
