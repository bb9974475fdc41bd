"""nanoGPT's checkpoints (https://github.com/karpathy/nanoGPT, `train.py` and `model.py`).

A dictionary saved by torch.save: the tensors of the model, those of the optimizer, and
`model_args`. Linear weights are (out, in), as in PyTorch. The MLP's activation is the exact GELU.
With `bias` False no biases are stored: they become zeros. The vocabulary may be padded to a
multiple of 64.
"""

from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any

from npgpt2.base.errors import CheckpointError, ConfigError
from npgpt2.checkpoints.formats.tensors import TensorInfo
from npgpt2.model.config import GPT2Config
from npgpt2.model.params import param_shapes

PADDED, REAL = 50_304, 50_257  # GPT-2's vocabulary, as train.py pads it


def settings(path: Path, contents: Any) -> tuple[GPT2Config, bool, Any]:
    """The config in `model_args`, whether there are biases, and the state dictionary.

    Raises:
        CheckpointError: it is not a checkpoint of nanoGPT.
        ConfigError: the values of `model_args` are not a valid config.
    """
    arguments = contents.get("model_args") if isinstance(contents, dict) else None
    if not isinstance(arguments, dict) or "model" not in contents:
        raise CheckpointError(
            f"{path}: has no model_args, expected a checkpoint of nanoGPT. For a state dictionary "
            "with a config.json, give the folder of both"
        )
    for name, value in arguments.items():
        if not isinstance(value, (str, int, float, NoneType)):
            raise ConfigError(
                f"{path}: model_args: {name!s:.60}: got a {type(value).__name__}, expected a number"
            )
    size = arguments.get("vocab_size")
    config = config_of(
        {
            "vocab_size": REAL if size in (None, PADDED) else size,
            "activation_function": "gelu",
            "dropout": arguments.get("dropout", 0.0),
            **{name: arguments.get(name) for name in ("block_size", "n_layer", "n_head", "n_embd")},
        },
        {"block_size": "n_positions", "dropout": "resid_pdrop"},
        f"{path}: model_args",
    )
    return config, bool(arguments.get("bias", True)), contents["model"]


def as_stored(
    path: Path, config: GPT2Config, biases: bool, tensors: dict[str, TensorInfo]
) -> dict[str, TensorInfo]:
    """Transpose linear weights to (in, out), cut the padding off, add zeros for missing biases."""
    if config.n_layer > len(tensors):  # first, since a damaged file may claim a billion layers
        raise CheckpointError(
            f"{path}: model_args has n_layer {config.n_layer:,}, but the weights have only "
            f"{len(tensors)} tensors"
        )
    found = {}
    for name, info in tensors.items():
        if ".c_" in name and len(info.shape) == 2:
            strides = info.strides or (info.shape[1], 1)
            info = info._replace(shape=info.shape[::-1], strides=strides[::-1])
        elif name in ("wte.weight", "lm_head.weight") and info.shape[:1] == (PADDED,):
            info = info._replace(shape=(config.vocab_size, *info.shape[1:]))
            info = info._replace(nbytes=info.nbytes // PADDED * config.vocab_size)
        found[name] = info
    zeros = {} if biases else param_shapes(config)
    for name, shape in zeros.items():
        if name.endswith(".bias") and name not in found:
            found[name] = TensorInfo.zeros(name, shape)
    return found


def config_of(values: Mapping[str, Any], names: Mapping[str, str], source: str) -> GPT2Config:
    """A config from fields with other names; errors use these names as well.

    >>> config_of({"n_ctx": 0}, {"n_ctx": "n_positions"}, "hparams.json")
    Traceback (most recent call last):
    npgpt2.base.errors.ConfigError: hparams.json: n_ctx: got 0, expected an integer ...
    """
    try:
        return GPT2Config.from_dict({names.get(k, k): v for k, v in values.items()}, source)
    except ConfigError as error:
        text = str(error).removeprefix(source)
        for theirs, ours in names.items():
            if text.startswith(f": {ours}: "):
                text = f": {theirs}: " + text.removeprefix(f": {ours}: ")
        raise ConfigError(f"{source}{text}") from None
