"""Find an exported graph in its folder, open it with ONNX Runtime, and run it.

Axes: B batch, T new tokens, P past, S = P + T, H heads, D head_dim, V vocabulary.
"""

import hashlib
import re
import warnings
from collections.abc import Sequence
from copy import copy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from npgpt2.base.arrays import Array
from npgpt2.base.blas import simd
from npgpt2.base.errors import CheckpointError, FileBusy, FileError, MissingPackage, OptionError
from npgpt2.base.files import new_folder
from npgpt2_onnx.graph import names
from npgpt2_onnx.graph.builder import FLOAT, Graph
from npgpt2_onnx.graph.precision import PRECISIONS, Precision
from npgpt2_onnx.graph.versions import numbers
from npgpt2_onnx.run.exported import Exported, asked_version, lower_opset_would_do

Pair = tuple[Array, Array]

KEPT = "model.onnx"  # an optimized graph, in its own folder
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def graph_file(precision: Precision, kind: str) -> str:
    """Return the file name that clients expect.

    >>> graph_file(PRECISIONS["int8"], "portable"), graph_file(PRECISIONS["fp32"], "gqa")
    ('model_quantized.onnx', 'model_gqa.onnx')
    """
    return f"model{precision.suffix}{names.KINDS[kind]}.onnx"


def graphs_in(folder: Path) -> dict[tuple[str, str], Path]:
    """Return the graphs of an exported folder, by (precision, kind).

    They are in the folder itself, if they share a checkpoint's weights, or in its `onnx` folder.
    """
    found: dict[tuple[str, str], Path] = {}
    for precision in PRECISIONS.values():
        for kind in names.KINDS:
            for place in (folder, folder / "onnx"):
                path = place / graph_file(precision, kind)
                if path.is_file():
                    found.setdefault((precision.name, kind), path)
    return found


def require_graphs(folder: Path) -> dict[tuple[str, str], Path]:
    """Like `graphs_in`, but raise FileError if there is none."""
    found = graphs_in(folder)
    if not found:
        if not folder.exists():
            raise FileError(f"{folder}: no such folder, expected one that 'npgpt2 export' wrote")
        if not folder.is_dir():
            raise FileError(f"{folder}: is a file, expected the exported folder")
        raise FileError(
            f"{folder}: has no ONNX graph, expected for example onnx/model.onnx. "
            "Run: npgpt2 export MODEL -o DIR"
        )
    return found


def choose(folder: Path, device: str, precision: str | None = None) -> tuple[str, str, Path]:
    """Choose the fastest graph for a device; return its precision, kind and file.

    GroupQueryAttention has float32 and float16 kernels on the CPU, but only float16 on CUDA, where
    MultiHeadAttention replaces it. The portable graph runs everywhere. A graph that needs a later
    ONNX Runtime is skipped with a warning.

    Args:
        precision: None: the first in the folder that the device runs and this ONNX Runtime
            loads.

    Raises:
        FileError: the folder has no graph, none in that precision, or none that the device runs.
        CheckpointError: all graphs need a later ONNX Runtime.
    """
    if precision is not None and precision not in PRECISIONS:
        raise OptionError(
            "precision", f"got {precision!r}, expected one of {', '.join(PRECISIONS)}"
        )
    found = require_graphs(folder)
    here = list(dict.fromkeys(name for name, _ in found))
    if precision is not None and precision not in here:
        raise FileError(
            f"{folder}: has no graph in {precision}, only in {', '.join(here)}. "
            f"Export it with --precision {precision}"
        )
    skipped: list[Path] = []  # too new for this ONNX Runtime, the best first
    tried = here if precision is None else [precision]
    for name in tried:
        for kind in _order(name, device):
            path = found.get((name, kind))
            if path is None:
                continue
            if not _too_new(asked_version(path)):
                if skipped:
                    needs, least = _needs(skipped[0])
                    warnings.warn(f"{needs}: using {path.name}. {_upgrade(least)}", stacklevel=3)
                return name, kind, path
            skipped.append(path)
    if not skipped:
        raise FileError(
            f"{folder}: its {', '.join(tried)} graphs do not run on {device}. "
            "Export with --graph all"
        )
    raise _too_old(min(skipped, key=lambda path: numbers(asked_version(path))))


def _order(precision: str, device: str) -> list[str]:
    """Return the kinds of graphs that run on a device, the fastest first."""
    if device != "cuda":
        return ["gqa", "portable", "mha"]
    half = PRECISIONS[precision].float != FLOAT
    return ["gqa", "mha", "portable"] if half else ["mha", "portable"]


def _too_new(at_least: str) -> bool:
    """Return whether a graph needs a later ONNX Runtime. A graph without a version is tried."""
    return numbers(ort.__version__) < numbers(at_least)


def _too_old(path: Path) -> CheckpointError:
    needs, least = _needs(path)
    lower = ", or export with a lower --opset" * lower_opset_would_do(path, ort.__version__)
    return CheckpointError(f"{needs}. {_upgrade(least)}{lower}")


def _needs(path: Path) -> tuple[str, str]:
    """Return the text that a graph needs a later ONNX Runtime, and the version."""
    least = ".".join(map(str, numbers(asked_version(path))))
    return f"{path}: needs onnxruntime {least} or later, this is {ort.__version__}", least


def _upgrade(least: str) -> str:
    gpu = "-gpu" * (PROVIDERS["cuda"] in ort.get_available_providers())
    return f"Run: pip install 'onnxruntime{gpu}>={least}'"


class Session:
    """An open graph.

    Attributes:
        graph: the metadata of the file; `path`, `config`, `precision` and `kind` come from it.
        provider: the execution provider that ONNX Runtime reports.
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
            threads: per operator; None: one for each core.
            cache_dir: folder for the optimized graph, which the next session opens faster.

        Raises:
            MissingPackage: this onnxruntime cannot use that device.
            FileError, CheckpointError: the file is missing or damaged, npgpt2 did not export it, or
                it needs a later ONNX Runtime.
        """
        provider = _provider(device)
        self.graph = Exported.open(path)
        if _too_new(self.graph.at_least):
            raise _too_old(path)
        self.path, self.config, self.kind = path, self.graph.config, self.graph.kind
        self.precision, self.device = self.graph.precision, device
        options = ort.SessionOptions()
        options.log_severity_level = 4  # errors come as exceptions
        if threads is not None:
            if not isinstance(threads, int) or isinstance(threads, bool) or not 0 < threads < 1025:
                raise OptionError("threads", f"got {threads!r}, expected an integer from 1 to 1024")
            options.intra_op_num_threads = threads
        self._options = options
        self.ort = _open(self.graph, options, provider, cache_dir)
        self.provider: str = self.ort.get_providers()[0]
        if self.provider != provider:
            raise MissingPackage(
                f"{device}: onnxruntime could not start {provider} and uses {self.provider}. Its "
                "libraries (CUDA, cuDNN) have to match: see "
                "https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html"
            )

    def until(self, value: str) -> "Session":
        """Open the same graph again, with one intermediate value as its only output.

        Nothing after this value is computed. The weights before it are in memory twice.
        """
        model = onnx.load(self.path, load_external_data=False)
        del model.graph.output[:]
        model.graph.output.add(name=value)
        options = _as_it_is(self._options)
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        there = str(self.path.parent.absolute())  # the weights' folder: bytes have no path
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", there
        )
        twin = copy(self)
        try:
            twin.ort = ort.InferenceSession(
                model.SerializeToString(), options, providers=[self.provider]
            )
        except Exception as error:  # onnxruntime's own family, one class for each code
            raise runtime_error(self.path, error) from None
        return twin

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of keys and values."""
        return np.dtype(np.float32 if self.precision.float == FLOAT else np.float16)

    def empty_past(self, rows: int) -> list[Pair]:
        """Return empty keys and values, by layer, (B, H, 0, D)."""
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
        """Return the graph's inputs by name for `InferenceSession.run`, with GPT2's defaults."""
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
        """Return logits (B, T, V) and presents by layer, (B, H, S, D). Arguments: see `feeds`."""
        logits, *rest = self.run(None, self.feeds(ids, **inputs))
        count = 2 * self.config.n_layer
        return logits, list(zip(rest[0:count:2], rest[1:count:2], strict=True))

    def outputs(self, feeds: dict[str, Array]) -> dict[str, Array]:
        """Return the outputs of a graph without a past, by name."""
        outputs = self.run(None, feeds)
        return {
            value.name: array for value, array in zip(self.ort.get_outputs(), outputs, strict=True)
        }

    def run_bound(
        self, binding: Any, ids: Array, mask: Array, position_ids: Array, all_logits: bool = False
    ) -> Array:
        """Run with pasts and presents already bound; return the logits.

        The logits are bound here, after the presents, to the CPU.
        """
        if self.kind != "portable":  # `bind_cpu_input` does not know inputs with a default
            binding.bind_ortvalue_input(names.ALL_LOGITS, _switch(all_logits))
        for name, array in (
            (names.INPUT_IDS, ids),
            (names.ATTENTION_MASK, mask),
            (names.POSITION_IDS, position_ids),
        ):
            binding.bind_cpu_input(name, np.ascontiguousarray(array, np.int64))
        binding.bind_output(names.LOGITS, "cpu")
        try:
            self.ort.run_with_iobinding(binding)
        except Exception as error:  # onnxruntime's own family, one class for each code
            raise runtime_error(self.path, error) from None
        outputs = binding.get_outputs_as_ortvaluevector()  # `get_outputs` takes 0.1 ms more
        logits: Array = outputs[len(outputs) - 1].numpy()
        return logits

    def run(self, wanted: Sequence[str] | None, feeds: dict[str, Array]) -> list[Array]:
        try:
            outputs: list[Array] = self.ort.run(wanted, feeds)
        except Exception as error:  # onnxruntime's own family, one class for each code
            raise runtime_error(self.path, error) from None
        return outputs


def loads(opset: int) -> bool:
    """Return whether the installed onnxruntime loads graphs of this opset."""
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
    """Return ONNX Runtime's error in one line, without its codes and source files."""
    text = str(error).replace("\n", " ")
    if names.RIGHT_ONLY in text:
        return CheckpointError(f"{path}: {names.RIGHT_ONLY}")
    text = re.sub(
        r"\[ONNXRuntimeError\] : \d+ : \w+ : |\S+\.(cc|h):\d+ \S+|\S*onnxruntime::\S*", "", text
    )
    return CheckpointError(f"{path}: onnxruntime: {' '.join(text.split())[:500]}")


@cache
def _switch(on: bool) -> ort.OrtValue:
    return ort.OrtValue.ortvalue_from_numpy(np.array([on], np.int64))


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
    graph: Exported, options: ort.SessionOptions, provider: str, cache_dir: Path | None
) -> ort.InferenceSession:
    path = graph.path
    try:
        if cache_dir is None:
            return ort.InferenceSession(str(path), options, providers=[provider])
        return _open_kept(graph, options, provider, cache_dir)
    except FileError:
        raise
    except OSError as error:
        raise FileError(f"{error.filename or cache_dir}: {error.strerror or error}") from None
    except Exception as error:  # onnxruntime's own family, one class for each code
        raise runtime_error(path, error) from None


def _open_kept(
    graph: Exported, options: ort.SessionOptions, provider: str, cache_dir: Path
) -> ort.InferenceSession:
    """Open the optimized graph that an earlier session wrote, or write one.

    It is a folder with its own graph and weights. Float weights are stored again in the layout of
    the kernels and are mapped, not packed again (the 124M shape in float32 opens in 0.36 s, not
    0.9). The name has a hash of what it depends on: the graph's bytes, its data file's size and
    time, ONNX Runtime, the provider, and the vector instructions that NumPy finds.
    """
    path = graph.path
    key = hashlib.sha256(path.read_bytes())
    files = [path.parent / location for location in graph.locations]
    seen = [f"{f.name} {f.stat().st_size} {f.stat().st_mtime_ns}" for f in files]
    key.update("|".join([ort.__version__, provider, *simd(), *seen]).encode())
    kept = cache_dir / f"{path.stem}-{key.hexdigest()[:16]}"
    try:
        return ort.InferenceSession(str(kept / KEPT), _as_it_is(options), providers=[provider])
    except Exception:  # missing or damaged: onnxruntime has a class for each code
        pass
    try:
        return _optimize(path, options, provider, kept, quantized=graph.precision.bits > 0)
    except FileBusy:  # another process writes it: continue without
        return ort.InferenceSession(str(path), options, providers=[provider])


def _optimize(
    path: Path, options: ort.SessionOptions, provider: str, kept: Path, quantized: bool
) -> ort.InferenceSession:
    with new_folder(kept, lambda there: True) as work:
        options.optimized_model_filepath = str(work / KEPT)
        for name, value in {
            "session.optimized_model_external_initializers_file_name": f"{KEPT}_data",
            "session.optimized_model_external_initializers_min_size_in_bytes": "1024",
            # onnxruntime 1.31 loads quantized ones wrong, without an error.
            "session.save_external_prepacked_constant_initializers": "0" if quantized else "1",
        }.items():
            options.add_session_config_entry(name, value)
        try:
            return ort.InferenceSession(str(path), options, providers=[provider], enable_fallback=0)
        except Exception as error:  # of the graph or the disk: the class does not show it
            ort.InferenceSession(str(path), _as_it_is(options), providers=[provider])
            text = runtime_error(kept, error)
            raise FileError(
                f"{text}: the cache cannot be written. Free disk space, or use no graph cache"
            ) from None


def _as_it_is(options: ort.SessionOptions) -> ort.SessionOptions:
    """Return the options for a graph that is already optimized."""
    plain = ort.SessionOptions()
    plain.log_severity_level = options.log_severity_level
    plain.intra_op_num_threads = options.intra_op_num_threads
    plain.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return plain
