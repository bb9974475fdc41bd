"""The settings of a training run. Together with the corpus they determine every bit of it."""

from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from npgpt2.base.errors import OptionError
from npgpt2.base.options import MOST, described, option, require

SHAPE = {"n_layer": 6, "n_head": 6, "n_embd": 192, "n_positions": 256}  # of a model from scratch

checkpoint = partial(option, metavar="MODEL", expected="the name of a checkpoint")
count = partial(option, metavar="N", least=1, most=MOST)


def share(default: float, text: str, metavar: str = "X") -> Any:
    """An option from 0 to below 1."""
    return option(default, text, metavar, least=0, below=1.0)


@described
@dataclass(frozen=True)
class Settings:
    """The options of `npgpt2 train`. Frozen and validated.

    None means the default in the description. `threads` is 1 by default; `npgpt2 train` sets it to
    the number of cores. The same number gives the same bits. Freezing wte also freezes a tied head.

    Raises:
        OptionError: a value has a wrong type or range, or two settings exclude each other.
        ConfigError: the shape is invalid.

    >>> Settings(steps=100).batch_size
    16
    """

    init: str | None = checkpoint(None, "fine-tune a checkpoint folder or a model of the hub")
    tokenizer: str | None = checkpoint(None, "use the vocabulary of MODEL (default: train one)")
    vocab_size: int | None = option(
        None, "largest size of the vocabulary to train (default: 2048)", "N", least=0, most=MOST
    )
    n_layer: int | None = count(None, f"number of blocks (default: {SHAPE['n_layer']})")
    n_head: int | None = count(None, f"attention heads per block (default: {SHAPE['n_head']})")
    n_embd: int | None = count(None, f"width, a multiple of n_head (default: {SHAPE['n_embd']})")
    n_positions: int | None = count(
        None, f"context length in tokens (default: {SHAPE['n_positions']})"
    )
    window: int | None = count(None, "tokens per training row (default: the context length)")
    batch_size: int = count(16, "rows computed at a time (default: {default})")
    accumulate: int = count(1, "batches per optimizer step (default: {default})")
    steps: int | None = count(None, "number of optimizer steps (instead of --epochs)")
    epochs: float | None = option(
        None, "number of passes over the text (default: 10)", "X", above=0.0, most=1e9
    )
    lr: float | None = option(
        None, "peak learning rate (default: 1e-3; with --init 5e-5)", "X", above=0.0
    )
    warmup: int | None = option(
        None, "steps of linear warmup (default: 100, or a tenth of all steps if fewer)", "N",
        least=0, most=MOST,
    )  # fmt: skip
    schedule: str = option(
        "cosine", "after the warmup: cosine decay to 0, or constant (default: {default})",
        choices=("cosine", "constant"),
    )  # fmt: skip
    weight_decay: float = option(
        0.1, "decay of matrices, not of biases or LayerNorm (default: {default})", "X", least=0
    )
    beta1: float = share(0.9, "decay rate of the first moment (default: {default})")
    beta2: float = share(0.99, "decay rate of the second moment (default: {default})")
    clip: float = option(1.0, "clip the gradient to this norm (default: {default})", "X", above=0.0)
    dropout: float | None = option(
        None, "dropout of embeddings, attention and residuals (default: 0.1; with --init the "
        "model's)", "P", least=0, most=1.0,
    )  # fmt: skip
    ema: float = share(
        0.0, "save an exponential moving average (EMA) of the weights with this decay; 0.995 is an "
        "average over about 200 steps (default: {default}, no EMA)", "DECAY",
    )  # fmt: skip
    freeze_embeddings: bool = option(False, "do not train wte and wpe")
    gradient_checkpointing: bool = option(
        False, "keep only the inputs of blocks and compute the rest again in the backward pass: "
        "less memory, a third more work, the same bits",
    )  # fmt: skip
    val_fraction: float = share(
        0.1, "share of the characters, at the end, for validation (default: {default})", "F"
    )
    half: bool = option(False, "save the model in float16")
    eval_every: int = count(250, "steps between validations (default: {default})")
    save_every: int = count(250, "steps between checkpoints (default: {default})")
    seed: int = option(
        0, "seed of weights, order and dropout; the same seed gives the same model "
        "(default: {default})", "S", least=0, most=2**64 - 1,
    )  # fmt: skip
    threads: int = count(
        1, "threads that share a batch; another N changes the last digits of the result. Each "
        "thread needs memory for a gradient of its own (default: one per core)",
    )  # fmt: skip

    def __post_init__(self) -> None:
        require(self)
        if self.steps is not None and self.epochs is not None:
            raise OptionError("epochs", "given together with steps, expected one of the two")
        if self.init is None:
            if self.tokenizer is not None and self.vocab_size is not None:
                raise OptionError("vocab_size", "given together with tokenizer, which has its own")
            from npgpt2.model.config import GPT2Config

            GPT2Config(**self.shape)  # validates
            return
        for name in ("tokenizer", "vocab_size", *SHAPE):
            if getattr(self, name) is not None:
                raise OptionError(
                    name, f"given together with init ({self.init}), which has its own. Leave it out"
                )

    @property
    def shape(self) -> dict[str, Any]:
        """The shape of a model from scratch: n_layer, n_head, n_embd, n_positions.

        >>> Settings(n_embd=384).shape
        {'n_layer': 6, 'n_head': 6, 'n_embd': 384, 'n_positions': 256}
        """
        given = {name: getattr(self, name) for name in SHAPE}
        return {name: given[name] or default for name, default in SHAPE.items()}

    def to_dict(self) -> dict[str, Any]:
        """The settings that are not None."""
        return {name: value for name, value in asdict(self).items() if value is not None}
