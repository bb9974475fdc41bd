"""A run's checkpoints: everything needed to resume as if the run had never stopped.

    OUT/checkpoint-500/    model.safetensors, optimizer.safetensors, state.json, config, vocabulary

A checkpoint is written completely or not at all. The two newest are kept: if the newest is damaged,
the run resumes from the one before and computes the steps between again, bit for bit.
"""

import hashlib
import json
import shutil
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.numpy import load_file

from npgpt2.base.arrays import Array
from npgpt2.base.errors import CheckpointError, FileError, NpGPT2Error
from npgpt2.base.files import new_folder, read_json, require_space, sha256_of, write_text
from npgpt2.checkpoints.checkpoint import save, save_tensors
from npgpt2.checkpoints.formats.find import SINGLE
from npgpt2.model.config import GPT2Config
from npgpt2.model.params import Params, named_parameters
from npgpt2.tokenizer.files import copy_vocabulary
from npgpt2.train.optimizer import Flat
from npgpt2.train.settings import Settings

PREFIX, KEPT, STATE, OPTIMIZER = "checkpoint-", 2, "state.json", "optimizer.safetensors"


@dataclass
class State:
    """The state of a run, except for the arrays."""

    step: int = 0  # optimizer steps taken
    best: float | None = None  # the lowest validation loss so far, nats per token
    seconds: float = 0.0  # time spent so far, also before interruptions


class Arrays(NamedTuple):
    """The arrays of a run: parameters, AdamW's moments, and the EMA if there is one."""

    params: Flat
    first: Flat
    second: Flat
    ema: Flat | None

    @classmethod
    def of(cls, params: Params, settings: Settings) -> "Arrays":
        """The arrays before the first step."""
        frozen = ("wte.weight", "wpe.weight") if settings.freeze_embeddings else ()
        flat = Flat.of(params, frozen.__contains__)
        ema = flat.zeros() if settings.ema else None
        if ema:
            ema.array[...] = flat.array
        return cls(flat, flat.zeros(), flat.zeros(), ema)

    @property
    def model(self) -> Params:
        """The model that the run saves: the EMA, or else the parameters."""
        return (self.ema or self.params).tree

    def named(self) -> dict[str, Array]:
        """All arrays but the parameters, by name, such as `first.h.0.ln_1.weight`."""
        kinds = zip(self._fields[1:], self[1:], strict=True)
        return {
            f"{kind}.{name}": array
            for kind, flat in kinds
            if flat is not None
            for name, array in named_parameters(flat.tree)
        }


def checkpoints(folder: Path) -> list[Path]:
    """A run's checkpoints, newest first."""
    found = [p for p in folder.glob(f"{PREFIX}*") if p.name.removeprefix(PREFIX).isdecimal()]
    return sorted(found, key=_step, reverse=True)


def _step(path: Path) -> int:
    return int(path.name.removeprefix(PREFIX))


def save_state(folder: Path, config: GPT2Config, arrays: Arrays, state: State) -> Path:
    """Write a checkpoint into a run's folder and delete the oldest; returns its path.

    Raises:
        FileError: the disk is full or cannot be written; earlier checkpoints stay.
    """
    require_space(folder, sum(flat.array.nbytes for flat in arrays if flat is not None))
    path = folder / f"{PREFIX}{state.step}"
    with new_folder(path, replaces=lambda _: True) as work:
        copy_vocabulary(folder, work)
        save(work, config, arrays.params.tree)
        save_tensors(work / OPTIMIZER, arrays.named())
        values = {**asdict(state), "sha256": _sums(work, asdict(state))}
        write_text(work / STATE, json.dumps(values, indent=2) + "\n")
    prune(folder, state.step)
    return path


def prune(folder: Path, step: int) -> None:
    """Keep the two newest up to a step. Later ones are damaged: the run did not resume there."""
    found = checkpoints(folder)
    later = [path for path in found if _step(path) > step]
    for path in [*later, *found[len(later) + KEPT :]]:
        shutil.rmtree(path, ignore_errors=True)


def load_state(folder: Path, arrays: Arrays) -> State:
    """Fill the arrays from the newest intact checkpoint. Warns of each damaged one.

    Raises:
        CheckpointError: no checkpoint is intact.
    """
    for path in checkpoints(folder):
        try:
            return _load(path, arrays)
        except NpGPT2Error as error:
            warnings.warn(f"{error}. Using the checkpoint before", stacklevel=2)
    raise CheckpointError(f"{folder}: has no intact checkpoint to resume from. Start again")


def _load(path: Path, arrays: Arrays) -> State:
    values = read_json(path / STATE, CheckpointError)
    try:
        sums = values.pop("sha256")
        if sums != _sums(path, values):
            raise CheckpointError(f"{path}: is damaged: its files do not match their checksums")
        stored = {
            name.removeprefix("transformer."): array
            for name, array in (load_file(path / SINGLE) | load_file(path / OPTIMIZER)).items()
        }
        state = State(**values)
        for name, array in [*named_parameters(arrays.params.tree), *arrays.named().items()]:
            if stored[name].shape != array.shape:
                got = stored[name].shape
                raise CheckpointError(f"{path}: {name} is {got}, expected {array.shape}")
            array[...] = stored[name]
    except NpGPT2Error:
        raise
    except OSError as error:
        raise FileError(f"{error.filename or path}: {error.strerror or error}") from None
    except (AttributeError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{path}: is damaged ({error})") from None
    return state


def _sums(path: Path, state: dict[str, Any]) -> dict[str, str]:
    """sha256 of the files with arrays, and of the other values in state.json.

    `seconds` is left out: it is the only value that differs between equal runs.
    """
    told = {name: value for name, value in state.items() if name != "seconds"}
    sums = {STATE: hashlib.sha256(json.dumps(told).encode()).hexdigest()}
    return sums | {name: sha256_of(path / name) for name in (SINGLE, OPTIMIZER)}
