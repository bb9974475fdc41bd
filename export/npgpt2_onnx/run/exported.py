"""Read and check the metadata of an exported graph before ONNX Runtime opens it."""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import onnx

from npgpt2.base.errors import CheckpointError, ConfigError, FileError
from npgpt2.base.files import is_beside, named_errors, parse_json, read_file, require_regular
from npgpt2.model.config import GPT2Config
from npgpt2_onnx.graph import names
from npgpt2_onnx.graph.builder import Tensor
from npgpt2_onnx.graph.precision import PRECISIONS, Precision
from npgpt2_onnx.graph.versions import AT_LEAST, lower_opset_helps

SHARED = "checkpoint_header_sha256"  # in the metadata of graphs that point into a checkpoint


@dataclass(frozen=True)
class Exported:
    """A graph that this package wrote: its properties and the location of its weights.

    Attributes:
        kind: one of `npgpt2_onnx.graph.names.KINDS`.
        tensors: the initializers stored in a separate file, by name.
        at_least: the lowest version of ONNX Runtime that it needs; '' if it does not say.
    """

    path: Path
    config: GPT2Config
    precision: Precision
    kind: str
    tensors: dict[str, Tensor]
    shared: bool  # the weights are a checkpoint's own
    at_least: str = ""

    @classmethod
    def open(cls, path: Path) -> "Exported":
        """Read a graph without its weights.

        Raises:
            FileError: the graph or a file of its weights cannot be read.
            CheckpointError: it is damaged, npgpt2 did not export it, or its weights have changed.
        """
        model = onnx.ModelProto()
        try:
            model.ParseFromString(read_file(path))
        except FileError:
            raise
        except Exception:  # protobuf's own, which has no public name
            raise CheckpointError(f"{path}: is not an ONNX graph. Export again") from None
        about = {entry.key: entry.value for entry in model.metadata_props}
        precision, kind = PRECISIONS.get(about.get("precision", "")), about.get("graph")
        if precision is None or kind not in names.KINDS or "config" not in about:
            raise CheckpointError(f"{path}: is not a graph that npgpt2 exported. Export again")
        source = f"{path}: config"
        values = parse_json(about["config"].encode(), source, CheckpointError)
        try:
            config = GPT2Config.from_dict(values, source)
        except ConfigError as error:
            raise CheckpointError(str(error)) from None
        _require_inputs(path, model, config, precision)
        tensors = {p.name: _tensor(path, p) for p in model.graph.initializer if p.external_data}
        for location in {tensor.location for tensor in tensors.values()}:
            _require_file(path, location, tensors)
        _require_unchanged(path, about)
        shared, least = SHARED in about, about.get(AT_LEAST, "")
        return cls(path, config, precision, kind, tensors, shared, least)

    @property
    def locations(self) -> list[str]:
        """The files of its weights, next to the graph."""
        return sorted({tensor.location for tensor in self.tensors.values()})


def asked_version(path: Path) -> str:
    """Return `at_least` of a graph without other checks; '' also if the file cannot be read."""
    return _asked(_readable(path))


def lower_opset_would_do(path: Path, here: str) -> bool:
    """Return whether a graph needs a later ONNX Runtime than `here` only because of its opset."""
    model = _readable(path)
    return lower_opset_helps(model, _asked(model), here)


def _asked(model: onnx.ModelProto) -> str:
    about: dict[str, str] = {entry.key: entry.value for entry in model.metadata_props}
    return about.get(AT_LEAST, "")


def _readable(path: Path) -> onnx.ModelProto:
    """Return the graph, or an empty one if it cannot be read."""
    model = onnx.ModelProto()
    try:
        model.ParseFromString(read_file(path))
    except Exception:  # protobuf's own, without a public name; `open` reports it
        return onnx.ModelProto()
    return model


def _require_inputs(
    path: Path, model: onnx.ModelProto, config: GPT2Config, precision: Precision
) -> None:
    """Check that the graph has the keys and values that its metadata describe."""
    inputs = {
        value.name: (
            value.type.tensor_type.elem_type,
            [d.dim_value for d in value.type.tensor_type.shape.dim],
        )
        for value in model.graph.input
    }
    layers = sum(name.startswith("past_key_values") and "encoder" not in name for name in inputs)
    past = config.n_layer if config.head == "lm_head" else 0
    good = 2 * past == layers and all(
        inputs.get(name) == (precision.float, [0, config.heads_left(i), 0, config.head_dim])
        for i in range(past)
        for name in names.past(i)
    )
    if not good:
        raise CheckpointError(
            f"{path}: its inputs do not match the config in its metadata. Export again"
        )


def _tensor(path: Path, proto: onnx.TensorProto) -> Tensor:
    where = {entry.key: entry.value for entry in proto.external_data}
    location = where.get("location", "")
    size = onnx.helper.tensor_dtype_to_np_dtype(proto.data_type).itemsize
    nbytes = math.prod(proto.dims) * size
    offset = where.get("offset", "0")
    if not is_beside(location) or not offset.isdecimal() or where.get("length") != str(nbytes):
        raise CheckpointError(
            f"{path}: {proto.name}: got {where}, expected {nbytes} bytes of a file next to the "
            "graph. Export again"
        )
    shape = tuple(proto.dims)
    return Tensor(proto.name, proto.data_type, shape, location, int(offset), nbytes)


def _require_file(path: Path, location: str, tensors: dict[str, Tensor]) -> None:
    """Check that a file of weights exists and is long enough."""
    file = path.parent / location
    end = max(t.offset + t.nbytes for t in tensors.values() if t.location == location)
    if not file.exists():
        raise FileError(f"{path}: its weights file {file} does not exist. Export again")
    with named_errors(file):
        size = require_regular(file)
    if size < end:
        raise CheckpointError(
            f"{file}: has {size:,} of the {end:,} bytes that {path.name} reads. Export again"
        )


def _require_unchanged(path: Path, about: dict[str, str]) -> None:
    """Check that the checkpoint of a graph with shared weights still has the same layout."""
    headers = about.get(SHARED, "{}").encode()
    for name, digest in parse_json(headers, str(path), CheckpointError).items():
        if header_digest(path.parent / name) != digest:
            raise CheckpointError(
                f"{path.parent / name}: has changed since {path.name} was made. Export again: "
                f"npgpt2 export {path.parent} --share-weights --force"
            )


def header_digest(path: Path) -> str:
    """Return the SHA-256 of a safetensors file's header, which has each tensor's location."""
    with named_errors(path), path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return hashlib.sha256(file.read(min(length, 1 << 27))).hexdigest()
