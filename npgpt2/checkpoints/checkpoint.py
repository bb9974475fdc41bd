"""Checkpoint ↔ config and parameters: check the tensors that `formats` found against the config."""

import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from npgpt2.base.arrays import Array
from npgpt2.base.errors import CheckpointError, ConfigError, FileError, WeightsWarning
from npgpt2.base.files import read_json, replaced, write_text
from npgpt2.checkpoints.formats.find import MASK_BUFFER, SINGLE, Found, find, tells_config
from npgpt2.checkpoints.formats.safetensors_file import write
from npgpt2.checkpoints.formats.tensors import DTYPES, Files, TensorInfo
from npgpt2.model.config import HEADS, GPT2Config
from npgpt2.model.params import Params, build_tree, named_parameters, param_shapes

Progress = Callable[[Iterable[str], str], Iterable[str]]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose config and tensor table are read, but no values yet.

    >>> checkpoint = Checkpoint.open("tests/data/tiny")
    >>> checkpoint.config.n_layer, checkpoint.tensors["h.0.attn.c_attn.weight"].shape
    (3, (64, 192))
    """

    folder: Path
    config: GPT2Config
    tensors: dict[str, TensorInfo]
    kind: str = "safetensors"  # name of the format

    @classmethod
    def open(cls, folder: str | Path) -> "Checkpoint":
        """Read the config and the tensor table, and check that they match.

        Args:
            folder: a folder with weights in any format that `formats.find` knows; for llm.c and
                nanoGPT also the file itself.

        Raises:
            FileError: a file is missing or cannot be read.
            ConfigError: config.json is not of a GPT-2 that is implemented here.
            CheckpointError: a weights file is damaged; or tensors are missing, unexpected, or of
                the wrong shape.
        """
        folder = Path(folder)
        if not os.path.exists(folder):  # Path.exists raises where the name is too long
            raise FileError(f"{folder}: no such folder, expected one with config.json in it")
        config = None if tells_config(folder) else read_config(folder)
        found = find(folder)
        return cls.of(folder, found._replace(config=found.config or config))

    @classmethod
    def of(cls, folder: Path, found: Found) -> "Checkpoint":
        """Check the tensors found in a folder against its config. Raises what `open` raises."""
        config = found.config or read_config(folder)
        tensors = {
            name: info for name, info in found.tensors.items() if not MASK_BUFFER.fullmatch(name)
        }
        config = _settle_head(config, tensors)
        _require_sound(folder, config, found.told_by, tensors)
        named = {name: tensors[name] for name in param_shapes(config)}
        return cls(folder, config, named, found.kind)

    def config_json(self) -> dict[str, Any]:
        """All fields of the folder's config.json; without this file, the config from the
        weights."""
        own = self.folder / "config.json"
        values = read_json(own, ConfigError) if own.is_file() else self.config.to_dict()
        return values | {"tie_word_embeddings": self.config.tie_word_embeddings}

    def read(
        self,
        dtype: npt.DTypeLike = np.float32,
        mmap: bool = True,
        strict: bool = False,
        progress: Progress = lambda names, what: names,
    ) -> Params:
        """Read the parameters in float32 or float64. They may be written to.

        Args:
            mmap: map the files; tensors that already have `dtype` are then views, whose memory
                processes share until they write to it. (Of a file larger than the memory they
                are read-only.) False reads copies.
            strict: raise if weights contain NaN or infinity; otherwise warn.
            progress: wraps the loop over names.

        Raises:
            CheckpointError: with `strict`, a tensor contains NaN or infinity; or a file has become
                shorter since its header was read.
        """
        files, arrays = Files(mmap, writable=True), {}
        for name in progress(self.tensors, "loading"):
            info = self.tensors[name]
            arrays[name] = files.array(info, np.dtype(dtype))
            _warn_of_nonfinite(arrays[name], info, strict)
        return build_tree(arrays)

    def pieces(self, name: str, size: int) -> Iterator[Array]:
        """One parameter as flat float32, in pieces of `size` values; read, not mapped.

        Raises:
            FileError: the file cannot be read.
            CheckpointError: it has become shorter since its header was read.
        """
        yield from Files(mmap=False).pieces(self.tensors[name], size)


def save(
    folder: Path,
    config: GPT2Config,
    params: Params,
    dtype: npt.DTypeLike = np.float32,
    others: Mapping[str, Any] | None = None,
) -> None:
    """Write config.json, generation_config.json and model.safetensors in transformers' format.

    Each file is written whole or not at all, the weights last.

    Args:
        dtype: dtype of the weights; a value beyond float16's range becomes infinity.
        others: fields of config.json that GPT2Config does not have.

    Raises:
        FileError: a file cannot be written.
    """
    eos = config.eos_token_id
    ids = {"bos_token_id": config.bos_token_id, "eos_token_id": eos}
    values = {**(others or {}), **config.to_dict(), "dtype": np.dtype(dtype).name}
    for name, table in (("config.json", values), ("generation_config.json", ids)):
        with replaced(folder / name) as path:
            write_text(path, json.dumps(table, indent=2) + "\n")
    with np.errstate(over="ignore"):
        tensors = {
            stored_name(name): array.astype(dtype, copy=False)
            for name, array in named_parameters(params)
        }
    save_tensors(folder / SINGLE, tensors)


def stored_name(name: str) -> str:
    """A parameter's name in transformers' checkpoints: "transformer." before all but the heads.

    >>> stored_name("h.0.ln_1.bias"), stored_name("score.weight")
    ('transformer.h.0.ln_1.bias', 'score.weight')
    """
    return name if name.split(".")[0] in ("lm_head", *HEADS.values()) else f"transformer.{name}"


def save_tensors(path: Path, tensors: Mapping[str, Array]) -> None:
    """Write one safetensors file, whole or not at all. Raises FileError if it cannot be written."""
    with replaced(path) as work, work.open("wb") as file:
        write(file, tensors)


def read_config(folder: Path) -> GPT2Config:
    """config.json, with the end-of-text ids of generation_config.json if it has them."""
    if not os.path.lexists(folder / "config.json"):
        raise FileError(f"{folder / 'config.json'}: no such file, expected it next to the weights")
    config = GPT2Config.from_file(folder / "config.json")
    path = folder / "generation_config.json"
    if path.exists():
        eos = read_json(path, ConfigError).get("eos_token_id")
        try:
            config = config if eos is None else replace(config, eos_token_id=eos)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None
    return config


def _settle_head(config: GPT2Config, tensors: dict[str, TensorInfo]) -> GPT2Config:
    """Decide from the files whether the head is tied, as transformers 5 does.

    A head that the config ties may be stored anyway: as a copy of wte, or as a different matrix;
    then the head is not tied. If only the head is stored, it is also wte.
    """
    head, wte = tensors.get("lm_head.weight"), tensors.get("wte.weight")
    if head is None or not config.tie_word_embeddings:
        return config
    if wte is None:
        tensors["wte.weight"] = head
    elif head.shape == wte.shape and not _same_bytes(head, wte):
        return replace(config, tie_word_embeddings=False)
    del tensors["lm_head.weight"]
    return config


def _same_bytes(a: TensorInfo, b: TensorInfo) -> bool:
    if a._replace(name=b.name) == b:
        return True  # the same bytes of one file
    files = Files(mmap=True)
    return (a.dtype, a.strides) == (b.dtype, b.strides) and bool(
        np.array_equal(files.raw(a), files.raw(b))
    )


def _require_sound(
    folder: Path, config: GPT2Config, told_by: str, tensors: dict[str, TensorInfo]
) -> None:
    """Raises CheckpointError with all missing, unexpected and wrong tensors in one line."""
    # A layer has at least 12 tensors. This comes first: n_layer may claim a billion.
    if config.n_layer > len(tensors):
        raise CheckpointError(
            f"{folder}: {told_by} has n_layer {config.n_layer:,}, "
            f"but the weights have only {len(tensors)} tensors"
        )
    shapes = param_shapes(config)
    missing = [name for name in shapes if name not in tensors]
    extra = [name for name in tensors if name not in shapes]
    wrong, other = [], []
    for name in shapes.keys() & tensors.keys():
        got, want = tensors[name].shape, shapes[name]
        if got != want:
            transposed = ", transposed" if got == want[::-1] else ""
            wrong.append(f"{name} is {got}, expected {want}{transposed}")
        if tensors[name].dtype not in DTYPES:
            other.append(f"{name} is {tensors[name].dtype}, expected one of {', '.join(DTYPES)}")
    faults = []
    if missing:
        faults.append(f"{_some(missing)} missing, {len(missing)} of {len(shapes)}")
    if wrong:
        faults.append(f"{len(wrong)} of the wrong shape ({_some(sorted(wrong))})")
    if other:
        faults.append(f"{len(other)} of an unknown dtype ({_some(sorted(other))})")
    if extra:
        faults.append(f"{len(extra)} unexpected ({_some(sorted(extra))})")
    if faults:
        raise CheckpointError(
            f"{folder}: {'; '.join(faults)}. Expected the tensors of the GPT-2 in {told_by}"
            f"{_other_head(config, extra)}"
        )


def _other_head(config: GPT2Config, extra: list[str]) -> str:
    """A hint if the unexpected tensors are those of another head."""
    for kind, head in HEADS.items():
        if any(name.split(".")[0] == head for name in extra):
            return f", with architecture {config.architectures[0]}: {head} is of a {kind}"
    return ""


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _warn_of_nonfinite(x: Array, info: TensorInfo, strict: bool) -> None:
    text = nonfinite(x, info)
    if text and strict:
        raise CheckpointError(f"{text}, expected finite weights. Download again")
    if text:
        warnings.warn(text, WeightsWarning, stacklevel=2)


def nonfinite(x: Array, info: TensorInfo) -> str:
    """A message with the number of NaN and infinite values of a tensor; "" if there are none."""
    # x · x is NaN or infinite if any element is, and runs at memory speed. It may also overflow
    # on finite weights, so the exact count decides.
    with np.errstate(all="ignore"):
        if np.isfinite(np.dot(x.reshape(-1), x.reshape(-1))):
            return ""
    count = int(x.size - np.isfinite(x).sum())
    if not count:
        return ""
    return f"{info.path}: {info.name} has {count:,} NaN or infinite values of {x.size:,}"
