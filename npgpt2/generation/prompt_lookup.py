"""Prompt-lookup decoding: draft several tokens from the text itself, verify them in one step.

A step over one token and a step over ten both read all weights once, and reading the weights is
what takes the time. So likely next tokens are drafted and go through the model in one step. While
the text matches the draft, the logits of its next token are known already. A draft never decides a
token: each is chosen from the model's own logits, with the same random number as without a draft,
so only rounding can change the text.

A draft is what followed the last few tokens where they stood in the text before: prompt lookup
(Saxena 2023, https://github.com/apoorvumang/prompt-lookup-decoding), after speculative decoding
(Leviathan, Kalman and Matias 2023, https://arxiv.org/abs/2211.17192).
"""

from collections.abc import Callable, Sequence
from itertools import cycle, islice

import numpy as np

from npgpt2.base.arrays import Array
from npgpt2.generation.generate import Rewindable

LONGEST, SHORTEST = 4, 2  # tokens at the end of the text that are looked up
FIRST = 4  # draft tokens per step, to begin with


class Lookup:
    """A growing text, and for each short run of its tokens where that run stood last.

    >>> text = Lookup()
    >>> text.extend([5, 6, 7, 8, 9, 5, 6])
    >>> text.draft(3), text.draft(8)
    ([7, 8, 9], [7, 8, 9, 5, 6, 7, 8, 9])
    """

    def __init__(self) -> None:
        self._ids: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # n tokens → index of what follows them

    def __len__(self) -> int:
        return len(self._ids)

    def extend(self, ids: Sequence[int]) -> None:
        """Append ids. The end of the text is not indexed yet: it would find itself."""
        for token in ids:
            end = len(self._ids)
            for n in range(SHORTEST, min(LONGEST, end) + 1):
                self._after[tuple(self._ids[end - n : end])] = end
            self._ids.append(token)

    def draft(self, most: int) -> list[int]:
        """`most` tokens that may come next, repeated in a cycle; none if the end is new."""
        for n in range(min(LONGEST, len(self._ids)), SHORTEST - 1, -1):
            at = self._after.get(tuple(self._ids[-n:]))
            if at is not None:
                return list(islice(cycle(self._ids[at:]), most))
        return []


class PromptLookup:
    """A `Stepper` of one row that takes several steps of another stepper at once.

    Args:
        step: the other stepper, fresh.
        most: the largest number of draft tokens. The first draft is short. The limit doubles when
            a whole draft is accepted; else it becomes one more than the accepted tokens.
        n_positions: drafts end at the end of the context.
        on_step: callback, called before each run of the model except the first, with the number
            of tokens that the previous run gave.
    """

    def __init__(
        self,
        step: Rewindable,
        most: int,
        n_positions: int,
        on_step: Callable[[int], None] = lambda tokens: None,
    ) -> None:
        self._step, self._most, self._n_positions, self._on_step = step, most, n_positions, on_step
        self._text = Lookup()
        self._draft: list[int] = []  # of the last run
        self._logits: Array | None = None  # (1 + draft tokens, V): of the token after each
        self._accepted = 0  # draft tokens
        self._now = min(FIRST, most)

    def __call__(self, ids: Array) -> Array:
        new = ids[0].tolist()
        self._text.extend(new)
        if self._logits is None:
            self._logits = self._step(ids)  # the prompt: its last logits are enough
            return self._logits
        if self._draft[self._accepted : self._accepted + 1] == new:
            self._accepted += 1
        else:
            self._run(new)
        return self._logits[self._accepted : self._accepted + 1]

    def _run(self, new: list[int]) -> None:
        self._on_step(1 + self._accepted)
        if self._draft:
            self._step.rewind(len(self._draft) - self._accepted)
            all_right = self._accepted == len(self._draft)
            self._now = min(self._most, 2 * self._now if all_right else self._accepted + 1)
        self._draft = self._text.draft(min(self._now, self._n_positions - len(self._text)))
        self._accepted = 0
        self._logits = self._step(np.array([new + self._draft], np.int64), every=True)[0]

    def reorder(self, rows: Array) -> None:
        """Nothing to do: there is one row, and it stays."""
