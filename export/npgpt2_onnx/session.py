"""One exported graph under ONNX Runtime: found in its folder, opened, run.

Axes: B batch, T new tokens, P past, S = P + T, H heads, D head_dim, V vocabulary.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from npgpt2.config import GPT2Config
from npgpt2.errors import CheckpointError, FileError, MissingPackage, OptionError
from npgpt2.ops import Array
from npgpt2_onnx import names
from npgpt2_onnx.builder import FLOAT, Graph
from npgpt2_onnx.graph import KINDS
from npgpt2_onnx.precision import PRECISIONS, Precision

Pair = tuple[Array, Array]

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def graph_file(precision: Precision, kind: str) -> str:
    """The name that clients look for.

    >>> graph_file(PRECISIONS["int8"], "portable"), graph_file(PRECISIONS["fp32"], "gqa")
    ('model_quantized.onnx', 'model_gqa.onnx')
    """
    return f"model{precision.suffix}{KINDS[kind]}.onnx"


def graphs_in(folder: Path) -> dict[tuple[str, str], Path]:
    """The graphs of an exported folder, by (precision, kind).

    In its `onnx` folder, or beside the checkpoint whose weights they share.
    """
    found: dict[tuple[str, str], Path] = {}
    for precision in PRECISIONS.values():
        for kind in KINDS:
            for place in (folder / "onnx", folder):
                path = place / graph_file(precision, kind)
                if path.is_file():
                    found.setdefault((precision.name, kind), path)
    return found


def choose(folder: Path, device: str, precision: str | None = None) -> tuple[str, str, Path]:
    """The graph that runs fastest on a device: its precision, kind and file.

    GroupQueryAttention has float32 and float16 kernels on the CPU, on CUDA only float16; there
    MultiHeadAttention takes its place. The portable graph runs everywhere.

    Raises:
        FileError: the folder has no graph, or none in that precision.
    """
    found = graphs_in(folder)
    if not found:
        raise FileError(
            f"{folder}: has no ONNX graph, expected onnx/model.onnx or the like. "
            "Make one: npgpt2 export MODEL -o DIR"
        )
    here = list(dict.fromkeys(name for name, _ in found))
    if precision is None:
        precision = here[0]
    if precision not in here:
        raise FileError(
            f"{folder}: has no graph in {precision}, only in {', '.join(here)}. "
            f"Export it with --precision {precision}"
        )
    half = PRECISIONS[precision].name == "fp16"
    order = ["gqa", "portable", "mha"]
    if device == "cuda":
        order = ["gqa", "mha", "portable"] if half else ["mha", "portable"]
    for kind in order:
        if (precision, kind) in found:
            return precision, kind, found[precision, kind]
    raise FileError(
        f"{folder}: its {precision} graphs do not run on {device}. Export with --graph all"
    )


class Session:
    """A graph that is open. Knows its config, precision and kind from its metadata.

    Attributes:
        provider: the execution provider that runs it, as ONNX Runtime says.
    """

    def __init__(
        self,
        path: Path,
        device: str = "cpu",
        threads: int | None = None,
        cache_dir: Path | None = None,
    ) -> None:
        """
        Args:
            path: the .onnx file.
            device: "cpu" or "cuda".
            threads: for one operator; None: one for each core.
            cache_dir: keep the optimized graph there and open that the next time.

        Raises:
            MissingPackage: this onnxruntime cannot use that device.
            FileError, CheckpointError: the file is missing, damaged, or not from here.
        """
        provider = _provider(device)
        options = ort.SessionOptions()
        options.log_severity_level = 3  # errors come as exceptions
        if threads is not None:
            if not isinstance(threads, int) or isinstance(threads, bool) or not 0 < threads < 1025:
                raise OptionError(
                    "threads", f"got {threads!r}, expected a whole number from 1 to 1024"
                )
            options.intra_op_num_threads = threads
        self.path, self.device = path, device
        self.ort = _open(path, options, provider, cache_dir)
        self.provider: str = self.ort.get_providers()[0]
        if self.provider != provider:
            raise MissingPackage(
                f"{device}: onnxruntime fell back to {self.provider}: it has {provider}, but could "
                "not start it. Its libraries (CUDA, cuDNN) have to match: see "
                "https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html"
            )

    @cached_property
    def metadata(self) -> dict[str, str]:
        return dict(self.ort.get_modelmeta().custom_metadata_map)

    @cached_property
    def config(self) -> GPT2Config:
        try:
            return GPT2Config.from_dict(json.loads(self.metadata["config"]), str(self.path))
        except (KeyError, ValueError) as error:
            raise CheckpointError(
                f"{self.path}: has no config in its metadata ({error}), "
                "expected a graph that npgpt2 exported"
            ) from None

    @property
    def precision(self) -> Precision:
        return PRECISIONS[self.metadata["precision"]]

    @property
    def kind(self) -> str:
        return self.metadata["graph"]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of keys and values."""
        return np.dtype(np.float16 if self.precision.name == "fp16" else np.float32)

    def empty_past(self, rows: int) -> list[Pair]:
        """Keys and values of nothing: by layer, (B, H, 0, D)."""
        shapes = [
            (rows, self.config.heads_left(i), 0, self.config.head_dim)
            for i in range(self.config.n_layer)
        ]
        return [(np.empty(shape, self.dtype), np.empty(shape, self.dtype)) for shape in shapes]

    def feeds(
        self,
        ids: Array,
        mask: Array | None = None,
        position_ids: Array | None = None,
        past: Sequence[Pair] | None = None,
        cross: Sequence[Pair] = (),
        cross_mask: Array | None = None,
        all_logits: bool = True,
    ) -> dict[str, Array]:
        """The graph's inputs by name, for `InferenceSession.run`. Defaults as in GPT2's call."""
        b, t = ids.shape
        past = self.empty_past(b) if past is None else past
        p = past[0][0].shape[2]
        mask = np.ones((b, p + t), np.int64) if mask is None else mask.astype(np.int64)
        if position_ids is None:
            position_ids = (np.cumsum(mask, 1) - 1).clip(0)[:, p:]
        inputs = {
            names.INPUT_IDS: ids.astype(np.int64, copy=False),
            names.ATTENTION_MASK: mask,
            names.POSITION_IDS: np.ascontiguousarray(np.broadcast_to(position_ids, (b, t))),
        }
        for i, pair in enumerate(past):
            inputs |= dict(zip(names.past(i), pair, strict=True))
        for i, pair in enumerate(cross):
            inputs |= dict(zip(names.cross(i), pair, strict=True))
        if cross:
            e = cross[0][0].shape[2]
            known = np.ones((b, e), np.int64) if cross_mask is None else cross_mask
            inputs[names.ENCODER_MASK] = known.astype(np.int64)
        if all_logits and self.kind != "portable":
            inputs[names.ALL_LOGITS] = np.ones(1, np.int64)
        return inputs

    def forward(self, ids: Array, **inputs: Any) -> tuple[Array, list[Pair]]:
        """Logits (B, T, V) and the presents, by layer (B, H, S, D). Arguments: see `feeds`."""
        logits, *rest = self.run(None, self.feeds(ids, **inputs))
        count = 2 * self.config.n_layer
        return logits, list(zip(rest[0:count:2], rest[1:count:2], strict=True))

    def run(self, wanted: Sequence[str] | None, feeds: dict[str, Array]) -> list[Array]:
        try:
            outputs: list[Array] = self.ort.run(wanted, feeds)
        except Exception as error:  # onnxruntime's own family, one class for each code
            raise runtime_error(self.path, error) from None
        return outputs


def loads(opset: int) -> bool:
    """Whether the installed onnxruntime loads graphs of an opset."""
    g = Graph(opset)
    g.output(g.op("Identity", g.input("x", FLOAT, [1])), FLOAT, [1])
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        ort.InferenceSession(
            g.model("probe").SerializeToString(), options, providers=[PROVIDERS["cpu"]]
        )
    except Exception:  # onnxruntime's own family, one class for each code
        return False
    return True


def runtime_error(path: Path, error: Exception) -> CheckpointError:
    """What ONNX Runtime said, in one line and without its source paths."""
    text = str(error).replace("\n", " ")
    return CheckpointError(f"{path}: onnxruntime: {text[:500]}")


def _provider(device: str) -> str:
    if device not in PROVIDERS:
        raise OptionError("device", f"got {device!r}, expected one of {', '.join(PROVIDERS)}")
    provider, available = PROVIDERS[device], ort.get_available_providers()
    if provider not in available:
        raise MissingPackage(
            f"{device}: this onnxruntime {ort.__version__} has only {', '.join(available)}. "
            "Run: pip uninstall onnxruntime && pip install onnxruntime-gpu"
        )
    return provider


def _open(
    path: Path, options: ort.SessionOptions, provider: str, cache_dir: Path | None
) -> ort.InferenceSession:
    try:
        if cache_dir is None:
            return ort.InferenceSession(str(path), options, providers=[provider])
        return _open_cached(path, options, provider, cache_dir)
    except FileError:
        raise
    except Exception as error:  # onnxruntime's own family, one class for each code
        if not path.exists():
            raise FileError(f"{path}: no such file") from None
        raise runtime_error(path, error) from None


def _open_cached(
    path: Path, options: ort.SessionOptions, provider: str, cache_dir: Path
) -> ort.InferenceSession:
    """Open the optimized graph that an earlier session left, or leave one.

    Its name holds what it depends on: the graph's bytes, its data file's size and time, ONNX
    Runtime, the provider. It is written beside its place and renamed.
    """
    data = sorted(path.parent.glob("*.onnx_data")) + sorted(path.parent.glob("*.safetensors"))
    seen = [f"{p.name} {p.stat().st_size} {p.stat().st_mtime_ns}" for p in data]
    key = hashlib.sha256(path.read_bytes())
    key.update("|".join([ort.__version__, provider, *seen]).encode())
    cache_dir.mkdir(parents=True, exist_ok=True)
    kept = cache_dir / f"{path.stem}-{key.hexdigest()[:16]}.onnx"
    if not kept.exists():
        mine = cache_dir / f".{kept.stem}-{os.getpid()}.onnx"
        options.optimized_model_filepath = str(mine)
        try:
            session = ort.InferenceSession(str(path), options, providers=[provider])
            os.replace(mine, kept)
        finally:
            mine.unlink(missing_ok=True)
        return session
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(str(kept), options, providers=[provider])
