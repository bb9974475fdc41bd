"""Loss and gradients: of one call for whoever asks, and of batch after batch for training."""

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
    recompute: bool = False,
) -> tuple[float, Params]:
    """The loss that `GPT2.__call__` gives for labels, and its gradient by every parameter.

    Without dropout. Arguments are those of `GPT2.__call__`.

    Args:
        labels: (B, T) ids, shifted here; −100 is ignored. By default input_ids, without padding.
        recompute: keep only what goes into each block: less memory, the same bits.

    Returns:
        The mean of −log p over the labels, in nats; and a tree like the parameters', of their
        dtype. A tied head's gradient is in wte's.

    Raises:
        InputError: shapes, dtypes or ids that do not fit, named; or no label to predict.

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
        seen = True if mask is None else mask[:, :-1] & mask[:, 1:]  # padding foretells nothing
        targets[:, :-1] = np.where(seen, ids[:, 1:], IGNORED)
    count = int((targets != IGNORED).sum())
    if not count:
        raise InputError("labels: nothing to predict, expected one label after the first at least")
    types = None
    if token_type_ids is not None:
        types = arguments.ids("token_type_ids", token_type_ids, (b, t), vocabulary)
    encoder, encoder_mask = arguments.encoder(
        encoder_hidden_states, encoder_attention_mask, b, config, model.dtype, None
    )
    positions = arguments.positions(position_ids, mask, 0, (b, t), config)
    rows = Rows(ids, targets, positions, mask, types, encoder, encoder_mask)
    d = build_tree({name: np.zeros_like(x) for name, x in named_parameters(model.params)})
    run = Run(config, rows, recompute=recompute)
    return add_gradient(model.params, run, count, d) / count, d


def add_gradient(params: Params, run: Run, count: int, d: Params) -> float:
    """Σ −log p over a run's targets, in nats; its gradient / count is added to d."""
    nats, back = loss(params, run)
    back(1.0 / count, d)
    return nats


class Gradients:
    """Adds up the gradients of batches whose rows are shared out among threads.

    NumPy computes elementwise on one core; so each thread takes some rows through the whole model
    and back, with BLAS on one thread, into an array of its own. These are summed in the order of
    the rows: the same number of threads gives the same bits.

    Args:
        params: what is trained; read again at every call.
        shares: among how many threads a batch is shared out.
        pool: the threads.
    """

    def __init__(
        self,
        params: Flat,
        config: GPT2Config,
        shares: int,
        pool: ThreadPoolExecutor,
        recompute: bool = False,
    ) -> None:
        self._params, self._config, self._pool, self._recompute = params, config, pool, recompute
        self._sums = [params.zeros() for _ in range(shares)]

    def add(self, batch: Batch, count: int, drop: Drop | None = None) -> float:
        """Σ −log p over a batch's targets, in nats; its gradients / count are added up."""
        parts = np.array_split(np.arange(len(batch.ids)), len(self._sums))

        def share(part: Array, d: Flat) -> float:
            if not len(part):
                return 0.0
            first = drop and drop._replace(row=drop.row + int(part[0]))
            rows = rows_of(batch.ids[part], batch.targets[part])
            run = Run(self._config, rows, first, self._recompute)
            return add_gradient(self._params.tree, run, count, d.tree)

        return sum(self._pool.map(share, parts, self._sums))

    def total(self) -> Flat:
        """The sum of all that was added. Who takes it sets it to zero for the next."""
        first, *others = self._sums
        for other in others:
            first.array[...] += other.array
            other.array[...] = 0.0
        return first

    def nats(self, params: Params, batches: Iterable[Batch]) -> tuple[float, int]:
        """Σ −log p over the targets of batches, nothing dropped; and how many they are."""

        def share(batch: Batch) -> tuple[float, int]:
            run = Run(self._config, rows_of(*batch), recompute=True)  # so that no block is kept
            return loss(params, run)[0], int((batch.targets != IGNORED).sum())

        nats, counts = zip(*self._pool.map(share, batches), strict=True)
        return sum(nats), sum(counts)


def rows_of(ids: Array, targets: Array) -> Rows:
    """Plain text: ids and targets (B, T), positions from 0."""
    return Rows(ids, targets, np.arange(ids.shape[1])[None])
