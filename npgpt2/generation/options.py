"""How to write: each option with its default, range and help. To read these takes no NumPy."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from npgpt2.base.errors import OptionError
from npgpt2.base.options import described, option, require

if TYPE_CHECKING:
    from npgpt2.base.arrays import Array

GUESSES = 16

rows = partial(
    option, metavar="N", least=1, most=4096, expected="a whole number from {least} up to {most}"
)
portion = partial(
    option, metavar="P", above=0, most=1, expected="a number above {above}, up to {most}"
)


@described
@dataclass(frozen=True)
class GenerationOptions:
    """How to write.

    They run in this order: logit bias, repetition penalty, temperature, top-k, top-p, min-p, which
    `npgpt2.generation.sampling` has one by one. An end-of-text token and the end of the context end
    a text before `max_new_tokens`. A stop text is not part of the text that it ends.

    Raises:
        OptionError: a value outside its range.

    >>> GenerationOptions(top_p=1.5)
    Traceback (most recent call last):
    npgpt2.base.errors.OptionError: top_p: got 1.5, expected a number above 0, up to 1
    """

    max_new_tokens: int = option(100, "at most N tokens (default: {default})", "N", least=1)
    temperature: float = option(
        0.8, "0 is greedy, below 1 sharper, above 1 flatter (default: {default})", "T",
        least=0, expected="a number from {least} (greedy) up",
    )  # fmt: skip
    top_k: int | None = option(
        None, "only the K most probable tokens (default: no limit)", "K",
        least=1, expected="a whole number from {least}. Leave it out for no limit",
    )  # fmt: skip
    top_p: float | None = portion(
        0.95, "only the fewest tokens that have probability P together; 1 is no limit (default: "
        "{default})",
    )  # fmt: skip
    min_p: float | None = portion(
        None, "only tokens P times as probable as the best, at least (default: no limit)"
    )
    # By id, what is added to its logit before anything else: at 100 and -100 a token is as good as
    # always written, or never.
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    repetition_penalty: float = option(
        1.0, "above 1: what was said becomes less likely (default: {default})", "R",
        least=1e-100, most=1e100,  # beyond, a logit times the penalty can leave float64
        expected="a number from 1e-100 to 1e100",
    )  # fmt: skip
    num_beams: int = rows(1, "beam search with N beams instead of sampling")
    num_samples: int = rows(1, "N texts (default: {default})")
    stop: tuple[str, ...] = option((), "end before this text; may be given several times", "TEXT")
    seed: int | None = option(
        None, "the same seed, the same text (default: another one every time)", "S",
        least=0, most=2**64 - 1, expected="a whole number from {least} up to {most}",
    )  # fmt: skip
    use_cache: bool = option(
        True, "compute the whole text again for every token: the same text, slowly",
        flag="--no-cache",
    )  # fmt: skip
    speculate: int = option(
        0,
        "guess up to N tokens from what stands in the text already and try them in one step: the "
        f"same text, sooner where it repeats itself (N: {GUESSES} where it is left out)", "N",
        least=0, most=1024, expected="a whole number from {least} up to {most}",
    )  # fmt: skip

    def __post_init__(self) -> None:
        object.__setattr__(self, "use_cache", bool(self.use_cache))
        require(self)
        if not isinstance(self.logit_bias, Mapping):
            raise OptionError("logit_bias", f"got {self.logit_bias!r}, expected {{id: number}}")
        for token, bias in self.logit_bias.items():
            if not isinstance(token, int) or isinstance(token, bool) or token < 0:
                words = "a whole number from 0. It is a token's id"
                raise OptionError("logit_bias", f"got {token!r}, expected {words}")
            number = isinstance(bias, (int, float)) and not isinstance(bias, bool)
            if not number or not -100 <= bias <= 100:
                words = "a number from -100 to 100"
                raise OptionError("logit_bias", f"got {bias!r}, expected {words}")
        several = isinstance(self.stop, Iterable) and not isinstance(self.stop, str)
        stops = tuple(self.stop) if several else (self.stop,)
        if not all(isinstance(text, str) and text for text in stops):
            raise OptionError("stop", f"got {self.stop!r}, expected texts that are not empty")
        object.__setattr__(self, "stop", stops)
        if self.speculate and (self.num_beams > 1 or self.num_samples > 1):
            raise OptionError("speculate", "is for one text at a time. Leave it out")
        if self.num_beams > 1:
            for name in ("temperature", "top_k", "top_p", "min_p", "seed"):
                if getattr(self, name) != getattr(GenerationOptions, name):
                    raise OptionError(name, "beam search does not sample. Leave one of the two out")
            if self.num_samples > self.num_beams:
                raise OptionError(
                    "num_samples",
                    f"got {self.num_samples}, expected at most one a beam ({self.num_beams})",
                )

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    def next_token(self, logits: "Array", seen: Sequence[int], uniform: Iterator[float]) -> int:
        """One row's logits (V,) → the id to write."""
        import numpy as np

        from npgpt2.generation import sampling

        logits = logits.astype(np.float64)
        if self.logit_bias:
            logits = sampling.logit_bias(logits, self.logit_bias)
        if self.repetition_penalty != 1:
            logits = sampling.repetition_penalty(logits, seen, self.repetition_penalty)
        if self.greedy:
            return int(logits.argmax())
        logits = sampling.temperature(logits, self.temperature)
        if self.top_k is not None:
            logits = sampling.top_k(logits, self.top_k)
        if self.top_p is not None:
            logits = sampling.top_p(logits, self.top_p)
        if self.min_p is not None:
            logits = sampling.min_p(logits, self.min_p)
        return sampling.draw(logits, next(uniform))
