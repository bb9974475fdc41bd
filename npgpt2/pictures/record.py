"""What a GPT-2 does with a prompt, kept for a page: every array on the way, and what it wrote.

Numbers are kept as they are shown, as whole multiples of a power of ten: what the page says is what
the model computed, rounded once, and a page can be mailed.

Axes: B batch, T tokens of the prompt, C n_embd, H heads, D head_dim, F mlp width, V vocabulary,
L layers, N tokens that were written, K of the most probable ones.
"""

import math
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from npgpt2.config import GPT2Config
from npgpt2.errors import InputError
from npgpt2.generate import GenerationOptions, Stepper, Token, sound, write
from npgpt2.gpt2 import GPT2
from npgpt2.model import lm_head, split, split_heads
from npgpt2.ops import Array, layer_norm, softmax
from npgpt2.params import param_shapes, stored_name
from npgpt2.sampling import uniforms
from npgpt2.tokenizer import Tokenizer

MOST = 256  # tokens: attention maps grow with their square
LENS, ALTERNATIVES, NEURONS = 5, 20, 12  # K: of a layer, of a written token, of an MLP
NAMED = 200  # tokens of the last distribution whose texts are known to the page
# At least so many steps in the size that is usual in an array: of a texture, of one head's numbers,
# of scores, of what is few.
TEXTURE, LEGIBLE, SCORES, FINE = 2, 5, 20, 1000
CERTAIN = 4  # decimals of a probability: hundredths of a percent

Progress = Callable[[Iterable[Any], str], Iterable[Any]]


class Kept(NamedTuple):
    """An array as it is shown: `numbers` / 10^decimals. Floats stand for themselves."""

    numbers: Array
    decimals: int = 0


@dataclass(frozen=True, eq=False)
class Record:
    """All that a page shows: `about` is for JSON, `arrays` are by name, most as taps name them."""

    about: dict[str, Any]
    arrays: dict[str, Kept]

    def packed(self) -> bytes:
        """The arrays in one piece, deflated; `about["arrays"]` says what lies where.

        Whole numbers 0, −1, 1, −2 … are put down as 0, 1, 2, 3 …, all lowest bytes first, then the
        next: nearly all of these are 0, and take no room.
        """
        return zlib.compress(b"".join(_planes(kept.numbers) for kept in self.arrays.values()), 9)


def record(
    model: GPT2,
    prompt: str,
    options: GenerationOptions,
    name: str = "",
    progress: Progress = lambda loop, what: loop,
) -> Record:
    """Run a prompt through a model, and write on.

    Args:
        options: for one text, without beams, a repetition penalty or stop texts.
        name: of the model.

    Raises:
        InputError: the prompt has more than `MOST` tokens; and see `LanguageModel.encode`.
        CheckpointError: the logits hold NaN or infinity.

    >>> model = GPT2.from_pretrained("tests/data/tiny")
    >>> kept = record(model, "O Romeo, ", GenerationOptions(temperature=0, max_new_tokens=2))
    >>> kept.about["written"]["ids"], kept.arrays["h.0.attn.probs"].numbers.shape
    ([271, 335], (4, 6, 6))
    """
    ids = model.encode(prompt)
    if len(ids) > MOST:
        raise InputError(f"prompt: is longer than a page can show: {len(ids):,} > {MOST} tokens. "
                         "Shorten it")  # fmt: skip
    arrays = dict(_flow(model, ids, progress))
    written, more = _writing(model, ids, options, progress)
    arrays |= more
    tokenizer = model.tokenizer
    spelled = {*ids, *written["ids"]}
    for kept in (key for key in arrays if key.endswith(".ids")):
        spelled |= set(arrays[kept].numbers.ravel().tolist())
    spelled |= set(_best(arrays["last"].numbers, NAMED).tolist())
    about = {
        "model": about_model(model.config, name),
        "prompt": prompt,
        "ids": ids,
        "written": written,
        "pieces": {token: piece(tokenizer, token) for token in sorted(spelled)},
        "options": {k: getattr(options, k) for k in ("temperature", "top_k", "top_p", "min_p")},
        "arrays": [_layout(name, kept) for name, kept in arrays.items()],
    }
    return Record(about, arrays)


def about_model(config: GPT2Config, name: str) -> dict[str, Any]:
    """What a page says of a model: shapes, and every parameter by its name in the checkpoint."""
    layers = range(config.n_layer)
    fields = ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size", "head_dim", "mlp_width",
              "activation_function", "layer_norm_epsilon")  # fmt: skip
    return {
        "name": name,
        **{field: getattr(config, field) for field in fields},
        "heads": [config.heads_left(i) for i in layers],
        "scales": [config.attention_scale(i) for i in layers],
        "parameters": [[stored_name(key), shape] for key, shape in param_shapes(config).items()],
    }


def piece(tokenizer: Tokenizer, token: int) -> str | list[int]:
    """A token's text; of one that is no whole character, its bytes."""
    data = tokenizer.token_bytes(token)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return list(data)


# ── the prompt's way through the model ───────────────────────────────────────────────────────────


def _flow(model: GPT2, ids: list[int], progress: Progress) -> Iterator[tuple[str, Kept]]:
    taps: dict[str, Array] = {}
    model([ids], use_cache=False, tap=lambda name, array: taps.__setitem__(name, array[0].copy()))
    logits = sound(taps["logits"])
    for name in ("wte", "wpe", "embed"):
        yield name, kept(taps[name], TEXTURE)
    layers = range(model.config.n_layer)
    for i in progress(layers, "looking at each block"):
        yield from _block(model.config, i, taps)
    yield "ln_f", kept(taps["ln_f"], TEXTURE)
    yield "sizes", kept(np.stack([np.linalg.norm(taps[n], axis=-1) for n in sizes(layers)]), FINE)
    stops = [taps["embed"], *(taps[f"h.{i}.resid_mlp"] for i in layers[:-1])]
    lens = [likeliest(lens_logits(model, x), LENS) for x in progress(stops, "asking each block")]
    lens.append(likeliest(logits, LENS))
    yield "lens.ids", Kept(np.stack([found for found, _ in lens]))
    yield "lens.probs", certain(np.stack([probs for _, probs in lens]))
    given = softmax(logits[:-1].astype(np.float64))[np.arange(len(ids) - 1), ids[1:]]
    yield "given", certain(given)


def lens_logits(model: GPT2, hidden: Array) -> Array:
    """(N, C) of the stream → (N, V): what the model would say if it stopped there.

    The logit lens: nostalgebraist 2020, https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru
    """
    params, eps = model.params, model.config.layer_norm_epsilon
    return lm_head(layer_norm(hidden, *params.ln_f, eps), params)


def sizes(layers: Iterable[int]) -> list[str]:
    """The arrays whose Euclidean length is shown, in the order of the data's flow."""
    parts = ("attn.c_proj", "resid_attn", "mlp.c_proj", "resid_mlp")
    return ["embed", *(f"h.{i}.{part}" for i in layers for part in parts)]


def _block(config: GPT2Config, i: int, taps: dict[str, Array]) -> Iterator[tuple[str, Kept]]:
    at = f"h.{i}."
    q, k, _ = (split_heads(part[None], config)[0] for part in split(taps[at + "attn.c_attn"], 3))
    scores = q @ k.swapaxes(1, 2)  # what the model scales, masks and softens, in one piece
    shown = {
        "ln_1": kept(taps[at + "ln_1"], TEXTURE),
        "attn.c_attn": kept(taps[at + "attn.c_attn"], LEGIBLE),
        "attn.scores": kept(scores, SCORES),
        "attn.scaled": kept(scores * config.attention_scale(i), SCORES),
        "attn.probs": certain(taps[at + "attn.probs"]),
        "attn.mean": certain(taps[at + "attn.probs"].mean(0)),
        "attn.heads": kept(taps[at + "attn.heads"], LEGIBLE),
    }
    rest = ("attn.c_proj", "resid_attn", "ln_2", "mlp.c_proj", "resid_mlp")
    shown |= {name: kept(taps[at + name], TEXTURE) for name in rest}
    act, before = taps[at + "mlp.act"], taps[at + "mlp.c_fc"]
    strongest = np.argsort(-np.abs(act), -1, kind="stable")[:, :NEURONS]
    shown["mlp.neurons"] = Kept(strongest.astype(np.int32))
    shown["mlp.c_fc"] = kept(np.take_along_axis(before, strongest, -1), FINE)
    shown["mlp.act"] = kept(np.take_along_axis(act, strongest, -1), FINE)
    return ((at + name, array) for name, array in shown.items())


# ── what it writes ───────────────────────────────────────────────────────────────────────────────


class _Listening:
    """A stepper that keeps the logits it gives."""

    def __init__(self, step: Stepper) -> None:
        self._step, self.heard = step, list[Array]()

    def __call__(self, ids: Array) -> Array:
        logits = self._step(ids)
        self.heard.append(logits[0].copy())
        return logits

    def reorder(self, rows: Array) -> None:
        self._step.reorder(rows)


def _writing(
    model: GPT2, ids: list[int], options: GenerationOptions, progress: Progress
) -> tuple[dict[str, Any], dict[str, Kept]]:
    """The tokens that follow, how they were drawn, and what might have stood in their place."""
    config = model.config
    step = _Listening(model.stepper(room=min(len(ids) + options.max_new_tokens, 1 << 16)))
    options = replace(options, seed=options.seed or 0)
    loop = write(step, [ids], [0], options, config.n_positions, config.eos_token_ids)
    tokens: list[Token] = list(progress(loop, "writing"))
    drawn = uniforms(options.seed or 0, 0)
    chosen = [token.id for token in tokens if token.id is not None]
    probs = [softmax(logits.astype(np.float64)) for logits in step.heard]
    best = [likeliest(logits, ALTERNATIVES) for logits in step.heard]
    written = {
        "ids": chosen,
        "finish": tokens[-1].finish,
        "uniforms": None if options.greedy else [next(drawn) for _ in tokens],
    }
    return written, {
        "last": Kept(step.heard[0].astype(np.float32)),
        "written.ids": Kept(np.stack([found for found, _ in best])),
        "written.probs": certain(np.stack([p for _, p in best])),
        "written.chosen": certain(np.array([p[token] for p, token in zip(probs, chosen)])),  # noqa: B905
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
    """(..., V) → the ids (..., K) of the largest, in falling order."""
    k = min(k, logits.shape[-1])
    some = np.argpartition(-logits, k - 1, axis=-1)[..., :k]
    some.sort(-1)  # of equal ones the lower id comes first
    order = np.argsort(-np.take_along_axis(logits, some, -1), -1, kind="stable")
    return np.take_along_axis(some, order, -1)


# ── numbers as they are shown ────────────────────────────────────────────────────────────────────


def kept(x: Array, steps: int) -> Kept:
    """Decimals enough that the size which is usual in `x` has at least so many steps.

    Usual is what the median of a normal distribution's absolute values makes of it: a few numbers
    that stand far out, as some of GPT-2's dimensions do, do not coarsen the others.

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
    """Probabilities, to hundredths of a percent."""
    return _fixed(probs, CERTAIN)


def _fixed(x: Array, decimals: int) -> Kept:
    return Kept(np.rint(x.astype(np.float64) * 10.0**decimals).astype(np.int32), decimals)


def _layout(name: str, kept: Kept) -> list[Any]:
    """Name, shape, bytes of a number (0: a float32), decimals."""
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
