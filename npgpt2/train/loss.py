"""Loss and gradients: of a single call (public), and summed over batches (training)."""

from __future__ import annotations  # so that `help` shows ArrayLike, not what it stands for

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from npgpt2 import arguments
from npgpt2.base.arrays import Array
from npgpt2.base.errors import InputError
from npgpt2.gpt2 import GPT2
from npgpt2.model.config import GPT2Config
from npgpt2.model.params import Params, build_tree, named_parameters
from npgpt2.train.corpus import IGNORED, Batch
from npgpt2.train.model import Rows, Run, loss
from npgpt2.train.ops import Drop
from npgpt2.train.optimizer import Flat


def gradients(
    model: GPT2,
    input_ids: npt.ArrayLike,
    labels: npt.ArrayLike | None = None,
    *,
    attention_mask: npt.ArrayLike | None = None,
    position_ids: npt.ArrayLike | None = None,
    token_type_ids: npt.ArrayLike | None = None,
    encoder_hidden_states: npt.ArrayLike | None = None,
    encoder_attention_mask: npt.ArrayLike | None = None,
    gradient_checkpointing: bool = False,
) -> tuple[float, Params]:
    """The loss that `GPT2.__call__` returns for labels, and its gradient for every parameter.

    Without dropout. The other arguments are those of `GPT2.__call__`.

    Args:
        labels: (B, T) ids, shifted inside; −100 is ignored. Default: input_ids without padding.
        gradient_checkpointing: keep only the inputs of blocks: less memory, the same bits.

    Returns:
        The mean of −log p over the labels, in nats; and a tree like `model.params`, with the same
        shapes and dtype. The gradient of a tied head is part of wte's.

    Raises:
        InputError: an argument has a wrong shape, dtype or id; or there is no label to predict.

    >>> model = GPT2.from_pretrained("tests/data/tiny", dtype="float64")
    >>> loss, d = gradients(model, [[84, 258, 346, 299]])
    >>> round(loss, 4)
    3.3514
    >>> d.h[0].attn.c_attn.weight.shape
    (64, 192)
    """
    config = model.config
    ids = arguments.tokens(input_ids, None, config, model.dtype)
    (b, t), vocabulary = ids.shape, config.vocab_size
    mask = arguments.mask("attention_mask", attention_mask, (b, t))
    targets = np.full((b, t), IGNORED, np.int64)
    if labels is not None:
        targets[:, :-1] = arguments.ids("labels", labels, (b, t), vocabulary, ignore=IGNORED)[:, 1:]
    else:
        seen = True if mask is None else mask[:, :-1] & mask[:, 1:]  # padding predicts nothing
        targets[:, :-1] = np.where(seen, ids[:, 1:], IGNORED)
    count = int((targets != IGNORED).sum())
    if not count:
        raise InputError("labels: nothing to predict, expected at least one label after the first")
    types = None
    if token_type_ids is not None:
        types = arguments.ids("token_type_ids", token_type_ids, (b, t), vocabulary)
    encoder, encoder_mask = arguments.encoder(
        encoder_hidden_states, encoder_attention_mask, b, config, model.dtype, None
    )
    positions = arguments.positions(position_ids, mask, 0, (b, t), config)
    rows = Rows(ids, targets, positions, mask, types, encoder, encoder_mask)
    d = build_tree({name: np.zeros_like(x) for name, x in named_parameters(model.params)})
    run = Run(config, rows, checkpointing=gradient_checkpointing)
    return add_gradient(model.params, run, count, d) / count, d


def add_gradient(params: Params, run: Run, count: int, d: Params) -> float:
    """Returns Σ −log p over a run's targets, in nats; adds its gradient / count to d."""
    nats, back = loss(params, run)
    back(1.0 / count, d)
    return nats


class Gradients:
    """Sums the gradients of batches; several threads share the rows of a batch.

    NumPy's elementwise operations use one core. So each thread computes the forward and backward
    pass of some rows, with BLAS on one thread, and adds to its own array. The arrays are summed in
    the order of the rows: the same number of threads gives the same bits.

    Args:
        params: the trained parameters, read at every call.
        shares: number of threads that share a batch.
        pool: the threads.
    """

    def __init__(
        self,
        params: Flat,
        config: GPT2Config,
        shares: int,
        pool: ThreadPoolExecutor,
        gradient_checkpointing: bool = False,
    ) -> None:
        self._params, self._config, self._pool = params, config, pool
        self._checkpointing = gradient_checkpointing
        self._sums = [params.zeros() for _ in range(shares)]

    def add(self, batch: Batch, count: int, drop: Drop | None = None) -> float:
        """Returns Σ −log p over a batch's targets, in nats; adds its gradient / count."""
        parts = np.array_split(np.arange(len(batch.ids)), len(self._sums))

        def share(part: Array, d: Flat) -> float:
            if not len(part):
                return 0.0
            first = drop and drop._replace(row=drop.row + int(part[0]))
            rows = rows_of(batch.ids[part], batch.targets[part])
            run = Run(self._config, rows, first, self._checkpointing)
            return add_gradient(self._params.tree, run, count, d.tree)

        return sum(self._pool.map(share, parts, self._sums))

    def total(self) -> Flat:
        """The sum of all gradients added. The caller sets it to zero for the next step."""
        first, *others = self._sums
        for other in others:
            first.array[...] += other.array
            other.array[...] = 0.0
        return first

    def nats(self, params: Params, batches: Iterable[Batch]) -> tuple[float, int]:
        """Σ −log p over the targets of batches, without dropout; and the number of targets."""

        def share(batch: Batch) -> tuple[float, int]:
            run = Run(self._config, rows_of(*batch), checkpointing=True)  # saves memory
            return loss(params, run)[0], int((batch.targets != IGNORED).sum())

        nats, counts = zip(*self._pool.map(share, batches), strict=True)
        return sum(nats), sum(counts)


def rows_of(ids: Array, targets: Array) -> Rows:
    """Rows without padding: ids and targets (B, T), positions from 0."""
    return Rows(ids, targets, np.arange(ids.shape[1])[None])
