"""The generation loops: sampling (greedy is its limit) and beam search.

They know nothing of text, files or models: they take a `Stepper`, which the NumPy model and ONNX
Runtime both provide, and yield ids.

Axes: B rows of the batch, T new tokens, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from npgpt2.base.arrays import Array
from npgpt2.base.errors import CheckpointError
from npgpt2.generation import sampling
from npgpt2.generation.options import GenerationOptions
from npgpt2.generation.scoring import log_softmax

Ended = Callable[[int, list[int]], bool]  # (row, ids so far) → whether a stop text has appeared


class Stepper(Protocol):
    """A model with a past: each call continues where the last one ended."""

    def __call__(self, ids: Array) -> Array:
        """Take T new tokens (B, T) int64; return the logits (B, V) of the token after the last."""

    def reorder(self, rows: Array) -> None:
        """Keep these rows of the batch, in this order; a row may be taken twice or left out."""


class Rewindable(Stepper, Protocol):
    """A `Stepper` that can return the logits of every token, and can drop the last tokens."""

    def __call__(self, ids: Array, every: bool = False) -> Array:
        """As a `Stepper`; with `every`, the logits (B, T, V) of the token after each."""

    def rewind(self, tokens: int) -> None:
        """Drop the last `tokens` tokens."""


class Row:
    """One text during generation: its ids so far, and its own random numbers.

    The other rows of the batch, and its place among them, make no difference to it.

    Args:
        prompt: its ids.
        options: with `seed` set.
        n_positions: the model's context; the text ends when it is full.
        eos: ids that end the text; they are not part of it.
        sample: index of this text among those of its prompt; it selects the random numbers.

    Attributes:
        seen: the ids of the prompt and of the text so far.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        options: GenerationOptions,
        n_positions: int,
        eos: frozenset[int] = frozenset(),
        sample: int = 0,
    ) -> None:
        self.seen, self._prompt = list(prompt), len(prompt)
        self._options, self._n_positions, self._eos = options, n_positions, eos
        self._uniforms = sampling.uniforms(options.seed or 0, sample)

    def ended(self) -> bool:
        """Called after each token: whether a stop text has appeared. Plain ids have none."""
        return False

    def choose(self, logits: Array) -> tuple[int | None, str | None]:
        """Choose the next id from its logits (V,).

        Returns:
            the id, or None for an end-of-text token; and None while the text goes on, else the
            reason of its end: "eos", "stop", "length" or "context".
        """
        token = self._options.next_token(logits, self.seen, self._uniforms)
        if token in self._eos:
            return None, "eos"
        self.seen.append(token)
        if self.ended():
            return token, "stop"
        if len(self.seen) >= self._n_positions:
            return token, "context"
        full = len(self.seen) - self._prompt >= self._options.max_new_tokens
        return token, "length" if full else None


class Token(NamedTuple):
    """One step of one row. `id` is None if the row ended with an end-of-text token."""

    row: int
    id: int | None
    finish: str | None  # None while it goes on; else "eos", "stop", "length" or "context"


def write(step: Stepper, rows: Sequence[Row]) -> Iterator[Token]:
    """Continue several prompts at once, one token for each row in turn.

    Args:
        step: fresh, and created with the mask of `left_padded` for these prompts.

    Yields:
        each row's tokens; the last one of a row has the reason of its end.

    Raises:
        CheckpointError: the logits contain NaN or infinity.
    """
    live = list(range(len(rows)))
    ids, _ = left_padded([row.seen for row in rows])
    while live:
        logits = sound(step(ids))
        going = []
        for i, row in enumerate(live):
            token, finish = rows[row].choose(logits[i])
            yield Token(row, token, finish)
            if finish is None:
                going.append(i)
        if 0 < len(going) < len(live):
            step.reorder(np.array(going))
        live = [live[i] for i in going]
        ids = np.array([rows[row].seen[-1:] for row in live], np.int64)


class Beam(NamedTuple):
    """A finished text of beam search: `score` is its mean log-probability per token, in nats."""

    ids: list[int]
    score: float
    finish: str


def beam_search(
    step: Stepper,
    prompt: Sequence[int],
    options: GenerationOptions,
    n_positions: int,
    eos: frozenset[int] = frozenset(),
    ended: Ended = lambda row, ids: False,
) -> list[Beam]:
    """The `num_samples` most probable continuations of one prompt, best first.

    The same as transformers with its defaults (length_penalty 1, early_stopping False): the score
    of a text is its mean log-probability, including its end-of-text token; the search ends when no
    running text can beat the worst of the `num_beams` finished ones.

    Raises:
        CheckpointError: the logits contain NaN or infinity.
    """
    room = n_positions - len(prompt)
    limit, at_limit = (
        max(1, min(options.max_new_tokens, room)),
        ("length" if options.max_new_tokens <= room else "context"),
    )
    # Enough candidates that `num_beams` can go on even if all the best ones end here.
    width = max(2, 1 + len(eos)) * options.num_beams
    running: list[list[int]] = [[]]
    scores = np.zeros(1)
    done: list[Beam] = []
    ids = np.array([prompt], np.int64)
    for length in range(1, limit + 1):
        totals = _log_probs(sound(step(ids)), prompt, running, options) + scores[:, None]
        best = np.argpartition(-totals, min(width, totals.size) - 1, axis=None)[:width]
        best = best[np.lexsort((best, -totals.flat[best]))]
        going = []
        for rank, flat in enumerate(best):
            parent, token = divmod(int(flat), totals.shape[1])
            text, total = running[parent], float(totals.flat[flat])
            finish = "eos" if token in eos else None
            if finish is None:
                text = [*text, token]
                finish = "stop" if ended(0, text) else at_limit if length == limit else None
            if finish is None:
                going.append((parent, text, total))
            elif rank < options.num_beams:
                done.append(Beam(text, total / length, finish))
        done = sorted(done, key=lambda beam: -beam.score)[: options.num_beams]
        going = going[: options.num_beams]
        if not going or (len(done) == options.num_beams and going[0][2] / length <= done[-1].score):
            break
        step.reorder(np.array([parent for parent, _, _ in going]))
        running, scores = [text for _, text, _ in going], np.array([total for *_, total in going])
        ids = np.array([[text[-1]] for text in running], np.int64)
    return done[: options.num_samples]


def _log_probs(
    logits: Array, prompt: Sequence[int], running: list[list[int]], options: GenerationOptions
) -> Array:
    if options.logit_bias:
        logits = sampling.logit_bias(logits.astype(np.float64), options.logit_bias)
    x = log_softmax(logits)
    if options.repetition_penalty != 1:
        for row, text in enumerate(running):
            seen = [*prompt, *text]
            x[row] = sampling.repetition_penalty(x[row], seen, options.repetition_penalty)
    return x


def left_padded(prompts: Sequence[Sequence[int]]) -> tuple[Array, Array | None]:
    """Prompts as ids (B, T), padded on the left, and their mask (B, T) (None without padding).

    >>> left_padded([[5], [6, 7]])
    (array([[0, 5],
           [6, 7]]), array([[False,  True],
           [ True,  True]]))
    """
    width = max(map(len, prompts))
    ids, mask = np.zeros((len(prompts), width), np.int64), np.zeros((len(prompts), width), bool)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = prompt
        mask[row, width - len(prompt) :] = True
    return ids, None if mask.all() else mask


def sound(logits: Array) -> Array:
    """Check logits (..., V) and return them. −∞ is allowed: such a token is never generated.

    Raises:
        CheckpointError: they contain NaN or +∞.
    """
    if not np.isfinite(logits.max(-1)).all():
        raise CheckpointError("logits: NaN or infinity. The weights have them, or values overflow")
    return logits
