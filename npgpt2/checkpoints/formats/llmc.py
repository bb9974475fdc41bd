"""llm.c's checkpoints (https://github.com/karpathy/llm.c, `train_gpt2.py` and `gpt2_write`).

A header of 256 int32, then each tensor stacked over the layers: linear weights (out, in), wte with
rows of padding behind the vocabulary.
"""

from pathlib import Path

import numpy as np

from npgpt2.base.errors import CheckpointError
from npgpt2.base.files import named_errors, require_regular
from npgpt2.checkpoints.formats.tensors import SIZES, TensorInfo
from npgpt2.model.config import GPT2Config
from npgpt2.model.params import param_shapes

MAGIC, HEADER = 20240326, 256
OTHERS = {20240327: "debug state", 20240328: "tokenizer", 20240520: "tokens"}  # of its other files
DTYPES = {1: "F32", 3: "F32", 5: "BF16"}  # by version; in 1 the vocabulary is not padded
MOST_LAYERS = 1000  # ten times those of the largest GPT that is known of
ORDER = (
    "ln_1.weight", "ln_1.bias", "attn.c_attn.weight", "attn.c_attn.bias", "attn.c_proj.weight",
    "attn.c_proj.bias", "ln_2.weight", "ln_2.bias", "mlp.c_fc.weight", "mlp.c_fc.bias",
    "mlp.c_proj.weight", "mlp.c_proj.bias",
)  # fmt: skip


def is_one(path: Path) -> bool:
    """Whether a file begins as llm.c's do."""
    with path.open("rb") as file:
        return int.from_bytes(file.read(4), "little") in (MAGIC, *OTHERS)


def read(path: Path) -> tuple[GPT2Config, dict[str, TensorInfo]]:
    """The config that a file's header tells, and where its tensors lie.

    Raises:
        FileError: it cannot be read.
        CheckpointError: it is not one of llm.c's, or has another length than its header says.
        ConfigError: the header's numbers are no GPT-2.
    """
    with named_errors(path):
        size = require_regular(path)
        with path.open("rb") as file:
            header = np.frombuffer(file.read(4 * HEADER).ljust(4 * HEADER, b"\0"), "<i4").tolist()
    magic, version, positions, vocabulary, layers, heads, width, padded = header[:8]
    if magic != MAGIC:
        raise CheckpointError(
            f"{path}: is llm.c's {OTHERS.get(magic, 'file no more')}, expected a checkpoint, "
            "such as gpt2_124M.bin"
        )
    if size < 4 * HEADER:
        raise CheckpointError(
            f"{path}: has {size} of {4 * HEADER:,} bytes of header: download again"
        )
    if version not in DTYPES:
        raise CheckpointError(
            f"{path}: version {version} of llm.c's checkpoints, "
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
    # Asked before each layer's place is: there may be a billion, each of next to nothing.
    if layers > MOST_LAYERS:
        raise CheckpointError(
            f"{path}: header: {layers:,} layers, expected {MOST_LAYERS:,} at most. Download again"
        )
    if 24 * layers * width**2 > size:
        raise CheckpointError(
            f"{path}: header: {layers:,} layers of width {width:,}, more than {size:,} bytes hold. "
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
        raise CheckpointError(f"{path}: has {size:,} of {at:,} bytes: download again")
    if size > at:
        raise CheckpointError(f"{path}: {size - at:,} bytes too many at the end. Download again")
    return config, tensors
