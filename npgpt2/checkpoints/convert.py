"""A checkpoint in any known format → a safetensors folder that transformers loads."""

import json
import re
import shutil
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from npgpt2.base.arrays import Array
from npgpt2.base.errors import ConfigError, FileError, MissingPackage, NpGPT2Error, OptionError
from npgpt2.base.files import (
    Progress,
    holds_only,
    is_same,
    new_folder,
    read_json,
    require_space,
    write_text,
)
from npgpt2.checkpoints.checkpoint import Checkpoint, save, save_tensors, stored_name
from npgpt2.checkpoints.formats.find import INDEX, SINGLE
from npgpt2.checkpoints.formats.tensors import DTYPES, SIZES, Files
from npgpt2.model.config import GPT2Config
from npgpt2.model.params import Params
from npgpt2.tokenizer.files import FILES, WHOLE, copy_vocabulary
from npgpt2.tokenizer.load import load_tokenizer

# The command's names of dtypes → those of safetensors.
NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}
LARGEST = 2_000_000_000  # most bytes of one file


def convert(
    source: str | Path,
    out: str | Path,
    dtype: str | None = None,
    max_shard_size: int = LARGEST,
    force: bool = False,
    progress: Progress = lambda names, what: names,
) -> Checkpoint:
    """Write a checkpoint in transformers' format: config.json, the weights, the vocabulary.

    One shard is in memory at a time. The folder gets its name only when it is complete.

    Args:
        source: a folder or file in any format of `npgpt2.checkpoints.formats.find`.
        out: the folder to create.
        dtype: "float32", "float16" or "bfloat16"; None keeps the dtype of each tensor.
        max_shard_size: most bytes of a file; larger weights are split into shards.
        force: replace an existing folder.
        progress: wraps the loop over tensors.

    Returns:
        The source checkpoint.

    Raises:
        FileError, CheckpointError, ConfigError: the source is missing or damaged.
        OptionError: an unknown dtype, or a shard size below 1.
    """
    if dtype is not None and dtype not in NAMES:
        raise OptionError("dtype", f"got {dtype!r}, expected one of {', '.join(NAMES)}")
    if max_shard_size < 1:
        raise OptionError("max_shard_size", f"got {max_shard_size}, expected at least 1 byte")
    source, out = Path(source), Path(out)
    checkpoint = Checkpoint.open(source)
    kinds = {n: NAMES[dtype] if dtype else t.dtype for n, t in checkpoint.tensors.items()}
    shards = plan(checkpoint, kinds, max_shard_size)
    require_space(out, sum(size for _, size in shards))
    vocabulary = source if source.is_dir() else source.parent
    _warn_of_vocabulary(vocabulary)
    with _folder(out, source, force) as folder:
        _write_config(checkpoint, folder, sorted(set(kinds.values())))
        _copy_small(vocabulary, folder)
        _write_weights(checkpoint, folder, kinds, shards, progress)
    return checkpoint


def save_model(
    out: str | Path,
    config: GPT2Config,
    params: Params,
    source: Path | None,
    dtype: str | None = None,
    force: bool = False,
) -> Path:
    """Write a model in memory as a folder in transformers' format; return the folder.

    Args:
        source: the checkpoint whose vocabulary is copied; None: none is.
        dtype: see `NAMES`; None: that of the parameters.
        force: replace an existing checkpoint.

    Raises:
        FileError: the folder exists, contains the source, or cannot be written.
        OptionError: an unknown dtype.
    """
    out, kind = Path(out), params.wte.weight.dtype.name if dtype is None else dtype
    if kind not in NAMES:
        raise OptionError("dtype", f"got {kind!r}, expected one of {', '.join(NAMES)}")
    given = source if source is None or source.is_dir() else source.parent
    others = given and given / "config.json"
    with _folder(out, source, force) as folder:
        save(
            folder, config, params, stored(np.zeros(0, "f4"), NAMES[kind]).dtype,
            read_json(others, ConfigError) if others and others.is_file() else None,
        )  # fmt: skip
        if given is not None:
            _copy_small(given, folder)
    return out


def _copy_small(source: Path, folder: Path) -> None:
    """The vocabulary, and the settings of transformers' generate."""
    copy_vocabulary(source, folder)
    if (source / "generation_config.json").is_file():
        shutil.copyfile(source / "generation_config.json", folder / "generation_config.json")


@contextmanager
def _folder(out: Path, source: Path | None, force: bool) -> Iterator[Path]:
    """The folder to write, which gets its name only when it is complete."""
    where = () if source is None else (source.resolve(), *source.resolve().parents)
    if any(is_same(out, folder) for folder in where):
        raise FileError(f"{out}: the source is in this folder, expected another one")

    def replaces(there: Path) -> bool:
        return force and holds_only(there, _is_ours, "a converted checkpoint")

    with new_folder(out, replaces) as folder:
        yield folder


def _is_ours(name: str) -> bool:
    """Whether a file may be one that `convert` wrote."""
    small = ("config.json", "generation_config.json", SINGLE, INDEX, *FILES)
    return name in small or bool(re.fullmatch(r"model-\d{5}-of-\d{5}\.safetensors", name))


def plan(
    checkpoint: Checkpoint, kinds: dict[str, str], largest: int
) -> list[tuple[list[str], int]]:
    """Split the tensors, in their order, into shards: (names, bytes) of each."""
    shards: list[tuple[list[str], int]] = []
    for name, info in checkpoint.tensors.items():
        size = int(np.prod(info.shape)) * SIZES[kinds[name]]
        if not shards or shards[-1][1] + size > largest:
            shards.append(([], 0))
        names, before = shards[-1]
        shards[-1] = ([*names, name], before + size)
    return shards


def _write_weights(
    checkpoint: Checkpoint,
    folder: Path,
    kinds: dict[str, str],
    shards: list[tuple[list[str], int]],
    progress: Progress,
) -> None:
    files, where = Files(mmap=True), {}
    steps: Iterator[str] = iter(progress([n for names, _ in shards for n in names], "converting"))
    for number, (names, _) in enumerate(shards, 1):
        file = SINGLE
        if len(shards) > 1:
            file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors: dict[str, Array] = {}
        for _ in names:
            name = next(steps)
            info = checkpoint.tensors[name]
            full = stored_name(name)
            # As NumPy reads the file's dtype without loss: bfloat16 as float32.
            kind = np.dtype("<f4" if info.dtype == "BF16" else DTYPES[info.dtype])
            tensors[full] = np.ascontiguousarray(stored(files.array(info, kind), kinds[name]))
            where[full] = file
        save_tensors(folder / file, tensors)
    next(steps, None)  # the bar ends
    if len(shards) > 1:
        total = {"total_size": sum(size for _, size in shards)}
        index = {"metadata": total, "weight_map": where}
        write_text(folder / INDEX, json.dumps(index, indent=2) + "\n")


def stored(x: Array, dtype: str) -> Array:
    """An array in a dtype of safetensors; values beyond float16's range become infinity.

    Raises:
        MissingPackage: bfloat16 without ml_dtypes: NumPy has no bfloat16.
    """
    if dtype != "BF16":
        with np.errstate(over="ignore"):
            return x.astype(DTYPES[dtype], copy=False)
    try:
        from ml_dtypes import bfloat16
    except ImportError:
        raise MissingPackage(
            "bfloat16 needs ml_dtypes. Run: pip install 'npgpt2[convert]'"
        ) from None
    return x.astype(bfloat16)


def _write_config(checkpoint: Checkpoint, folder: Path, kinds: Iterable[str]) -> None:
    values = checkpoint.config_json()
    values.pop("torch_dtype", None)
    spelled = {kind: name for name, kind in NAMES.items()}
    values["dtype"] = next(spelled[kind] for kind in kinds)
    write_text(folder / "config.json", json.dumps(values, indent=2) + "\n")


def _warn_of_vocabulary(source: Path) -> None:
    """Warn if the vocabulary is damaged. The weights are converted anyway."""
    if not any((source / name).exists() for name in WHOLE):
        return
    try:
        load_tokenizer(source)
    except MissingPackage:  # a kind of vocabulary that needs another package
        pass
    except NpGPT2Error as error:
        warnings.warn(f"the vocabulary is damaged: {error}", stacklevel=3)
