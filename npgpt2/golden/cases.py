"""The cases of a golden folder: each has inputs and the values that the model computes from them.

A case emits named arrays in the order of computation, so the first one that a port gets wrong is
the first to look at. Each case is computed twice: by the model in float32 and in float64.

Axes: B batch, T tokens, S = past + T, N n_positions, V vocabulary.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from npgpt2.base.arrays import Array
from npgpt2.generation.generate import left_padded
from npgpt2.generation.options import GenerationOptions
from npgpt2.generation.sampling import uniforms
from npgpt2.golden.forward import Inputs, Listen
from npgpt2.gpt2 import GPT2
from npgpt2.model.config import GPT2Config
from npgpt2.model.params import Params, build_tree, named_parameters
from npgpt2.tokenizer.byte_pair import BytePairTokenizer
from npgpt2.train.corpus import Batch
from npgpt2.train.loss import add_gradient, rows_of
from npgpt2.train.model import Run
from npgpt2.train.optimizer import AdamW, Flat

TOKENS, SHORT = 8, 5
ROWS, LENGTH, STEPS = 2, 16, 3
PROMPT, WRITTEN, SURE = 4, 16, 1e-3
DRAWN, CHOICES = 16, 1000

# eps is not 1e-8: the gradient of the key biases is exactly zero, since softmax ignores them, and
# Adam would turn its rounding errors into full steps.
ADAMW: dict[str, Any] = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-3, "weight_decay": 0.1}
LEARNING_RATE = 1e-3

SAMPLING = {
    "plain": GenerationOptions(temperature=1.0, top_p=None),
    "temperature": GenerationOptions(temperature=0.7, top_p=None),
    "top_k": GenerationOptions(temperature=1.0, top_k=40, top_p=None),
    "top_p": GenerationOptions(temperature=1.0, top_p=0.9),
    "min_p": GenerationOptions(temperature=1.0, top_p=None, min_p=0.05),
    "all": GenerationOptions(temperature=0.7, top_k=40, top_p=0.9, min_p=0.05),
}

TEXTS = {
    "meaning": "The meaning of life is",
    "spaces": "  two  before,   three\n\n\ttab, and at the end  ",
    "contractions": "I'm sure they'LL say it's what we've done, isn't it?",
    "numbers": "3.14159 1,115,394 ½ ² ٣",
    "scripts": "naïve Ωmega Привет 你好 こんにちは 🙂👨\u200d👩\u200d👧 e\u0301",
    "special": "<|endoftext|>before<|endoftext|>",
    "not_special": "<|endoftext|",
    "controls": "\x00\x01\x7f\ufeff\u200b\u2028",
    "long": "a" * 2**20,
}
# Invalid UTF-8: a lone continuation byte, a truncated character, a surrogate, an overlong slash.
NOT_UTF8 = (b"\x80", b"\xe4\xbd", b"\xed\xa0\x80", b"\xc0\xaf", b"a\xffb")


class Subject:
    """A model, and its gradient, which several cases use."""

    def __init__(self, model: GPT2) -> None:
        self.model = model

    @cached_property
    def gradient(self) -> "Gradient":
        return gradient(self.model.params, self.model.config, batch_of(self.model))


class Case(NamedTuple):
    """A description, the tensor names, and the function that computes and emits the arrays.

    Attributes:
        exact: no value depends on the model's precision.
    """

    words: str
    names: str
    compute: Callable[[Subject, Listen], None]
    exact: bool = False


def some_ids(model: GPT2, rows: int, tokens: int) -> Array:
    """Ids (rows, tokens) from a formula, without a vocabulary: multiples of the golden ratio
    (Knuth, The Art of Computer Programming 3, section 6.4)."""
    n = np.arange(1, rows * tokens + 1).reshape(rows, tokens)
    return (n * 2654435769 % 2**32) * model.config.vocab_size >> 32


def tokenizer(subject: Subject, show: Listen) -> None:
    model = subject.model
    if not model.has_vocabulary:
        return
    vocabulary = model.tokenizer
    for name, text in TEXTS.items():
        show(f"{name}/bytes", _bytes(text.encode()))
        show(f"{name}/ids", np.array(vocabulary.encode(text), np.int32))
    if not isinstance(vocabulary, BytePairTokenizer):
        return
    of_byte = {vocabulary.token_bytes(i): i for i in reversed(range(vocabulary.size))}
    for n, data in enumerate(NOT_UTF8):
        ids = [of_byte[data[i : i + 1]] for i in range(len(data))]
        show(f"not_utf8/{n}/ids", np.array(ids, np.int32))
        show(f"not_utf8/{n}/text", _bytes(vocabulary.decode(ids).encode()))


def _bytes(data: bytes) -> Array:
    return np.frombuffer(data, np.uint8)


def _forward(tokens: int) -> Callable[[Subject, Listen], None]:
    def compute(subject: Subject, show: Listen) -> None:
        model = subject.model
        ids = some_ids(model, 1, tokens or model.config.n_positions)
        show("input_ids", ids.astype(np.int32))
        model(ids, use_cache=False, tap=show)

    return compute


def eight_inputs(model: GPT2) -> Inputs:
    """The inputs of the case `eight`."""
    return Inputs(some_ids(model, 1, TOKENS), np.arange(TOKENS)[None])


def padded_inputs(model: GPT2) -> Inputs:
    """The inputs of the case `padded`: two rows, the second one shorter."""
    ids, mask = left_padded(
        [some_ids(model, 1, TOKENS)[0].tolist(), some_ids(model, 1, SHORT)[0].tolist()]
    )
    assert mask is not None  # the rows differ in length
    return Inputs(ids, np.maximum(mask.cumsum(1) - 1, 0), mask)


def padded(subject: Subject, show: Listen) -> None:
    model = subject.model
    ids, positions, mask = padded_inputs(model)
    show("input_ids", ids.astype(np.int32))
    show("attention_mask", np.array(mask))
    show("position_ids", positions.astype(np.int32))
    model(
        ids, attention_mask=mask, use_cache=False,
        tap=lambda name, array: show(name, real(name, array, mask)),
    )  # fmt: skip


def real(name: str, array: Array, mask: Array | None) -> Array:
    """Replace the values of padding tokens, which are undefined, by zeros."""
    assert mask is not None
    axis = 2 if name.endswith(".probs") else 1
    shape = [1] * array.ndim
    shape[0], shape[axis] = mask.shape
    return np.where(mask.reshape(shape), array, array.dtype.type(0))


def step(subject: Subject, show: Listen) -> None:
    model = subject.model
    ids = some_ids(model, 1, TOKENS)
    show("past_ids", ids[:, :-1].astype(np.int32))
    show("input_ids", ids[:, -1:].astype(np.int32))
    show("position_ids", np.array([[TOKENS - 1]], np.int32))
    past = model(ids[:, :-1], use_cache=True).past_key_values
    model(ids[:, -1:], past_key_values=past, tap=show)


def greedy(subject: Subject, show: Listen) -> None:
    """Stop before a step whose two best logits are so close that rounding could decide."""
    model = subject.model
    ids = some_ids(model, 1, PROMPT)
    show("prompt_ids", ids.astype(np.int32))
    written, margins, past = [], [], None
    for _ in range(min(WRITTEN, model.config.n_positions - PROMPT)):
        out = model(ids, past_key_values=past, use_cache=True, logits_to_keep=1)
        past, logits = out.past_key_values, out.logits[0, -1]
        second, first = np.partition(logits, -2)[-2:]
        if first - second < SURE * abs(logits).max():
            break
        margins.append(first - second)
        written.append(int(logits.argmax()))
        ids = np.array([written[-1:]])
    if written:
        show("ids", np.array(written, np.int32))
        show("margins", np.array(margins, model.dtype))


def batch_of(model: GPT2) -> Batch:
    ids = some_ids(model, ROWS, min(LENGTH, model.config.n_positions) + 1)
    return Batch(ids[:, :-1], ids[:, 1:])


class Gradient(NamedTuple):
    """A mean loss, in nats, and its gradient with respect to every parameter."""

    loss: float
    flat: Flat

    @property
    def by(self) -> dict[str, Array]:
        return dict(named_parameters(self.flat.tree))


def gradient(
    params: Params, config: GPT2Config, batch: Batch, into: Flat | None = None
) -> Gradient:
    if into is None:
        zero = params.wte.weight.dtype.type(0)
        named = named_parameters(params)
        into = Flat.of(build_tree({name: np.broadcast_to(zero, p.shape) for name, p in named}))
    else:
        into.array[...] = 0.0
    count = batch.ids.size
    nats = add_gradient(params, Run(config, rows_of(*batch)), count, into.tree)
    return Gradient(nats / count, into)


def gradients(subject: Subject, show: Listen) -> None:
    batch = batch_of(subject.model)
    show("input_ids", batch.ids.astype(np.int32))
    show("targets", batch.targets.astype(np.int32))
    show("loss", np.array([subject.gradient.loss], subject.model.dtype))
    for name, array in reversed(subject.gradient.by.items()):
        show(name, array)


def adamw(subject: Subject, show: Listen) -> None:
    model, first = subject.model, subject.gradient
    params = Flat.of(model.params)
    losses = descend(params, model.config, batch_of(model), STEPS, first, LEARNING_RATE, **ADAMW)
    for n, loss in enumerate(losses, 1):
        show(f"{n}/loss", np.array([loss], model.dtype))
        for name, array in named_parameters(params.tree):
            show(f"{n}/{name}", array)


def descend(
    params: Flat, config: GPT2Config, batch: Batch, steps: int, first: Gradient, lr: float,
    **settings: Any,
) -> Iterator[float]:  # fmt: skip
    """Take AdamW steps on one batch, the first along the gradient `first`. Yields the loss before
    each step, after the step is taken."""
    threads = os.cpu_count() or 1
    with ThreadPoolExecutor(threads) as pool:
        optimizer = AdamW(
            params, params.zeros(), params.zeros(), **settings, each=pool.map, shares=threads
        )
        now, after = first, params.zeros()
        for n in range(steps):
            if n:
                now = gradient(params.tree, config, batch, after)
            optimizer.step(now.flat, lr, norm=0.0)  # no clipping
            yield now.loss


def sampling(subject: Subject, show: Listen) -> None:
    logits = np.random.Generator(np.random.Philox(key=0)).standard_normal(CHOICES) * 3
    logits = logits.astype(np.float32)
    stream = uniforms(seed=0, sample=0)
    drawn = np.array([next(stream) for _ in range(DRAWN)], np.float32)
    show("logits", logits)
    show("uniforms", drawn)
    for name, options in SAMPLING.items():
        ids = [options.next_token(logits, [], iter([float(u)])) for u in drawn]
        show(f"{name}/ids", np.array(ids, np.int32))


FORWARD = "input_ids, and the names above"
CASES = {
    "tokenizer": Case(
        "texts ↔ ids; bytes that are not UTF-8", "TEXT/bytes, TEXT/ids, …", tokenizer, exact=True
    ),
    "one": Case("one token", FORWARD, _forward(1)),
    "eight": Case("eight tokens; mistakes are identified here", FORWARD, _forward(TOKENS)),
    "full": Case("as many tokens as the context allows", FORWARD, _forward(0)),
    "padded": Case(
        "two rows, the shorter one left-padded",
        "input_ids, attention_mask, position_ids, and the names above",
        padded,
    ),
    "step": Case(
        "the eighth token, after a KV cache of seven",
        "past_ids, input_ids, position_ids, and the names above",
        step,
    ),
    "greedy": Case(
        "greedily generated ids, and the margin of each: best logit minus second best",
        "prompt_ids, ids, margins",
        greedy,
    ),
    "gradients": Case(
        "a loss, and its gradient with respect to every parameter",
        "input_ids, targets, loss, and the parameters' names in reverse order",
        gradients,
    ),
    "adamw": Case(
        f"{STEPS} AdamW steps on that batch: the losses, and every parameter after each step",
        "N/loss, N/PARAMETER",
        adamw,
    ),
    "sampling": Case(
        "ids sampled from given logits with given uniform random values",
        f"logits, uniforms, {'/ids, '.join(SAMPLING)}/ids",
        sampling,
        exact=True,
    ),
}
