"""llm.c's checkpoints (https://github.com/karpathy/llm.c, `train_gpt2.py` and `gpt2_write`).

A header of 256 int32, then each tensor stacked over the layers. Linear weights are (out, in); wte
may have padding rows after the vocabulary.
"""

from pathlib import Path

import numpy as np

from npgpt2.base.errors import CheckpointError
from npgpt2.base.files import named_errors, require_regular
from npgpt2.checkpoints.formats.tensors import SIZES, TensorInfo
from npgpt2.model.config import GPT2Config
from npgpt2.model.params import param_shapes

MAGIC, HEADER = 20240326, 256
OTHERS = {20240327: "debug state", 20240328: "tokenizer", 20240520: "tokens"}  # its other files
DTYPES = {1: "F32", 3: "F32", 5: "BF16"}  # by version; version 1 does not pad the vocabulary
MOST_LAYERS = 1000  # ten times those of the largest known GPT
ORDER = (
    "ln_1.weight", "ln_1.bias", "attn.c_attn.weight", "attn.c_attn.bias", "attn.c_proj.weight",
    "attn.c_proj.bias", "ln_2.weight", "ln_2.bias", "mlp.c_fc.weight", "mlp.c_fc.bias",
    "mlp.c_proj.weight", "mlp.c_proj.bias",
)  # fmt: skip


def is_one(path: Path) -> bool:
    """Whether a file begins with one of llm.c's magic numbers."""
    with path.open("rb") as file:
        return int.from_bytes(file.read(4), "little") in (MAGIC, *OTHERS)


def read(path: Path) -> tuple[GPT2Config, dict[str, TensorInfo]]:
    """The config in a file's header, and the places of its tensors.

    Raises:
        FileError: the file cannot be read.
        CheckpointError: it is not a checkpoint of llm.c, or its length does not match its header.
        ConfigError: the values of the header are not a valid config.
    """
    with named_errors(path):
        size = require_regular(path)
        with path.open("rb") as file:
            header = np.frombuffer(file.read(4 * HEADER).ljust(4 * HEADER, b"\0"), "<i4").tolist()
    magic, version, positions, vocabulary, layers, heads, width, padded = header[:8]
    if magic != MAGIC:
        raise CheckpointError(
            f"{path}: is an llm.c file of kind {OTHERS.get(magic, 'unknown')}, expected a "
            "checkpoint, such as gpt2_124M.bin"
        )
    if size < 4 * HEADER:
        raise CheckpointError(
            f"{path}: has {size} of the {4 * HEADER:,} bytes of the header. Download again"
        )
    if version not in DTYPES:
        raise CheckpointError(
            f"{path}: has version {version} of llm.c's format, "
            f"expected one of {', '.join(map(str, DTYPES))}"
        )
    sizes = {"vocab_size": vocabulary, "n_positions": positions, "n_layer": layers,
             "n_head": heads, "n_embd": width}  # fmt: skip
    config = GPT2Config.from_dict(sizes, f"{path}: header")
    rows = vocabulary if version == 1 else padded
    if not vocabulary <= rows <= 2 * vocabulary + 128:
        raise CheckpointError(
            f"{path}: header: {rows:,} rows of wte for {vocabulary:,} tokens. Download again"
        )
    # Checked before the loop over layers: a damaged header may claim a billion tiny layers.
    if layers > MOST_LAYERS:
        raise CheckpointError(
            f"{path}: header: {layers:,} layers, expected at most {MOST_LAYERS:,}. Download again"
        )
    if 24 * layers * width**2 > size:
        raise CheckpointError(
            f"{path}: header: {layers:,} layers of width {width:,} do not fit into {size:,} bytes. "
            "Download again"
        )
    shapes, dtype = param_shapes(config), DTYPES[version]
    at, item = 4 * HEADER, SIZES[dtype]
    tensors: dict[str, TensorInfo] = {}

    def take(names: list[str], count: int) -> None:
        nonlocal at
        for name in names:
            shape = shapes[name]
            linear = len(shape) == 2 and not name.startswith("w")
            strides = (1, shape[0]) if linear else None  # (out, in)
            nbytes = int(np.prod(shape)) * item
            tensors[name] = TensorInfo(name, dtype, shape, nbytes, path, at, strides)
            at += max(nbytes, count * item)

    take(["wte.weight"], rows * width)
    take(["wpe.weight"], 0)
    for leaf in ORDER:
        take([f"h.{i}.{leaf}" for i in range(layers)], 0)
    take(["ln_f.weight", "ln_f.bias"], 0)
    if size < at:
        raise CheckpointError(f"{path}: has {size:,} of {at:,} bytes. Download again")
    if size > at:
        raise CheckpointError(f"{path}: has {size - at:,} extra bytes at the end. Download again")
    return config, tensors
