"""`ModelSpec` says which model and how to open it; `open_model` opens it.

The command line makes the spec; the server, bulk work, the benchmark and Ray take it.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from npgpt2.base.errors import OptionError
from npgpt2.base.options import described, option, require

if TYPE_CHECKING:
    from npgpt2.base.files import Progress
    from npgpt2.generation.language_model import LanguageModel
    from npgpt2.gpt2 import GPT2
    from npgpt2.heads import GPT2WithHead, HeadModel

Tell = Callable[[str], None]

OF_ONNX = ("device", "precision", "threads", "graph_cache")


@described
@dataclass(frozen=True)
class ModelSpec:
    """Which model, and how to open it.

    Raises:
        OptionError: a value that is not one of the choices; an option of the other engine.

    >>> ModelSpec("tests/data/tiny").name
    'tiny'
    >>> ModelSpec(precision="int8")
    Traceback (most recent call last):
    npgpt2.base.errors.OptionError: precision: works with the onnx engine only. Add --engine onnx
    """

    model: str | None = option(
        None, "a checkpoint folder (config.json, model.safetensors, vocabulary) or a model on the "
        "Hugging Face hub, such as gpt2 (default: $NPGPT2_MODEL, else shakespeare, a small model "
        "in this package)", "MODEL",
    )  # fmt: skip
    engine: str = option(
        "", "numpy for a checkpoint, onnx for a folder from 'npgpt2 export' (default: what the "
        "folder contains)", choices=("numpy", "onnx"),
    )  # fmt: skip
    device: str | None = option(None, "onnx: device (default: cpu)", choices=("cpu", "cuda"))
    precision: str | None = option(
        None, "onnx: precision (default: the first of these in the folder)",
        choices=("fp32", "fp16", "int8", "int4"),
    )  # fmt: skip
    threads: int | None = option(None, "onnx: threads (default: one per core)", "N")
    graph_cache: str | None = option(
        None, "onnx: keep the optimized graph in DIR, to load faster the next time (float graphs "
        "take twice the bytes of the weights)", "DIR",
    )  # fmt: skip
    dtype: str = option(
        "float32", "dtype of the computation (default: {default})", choices=("float32", "float64")
    )
    strict: bool = option(False, "fail, not only warn, if the weights contain NaN or infinity")
    revision: str | None = option(None, "branch, tag or commit on the hub (default: main)")

    def __post_init__(self) -> None:
        if not self.engine:
            object.__setattr__(self, "engine", _engine_for(self.model))
        require(self)
        if self.engine == "numpy":
            for name in OF_ONNX:
                if getattr(self, name) is not None:
                    raise OptionError(name, "works with the onnx engine only. Add --engine onnx")
            return
        if self.dtype != "float32" or self.strict:
            raise OptionError(
                "strict" if self.strict else "dtype",
                "works with the NumPy engine only. Leave it out, or leave out --engine onnx",
            )
        if self.graph_cache == "":
            raise OptionError("graph_cache", "got '', expected a folder")

    @property
    def name(self) -> str:
        """The name to display: the last part of the path or of the hub name."""
        from npgpt2.checkpoints.hub import EMBEDDED

        name = Path(self.model or EMBEDDED).absolute().name
        return os.fsencode(name).decode("utf-8", "replace")  # a folder's may be any bytes

    def folder(self, weights: bool = True, tell: Tell = lambda text: None) -> Path:
        """The model's folder, downloaded from the hub if needed.

        Args:
            weights: see `hub.resolve`.
            tell: callback for a note if no model is named.

        Raises:
            OptionError: a revision without a model.
            FileError, MissingPackage: see `hub.resolve`.
        """
        from npgpt2.checkpoints.hub import EMBEDDED, embedded, resolve

        if self.model is not None:
            return resolve(self.model, self.revision, weights=weights)
        if self.revision is not None:
            raise OptionError("revision", "needs a model on the hub. Name it with --model")
        tell(f"no --model given: using {EMBEDDED}, which is part of this package")
        return embedded()  # even if the current folder contains a folder of that name


def _engine_for(model: str | None) -> str:
    """ONNX Runtime for a folder with ONNX graphs and without a checkpoint."""
    if model is None or not os.path.isdir(model):
        return "numpy"
    folder = Path(model)
    weights = ("*.safetensors*", "*.bin*", "*.pt", "*.ckpt*", "checkpoint")
    graphs = any(folder.glob("onnx/*.onnx")) or any(folder.glob("*.onnx"))
    return "onnx" if graphs and not any(any(folder.glob(name)) for name in weights) else "numpy"


@overload
def open_model(
    spec: ModelSpec, *, head: Literal[False] = False, tell: Tell = ..., progress: "Progress" = ...
) -> "LanguageModel": ...
@overload
def open_model(
    spec: ModelSpec, *, head: Literal[True], tell: Tell = ..., progress: "Progress" = ...
) -> "HeadModel": ...
def open_model(
    spec: ModelSpec,
    *,
    head: bool = False,
    tell: Tell = lambda text: None,
    progress: "Progress" = lambda loop, what: loop,
) -> Any:
    """Open a model: a language model, or with `head` a model with another head.

    `tell` is a callback for notes on what was opened; `progress` wraps the loop over tensors.

    Raises:
        NpGPT2Error: it cannot be opened; see `from_pretrained` of the engine's class.

    >>> model = open_model(ModelSpec("tests/data/tiny"))
    >>> str(model.generate("KING", max_new_tokens=2, temperature=0)[0])
    'HA'
    """
    if spec.engine == "onnx":
        from npgpt2_onnx.run.model import OnnxModel, OnnxWithHead

        runner: type[OnnxModel] | type[OnnxWithHead] = OnnxWithHead if head else OnnxModel
        model = runner.from_pretrained(
            spec.folder(weights=False, tell=tell),
            spec.precision,
            device=spec.device or "cpu",
            threads=spec.threads,
            cache_dir=spec.graph_cache,
        )
        session = model.session
        tell(f"{session.path.name} ({session.precision.name}) on {session.provider}")
        return model
    kind: type[GPT2] | type[GPT2WithHead]
    if head:
        from npgpt2.heads import GPT2WithHead as kind
    else:
        from npgpt2.gpt2 import GPT2 as kind
    return kind.from_pretrained(
        spec.folder(tell=tell), spec.dtype, strict=spec.strict, progress=progress
    )
