"""A run of GPT-2 on a prompt, recorded for a page: intermediate arrays and the generated text.

Values are stored as they are shown: as integers divided by a power of ten. The page shows what the
model computed, rounded once, and the file is small enough to mail.

Axes: B batch, T tokens of the prompt, C n_embd, H heads, D head_dim, F mlp width, V vocabulary,
L layers, N generated tokens, K most probable tokens.
"""

import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from npgpt2.base.arrays import Array
from npgpt2.base.errors import CheckpointError, InputError, TokenizerError
from npgpt2.generation.generate import Row, Stepper, Token, sound, write
from npgpt2.generation.options import GenerationOptions
from npgpt2.generation.sampling import uniforms
from npgpt2.gpt2 import GPT2
from npgpt2.model.config import GPT2Config
from npgpt2.model.forward import lm_head, split, split_heads
from npgpt2.model.ops import layer_norm, softmax
from npgpt2.model.params import param_shapes
from npgpt2.tokenizer.interface import Tokenizer

MOST = 256  # tokens of a prompt: attention maps grow with their square
LENS, ALTERNATIVES, NEURONS = 5, 20, 12  # K: per layer, per generated token, per MLP
NAMED = 200  # tokens of the last distribution whose texts the page contains
ROOM = 1_900_000  # bytes for the large arrays; a page of the 124M shape has 3 MB
LEAST, MANY, FINE = 2, 200, 1000  # steps in a typical value: least and most, and of small arrays
CERTAIN = 4  # decimals of a probability: hundredths of a percent

Progress = Callable[[Iterable[Any], str], Iterable[Any]]


class Kept(NamedTuple):
    """An array as it is shown: `numbers` / 10^decimals. Float arrays are stored unchanged."""

    numbers: Array
    decimals: int = 0


@dataclass(frozen=True, eq=False)
class Record:
    """All that a page shows: `about` (JSON), and `arrays` by name, most of them tap names."""

    about: dict[str, Any]
    arrays: dict[str, Kept]

    def packed(self) -> bytes:
        """The arrays joined and deflated; `about["arrays"]` gives their order and layout.

        Integers 0, −1, 1, −2 … are stored as 0, 1, 2, 3 … (zigzag): first all lowest bytes, then
        all second bytes, and so on. Nearly all higher bytes are 0, so they compress well.
        """
        return zlib.compress(b"".join(_planes(kept.numbers) for kept in self.arrays.values()), 9)


def record(
    model: GPT2,
    prompt: str,
    options: GenerationOptions,
    name: str = "",
    progress: Progress = lambda loop, what: loop,
) -> Record:
    """Run a prompt through a model, and generate a continuation.

    Args:
        options: for one text; no beams, repetition penalty or stop texts.
        name: name of the model.

    Raises:
        InputError: the prompt has more than `MOST` tokens; see also `LanguageModel.encode`.
        CheckpointError: the logits or an intermediate array contain NaN or infinity.

    >>> model = GPT2.from_pretrained("tests/data/tiny")
    >>> kept = record(model, "O Romeo, ", GenerationOptions(temperature=0, max_new_tokens=2))
    >>> kept.about["written"]["ids"], kept.arrays["h.0.attn.probs"].numbers.shape
    ([271, 335], (4, 6, 6))
    """
    ids = model.encode(prompt)
    require_short(ids, MOST)
    arrays = dict(_flow(model, ids, _steps(model.config, len(ids)), progress))
    written, more = _writing(model, ids, options, progress)
    arrays |= more
    tokenizer = model.tokenizer
    spelled = {*ids, *written["ids"]}
    for key, array in arrays.items():
        if key.endswith(".ids"):
            spelled |= set(array.numbers.ravel().tolist())
    spelled |= set(_best(arrays["last"].numbers, NAMED).tolist())
    about = {
        "model": about_model(model.config, name, model.dtype.itemsize),
        "prompt": prompt,
        "ids": ids,
        "written": written,
        "pieces": {token: piece(tokenizer, token) for token in sorted(spelled)},
        "options": {k: getattr(options, k) for k in ("temperature", "top_k", "top_p", "min_p")},
        "arrays": [_layout(key, array) for key, array in arrays.items()],
    }
    return Record(about, arrays)


def require_short(ids: Sequence[int], most: int) -> None:
    """Raises InputError if a prompt has more than `most` tokens."""
    if len(ids) > most:
        raise InputError(f"prompt: got {len(ids):,} tokens, expected {most} at most on a page. "
                         "Shorten it")  # fmt: skip


def about_model(config: GPT2Config, name: str, itemsize: int = 4) -> dict[str, Any]:
    """What a page shows about a model: its sizes, and each parameter's checkpoint name and shape.

    Args:
        itemsize: bytes per value of the dtype that the model computes in.
    """
    layers = range(config.n_layer)
    fields = ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size", "head_dim", "mlp_width",
              "activation_function", "layer_norm_epsilon")  # fmt: skip
    return {
        "name": name,
        "itemsize": itemsize,
        **{field: getattr(config, field) for field in fields},
        "heads": [config.heads_left(i) for i in layers],
        "scales": [config.attention_scale(i) for i in layers],
        "parameters": [[name, shape] for name, shape in param_shapes(config).items()],
    }


def piece(tokenizer: Tokenizer, token: int) -> str | list[int] | None:
    """A token's text; its bytes if they are not whole characters; None if there is no such token.

    (The embedding matrix may have more rows than the vocabulary has tokens.)
    """
    try:
        data = tokenizer.token_bytes(token)
    except TokenizerError:
        return None
    try:
        return data.decode()
    except UnicodeDecodeError:
        return list(data)


# ── the forward pass over the prompt ─────────────────────────────────────────────────────────────


def _steps(config: GPT2Config, t: int) -> int:
    """How many steps of the last decimal a typical value has, so that the arrays fit into `ROOM`.

    At least `LEAST`. Decimals are integers, so an array gets 1 to 10 times as many steps. A normal
    distribution with a standard deviation of s steps takes log2(4.13 s) bits per value (entropy).

    >>> _steps(GPT2Config(), 24), _steps(GPT2Config(), 9), _steps(GPT2Config(), 256)
    (2, 200, 2)
    """
    width, heads = config.n_embd, config.n_head
    numbers = config.n_layer * t * (11 * width + 3 * heads * t)
    return max(LEAST, min(MANY, int(2 ** min(20.0, 8 * ROOM / numbers) / 41.3)))


def _flow(
    model: GPT2, ids: list[int], steps: int, progress: Progress
) -> Iterator[tuple[str, Kept]]:
    taps: dict[str, Array] = {}
    model([ids], use_cache=False, tap=lambda name, array: taps.__setitem__(name, array[0].copy()))
    logits = sound(taps["logits"])
    for name, array in taps.items():
        if not np.isfinite(array).all() and name != "logits":
            raise CheckpointError(f"{name}: got NaN or infinity: the weights overflow, expected "
                                  "finite values")  # fmt: skip
    for name in ("wte", "wpe", "embed"):
        yield name, kept(taps[name], steps)
    layers = range(model.config.n_layer)
    for i in progress(layers, "recording each block"):
        yield from _block(model.config, i, taps, steps)
    yield "ln_f", kept(taps["ln_f"], steps)
    lengths = [np.linalg.norm(taps[n].astype(np.float64), axis=-1) for n in sizes(layers)]
    yield "sizes", kept(np.stack(lengths), FINE)
    stops = [taps["embed"], *(taps[f"h.{i}.resid_mlp"] for i in layers[:-1])]
    lens = [likeliest(lens_logits(model, x), LENS) for x in progress(stops, "logit lens")]
    lens.append(likeliest(logits, LENS))
    yield "lens.ids", Kept(np.stack([found for found, _ in lens]))
    yield "lens.probs", certain(np.stack([probs for _, probs in lens]))
    given = softmax(logits[:-1].astype(np.float64))[np.arange(len(ids) - 1), ids[1:]]
    yield "given", certain(given)


def lens_logits(model: GPT2, hidden: Array) -> Array:
    """(N, C) of the residual stream → (N, V) logits, as if the model stopped there.

    The logit lens: nostalgebraist 2020, https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru
    """
    params, eps = model.params, model.config.layer_norm_epsilon
    return lm_head(layer_norm(hidden, *params.ln_f, eps), params)


def sizes(layers: Iterable[int]) -> list[str]:
    """Names of the arrays whose Euclidean norm is shown, in the order of the forward pass."""
    parts = ("attn.c_proj", "resid_attn", "mlp.c_proj", "resid_mlp")
    return ["embed", *(f"h.{i}.{part}" for i in layers for part in parts)]


def _block(
    config: GPT2Config, i: int, taps: dict[str, Array], steps: int
) -> Iterator[tuple[str, Kept]]:
    at = f"h.{i}."
    q, k, _ = (split_heads(part[None], config)[0] for part in split(taps[at + "attn.c_attn"], 3))
    scores = q @ k.swapaxes(1, 2)  # before the model scales and masks them, for softmax
    shown = {
        "ln_1": kept(taps[at + "ln_1"], steps),
        "attn.c_attn": kept(taps[at + "attn.c_attn"], 2 * steps),
        "attn.scores": kept(scores, 10 * steps),
        "attn.scaled": kept(scores * config.attention_scale(i), 10 * steps),
        "attn.probs": certain(taps[at + "attn.probs"]),
        "attn.mean": certain(taps[at + "attn.probs"].mean(0)),
        "attn.heads": kept(taps[at + "attn.heads"], 2 * steps),
    }
    rest = ("attn.c_proj", "resid_attn", "ln_2", "mlp.c_proj", "resid_mlp")
    shown |= {name: kept(taps[at + name], steps) for name in rest}
    act, before = taps[at + "mlp.act"], taps[at + "mlp.c_fc"]
    strongest = np.argsort(-np.abs(act), -1, kind="stable")[:, :NEURONS]
    shown["mlp.neurons"] = Kept(strongest.astype(np.int32))
    shown["mlp.c_fc"] = kept(np.take_along_axis(before, strongest, -1), FINE)
    shown["mlp.act"] = kept(np.take_along_axis(act, strongest, -1), FINE)
    return ((at + name, array) for name, array in shown.items())


# ── the generated text ───────────────────────────────────────────────────────────────────────────


class _Listening:
    """A stepper that records what the page shows: the most probable tokens of each step."""

    def __init__(self, step: Stepper) -> None:
        self._step = step
        self.first, self._probs = np.zeros(0), np.zeros(0)  # logits and probabilities (V,)
        self.likely: list[tuple[Array, Array]] = []
        self.chosen: list[float] = []  # probability of each generated token

    def __call__(self, ids: Array) -> Array:
        if self.likely:
            self.wrote(int(ids[0, 0]))
        logits = self._step(ids)
        if not self.likely:
            self.first = logits[0].astype(np.float32)
        self._probs = softmax(logits[0].astype(np.float64))
        self.likely.append(likeliest(logits[0], ALTERNATIVES))
        return logits

    def wrote(self, token: int) -> None:
        self.chosen.append(float(self._probs[token]))

    def reorder(self, rows: Array) -> None:
        self._step.reorder(rows)


def _writing(
    model: GPT2, ids: list[int], options: GenerationOptions, progress: Progress
) -> tuple[dict[str, Any], dict[str, Kept]]:
    """The generated tokens, how they were sampled, and the alternatives at each position."""
    config = model.config
    step = _Listening(model.stepper(room=min(len(ids) + options.max_new_tokens, 1 << 16)))
    options = replace(options, seed=options.seed or 0)
    loop = write(step, [Row(ids, options, config.n_positions, config.eos_token_ids)])
    tokens: list[Token] = list(progress(loop, "generating"))
    drawn = uniforms(options.seed or 0, 0)
    chosen = [token.id for token in tokens if token.id is not None]
    if len(step.chosen) < len(chosen):
        step.wrote(chosen[-1])  # the last token is not fed back
    written = {
        "ids": chosen,
        "finish": tokens[-1].finish,
        "uniforms": None if options.greedy else [next(drawn) for _ in tokens],
    }
    return written, {
        "last": Kept(step.first),
        "written.ids": Kept(np.stack([found for found, _ in step.likely])),
        "written.probs": certain(np.stack([p for _, p in step.likely])),
        "written.chosen": certain(np.array(step.chosen)),
    }


def likeliest(logits: Array, k: int) -> tuple[Array, Array]:
    """(..., V) logits → ids (..., K) int32 and probabilities (..., K) float64, best first.

    >>> likeliest(np.log([0.2, 0.5, 0.3]), 2)
    (array([1, 2], dtype=int32), array([0.5, 0.3]))
    """
    best = _best(logits, k)
    probs = softmax(logits.astype(np.float64))
    return best.astype(np.int32), np.take_along_axis(probs, best, -1)


def _best(logits: Array, k: int) -> Array:
    """(..., V) logits → the ids (..., K) of the largest, in descending order."""
    k = min(k, logits.shape[-1])
    some = np.argpartition(-logits, k - 1, axis=-1)[..., :k]
    some.sort(-1)  # of equal logits, the lower id comes first
    order = np.argsort(-np.take_along_axis(logits, some, -1), -1, kind="stable")
    return np.take_along_axis(some, order, -1)


# ── values as they are shown ─────────────────────────────────────────────────────────────────────


def kept(x: Array, steps: int) -> Kept:
    """Round `x` to so many decimals that a typical value in it has at least `steps` steps.

    Typical is the standard deviation, estimated from the median of the absolute values as for a
    normal distribution: a few outliers, as some of GPT-2's dimensions are, do not affect it.

    >>> kept(np.array([0.0312, -0.0711, 0.0456, 900.0]), steps=3)
    Kept(numbers=array([    3,    -7,     5, 90000], dtype=int32), decimals=2)
    """
    size = np.abs(x.astype(np.float64))
    usual, largest = float(np.median(size)) / 0.6745, float(size.max())
    decimals = min(9, max(0, math.ceil(math.log10(steps / usual)))) if usual else 2
    if largest:
        decimals = min(decimals, math.floor(math.log10(2**31 / largest)))
    return _fixed(x, decimals)


def certain(probs: Array) -> Kept:
    """Probabilities, rounded to hundredths of a percent."""
    return _fixed(probs, CERTAIN)


def _fixed(x: Array, decimals: int) -> Kept:
    return Kept(np.rint(x.astype(np.float64) * 10.0**decimals).astype(np.int32), decimals)


def _layout(name: str, kept: Kept) -> list[Any]:
    """Name, shape, bytes per value (0: float32), decimals."""
    return [name, kept.numbers.shape, _width(kept.numbers), kept.decimals]


def _width(numbers: Array) -> int:
    if numbers.dtype.kind == "f":
        return 0
    largest = int(np.abs(numbers, dtype=np.int64).max(initial=0))
    return 1 if largest < 2**7 else 2 if largest < 2**15 else 4


def _planes(numbers: Array) -> bytes:
    width = _width(numbers)
    if not width:
        return numbers.astype("<f4").tobytes()
    wide = numbers.astype(np.int64)
    folded = (np.abs(wide) * 2 - (wide < 0)).astype(f"<u{width}")
    return folded.reshape(-1).view(np.uint8).reshape(-1, width).T.tobytes()
