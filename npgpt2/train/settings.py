"""What a training run was told. Together with the corpus it decides every number of the run."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from npgpt2.errors import OptionError

SHAPE = {"n_layer": 6, "n_head": 6, "n_embd": 192, "n_positions": 256}  # of a model from scratch
SCHEDULES = ("cosine", "constant")


@dataclass(frozen=True)
class Settings:
    """The options of `npgpt2 train`, with their defaults. Frozen and validated.

    None means: not said, and then as it says here.

    Attributes:
        init: a checkpoint to go on from, its vocabulary included; otherwise random weights.
        tokenizer: a checkpoint folder whose vocabulary is taken; otherwise one is trained.
        vocab_size: of the vocabulary to train, at most.
        n_layer, n_head, n_embd, n_positions: the model's shape, from scratch.
        window: tokens in a row of a batch; n_positions by default.
        batch_size: rows that are computed at a time.
        accumulate: batches whose gradients are added up to one step.
        steps, epochs: how long; 10 epochs by default.
        lr: the highest learning rate; by default 1e-3 from scratch and 5e-5 from a checkpoint.
        warmup: steps; by default 100, or a tenth of all where that is fewer.
        dropout: of all three kinds; by default as in the config, 0.1 from scratch.
        average: the model is the running mean of the weights over about 1 / (1 − average) steps;
            0 is the weights themselves.
        freeze_embeddings: leave wte and wpe as they are, and a tied head with them.
        half: write the model in float16.
        eval_every, save_every: steps between validations, and between checkpoints.
        threads: for the same bits, the same number.

    Raises:
        OptionError: a value of the wrong type or range.

    >>> Settings(steps=100).batch_size
    16
    """

    init: str | None = None
    tokenizer: str | None = None
    vocab_size: int | None = None
    n_layer: int | None = None
    n_head: int | None = None
    n_embd: int | None = None
    n_positions: int | None = None
    window: int | None = None
    batch_size: int = 16
    accumulate: int = 1
    steps: int | None = None
    epochs: float | None = None
    lr: float | None = None
    warmup: int | None = None
    schedule: str = "cosine"
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.99
    clip: float = 1.0
    dropout: float | None = None
    average: float = 0.0
    freeze_embeddings: bool = False
    recompute: bool = False
    val_fraction: float = 0.1
    half: bool = False
    eval_every: int = 250
    save_every: int = 250
    seed: int = 0
    threads: int = 1

    def __post_init__(self) -> None:
        for name in ("batch_size", "accumulate", "eval_every", "save_every", "threads", "steps"):
            self._require_whole(name, 1, 2**31 - 1)
        for name in (*SHAPE, "window"):
            self._require_whole(name, 1, 2**31 - 1)
        self._require_whole("warmup", 0, 2**31 - 1)
        self._require_whole("seed", 0, 2**64 - 1)
        for name in ("lr", "epochs", "clip"):
            self._require_number(name, 0.0, math.inf, open_below=True)
        self._require_number("weight_decay", 0.0, math.inf)
        for name in ("beta1", "beta2", "average", "val_fraction"):
            self._require_number(name, 0.0, 1.0, open_above=True)
        self._require_number("dropout", 0.0, 1.0)
        if self.schedule not in SCHEDULES:
            raise OptionError(
                "schedule", f"got {self.schedule!r}, expected one of {', '.join(SCHEDULES)}"
            )
        if self.steps is not None and self.epochs is not None:
            raise OptionError("epochs", "given beside steps, expected one of the two")
        if self.init is None:
            if self.tokenizer is not None and self.vocab_size is not None:
                raise OptionError("vocab_size", "given beside tokenizer, which has its own size")
            return
        for name in ("tokenizer", "vocab_size", *SHAPE):
            if getattr(self, name) is not None:
                raise OptionError(
                    name, f"given beside init ({self.init}), which has its own. Leave it out"
                )

    def _require_whole(self, name: str, low: int, high: int) -> None:
        value = getattr(self, name)
        if value is None:
            return
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise OptionError(name, f"got {value!r}, expected a whole number from {low} to {high}")

    def _require_number(
        self, name: str, low: float, high: float, open_below: bool = False, open_above: bool = False
    ) -> None:
        value = getattr(self, name)
        if value is None:
            return
        good = isinstance(value, (int, float)) and not isinstance(value, bool)
        good = good and math.isfinite(value) and low <= value <= high
        if not good or (open_below and value == low) or (open_above and value == high):
            above = "above" if open_below else "from"
            below = "" if high == math.inf else f" {'to below' if open_above else 'to'} {high:g}"
            raise OptionError(name, f"got {value!r}, expected a number {above} {low:g}{below}")

    def to_dict(self) -> dict[str, Any]:
        """What was said, without what was not."""
        return {name: value for name, value in asdict(self).items() if value is not None}
