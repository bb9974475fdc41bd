"""What a training run was told. Together with the corpus it decides every number of the run."""

from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from npgpt2.base.errors import OptionError
from npgpt2.base.options import MOST, described, option, require

SHAPE = {"n_layer": 6, "n_head": 6, "n_embd": 192, "n_positions": 256}  # of a model from scratch

checkpoint = partial(option, metavar="MODEL", expected="the name of a checkpoint")
count = partial(option, metavar="N", least=1, most=MOST)


def share(default: float, text: str, metavar: str = "X") -> Any:
    """Of a whole, and never all of it."""
    return option(default, text, metavar, least=0, below=1.0)


@described
@dataclass(frozen=True)
class Settings:
    """The options of `npgpt2 train`. Frozen and validated.

    None means: not said, and then as it says there. `npgpt2 train` sets `threads`, which is 1 here;
    with the same number, the same bits. Where wte is frozen, a tied head is as well.

    Raises:
        OptionError: a value of the wrong type or range, or two that exclude each other.
        ConfigError: no such shape.

    >>> Settings(steps=100).batch_size
    16
    """

    init: str | None = checkpoint(None, "fine-tune a checkpoint folder or a model of the hub")
    tokenizer: str | None = checkpoint(None, "take its vocabulary (default: train one)")
    vocab_size: int | None = option(
        None, "tokens of the vocabulary to train, at most (default: 2048)", "N", least=0, most=MOST
    )
    n_layer: int | None = count(None, f"number of blocks (default: {SHAPE['n_layer']})")
    n_head: int | None = count(None, f"attention heads of a block (default: {SHAPE['n_head']})")
    n_embd: int | None = count(None, f"width, a multiple of the heads (default: {SHAPE['n_embd']})")
    n_positions: int | None = count(
        None, f"tokens of the longest context (default: {SHAPE['n_positions']})"
    )
    window: int | None = count(None, "tokens in a row (default: the longest context)")
    batch_size: int = count(16, "rows computed at a time (default: {default})")
    accumulate: int = count(1, "batches for one step (default: {default})")
    steps: int | None = count(None, "how many steps to take; or, instead:")
    epochs: float | None = option(
        None, "how often to read all of the text (default: 10)", "X", above=0.0, most=1e9
    )
    lr: float | None = option(
        None, "highest learning rate (default: 1e-3; with --init 5e-5)", "X", above=0.0
    )
    warmup: int | None = option(
        None, "steps until it is reached (default: 100, or a tenth of all if fewer)", "N",
        least=0, most=MOST,
    )  # fmt: skip
    schedule: str = option(
        "cosine", "from there: half a cosine down to 0, or as it is (default: {default})",
        choices=("cosine", "constant"),
    )  # fmt: skip
    weight_decay: float = option(
        0.1, "how fast matrices shrink; biases and gains do not (default: {default})", "X", least=0
    )
    beta1: float = share(0.9, "memory of the gradient (default: {default})")
    beta2: float = share(0.99, "memory of its square (default: {default})")
    clip: float = option(
        1.0, "a gradient longer than this is shortened to it (default: {default})", "X", above=0.0
    )
    dropout: float | None = option(
        None, "of embeddings, attention and residuals (default: 0.1; with --init the model's)",
        "P", least=0, most=1.0,
    )  # fmt: skip
    average: float = share(
        0.0, "make the model from a running mean of the weights, which keeps X of itself at each "
        "step: 0.995 is the last 200 steps or so (default: {default}, the weights themselves)",
    )  # fmt: skip
    freeze_embeddings: bool = option(False, "leave wte and wpe as they are")
    recompute: bool = option(
        False, "keep only the inputs of blocks for the way back: less memory, a third more work, "
        "the same bits",
    )  # fmt: skip
    val_fraction: float = share(
        0.1, "of the characters, at the end, kept for validation (default: {default})", "F"
    )
    half: bool = option(False, "write the model in float16")
    eval_every: int = count(250, "steps between validations (default: {default})")
    save_every: int = count(250, "steps between checkpoints (default: {default})")
    seed: int = option(
        0, "of weights, order and dropout: the same seed, the same model (default: {default})", "S",
        least=0, most=2**64 - 1,
    )  # fmt: skip
    threads: int = count(
        1, "share a batch out among N; another N, other last digits. Each holds a gradient of its "
        "own (default: one for each core)",
    )  # fmt: skip

    def __post_init__(self) -> None:
        require(self)
        if self.steps is not None and self.epochs is not None:
            raise OptionError("epochs", "given beside steps, expected one of the two")
        if self.init is None:
            if self.tokenizer is not None and self.vocab_size is not None:
                raise OptionError("vocab_size", "given beside tokenizer, which has its own size")
            from npgpt2.model.config import GPT2Config

            GPT2Config(**self.shape)  # validates
            return
        for name in ("tokenizer", "vocab_size", *SHAPE):
            if getattr(self, name) is not None:
                raise OptionError(
                    name, f"given beside init ({self.init}), which has its own. Leave it out"
                )

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
