"""A run's checkpoints: all that it needs to go on as if it had never stopped.

    OUT/checkpoint-500/    model.safetensors, optimizer.safetensors, state.json, config, vocabulary

Each appears whole or not at all. The two newest are kept: where the newest is damaged, the one
before it will do, and the steps between are computed again, bit for bit.
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
    """What is not in the arrays."""

    step: int = 0  # of the optimizer, taken
    best: float | None = None  # the lowest validation loss so far, nats per token
    seconds: float = 0.0  # spent so far, in all sittings


class Arrays(NamedTuple):
    """The numbers that change: parameters, AdamW's moments, the running mean where there is one."""

    params: Flat
    first: Flat
    second: Flat
    average: Flat | None

    @classmethod
    def of(cls, params: Params, settings: Settings) -> "Arrays":
        """Those of a run's first step."""
        frozen = ("wte.weight", "wpe.weight") if settings.freeze_embeddings else ()
        flat = Flat.of(params, frozen.__contains__)
        average = flat.zeros() if settings.average else None
        if average:
            average.array[...] = flat.array
        return cls(flat, flat.zeros(), flat.zeros(), average)

    @property
    def model(self) -> Params:
        """What the run makes: the running mean, or the parameters themselves."""
        return (self.average or self.params).tree

    def named(self) -> dict[str, Array]:
        """All but the parameters: `first.h.0.ln_1.weight`."""
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
    """Write a checkpoint into a run's folder, and drop what it makes useless; returns its path.

    Raises:
        FileError: the disk is full, or cannot be written; the earlier ones stay.
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
    """Keep the two newest up to a step. Later ones were damaged, or the run would be there."""
    found = checkpoints(folder)
    later = [path for path in found if _step(path) > step]
    for path in [*later, *found[len(later) + KEPT :]]:
        shutil.rmtree(path, ignore_errors=True)


def load_state(folder: Path, arrays: Arrays) -> State:
    """Fill the arrays from the newest checkpoint that is sound. One that is not is warned of.

    Raises:
        CheckpointError: none is sound.
    """
    for path in checkpoints(folder):
        try:
            return _load(path, arrays)
        except NpGPT2Error as error:
            warnings.warn(f"{error}. Going back to the checkpoint before", stacklevel=2)
    raise CheckpointError(f"{folder}: has no sound checkpoint to go on from. Begin again")


def _load(path: Path, arrays: Arrays) -> State:
    values = read_json(path / STATE, CheckpointError)
    try:
        sums = values.pop("sha256")
        if sums != _sums(path, values):
            raise CheckpointError(f"{path}: is damaged: its files are others than were written")
        stored = {
            name.removeprefix("transformer."): array
            for name, array in (load_file(path / SINGLE) | load_file(path / OPTIMIZER)).items()
        }
        state = State(**values)
        for name, array in [*named_parameters(arrays.params.tree), *arrays.named().items()]:
            if stored[name].shape != array.shape:
                raise CheckpointError(f"{path}: {name} is {stored[name].shape}, not {array.shape}")
            array[...] = stored[name]
    except NpGPT2Error:
        raise
    except OSError as error:
        raise FileError(f"{error.filename or path}: {error.strerror or error}") from None
    except (AttributeError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{path}: is damaged ({error})") from None
    return state


def _sums(path: Path, state: dict[str, Any]) -> dict[str, str]:
    """sha256 of the files with arrays, and of what stands beside it in state.json.

    Not of the time: it is all in which two runs of the same settings may differ.
    """
    told = {name: value for name, value in state.items() if name != "seconds"}
    sums = {STATE: hashlib.sha256(json.dumps(told).encode()).hexdigest()}
    return sums | {name: sha256_of(path / name) for name in (SINGLE, OPTIMIZER)}
