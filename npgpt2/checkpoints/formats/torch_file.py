"""Read PyTorch's files without PyTorch: find their tensors and the places of these.

torch.save writes a zip archive without compression: `data.pkl` describes the tensors, and each
`data/KEY` is one storage (since PyTorch 1.6; https://pytorch.org/docs/stable/notes/serialization.html).
Older versions wrote a stream: three small pickles, the object's pickle, the keys of the storages,
and each storage after its length. Both contain the values uncompressed, so they can be mapped like
those of safetensors.
"""

import io
import struct
import zipfile
from pathlib import Path
from typing import IO, Any, NamedTuple

from npgpt2.base.errors import CheckpointError
from npgpt2.base.files import named_errors, require_regular
from npgpt2.base.impostors import ZIP, refuse_impostor
from npgpt2.checkpoints.formats.pickled import Storage, Tensor, load
from npgpt2.checkpoints.formats.tensors import SIZES

MAGIC = 0x1950A86A20F9469CFC6C  # of the old format
PROTOCOL = 1001
MOST_PICKLE = 1 << 26  # bytes of the description of tensors, without their values
MOST_DIRECTORY = 1 << 24  # bytes of an archive's directory: 50 per entry, plus its name


class TorchFile(NamedTuple):
    """The saved object, and the first byte of each of its storages."""

    path: Path
    contents: Any
    starts: dict[str, int]

    def start(self, tensor: Tensor) -> int:
        """The first byte of a tensor."""
        size = SIZES[tensor.storage.dtype]
        return self.starts[tensor.storage.key] + tensor.offset * size


def read(path: Path) -> TorchFile:
    """Read a file of torch.save, zip archive or stream.

    Raises:
        FileError: it cannot be read.
        CheckpointError: it is another kind of file, is damaged, or has objects that tensors do not
            need.
    """
    with named_errors(path):
        size = require_regular(path)
        with path.open("rb") as file:
            start = file.read(32)
            if start.startswith(ZIP):
                return _zip(path, file, size)
            refuse_impostor(path, start, "the weights")
            if not start:
                raise CheckpointError(f"{path}: has 0 bytes, expected the weights. Download again")
            if start[8:9] == b"{":
                raise CheckpointError(
                    f"{path}: is a safetensors file, expected one of PyTorch. Rename it to "
                    "model.safetensors"
                )
            file.seek(0)
            return _stream(path, file, size)


# ── zip archives, since PyTorch 1.6 ──────────────────────────────────────────────────────────────


def _zip(path: Path, file: IO[bytes], size: int) -> TorchFile:
    _require_small_directory(path, file, size)
    try:
        with zipfile.ZipFile(file) as archive:
            entries = {info.filename: info for info in archive.infolist()}
            twice = len(entries) < len(archive.infolist())
            found = [name for name in entries if name.endswith("/data.pkl")]
            if twice or len(found) != 1:
                raise CheckpointError(
                    f"{path}: is an archive {'with a name twice' if twice else 'without data.pkl'}"
                    ", expected one of torch.save. Save it again"
                )
    except (zipfile.BadZipFile, NotImplementedError, EOFError, struct.error, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: is a damaged archive ({error}). Download again") from None
    prefix = found[0].removesuffix("data.pkl")
    if f"{prefix}byteorder" in entries:
        start, length = _entry(path, file, entries, f"{prefix}byteorder", size)
        file.seek(start)
        if file.read(min(length, 16)) != b"little":
            raise CheckpointError(f"{path}: is big-endian, expected little-endian")
    start, length = _entry(path, file, entries, found[0], size)
    if length > MOST_PICKLE:
        raise CheckpointError(
            f"{path}: data.pkl has {length:,} bytes, expected a few hundred thousand"
        )
    file.seek(start)
    contents, storages = load(io.BytesIO(file.read(length)), str(path))
    starts = {}
    for key, storage in storages.items():
        start, length = _entry(path, file, entries, f"{prefix}data/{key}", size)
        _require_whole(path, storage, length)
        starts[key] = start
    return TorchFile(path, contents, starts)


def _require_small_directory(path: Path, file: IO[bytes], size: int) -> None:
    """Check the size of the directory before reading it, which needs ten times its bytes."""
    file.seek(max(0, size - 65_557))  # the end record has 22 bytes, its comment at most 65,535
    tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0:
        raise CheckpointError(
            f"{path}: is a zip archive of {size:,} bytes without its end: the download was cut "
            "off. Download again"
        )
    length = int.from_bytes(tail[at + 12 : at + 16], "little")
    locator = tail.rfind(b"PK\x06\x07", 0, at)
    if locator >= 0:  # a ZIP64 archive
        end = int.from_bytes(tail[locator + 8 : locator + 16], "little")
        file.seek(min(end, size))
        length = int.from_bytes(file.read(56)[40:48], "little")
    if length > MOST_DIRECTORY:
        raise CheckpointError(
            f"{path}: is an archive with a directory of {length:,} bytes, expected a few thousand. "
            "Download again"
        )


def _entry(
    path: Path, file: IO[bytes], entries: dict[str, zipfile.ZipInfo], name: str, size: int
) -> tuple[int, int]:
    """The first byte and the number of bytes of an entry."""
    info = entries.get(name)
    if info is None:
        raise CheckpointError(f"{path}: has no {name}, which a tensor needs. Download again")
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        raise CheckpointError(f"{path}: {name} is compressed or encrypted, expected plain bytes")
    file.seek(info.header_offset)
    header = file.read(30)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise CheckpointError(f"{path}: {name} is not where the archive says. Download again")
    names, extra = struct.unpack("<HH", header[26:])
    start = info.header_offset + 30 + names + extra
    if info.file_size != info.compress_size or start + info.file_size > size:
        raise CheckpointError(f"{path}: {name} is not inside the file. Download again")
    return start, info.file_size


# ── streams, before PyTorch 1.6 ──────────────────────────────────────────────────────────────────


def _stream(path: Path, file: IO[bytes], size: int) -> TorchFile:
    source = str(path)
    # In memory first: reading from the file, a text with a false length would allocate it all.
    head = io.BytesIO(file.read(min(size, MOST_PICKLE)))
    magic, _ = load(head, source)
    protocol, _ = load(head, source)
    if (magic, protocol) != (MAGIC, PROTOCOL):
        raise CheckpointError(f"{path}: is not a file of torch.save. Download again")
    system, _ = load(head, source)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise CheckpointError(f"{path}: is big-endian, expected little-endian")
    contents, storages = load(head, source)
    keys, _ = load(head, source)
    texts = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
    if not texts or sorted(keys) != sorted(storages):
        raise CheckpointError(f"{path}: its list of storages does not match its tensors")
    file.seek(head.tell())
    starts = {}
    for key in keys:
        storage = storages[key]
        at = file.tell()
        count = int.from_bytes(file.read(8), "little")
        starts[key] = at + 8
        end = at + 8 + storage.size * SIZES[storage.dtype]
        if count != storage.size or end > size:
            raise CheckpointError(
                f"{path}: has {max(0, size - at - 8):,} of {end - at - 8:,} bytes of storage "
                f"{key}. Download again"
            )
        file.seek(end)
    return TorchFile(path, contents, starts)


def _require_whole(path: Path, storage: Storage, length: int) -> None:
    expected = storage.size * SIZES[storage.dtype]
    if length < expected:
        raise CheckpointError(
            f"{path}: storage {storage.key} has {length:,} of {expected:,} bytes. Download again"
        )
