"""OpenAI's release: TensorFlow checkpoints, read without TensorFlow.

A folder has `model.ckpt.index`, `model.ckpt.data-00000-of-00001`, `hparams.json`, `encoder.json`
and `vocab.bpe`. The index is a sorted table in LevelDB's format
(https://github.com/google/leveldb/blob/main/doc/table_format.md): blocks of key → value, an index
of these blocks, a footer. The values are protocol buffers, `BundleEntryProto` of
tensorflow/core/protobuf/tensor_bundle.proto: dtype and shape of a tensor, and its first byte in the
data file. Every block and every tensor has a CRC-32C checksum, which is checked here.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from npgpt2.base.errors import CheckpointError, FileError
from npgpt2.base.files import named_errors, read_file, require_regular
from npgpt2.base.impostors import refuse_impostor
from npgpt2.checkpoints.formats.checksums import require_sum

FOOTER, MAGIC = 48, 0xDB4775248B80FB57
DTYPES = {1: "F32", 2: "F64", 9: "I64", 3: "I32", 14: "BF16", 19: "F16"}  # of types.proto

# OpenAI's names → those of the parameter tree.
LEAVES = {"w": "weight", "g": "weight", "b": "bias"}
OPTIMIZER = re.compile(r".*/(Adam|Adam_1|ExponentialMovingAverage)|global_step|beta\d_power")


class Entry(NamedTuple):
    """One tensor; `start` is its first byte in the data file, `checksum` its masked CRC-32C."""

    dtype: str
    shape: tuple[int, ...]
    path: Path
    start: int
    nbytes: int
    checksum: int


def read_index(path: Path) -> dict[str, Entry]:
    """Every tensor of a checkpoint, by TensorFlow's name.

    Raises:
        FileError: the index or a data file cannot be read.
        CheckpointError: the index is damaged, a checksum does not match, or a data file is too
            short.
        MissingPackage: google-crc32c is not installed.
    """
    data = read_file(path)
    refuse_impostor(path, data, "TensorFlow's index")
    table = _Table(path, data)
    entries: dict[str, Entry] = {}
    shards = 1
    for key, value in table.entries():
        fields = dict(table.fields(value))
        if not key:
            shards = _number(fields.get(1, 1))
            if _number(fields.get(2, 0)) != 0:
                raise CheckpointError(f"{path}: is big-endian, expected little-endian")
            continue
        try:
            name = key.decode()
        except UnicodeDecodeError:
            raise table.damaged("a name is not text") from None
        entries[name] = table.entry(name, value, shards)
    if not entries:
        raise table.damaged("it has no tensors")
    ends: dict[Path, int] = {}
    for entry in entries.values():
        ends[entry.path] = max(ends.get(entry.path, 0), entry.start + entry.nbytes)
    for data_file, end in sorted(ends.items()):
        _require_whole(data_file, end, path)
    return entries


def _require_whole(path: Path, end: int, index: Path) -> None:
    """Check that a data file is a regular file and long enough, before it is read."""
    if not os.path.lexists(path):
        raise FileError(f"{path}: no such file, but {index.name} names it. Download it")
    with named_errors(path):
        size = require_regular(path)
        if size < end:
            with path.open("rb") as file:
                refuse_impostor(path, file.read(64), "the weights")
            raise CheckpointError(f"{path}: has {size:,} of {end:,} bytes. Download again")


def tree_name(name: str) -> str | None:
    """OpenAI's name of a tensor → that of the parameter tree; None if it is not a parameter.

    >>> tree_name("model/h11/attn/c_attn/w"), tree_name("model/ln_f/b"), tree_name("model/wte")
    ('h.11.attn.c_attn.weight', 'ln_f.bias', 'wte.weight')
    """
    if OPTIMIZER.fullmatch(name):
        return None
    *path, leaf = name.removeprefix("model/").split("/")
    parts = [re.sub(r"^h(\d+)$", r"h.\1", part) for part in path]
    return ".".join(
        [*parts, LEAVES[leaf]] if leaf in LEAVES and parts else [*parts, leaf, "weight"]
    )


class _Table:
    """A sorted table's bytes; every position is checked before it is used."""

    def __init__(self, path: Path, data: bytes) -> None:
        self.path, self.data = path, data

    def damaged(self, why: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: damaged index: {why}. Download again")

    def entries(self) -> Iterator[tuple[bytes, bytes]]:
        footer = self.data[-FOOTER:]
        if len(footer) < FOOTER or int.from_bytes(footer[40:], "little") != MAGIC:
            raise self.damaged("it has no valid footer")
        at = 0
        handle = (0, 0)
        for _ in range(2):  # the metaindex, then the index of the blocks
            offset, at = self.varint(footer, at)
            size, at = self.varint(footer, at)
            handle = (offset, size)
        last = b""
        for _, place in self.block(*handle):
            offset, at = self.varint(place, 0)
            size, _ = self.varint(place, at)
            for key, value in self.block(offset, size):
                if key <= last and last:
                    raise self.damaged("its names are not in order")
                last = key
                yield key, value

    def block(self, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
        """A block's keys and values. A key is stored as its difference from the previous key."""
        end = offset + size
        if end + 5 > len(self.data):
            raise self.damaged("a block ends after the file")
        if self.data[end] != 0:
            raise self.damaged("a block is compressed, expected a plain one")
        checksum = int.from_bytes(self.data[end + 1 : end + 5], "little")
        require_sum(
            self.path, f"the block at byte {offset:,}", self.data[offset : end + 1], checksum
        )
        block = self.data[offset:end]
        restarts = 4 * int.from_bytes(block[-4:], "little") + 4
        if size < 4 or restarts > size:
            raise self.damaged("a block is shorter than its table")
        at, key = 0, b""
        while at < size - restarts:
            shared, at = self.varint(block, at)
            own, at = self.varint(block, at)
            length, at = self.varint(block, at)
            if shared > len(key) or at + own + length > size - restarts:
                raise self.damaged("an entry is longer than its block")
            key = key[:shared] + block[at : at + own]
            yield key, block[at + own : at + own + length]
            at += own + length

    def entry(self, name: str, value: bytes, shards: int) -> Entry:
        fields = dict(self.fields(value))
        dtype = DTYPES.get(_number(fields.get(1, 0)))
        shard, checksum = _number(fields.get(3, 0)), fields.get(6)
        if dtype is None or shard >= shards or not isinstance(checksum, int) or 7 in fields:
            raise self.damaged(f"{name} is of a kind that GPT-2 does not have")
        sizes = []
        for number, dim in self.fields(fields.get(2, b"")):
            if number == 2 and isinstance(dim, bytes):
                sizes.append(_number(dict(self.fields(dim)).get(1, 0)))
        data = self.path.with_name(f"{self.path.stem}.data-{shard:05}-of-{shards:05}")
        start, nbytes = _number(fields.get(4, 0)), _number(fields.get(5, 0))
        return Entry(dtype, tuple(sizes), data, start, nbytes, checksum)

    def fields(self, message: object) -> Iterator[tuple[int, int | bytes]]:
        """A protocol buffer's fields: numbers and bytes (https://protobuf.dev/programming-guides/encoding)."""
        if not isinstance(message, bytes):
            raise self.damaged("a number where a message is expected")
        at = 0
        while at < len(message):
            tag, at = self.varint(message, at)
            number, kind = tag >> 3, tag & 7
            value: int | bytes
            if kind == 0:
                value, at = self.varint(message, at)
            elif kind in (1, 2, 5):
                length = {1: 8, 5: 4}.get(kind, 0)
                if kind == 2:
                    length, at = self.varint(message, at)
                piece = message[at : at + length]
                if len(piece) < length:
                    raise self.damaged("a field is longer than its message")
                value = piece if kind == 2 else int.from_bytes(piece, "little")
                at += length
            else:
                raise self.damaged(f"a field has kind {kind}")
            yield number, value

    def varint(self, data: bytes, at: int) -> tuple[int, int]:
        """A variable-length integer, seven bits per byte, and the position after it."""
        value = 0
        for n, byte in enumerate(data[at : at + 10]):
            value |= (byte & 127) << 7 * n
            if byte < 128:
                return value, at + n + 1
        raise self.damaged("a number without an end")


def _number(value: int | bytes) -> int:
    return value if isinstance(value, int) else 0
