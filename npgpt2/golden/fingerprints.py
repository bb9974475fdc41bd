"""Fingerprints: the values that each of the usual mistakes gives for each tensor.

Axes: B batch, T tokens.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TypeAlias

import numpy as np

from npgpt2.base.arrays import Array
from npgpt2.base.files import Progress
from npgpt2.golden import cases, mistakes
from npgpt2.golden.cases import Gradient, Subject, eight_inputs, padded_inputs, real
from npgpt2.golden.forward import Inputs, Port, Switches, rounded, together
from npgpt2.golden.mistakes import Mistake
from npgpt2.golden.reference import Reference, sliced, stride
from npgpt2.gpt2 import GPT2
from npgpt2.model.params import Embedding, Params, build_tree, named_parameters
from npgpt2.train.corpus import Batch

# Called with the index of a mistake, the name of a tensor, and the values that the mistake gives.
Give: TypeAlias = Callable[[int, str, Array], None]

HALVES = "halves"  # errors of half precision: of float16 sums (row 0), and of tensors in `WAYS`
LAYERS = 2  # number of layers in which float16 sums are measured
WAYS = {"float16": 1, "bfloat16": 2}
NONE = np.float32(np.inf)  # the mistake does not give this tensor


class Wrong:
    """A model, computed with mistakes."""

    def __init__(self, subject: Subject) -> None:
        self.subject, self.model = subject, subject.model

    def port(self, inputs: Inputs, how: Switches, listen: Callable[[str, Array], None]) -> None:
        Port(self.model.params, self.model.config, how)(inputs, listen)

    def eight(self, give: Give) -> None:
        params, config, inputs = self.model.params, self.model.config, eight_inputs(self.model)
        together([
            Port(params, config, mistake.how).through(inputs, partial(give, n))
            for n, mistake in enumerate(mistakes.forward_mistakes(config))
        ])  # fmt: skip

    def padded(self, give: Give) -> None:
        right = padded_inputs(self.model)
        columns = np.broadcast_to(np.arange(right.ids.shape[1]), right.ids.shape)
        wrong = (
            right._replace(positions=columns),
            right._replace(mask=None),
            Inputs(right.ids, columns),
        )
        for n, inputs in enumerate(wrong):

            def listen(name: str, array: Array, n: int = n) -> None:
                give(n, name, real(name, array, right.mask))

            self.port(inputs, Switches(), listen)

    def step(self, give: Give) -> None:
        right, last = eight_inputs(self.model), slice(-1, None)
        anew = right.positions.copy()
        anew[:, last] = 0

        def last_row(name: str, array: Array) -> None:
            give(0, name, array[:, :, last] if name.endswith(".probs") else array[:, last])

        def alone(name: str, array: Array) -> None:
            if not name.endswith(".probs"):  # it has another shape: one key, not eight
                give(1, name, array)

        self.port(right._replace(positions=anew), Switches(), last_row)
        self.port(Inputs(right.ids[:, last], right.positions[:, last]), Switches(), alone)

    def gradients(self, give: Give) -> None:
        params, config, batch = self.model.params, self.model.config, cases.batch_of(self.model)

        def all_of(n: int, gradient: Gradient, times: float = 1.0) -> None:
            give(n, "loss", np.array([gradient.loss * times]))
            for name, d in gradient.by.items():
                give(n, name, some(d) * times)

        all_of(0, self.subject.gradient, batch.ids.size)
        all_of(1, self.subject.gradient, len(batch.ids))
        all_of(2, cases.gradient(params, config, Batch(batch.ids, batch.ids)))
        if config.tie_word_embeddings:
            apart = params._replace(lm_head=Embedding(params.wte.weight))
            parts = cases.gradient(apart, replace(config, tie_word_embeddings=False), batch).by
            give(3, "wte.weight", parts["wte.weight"])
            give(4, "wte.weight", parts["lm_head.weight"])

    def adamw(self, give: Give) -> None:
        """After the first step only: the moments start at zero, so it has a closed form."""
        beta1, beta2, eps, decay = (
            cases.ADAMW[name] for name in ("beta1", "beta2", "eps", "weight_decay")
        )
        lr, by = cases.LEARNING_RATE, self.subject.gradient.by
        for name, whole in named_parameters(self.model.params):
            p, g, matrix = some(whole), some(by[name]), whole.ndim == 2
            size, kept = np.abs(g), p * (1.0 - lr * decay * matrix)
            step, mixed = lr * g / (size + eps), g + decay * p * matrix
            biased = lr * (1.0 - beta1) * g / (math.sqrt(1.0 - beta2) * size + eps)
            give(0, f"1/{name}", kept - biased)
            give(1, f"1/{name}", kept - lr * g / np.sqrt(g * g + eps))
            give(2, f"1/{name}", p * (1.0 - lr * decay) - step)
            give(3, f"1/{name}", p - step)
            give(4, f"1/{name}", p - lr * mixed / (np.abs(mixed) + eps))

    def halves(self) -> dict[str, Array]:
        """The error of half precision at each tensor of `eight`: (3, 2), the root mean square error
        and the largest error, for sums in float16, tensors in float16, and tensors in bfloat16.

        Sums in float16 are slow: they are measured in the first `LAYERS` only, NaN in the others.
        """
        inputs, params = eight_inputs(self.model), self.model.params
        truth: dict[str, Array] = {}
        self.port(inputs, Switches(), truth.__setitem__)
        costs = {name: np.full((3, 2), np.nan, np.float32) for name in truth}
        few = params._replace(h=params.h[:LAYERS], lm_head=Embedding(params.head[:1]))
        for n, (how, tree) in enumerate(
            (
                (Switches(half=True), few),
                (Switches(stored="float16"), _rounded(params, "float16")),
                (Switches(stored="bfloat16"), _rounded(params, "bfloat16")),
            )
        ):

            def measure(name: str, array: Array, n: int = n) -> None:
                if n == 0 and not name.startswith("h."):
                    return
                error = array - truth[name]
                costs[name][n] = np.sqrt(np.mean(error * error)), np.abs(error).max()

            Port(tree, self.model.config, how)(inputs, measure)
        return {f"{HALVES}/{name}": cost for name, cost in costs.items()}


def some(array: Array) -> Array:
    """The elements of a tensor that fingerprints keep, flat."""
    return sliced(array.reshape(-1), stride(array.size))


def _rounded(params: Params, to: str) -> Params:
    return build_tree({name: rounded(p, to) for name, p in named_parameters(params)})


def mistakes_of(case: str, model: GPT2) -> tuple[Mistake, ...]:
    """The mistakes that a case can identify."""
    if case == "eight":
        return mistakes.forward_mistakes(model.config)
    return {
        "padded": mistakes.PADDED,
        "step": mistakes.STEP,
        "gradients": mistakes.GRADIENTS,
        "adamw": mistakes.ADAMW,
    }.get(case, ())


def fingerprints(
    subject: Subject, references: Mapping[str, Reference], progress: Progress
) -> dict[str, Array]:
    """For each tensor of a case with mistakes, (mistakes, slice) in float32; and `Wrong.halves`.

    Infinite where the mistake does not give this tensor.
    """
    found: dict[str, Array] = {}
    wrong, model = Wrong(subject), subject.model

    def give(case: str, n: int, name: str, array: Array) -> None:
        whole = f"{case}/{name}"
        if whole not in references:
            return
        numbers = some(array)
        if whole not in found:
            found[whole] = np.full((len(mistakes_of(case, model)), len(numbers)), NONE)
        found[whole][n] = numbers

    with np.errstate(all="ignore"):
        there = dict.fromkeys(r.case for r in references.values())
        for case in progress([case for case in there if mistakes_of(case, model)], "mistakes"):
            getattr(wrong, case)(partial(give, case))
            if case == "eight":
                found |= wrong.halves()
    return dict(sorted(found.items()))
