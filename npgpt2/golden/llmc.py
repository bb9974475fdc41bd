"""Write the files that llm.c's own C test reads (https://github.com/karpathy/llm.c, `test_gpt2.c`).

    gpt2_124M.bin                 a header of 256 int32, then every parameter in float32
    gpt2_124M_debug_state.bin     a header, ids and targets, logits, loss, every gradient

Little-endian. Linear weights are stored as (out, in), each tensor stacked over the layers, and wte
is padded with zero rows to a multiple of 128. llm.c uses these file names for every model size.

Axes: B batch, T tokens, V vocabulary.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from npgpt2.base.arrays import Array
from npgpt2.base.errors import ConfigError, FileError, OptionError
from npgpt2.base.files import new_folder
from npgpt2.checkpoints.formats.llmc import HEADER, MAGIC, ORDER
from npgpt2.golden.cases import descend, gradient, some_ids
from npgpt2.golden.write import require_single
from npgpt2.gpt2 import GPT2
from npgpt2.model.config import GPT2Config
from npgpt2.model.params import Params, named_parameters
from npgpt2.train.corpus import Batch
from npgpt2.train.optimizer import Flat

MODEL, STATE = "gpt2_124M.bin", "gpt2_124M_debug_state.bin"
STATE_MAGIC = 20240327
MODEL_VERSION, STATE_VERSION = 3, 2  # float32, with a padded vocabulary
PADDED_TO = 128
STEPS = 10
# The arguments of gpt2_update in test_gpt2.c; llm.c applies weight decay to every tensor.
ADAMW: dict[str, Any] = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.01}
LEARNING_RATE = 1e-4


def write_llmc(
    out: str | Path,
    model: GPT2,
    batch: int = 4,
    length: int = 64,
    progress: Callable[[Iterable[float], str, int], Iterable[float]] = lambda steps, what, n: steps,
) -> tuple[Path, list[float]]:
    """Write both files.

    Args:
        out: the folder to create.
        model: a model in float32.
        batch, length: B rows of T tokens.
        progress: wraps the loop over steps.

    Returns:
        The folder; and the losses of ten AdamW steps of llm.c on this batch, each before its step.
        Its test compares with `expected_losses` in test_gpt2.c: replace them by these.

    Raises:
        InputError: the model is not in float32.
        FileError: the folder exists, or cannot be written.
        ConfigError: llm.c does not support the model's config.
        OptionError: `batch` is below 1, or `length` is not between 1 and the context length.
    """
    require_single(model)
    require_plain(model.config)
    if batch < 1:
        raise OptionError("batch", f"got {batch}, expected 1 or more")
    if not 1 <= length <= model.config.n_positions:
        raise OptionError("length", f"got {length}, expected 1 to {model.config.n_positions}")
    ids = some_ids(model, batch, length + 1)
    data = Batch(ids[:, :-1], ids[:, 1:])
    with new_folder(Path(out), replaces=_refuse) as folder:
        with (folder / MODEL).open("wb") as file:
            file.write(model_header(model.config))
            for array in stacked(model.params, model.config):
                file.write(array.tobytes())
        logits = model(data.ids, use_cache=False).logits
        first = gradient(model.params, model.config, data)
        with (folder / STATE).open("wb") as file:
            file.write(header(STATE_MAGIC, STATE_VERSION, batch, length))
            for part in (data.ids, data.targets):
                file.write(part.astype("<i4").tobytes())
            file.write(logits.astype("<f4").tobytes())
            file.write(np.array([first.loss], "<f4").tobytes())
            for array in stacked(first.flat.tree, model.config):
                file.write(array.tobytes())
        params = Flat.of(model.params)
        params = params._replace(decayed=params.trained)  # weight decay on every tensor
        steps = descend(params, model.config, data, STEPS, first, LEARNING_RATE, **ADAMW)
        losses = list(progress(steps, "steps", STEPS))
    return Path(out), losses


def _refuse(folder: Path) -> bool:
    raise FileError(f"{folder}: already exists, expected a new folder. Give another name")


def require_plain(config: GPT2Config) -> None:
    """Raises ConfigError: llm.c does not support this config."""
    odd = [
        name
        for name, is_odd in {
            "activation_function": config.activation_function
            not in ("gelu_new", "gelu_pytorch_tanh"),
            "n_inner": config.mlp_width != 4 * config.n_embd,
            "layer_norm_epsilon": config.layer_norm_epsilon != 1e-5,
            "scale_attn_weights": not config.scale_attn_weights,
            "scale_attn_by_inverse_layer_idx": config.scale_attn_by_inverse_layer_idx,
            "add_cross_attention": config.add_cross_attention,
            "tie_word_embeddings": not config.tie_word_embeddings,
            "pruned_heads": bool(config.pruned_heads),
        }.items()
        if is_odd
    ]
    if odd:
        raise ConfigError(f"{', '.join(odd)}: llm.c supports OpenAI's GPT-2 architecture only")


def header(*numbers: int) -> bytes:
    return np.array([*numbers, *[0] * (HEADER - len(numbers))], "<i4").tobytes()


def model_header(config: GPT2Config) -> bytes:
    return header(
        MAGIC, MODEL_VERSION, config.n_positions, config.vocab_size, config.n_layer,
        config.n_head, config.n_embd, padded(config.vocab_size),
    )  # fmt: skip


def padded(vocabulary: int) -> int:
    """
    >>> padded(50257), padded(512)
    (50304, 512)
    """
    return math.ceil(vocabulary / PADDED_TO) * PADDED_TO


def stacked(params: Params, config: GPT2Config) -> Iterator[Array]:
    """Parameters or gradients in llm.c's order and layout, one array after the other."""
    arrays = dict(named_parameters(params))
    wte = np.zeros((padded(config.vocab_size), config.n_embd), "<f4")
    wte[: config.vocab_size] = arrays["wte.weight"]
    yield wte
    yield np.ascontiguousarray(arrays["wpe.weight"], "<f4")
    for name in ORDER:
        for i in range(config.n_layer):
            array = arrays[f"h.{i}.{name}"]
            yield np.ascontiguousarray(array.T if array.ndim == 2 else array, "<f4")
    for name in ("ln_f.weight", "ln_f.bias"):
        yield np.ascontiguousarray(arrays[name], "<f4")
