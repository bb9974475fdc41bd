"""Generation options: their defaults, ranges and help. This module does not import NumPy."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import TYPE_CHECKING, Any

from npgpt2.base.errors import OptionError
from npgpt2.base.options import described, nearest, option, require

if TYPE_CHECKING:
    from npgpt2.base.arrays import Array

DRAFT_TOKENS = 16
EXPLAINED: dict[str, Any] = {
    "seed": 0,
    "max_new_tokens": 20,
}  # of the explain page: the same text every time

rows = partial(
    option, metavar="N", least=1, most=4096, expected="an integer from {least} to {most}"
)
portion = partial(
    option, metavar="P", above=0, most=1, expected="a number above {above} and up to {most}"
)


@described
@dataclass(frozen=True)
class GenerationOptions:
    """The options of a generation.

    They are applied in this order: logit bias, repetition penalty, temperature, top-k, top-p,
    min-p; `npgpt2.generation.sampling` has a function for each. An end-of-text token or a full
    context ends a text before `max_new_tokens`. A stop text is not part of the text that it ends.
    `logit_bias` maps token ids to what is added to their logits, from -100 to 100.

    Raises:
        OptionError: a value outside its range.

    >>> GenerationOptions(top_p=1.5)
    Traceback (most recent call last):
    npgpt2.base.errors.OptionError: top_p: got 1.5, expected a number above 0 and up to 1
    """

    max_new_tokens: int = option(
        100, "generate at most N tokens (default: {default})", "N", least=1
    )
    temperature: float = option(
        0.8, "divide the logits by T; 0 is greedy, below 1 sharper, above 1 flatter (default: "
        "{default})", "T", least=0, expected="a number from {least} (greedy) up",
    )  # fmt: skip
    top_k: int | None = option(
        None, "sample from the K most probable tokens only (default: no limit)", "K",
        least=1, expected="an integer from {least}. Leave it out for no limit",
    )  # fmt: skip
    top_p: float | None = portion(
        0.95, "sample from the fewest tokens whose probabilities sum to P; 1 means no limit "
        "(default: {default})",
    )  # fmt: skip
    min_p: float | None = portion(
        None, "sample from tokens at least P times as probable as the best (default: no limit)"
    )
    # Token id → what is added to its logit first: in practice 100 forces a token, -100 bans it.
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    repetition_penalty: float = option(
        1.0, "above 1, tokens of the text so far become less likely (default: {default})", "R",
        least=1e-100, most=1e100,  # beyond this, a logit times the penalty can overflow float64
        expected="a number from 1e-100 to 1e100",
    )  # fmt: skip
    num_beams: int = rows(1, "beam search with N beams instead of sampling")
    num_samples: int = rows(1, "generate N texts (default: {default})")
    stop: tuple[str, ...] = option(
        (), "end before this text; may be repeated", "TEXT",
        doc="a string, or several: the text ends before the first of them",
    )  # fmt: skip
    seed: int | None = option(
        None, "seed of the random numbers: the same seed gives the same text (default: random)",
        "S", least=0, most=2**64 - 1, expected="an integer from {least} to {most}",
    )  # fmt: skip
    use_cache: bool = option(
        True, "do not use the KV cache: every token computes the whole text again, which is slow",
        flag="--no-cache",
        doc="use the KV cache; without it every token computes the whole text again",
    )  # fmt: skip
    prompt_lookup: int = option(
        0,
        "prompt-lookup decoding: draft up to N tokens from the text so far and verify them in one "
        f"step; the same text, faster if it repeats itself (N defaults to {DRAFT_TOKENS})", "N",
        least=0, most=1024, expected="an integer from {least} to {most}",
        doc="tokens to draft from the text so far and verify in one step (prompt-lookup decoding): "
        "the same text, faster if it repeats itself; 0 drafts none",
    )  # fmt: skip

    def __post_init__(self) -> None:
        object.__setattr__(self, "use_cache", bool(self.use_cache))
        require(self)
        if not isinstance(self.logit_bias, Mapping):
            raise OptionError("logit_bias", f"got {self.logit_bias!r}, expected {{id: number}}")
        for token, bias in self.logit_bias.items():
            if not isinstance(token, int) or isinstance(token, bool) or token < 0:
                words = "a token id, an integer from 0"
                raise OptionError("logit_bias", f"got {token!r}, expected {words}")
            number = isinstance(bias, (int, float)) and not isinstance(bias, bool)
            if not number or not -100 <= bias <= 100:
                words = "a number from -100 to 100"
                raise OptionError("logit_bias", f"got {bias!r}, expected {words}")
        several = isinstance(self.stop, Iterable) and not isinstance(self.stop, str)
        stops = tuple(self.stop) if several else (self.stop,)
        if not all(isinstance(text, str) and text for text in stops):
            raise OptionError("stop", f"got {self.stop!r}, expected one or more non-empty strings")
        object.__setattr__(self, "stop", stops)
        if self.prompt_lookup and (self.num_beams > 1 or self.num_samples > 1):
            raise OptionError("prompt_lookup", "works on one text at a time. Leave it out")
        if self.num_beams > 1:
            for name in ("temperature", "top_k", "top_p", "min_p", "seed"):
                if getattr(self, name) != getattr(GenerationOptions, name):
                    raise OptionError(name, "beam search does not sample. Leave out one of the two")
            if self.num_samples > self.num_beams:
                raise OptionError(
                    "num_samples",
                    f"got {self.num_samples}, expected at most num_beams ({self.num_beams})",
                )

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> "GenerationOptions":
        """The options of a call. Raises OptionError for an unknown name, too.

        >>> GenerationOptions.of({"max_tokens": 5})
        Traceback (most recent call last):
        npgpt2.base.errors.OptionError: max_tokens: is not an option. Did you mean max_new_tokens?
        """
        known = [f.name for f in fields(cls)]
        for name in options:
            if name not in known:
                near = nearest(name, known)
                hint = f"Did you mean {near}?" if near else f"Expected one of {', '.join(known)}"
                raise OptionError(name, f"is not an option. {hint}")
        return cls(**options)

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    def next_token(self, logits: "Array", seen: Sequence[int], uniform: Iterator[float]) -> int:
        """One row's logits (V,), its ids so far and random numbers in [0, 1) → the next id."""
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
