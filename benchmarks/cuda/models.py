"""Checkpoints of random weights and their graphs, made where the check runs."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from npgpt2 import GPT2, GPT2Config
from npgpt2.checkpoints.checkpoint import save
from npgpt2.model.params import build_tree, param_shapes
from npgpt2_onnx.graph.names import KINDS
from npgpt2_onnx.graph.precision import PRECISIONS

# What a section does, one after another: each has a name, and gives what is written down of it.
Steps = Iterator[tuple[str, Callable[[], dict[str, Any]]]]

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"vocab_size": 512, "n_positions": 64, "n_embd": 64, "n_layer": 2, "n_head": 4},
    "124M": {},
    "1.5B": {"n_embd": 1600, "n_layer": 48, "n_head": 25},
}
NO_KERNEL = "GroupQueryAttention has no float32 kernel on CUDA: `choose` takes another graph there"
LARGE = ("fp16", "int4")  # what the large shape is exported in, and measured


@dataclass(frozen=True)
class Options:
    """What a run was told.

    Attributes:
        shape: of `SHAPES`, for parity, kernels and speed; `large` is that of the last section.
        work: the folder of checkpoints and graphs.
        batches: rows; contexts: tokens of a prompt; new: tokens written behind it.
    """

    device: str
    shape: str
    work: str
    large: str = "1.5B"
    batches: tuple[int, ...] = (1, 8, 64, 256)
    contexts: tuple[int, ...] = (32, 1000)
    new: int = 16

    @property
    def checkpoint(self) -> Path:
        return Path(self.work) / self.shape

    @property
    def graphs(self) -> Path:
        return Path(self.work) / f"{self.shape}-onnx"

    @property
    def large_graphs(self) -> Path:
        return Path(self.work) / f"large-{self.large}-onnx"


def steps(options: Options) -> Steps:
    """The checkpoint of the shape, and every graph of it."""
    yield "checkpoint", lambda: make_checkpoint(options)
    yield "graphs", lambda: make_graphs(options.checkpoint, options.graphs, [*PRECISIONS])


def no_kernel(options: Options, precision: str, kind: str) -> bool:
    """Whether a graph is known not to run on the device alone: nobody gets it there unasked."""
    return options.device == "cuda" and kind == "gqa" and precision != "fp16"


def make_checkpoint(options: Options) -> dict[str, Any]:
    """As GPT-2 is before training: N(0, 0.02)."""
    folder = options.checkpoint
    if not (folder / "model.safetensors").is_file():  # what is written last
        folder.mkdir(parents=True, exist_ok=True)
        model = GPT2.from_random(GPT2Config(**SHAPES[options.shape]))
        save(folder, model.config, model.params)
    return {"bytes": (folder / "model.safetensors").stat().st_size}


def make_graphs(
    checkpoint: Path, folder: Path, precisions: Sequence[str], kinds: Iterable[str] = KINDS
) -> dict[str, Any]:
    """Not proved on the way: that is what the check itself does, on its device."""
    from npgpt2_onnx import export

    if not folder.exists():  # a folder of an export is whole or not there
        export(checkpoint, folder, precisions=precisions, graphs=[*kinds], proof=False)
    return {"bytes": sum(path.stat().st_size for path in (folder / "onnx").iterdir())}


def make_large(options: Options) -> dict[str, Any]:
    """The large shape's graphs, for speed alone; the checkpoint in between is not kept.

    All matrices are views of one buffer of random numbers, each from another place in it: the
    host never holds more than the largest of them.
    """
    import shutil

    import numpy as np

    if options.large_graphs.exists():
        return {"kept": True}
    config = GPT2Config(**SHAPES[options.large])
    shapes = param_shapes(config)
    most = max(int(np.prod(shape)) for shape in shapes.values())
    pool = np.random.default_rng(0).standard_normal(most + len(shapes), np.float32)
    pool = (0.02 * pool).astype(np.float16)
    tensors = {}
    for i, (name, shape) in enumerate(shapes.items()):
        tensors[name] = pool[i : i + int(np.prod(shape))].reshape(shape)
        if len(shape) == 1:  # biases, and the gains of LayerNorm
            gain = name.endswith("weight")
            tensors[name] = (np.ones if gain else np.zeros)(shape, np.float16)
    checkpoint = Path(options.work) / f"large-{options.large}"
    checkpoint.mkdir(parents=True, exist_ok=True)
    save(checkpoint, config, build_tree(tensors), np.float16)
    made = make_graphs(checkpoint, options.large_graphs, LARGE, ("gqa", "mha"))
    shutil.rmtree(checkpoint)
    return made
