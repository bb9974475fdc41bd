"""Several tokens for one reading of the weights: guess what comes next, then look who was right.

A step over one token and a step over ten read the same weights, which is what a step costs. So what
may come is guessed, all guesses go through the model in one step, and as long as the text goes on
as guessed its next logits are there already. Nothing is drawn from a guess: each token is chosen
from the model's own logits, with the same random number as without; only rounding can tell.

The guess is what followed the last few tokens when they stood in the text before: prompt lookup
(Saxena 2023, https://github.com/apoorvumang/prompt-lookup-decoding), after speculative decoding by
Leviathan, Kalman and Matias 2023 (https://arxiv.org/abs/2211.17192).
"""

from collections.abc import Callable, Sequence
from itertools import cycle, islice

import numpy as np

from npgpt2.base.arrays import Array
from npgpt2.generation.generate import Rewindable

LONGEST, SHORTEST = 4, 2  # tokens that must have stood in the text before
FIRST = 4  # guesses at once, to begin with


class Lookup:
    """A text that grows, and where each few tokens of it stood last.

    >>> text = Lookup()
    >>> text.extend([5, 6, 7, 8, 9, 5, 6])
    >>> text.guess(3), text.guess(8)
    ([7, 8, 9], [7, 8, 9, 5, 6, 7, 8, 9])
    """

    def __init__(self) -> None:
        self._ids: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # n tokens → where what follows them begins

    def __len__(self) -> int:
        return len(self._ids)

    def extend(self, ids: Sequence[int]) -> None:
        """Go on with these. What ends the text is not looked up in itself."""
        for token in ids:
            end = len(self._ids)
            for n in range(SHORTEST, min(LONGEST, end) + 1):
                self._after[tuple(self._ids[end - n : end])] = end
            self._ids.append(token)

    def guess(self, most: int) -> list[int]:
        """So many tokens that may follow, round and round; none where the end is new."""
        for n in range(min(LONGEST, len(self._ids)), SHORTEST - 1, -1):
            at = self._after.get(tuple(self._ids[-n:]))
            if at is not None:
                return list(islice(cycle(self._ids[at:]), most))
        return []


class Speculating:
    """A `Stepper` of one row that takes several steps of another at once.

    Args:
        step: the other, fresh.
        most: guesses at once, at most. There are few to begin with: twice as many after all were
            right, else one more than were.
        n_positions: guesses stay within the context.
        told: called before each run of the model but the first, with how many tokens' logits of
            the one before were of use.
    """

    def __init__(
        self,
        step: Rewindable,
        most: int,
        n_positions: int,
        told: Callable[[int], None] = lambda tokens: None,
    ) -> None:
        self._step, self._most, self._n_positions, self._told = step, most, n_positions, told
        self._text = Lookup()
        self._guessed: list[int] = []  # by the last run
        self._logits: Array | None = None  # (1 + guesses, V): of the token after each
        self._right = 0  # guesses that came true
        self._now = min(FIRST, most)

    def __call__(self, ids: Array) -> Array:
        new = ids[0].tolist()
        self._text.extend(new)
        if self._logits is None:
            self._logits = self._step(ids)  # the prompt: its last logits are enough
            return self._logits
        if self._guessed[self._right : self._right + 1] == new:
            self._right += 1
        else:
            self._run(new)
        return self._logits[self._right : self._right + 1]

    def _run(self, new: list[int]) -> None:
        self._told(1 + self._right)
        if self._guessed:
            self._step.rewind(len(self._guessed) - self._right)
            all_right = self._right == len(self._guessed)
            self._now = min(self._most, 2 * self._now if all_right else self._right + 1)
        self._guessed = self._text.guess(min(self._now, self._n_positions - len(self._text)))
        self._right = 0
        self._logits = self._step(np.array([new + self._guessed], np.int64), every=True)[0]

    def reorder(self, rows: Array) -> None:
        """There is one row, and it stays."""
