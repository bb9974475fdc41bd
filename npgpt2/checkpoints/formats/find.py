"""Find the weights of a path: detect the format, and return its tensors with npgpt2's names.

    model.safetensors, …index.json           transformers, since 2023
    pytorch_model.bin, …index.json           transformers, before
    model.ckpt.index, hparams.json           OpenAI's release, in TensorFlow
    ckpt.pt                                  nanoGPT
    gpt2_124M.bin, or any other name         llm.c: the path is the file

They are tried in this order: if a folder has several, they contain the same weights.
"""

import math
import os
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from npgpt2.base.errors import CheckpointError, ConfigError, FileError
from npgpt2.base.files import is_beside, named_errors, read_json, require_regular
from npgpt2.checkpoints.formats.safetensors_file import read_header
from npgpt2.checkpoints.formats.tensors import NOWHERE, SIZES, TensorInfo
from npgpt2.model.config import GPT2Config

if TYPE_CHECKING:  # each reader is imported when a file has its format
    from npgpt2.checkpoints.formats.torch_file import TorchFile

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
TORCH, TORCH_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
TENSORFLOW, NANOGPT = "model.ckpt.index", "ckpt.pt"

# Old checkpoints store each layer's causal mask, and the value for masked scores, as weights.
MASK_BUFFER = re.compile(r"h\.\d+\.(attn|crossattention)\.(bias|masked_bias)$")

# Prefixes of torch.compile and DistributedDataParallel, and that of the model without its head.
WRAPPERS = re.compile(r"^(_orig_mod\.|module\.)*(transformer\.)?")

Table = dict[str, TensorInfo]


class Found(NamedTuple):
    """The weights of a path, and the config if the weights file contains it."""

    kind: str
    tensors: Table
    config: GPT2Config | None = None
    told_by: str = "config.json"  # the source of the config, for messages


def find(path: Path) -> Found:
    """The weights in a folder or file.

    Raises:
        FileError: there are no weights in a known format, or they cannot be read.
        CheckpointError, ConfigError: they are damaged.
    """
    found = _folder(path) if os.path.isdir(path) else _file(path)
    _require_once(found.tensors)
    return found


def _folder(path: Path) -> Found:
    readers: tuple[tuple[str, Callable[[Path], Found]], ...] = (
        (SINGLE, lambda at: Found("safetensors", named(at, read_header(at)))),
        (INDEX, lambda at: Found("safetensors in shards", sharded(at, read_header))),
        (TORCH, lambda at: Found("PyTorch", named(at, read_torch(at)))),
        (TORCH_INDEX, lambda at: Found("PyTorch in shards", sharded(at, read_torch))),
        (TENSORFLOW, _tensorflow),
        (NANOGPT, _nanogpt),
    )
    for name, reader in readers:
        if os.path.lexists(path / name):  # also a broken link, so that it is reported
            return reader(path / name)
    hint = ""
    if any(path.glob("onnx/*.onnx")):
        hint = "The folder has ONNX graphs, but not their checkpoint. "
    raise FileError(
        f"{path / SINGLE}: no such file. {hint}Expected one of "
        f"{', '.join(name for name, _ in readers)} in the folder"
    )


def _require_once(tensors: Table) -> None:
    """Raises CheckpointError if the tensors of a file have more than twice its bytes. (Two tensors
    may share values, as a tied head and wte do.)"""
    read: Counter[Path] = Counter()
    for name, info in tensors.items():
        if MASK_BUFFER.fullmatch(name):  # all layers may share one; it is not read
            continue
        read[info.path] += math.prod(info.shape) * SIZES.get(info.dtype, 0)
    for path, count in read.items():
        if path != NOWHERE and path.exists() and count > 2 * path.stat().st_size:
            raise CheckpointError(
                f"{path}: its tensors have {count:,} bytes, but the file {path.stat().st_size:,}: "
                "expected each value in at most two tensors"
            )


def tells_config(path: Path) -> bool:
    """Whether the weights of a path contain the config, so that no config.json is needed."""
    alone = (TENSORFLOW, NANOGPT)
    return not os.path.isdir(path) or any(os.path.lexists(path / name) for name in alone)


def _file(path: Path) -> Found:
    """The weights of a single file, of llm.c or nanoGPT."""
    if not os.path.exists(path):
        raise FileError(f"{path}: no such file or folder")
    if path.name in (SINGLE, TORCH, "config.json") and (path.parent / "config.json").exists():
        raise FileError(f"{path}: is one file of a checkpoint, expected its folder. Give "
                        f"{path.parent}")  # fmt: skip
    from npgpt2.checkpoints.formats import llmc

    with named_errors(path):
        require_regular(path)
        ours = llmc.is_one(path)
    if ours:
        config, tensors = llmc.read(path)
        return Found("llm.c", tensors, config, "its header")
    return _nanogpt(path)


def named(path: Path, tensors: Table) -> Table:
    """Tensors by npgpt2's names: those of the parameter tree."""
    found: Table = {}
    for name, info in tensors.items():
        tree = WRAPPERS.sub("", name)
        if tree in found:
            raise CheckpointError(f"{path}: has {tree} both with and without 'transformer.'")
        found[tree] = info._replace(name=tree)
    return found


def weight_map(index: Path) -> dict[str, str]:
    """Tensor name → name of its shard, a file in the folder of the index.

    Raises:
        FileError, CheckpointError: the index cannot be read, or names a file outside the folder.
    """
    where = read_json(index, CheckpointError).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(f, str) for f in where.values()):
        raise CheckpointError(f"{index}: weight_map is not an object of tensor → file")
    for shard in sorted(set(where.values())):
        if not is_beside(shard):
            raise CheckpointError(
                f"{index}: names the shard {shard!r}, expected a file in the same folder"
            )
    return where


def sharded(index: Path, read: Callable[[Path], Table]) -> Table:
    """The tensors of the files that an index names."""
    where = weight_map(index)
    tensors: Table = {}
    for shard in sorted(set(where.values())):
        path = index.with_name(shard)
        if not os.path.exists(path):
            raise FileError(f"{path}: no such file, but {index.name} names it. Download it")
        held = named(path, read(path))
        claimed = {WRAPPERS.sub("", name) for name, file in where.items() if file == shard}
        if set(held) != claimed or tensors.keys() & claimed:
            odd = min(set(held) ^ claimed or tensors.keys() & claimed)
            raise CheckpointError(f"{index}: disagrees with {shard} about {odd}")
        tensors |= held
    return tensors


def read_torch(path: Path) -> Table:
    """Every tensor of a state dictionary from PyTorch, by its name in the file."""
    from npgpt2.checkpoints.formats import torch_file

    file = torch_file.read(path)
    return torch_tensors(file, file.contents)


def torch_tensors(file: "TorchFile", table: Any) -> Table:
    """The places of the tensors in a state dictionary."""
    from npgpt2.checkpoints.formats.pickled import Tensor

    if not isinstance(table, dict) or not table:
        raise CheckpointError(f"{file.path}: has no named tensors, expected a state dictionary")
    found: Table = {}
    for name, tensor in table.items():
        if not isinstance(name, str):
            raise CheckpointError(f"{file.path}: a tensor has the name {name!r:.60}, expected text")
        if not isinstance(tensor, Tensor):
            raise CheckpointError(
                f"{file.path}: {name!r:.60} is of type {type(tensor).__name__}, expected a tensor"
            )
        shape, strides = tensor.shape, tensor.strides
        plain = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
        follow = all(a == b or n == 1 for a, b, n in zip(strides, plain, shape, strict=True))
        reach = sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        dtype = tensor.storage.dtype
        nbytes = (reach + 1) * SIZES[dtype] if all(shape) else 0
        found[name] = TensorInfo(
            name, dtype, shape, nbytes, file.path, file.start(tensor), None if follow else strides
        )
    return found


def _tensorflow(index: Path) -> Found:
    from npgpt2.checkpoints.formats import tensorflow
    from npgpt2.checkpoints.formats.nanogpt import config_of

    hparams = index.with_name("hparams.json")
    values = read_json(hparams, ConfigError)
    names = {"n_vocab": "vocab_size", "n_ctx": "n_positions"}
    config = config_of(values, names, str(hparams))
    tensors: Table = {}
    for name, entry in tensorflow.read_index(index).items():
        tree = tensorflow.tree_name(name)
        if tree is None:
            continue
        # OpenAI stores linear layers as convolutions of width 1.
        shape = entry.shape[1:] if len(entry.shape) == 3 and entry.shape[0] == 1 else entry.shape
        if math.prod(shape) * SIZES[entry.dtype] != entry.nbytes:
            raise CheckpointError(
                f"{index}: {name} has {entry.nbytes:,} bytes, expected those of shape "
                f"{entry.shape}. Download again"
            )
        tensors[tree] = TensorInfo(
            tree, entry.dtype, shape, entry.nbytes, entry.path, entry.start, None, entry.checksum
        )
    return Found("TensorFlow", tensors, config, "hparams.json")


def _nanogpt(path: Path) -> Found:
    from npgpt2.checkpoints.formats import nanogpt, torch_file

    file = torch_file.read(path)
    config, biases, table = nanogpt.settings(path, file.contents)
    tensors = nanogpt.as_stored(path, config, biases, named(path, torch_tensors(file, table)))
    return Found("nanoGPT", tensors, config, "model_args")
