"""What a training run was told. Together with the corpus it decides every number of the run."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from npgpt2.config import GPT2Config
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
        OptionError: a value of the wrong type or range, or two that exclude each other.
        ConfigError: no such shape.

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
        for name in (*SHAPE, "window", "batch_size", "accumulate", "steps", "threads"):
            self._require(name, int, 1, 2**31 - 1)
        for name in ("eval_every", "save_every"):
            self._require(name, int, 1, 2**31 - 1)
        self._require("warmup", int, 0, 2**31 - 1)
        self._require("vocab_size", int, 0, 2**31 - 1)
        self._require("seed", int, 0, 2**64 - 1)
        self._require("epochs", float, above=0.0, high=1e9)
        for name in ("lr", "clip"):
            self._require(name, float, above=0.0)
        self._require("weight_decay", float)
        for name in ("beta1", "beta2", "average", "val_fraction"):
            self._require(name, float, below=1.0)
        self._require("dropout", float, high=1.0)
        for name in ("init", "tokenizer"):
            self._require_kind(name, str, "the name of a checkpoint")
        for name in ("freeze_embeddings", "recompute", "half"):
            self._require_kind(name, bool, "true or false")
        if self.schedule not in SCHEDULES:
            raise OptionError(
                "schedule", f"got {self.schedule!r}, expected one of {', '.join(SCHEDULES)}"
            )
        if self.steps is not None and self.epochs is not None:
            raise OptionError("epochs", "given beside steps, expected one of the two")
        if self.init is None:
            if self.tokenizer is not None and self.vocab_size is not None:
                raise OptionError("vocab_size", "given beside tokenizer, which has its own size")
            GPT2Config(**self.shape)  # validates
            return
        for name in ("tokenizer", "vocab_size", *SHAPE):
            if getattr(self, name) is not None:
                raise OptionError(
                    name, f"given beside init ({self.init}), which has its own. Leave it out"
                )

    def _require(
        self,
        name: str,
        kind: type,
        low: float = 0.0,
        high: float = math.inf,
        *,
        above: float | None = None,
        below: float | None = None,
    ) -> None:
        """A number in a range. None is good where it is the default."""
        value = getattr(self, name)
        if value is None and getattr(type(self), name) is None:
            return
        good = isinstance(value, (int, kind)) and not isinstance(value, bool)
        good = good and low <= value <= high and math.isfinite(value)
        if good and (above is None or value > above) and (below is None or value < below):
            return
        if kind is int:
            words = f"a whole number from {low} to {high}"
        else:
            words = f"a number from {low:g}" if above is None else f"a number above {above:g}"
            words += f" to {high:g}" if high < math.inf else ""
            words += f" to below {below:g}" if below is not None else ""
        raise OptionError(name, f"got {value!r}, expected {words}")

    def _require_kind(self, name: str, kind: type, words: str) -> None:
        value = getattr(self, name)
        if not isinstance(value, kind) and value is not getattr(type(self), name):
            raise OptionError(name, f"got {value!r}, expected {words}")

    @property
    def shape(self) -> dict[str, Any]:
        """Of a model from scratch: n_layer, n_head, n_embd, n_positions.

        >>> Settings(n_embd=384).shape
        {'n_layer': 6, 'n_head': 6, 'n_embd': 384, 'n_positions': 256}
        """
        given = {name: getattr(self, name) for name in SHAPE}
        return {name: given[name] or default for name, default in SHAPE.items()}

    def to_dict(self) -> dict[str, Any]:
        """What was said, without what was not."""
        return {name: value for name, value in asdict(self).items() if value is not None}
