"""Export a checkpoint to a folder of weights, graphs and small files; verify it before it appears.

    DIR/config.json, generation_config.json, tokenizer.json, tokenizer_config.json,
        genai_config.json, and the vocabulary's other files
    DIR/onnx/model.onnx            the portable graph      model_fp16, model_quantized, model_q4
    DIR/onnx/model_gqa.onnx        on a shared KV cache    …_gqa, and …_mha
    DIR/onnx/model.onnx_data       their weights           one file for each precision

Clients prescribe these names (transformers.js looks for `model.onnx_data` next to `model.onnx`), so
they contain no hash. Graphs and weights still match, because the folder appears as a whole.
"""

import hashlib
import json
import math
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

import npgpt2
from npgpt2.base.errors import CheckFailed, FileError, OptionError
from npgpt2.base.files import (
    fsync,
    holds_only,
    is_same,
    named_errors,
    new_folder,
    require_replaceable,
    require_space,
    unfinished,
)
from npgpt2.checkpoints.checkpoint import Checkpoint
from npgpt2.checkpoints.formats.tensors import NOWHERE
from npgpt2.checkpoints.hub import resolve
from npgpt2.model.config import GPT2Config
from npgpt2.model.taps import TapName
from npgpt2_onnx.graph.builder import FLOAT, Tensor
from npgpt2_onnx.graph.heads import build_head
from npgpt2_onnx.graph.language_model import OPSET, build, inside, states_and_maps
from npgpt2_onnx.graph.layout import Layout, layout
from npgpt2_onnx.graph.names import KINDS
from npgpt2_onnx.graph.precision import PRECISIONS, Precision
from npgpt2_onnx.run.exported import SHARED, Exported, header_digest
from npgpt2_onnx.run.session import graph_file, graphs_in, loads
from npgpt2_onnx.write import clients
from npgpt2_onnx.write.data import write
from npgpt2_onnx.write.verify import check_weights, model_of, verify

Progress = Callable[[Iterable[Any], str], Iterable[Any]]
BOTH = ("portable", "gqa")
FP32 = PRECISIONS["fp32"]


def export(
    model: str | Path,
    out: str | Path | None = None,
    *,
    precisions: Sequence[str] = ("fp32",),
    graphs: Sequence[str] | None = None,
    share_weights: bool = False,
    attentions: bool = False,
    taps: bool = False,
    opset: int = OPSET,
    force: bool = False,
    proof: bool = True,
    triton: str | Path | None = None,
    revision: str | None = None,
    token: str | None = None,
    progress: Progress = lambda loop, what: loop,
) -> Path:
    """Export a checkpoint to ONNX and return the folder.

    Args:
        model: a checkpoint folder, or a name on the hub.
        out: the folder to write; None only with `share_weights`: the checkpoint's own folder.
        precisions: any of "fp32", "fp16", "int8", "int4"; each gets a file of weights.
        graphs: any of "portable", "gqa", "mha"; those of one precision share its weights. None: the
            first two, or only the first if GroupQueryAttention does not support the head size.
        share_weights: write no weights; the graphs read the checkpoint's own safetensors file.
        attentions: add hidden states as outputs, and attention maps to the portable graph.
        taps: add every intermediate value of the portable graph as an output, named as in the
            NumPy model's `tap`; other graphs do not change.
        opset: of ai.onnx, 17 or later; from 23 the portable graph uses its Attention operator.
        force: replace an existing export once the new one is good.
        proof: compare every graph with NumPy before the folder appears.
        triton: also write a model repository for Triton Inference Server there.
        progress: wraps the long loops.

    Raises:
        CheckFailed: a graph does not compute what NumPy computes; nothing was written.
        OptionError, ConfigError: the model cannot be exported in this way.
        FileError, CheckpointError: reading or writing failed.

    >>> import tempfile
    >>> out = tempfile.mkdtemp() + "/tiny"
    >>> folder = export("shakespeare", out, precisions=["fp32", "int8"])
    >>> sorted(path.name for path in (folder / "onnx").glob("*.onnx"))
    ['model.onnx', 'model_gqa.onnx', 'model_quantized.onnx', 'model_quantized_gqa.onnx']
    """
    chosen = [PRECISIONS[name] for name in _each("precision", precisions, PRECISIONS)]
    _require_opset(opset)
    for option, place in (("out", out), ("triton", triton)):
        if place == "":
            raise OptionError(option, "got '', expected a folder")
    source = resolve(model, revision, token)
    checkpoint = Checkpoint.open(source)
    kinds = _kinds(graphs, checkpoint.config)
    inner = {"attentions": attentions, "taps": taps}
    for option, wanted in inner.items():
        if wanted and checkpoint.config.head != "lm_head":
            raise OptionError(option, "needs a language model. Leave it out")
    for option, wanted in (inner | {"triton": triton is not None}).items():
        if wanted and "portable" not in kinds:
            raise OptionError(option, "needs the portable graph. Add --graph portable")
    plan = _Plan(checkpoint, chosen, kinds, opset, attentions, taps)
    served = {} if triton is None else {Path(triton) / f"gpt2{p.suffix}": p for p in chosen}
    for place in served:  # checked before the slow work
        require_replaceable(place, lambda there: _may_replace(there, force, _TRITON))
    if share_weights:
        target = source if out is None else Path(out)
        _share(plan, target, force, proof, progress)
    elif out is None:
        raise OptionError("out", "got none, expected the folder to write. Give -o DIR")
    else:
        target = Path(out)
        _write_folder(plan, target, force, proof, progress)
    graphs_folder = target if share_weights else target / "onnx"
    for place, precision in served.items():
        _write_triton(place, graphs_folder / graph_file(precision, "portable"), force)
    return target


def _each(option: str, given: Sequence[str], known: Iterable[str]) -> list[str]:
    names = [given] if isinstance(given, str) else list(dict.fromkeys(given))
    for name in names or ["nothing"]:
        if name not in known:
            raise OptionError(option, f"got {name!r}, expected one of {', '.join(known)}")
    return names


def _kinds(graphs: Sequence[str] | None, config: GPT2Config) -> list[str]:
    """Return the kinds of graphs to write: those given, or the model's defaults."""
    head_dim = config.head_dim
    if config.head != "lm_head":  # no KV cache, so other kinds have no advantage
        kinds = _each("graph", BOTH[:1] if graphs is None else graphs, KINDS)
        if kinds != ["portable"]:
            raise OptionError("graph", f"got {', '.join(kinds)}, expected portable, the only one "
                              f"for a {config.architectures[0]}. Leave --graph out")  # fmt: skip
        return kinds
    if head_dim % 8 == 0:
        return _each("graph", BOTH if graphs is None else graphs, KINDS)
    kinds = _each("graph", BOTH[:1] if graphs is None else graphs, KINDS)
    if "gqa" in kinds:
        raise OptionError("graph", f"got gqa, which needs a head size that is a multiple of 8; the "
                          f"model's is {head_dim}. Leave gqa out")  # fmt: skip
    return kinds


def _require_opset(opset: Any) -> None:
    """Raise OptionError unless the exporter and the installed onnxruntime support the opset."""
    newest = onnx.defs.onnx_opset_version()
    whole = isinstance(opset, int) and not isinstance(opset, bool)
    if not whole or not OPSET <= opset <= newest or not loads(opset):
        while not loads(newest):
            newest -= 1
        raise OptionError(
            "opset", f"got {opset!r}, expected an integer from {OPSET} to {newest}, "
            "the newest that this onnxruntime loads"
        )  # fmt: skip


@dataclass(frozen=True)
class _Plan:
    """What an export writes."""

    checkpoint: Checkpoint
    precisions: list[Precision]
    kinds: list[str]
    opset: int
    attentions: bool
    taps: bool

    @property
    def config(self) -> GPT2Config:
        return self.checkpoint.config

    def shown(self, kind: str) -> list[TapName]:
        """Return the intermediate values that a graph of this kind has as outputs."""
        if self.taps and kind == "portable":
            return inside(self.config)
        return states_and_maps(self.config, kind) if self.attentions else []

    def graphs(self, layouts: dict[str, Layout], about: dict[str, str]) -> dict[str, bytes]:
        """Return every graph, serialized, by file name."""
        found = {}
        for precision in self.precisions:
            for kind in self.kinds:
                metadata = {
                    **about,
                    "config": json.dumps(self.config.to_dict(), sort_keys=True),
                    "graph": kind,
                    "precision": precision.name,
                    "npgpt2": npgpt2.__version__,
                    "onnx": onnx.__version__,
                }
                layout = layouts[precision.name]
                if self.config.head == "lm_head":
                    shown = self.shown(kind)
                    proto = build(self.config, precision, kind, layout, self.opset, shown, metadata)
                else:
                    proto = build_head(self.config, precision, layout, self.opset, metadata)
                data: bytes = proto.SerializeToString(deterministic=True)
                found[graph_file(precision, kind)] = data
        return found

    def genai(self, place: str) -> dict[str, bytes]:
        """Return genai_config.json for the first precision, if it can describe the model."""
        writes = self.config.head == "lm_head"
        if self.config.pruned_heads or self.config.add_cross_attention or not writes:
            return {}
        kind = "gqa" if "gqa" in self.kinds else self.kinds[0]
        filename = place + graph_file(self.precisions[0], kind)
        values = clients.genai_config(self.config, filename, shared_buffer=kind == "gqa")
        return {"genai_config.json": clients.to_json(values)}

    def prove(self, graphs: Mapping[tuple[str, str], Path], progress: Progress) -> None:
        """Open the written graphs, by (precision, kind), and compare them with NumPy.

        Raises:
            CheckFailed: a difference exceeds its bound.
        """
        model = model_of(self.config, self.checkpoint.read())
        # The graphs of one precision read the same weights: check them in the first graph.
        for path in {name: path for (name, _), path in reversed(list(graphs.items()))}.values():
            for row in check_weights(Exported.open(path), model):
                if math.isinf(row.error):
                    raise CheckFailed(
                        f"{row.graph}: {row.parameter} has NaN, infinity, or values out of the "
                        "precision's range, so it cannot be verified. Nothing was written"
                    )
                if not row.good:
                    raise CheckFailed(
                        f"{row.graph}: {row.parameter} differs from the checkpoint by up to "
                        f"{row.error:.3g}, more than rounding explains. Nothing was written"
                    )
        for found in verify(graphs, progress, quick=True):
            if not found.good:
                raise CheckFailed(
                    f"{found.graph}: {found.case}: logits differ by {found.logits:.2g}, keys and "
                    f"values by {found.presents:.2g} of the largest value, expected at most "
                    f"{found.bound:.2g}. Nothing was written"
                )


def _write_folder(plan: _Plan, target: Path, force: bool, proof: bool, progress: Progress) -> None:
    locations = {p.name: f"model{p.suffix}.onnx_data" for p in plan.precisions}
    layouts = {p.name: layout(plan.config, p, locations[p.name]) for p in plan.precisions}
    if is_same(target, plan.checkpoint.folder):
        raise FileError(
            f"{target}: is the checkpoint itself, expected another folder. "
            "To write graphs into it, use --share-weights"
        )
    require_space(target.parent, sum(map(_size, layouts.values())))
    with new_folder(target, lambda there: _may_replace(there, force, _WRITTEN)) as work:
        (work / "onnx").mkdir()
        with _digests(plan.checkpoint) as digests:
            for precision in plan.precisions:
                with (work / "onnx" / locations[precision.name]).open("wb") as file:
                    write(file, plan.checkpoint, precision, layouts[precision.name], progress)
            about = {"checkpoint_sha256": json.dumps(digests.result())}
        for name, data in plan.graphs(layouts, about).items():
            (work / "onnx" / name).write_bytes(data)
        small = clients.small_files(plan.checkpoint, plan.precisions)
        for name, data in (small | plan.genai("onnx/")).items():
            (work / name).write_bytes(data)
        if proof:
            plan.prove(graphs_in(work), progress)


# The files of an export and of a Triton model. A folder with any other file in it belongs to the
# user and is never replaced.
_WRITTEN = {
    "onnx",
    "genai_config.json",
    *clients.NAMES,
    *(f"onnx/{graph_file(p, kind)}" for p in PRECISIONS.values() for kind in KINDS),
    *(f"onnx/model{p.suffix}.onnx_data" for p in PRECISIONS.values()),
}
_TRITON = {
    "config.pbtxt",
    "1",
    "1/model.onnx",
    "1/model.safetensors",
    *(f"1/model{p.suffix}.onnx_data" for p in PRECISIONS.values()),
}


def _may_replace(folder: Path, force: bool, known: set[str]) -> bool:
    """Return whether an existing folder may be replaced.

    Raises:
        FileError: with `force`, if the folder has files that no export writes.
    """
    return force and holds_only(folder, known.__contains__, "an export")


def _size(tensors: Layout) -> int:
    return max(tensor.offset + tensor.nbytes for tensor in tensors.values())


@contextmanager
def _digests(checkpoint: Checkpoint) -> Iterator[Future[dict[str, str]]]:
    """Compute the SHA-256 of the checkpoint's files in a thread, which ends with the block."""
    ended = threading.Event()

    def read() -> dict[str, str]:
        found = {}
        files = {info.path for info in checkpoint.tensors.values()} - {NOWHERE}
        for path in sorted(files):
            digest = hashlib.sha256()
            with path.open("rb") as file:
                while not ended.is_set() and (piece := file.read(1 << 20)):
                    digest.update(piece)
            found[path.name] = digest.hexdigest()
        return found

    with ThreadPoolExecutor(1) as pool:
        try:
            yield pool.submit(read)
        finally:
            ended.set()


def _share(plan: _Plan, target: Path, force: bool, proof: bool, progress: Progress) -> None:
    """Write graphs into the checkpoint's folder that read its weights."""
    folder = plan.checkpoint.folder
    if not is_same(target, folder):
        raise OptionError(
            "share_weights",
            f"the graphs must be in the checkpoint's folder: got {target}, expected {folder}",
        )
    if not plan.checkpoint.kind.startswith("safetensors"):
        raise OptionError("share_weights", f"the weights are {plan.checkpoint.kind}'s, expected "
                          "safetensors. 'npgpt2 convert' writes them")  # fmt: skip
    if [p.name for p in plan.precisions] != ["fp32"]:
        raise OptionError("share_weights", "the checkpoint's weights are float32. "
                          "Leave --precision out")  # fmt: skip
    tensors: Layout = {}
    headers = {}
    for name, info in plan.checkpoint.tensors.items():
        if info.dtype != "F32":
            raise OptionError("share_weights", f"{name} is {info.dtype} in the checkpoint, "
                              "expected F32. Leave --share-weights out")  # fmt: skip
        if info.path.is_symlink():
            raise OptionError(
                "share_weights", f"{info.path} is a link (in the hub's cache?), which onnxruntime "
                "does not follow. Copy the folder first, or leave --share-weights out"
            )  # fmt: skip
        tensors[name] = Tensor(name, FLOAT, info.shape, info.path.name, info.start, info.nbytes)
        headers[info.path.name] = info.path
    # Only the header, which names every tensor: hashing the whole file would take too long.
    digests = {name: header_digest(path) for name, path in headers.items()}
    about = {SHARED: json.dumps(digests)}
    files = plan.graphs({"fp32": tensors}, about) | plan.genai("")
    for name in files:
        path = folder / name
        if path.exists() and not (force and path.is_file()):
            what = (
                "already exists. To replace it, use --force or force=True"
                if path.is_file()
                else "is not a file"
            )
            raise FileError(f"{path}: {what}")
    fresh = {name: folder / f".{name}.new" for name in files}
    with unfinished():
        _fill(plan, folder, files, fresh, proof, progress)


def _fill(
    plan: _Plan,
    folder: Path,
    files: dict[str, bytes],
    fresh: dict[str, Path],
    proof: bool,
    progress: Progress,
) -> None:
    """Write the files under other names and rename them when all are verified."""
    try:
        with named_errors(folder, inside=True):
            for name, data in files.items():
                fresh[name].write_bytes(data)
                fsync(fresh[name])
            if proof:
                plan.prove({("fp32", k): fresh[graph_file(FP32, k)] for k in plan.kinds}, progress)
            for name, path in fresh.items():
                path.replace(folder / name)
            fsync(folder)
    finally:
        for path in fresh.values():
            path.unlink(missing_ok=True)


def _write_triton(folder: Path, graph: Path, force: bool) -> None:
    """Write a model for Triton Inference Server: 1/model.onnx, its weights, and config.pbtxt."""
    with new_folder(folder, lambda there: _may_replace(there, force, _TRITON)) as work:
        (work / "1").mkdir()
        shutil.copyfile(graph, work / "1" / "model.onnx")
        for location in Exported.open(graph).locations:
            shutil.copyfile(graph.parent / location, work / "1" / location)
        (work / "config.pbtxt").write_bytes(clients.triton_config(folder.name, graph))
