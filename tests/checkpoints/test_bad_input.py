"""Bad input: what is refused, in which words, and the odd files that have to load.

Whatever is refused in Python stands as the same text in one line on the command line.
"""

import fcntl
import io
import json
import math
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import termios
from pathlib import Path

import numpy as np
import pytest
from command_line import runner, uncovered
from patience import bounded, until, within
from refusals import cheaply, says
from safetensors.numpy import load_file

from npgpt2 import GPT2, GenerationOptions, GPT2Config, cli, load_tokenizer
from npgpt2.base import errors
from npgpt2.base.errors import (
    CheckpointError,
    ConfigError,
    FileError,
    InputError,
    OptionError,
    TensorNotFound,
    TokenizerError,
    WeightsWarning,
)
from npgpt2.checkpoints.checkpoint import Checkpoint
from npgpt2.model.params import named_parameters
from npgpt2.tokenizer import files as vocabulary_files

TINY = Path(__file__).parents[1] / "data" / "tiny"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TENSORS = "Expected the tensors of the GPT-2 in config.json"
STORED = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "U8": "|u1", "I64": "<i8"}


# ── what the tests are made of ───────────────────────────────────────────────────────────────────


@pytest.fixture(autouse=True)
def _no_hang():
    with bounded():
        yield


@pytest.fixture
def folder(tmp_path):
    """A copy of the tiny checkpoint, to be damaged."""
    copy = tmp_path / "model"
    shutil.copytree(TINY, copy)
    yield copy
    shutil.rmtree(copy)


@pytest.fixture
def vocabulary(folder):
    """A copy of the tiny checkpoint whose vocabulary is vocab.json and merges.txt."""
    (folder / "tokenizer.json").unlink()
    return folder


@pytest.fixture
def run(capsys):
    """A function: a command line, run in this process → exit code, standard output, error."""
    return runner(capsys)


@pytest.fixture
def refused(run):
    """A function: a folder is refused with just these words, at once and in one line."""

    def check(error, words, folder, command="inspect"):
        load = GPT2.from_pretrained if command == "inspect" else load_tokenizer
        problem = cheaply(error, lambda: load(folder))
        text = str(problem)
        assert says(words, text), text
        assert isinstance(problem, errors.NpGPT2Error)
        code, argv = 4 if error is FileError else 3, ["text"] if command == "tokenize" else []
        answer = run(command, *argv, "--model", folder)
        assert answer == (code, "", f"npgpt2: error: {cli.one_line(text)}\n")

    return check


def safetensors_bytes(header, data=b"", pad=0):
    """A safetensors file. `header` is bytes, or what JSON can say; `pad` spaces come behind it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) + pad) + text + b" " * pad + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8), **more):
    """One tensor in a header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


def pack(tensors, dtypes=None, **options):
    """A safetensors file of tensors, in their order.

    A tensor is an array, stored as F32 unless `dtypes` names another dtype; or the triple of a
    dtype, a shape and how many zero bytes stand for it.
    """
    header, data = {}, b""
    for name, tensor in tensors.items():
        if isinstance(tensor, tuple):
            dtype, shape, size = tensor
            blob = bytes(size)
        else:
            dtype, shape = (dtypes or {}).get(name, "F32"), tensor.shape
            blob = np.ascontiguousarray(tensor, STORED[dtype]).tobytes()
        header[name] = entry(dtype, shape, (len(data), len(data) + len(blob)))
        data += blob
    return safetensors_bytes(header, data, **options)


def tiny_tensors():
    """The tiny checkpoint's tensors by their short names."""
    stored = load_file(TINY / WEIGHTS)
    return {name.removeprefix("transformer."): array for name, array in stored.items()}


def edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def assert_same(model, tensors):
    """A model has just these parameters, to the bit."""
    params = dict(named_parameters(model.params))
    assert params.keys() == tensors.keys()
    for name, array in tensors.items():
        np.testing.assert_array_equal(params[name], array, strict=True)


# ── weights files that are damaged, or something else ────────────────────────────────────────────

WEB_PAGE = "is a web page, expected the weights: the download failed. Download again"
PAIR = {"a": entry(), "b": entry(offsets=(8, 16))}
ONE = json.dumps(entry()).encode()

FILES = {
    "empty": (b"", "has 0 bytes, expected a safetensors file. Download again"),
    "7 bytes": (b"\x02\0\0\0\0\0\0", "has 7 bytes, expected a safetensors file. Download again"),
    "header past the end": (
        struct.pack("<Q", 1000) + b"{}",
        "has a header of 1,000 bytes in a file of 10: not safetensors, or damaged. Download again",
    ),
    "header of 2^64-1": (
        struct.pack("<Q", 2**64 - 1) + b"{}",
        "has a header of 18,446,744,073,709,551,615 bytes in a file of 10: not safetensors, or "
        "damaged. Download again",
    ),
    "header of 0": (
        struct.pack("<Q", 0) + b"{}",
        "has a header of 0 bytes in a file of 10: not safetensors, or damaged. Download again",
    ),
    "not UTF-8": (
        safetensors_bytes(b'{"\xff":1}'),
        "header: not UTF-8 at byte 2, expected JSON. Download again",
    ),
    "not JSON": (
        safetensors_bytes(b"{'a': 1}"),
        "header: not JSON (Expecting property name…). Download again",
    ),
    "JSON cut off": (
        safetensors_bytes(b'{"a": '),
        "header: not JSON (Expecting value…). Download again",
    ),
    "JSON and more": (safetensors_bytes(b"{}{}"), "header: not JSON (Extra data…). Download again"),
    "byte-order mark": (
        safetensors_bytes(b"\xef\xbb\xbf{}"),
        "header: starts with a byte-order mark, expected UTF-8. Save it without one",
    ),
    "a list": (
        safetensors_bytes([]),
        "header: got a JSON list, expected an object. Download again",
    ),
    "null": (
        safetensors_bytes(None),
        "header: got a JSON NoneType, expected an object. Download again",
    ),
    "nested lists": (
        safetensors_bytes(b"[" * 100_000),
        "header: not JSON (maximum recursion…). Download again",
    ),
    "nested objects": (
        safetensors_bytes(b'{"a":' * 100_000),
        "header: not JSON (maximum rec…). Download again",
    ),
    "a number of 5,000 digits": (
        safetensors_bytes(b"9" * 5000),
        "header: not JSON (Exceeds the…). Download again",
    ),
    "truncated": (safetensors_bytes(PAIR, bytes(15)), "has 15 of 16 bytes of data. Download again"),
    "no data": (safetensors_bytes(PAIR), "has 0 of 16 bytes of data. Download again"),
    "trailing byte": (
        safetensors_bytes(PAIR, bytes(17)),
        "has 1 extra bytes at the end. Download again",
    ),
    "overlap": (
        safetensors_bytes({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12)),
        "damaged header (Error while deserializing header: invalid offset for tensor `b`…). "
        "Download again",
    ),
    "hole": (
        safetensors_bytes({"a": entry(), "b": entry(offsets=(12, 20))}, bytes(20)),
        "damaged header (Error while deserializing header: invalid offset for tensor `b`…). "
        "Download again",
    ),
    "hole before the first": (
        safetensors_bytes({"a": entry(offsets=(4, 12))}, bytes(12)),
        "damaged header (Error while deserializing header: invalid offset for tensor `a`…). "
        "Download again",
    ),
    "size is not the shape's": (
        safetensors_bytes({"a": entry(shape=(3,))}, bytes(8)),
        "damaged header (Error while deserializing header: invalid shape, data type, or offset for "
        "tensor…). Download again",
    ),
    "shape product overflows": (
        safetensors_bytes({"a": entry(shape=(2**40, 2**40))}, bytes(8)),
        "damaged header (Error while deserializing header: overflow computing buffer size from "
        "shape…). Download again",
    ),
    "shape product wraps round to 0": (
        safetensors_bytes({"a": entry(shape=(2**32, 2**32), offsets=(0, 0))}),
        "damaged header (Error while deserializing header: overflow computing buffer size from "
        "shape…). Download again",
    ),
    "unknown dtype": (
        safetensors_bytes({"a": entry("F128")}, bytes(8)),
        "damaged header (Error while deserializing header: invalid JSON in header: unknown variant "
        "`F128`…). Download again",
    ),
    "a tensor named twice": (
        safetensors_bytes(b'{"a":%s,"a":%s}' % (ONE, ONE), bytes(8)),
        "header: key 'a' occurs twice, expected once",
    ),
    "a field named twice": (
        safetensors_bytes(b'{"a":%s,"dtype":"F16"}}' % ONE[:-1], bytes(8)),
        "header: key 'dtype' occurs twice, expected once",
    ),
    "with and without transformer.": (
        safetensors_bytes({"a": entry(), "transformer.a": entry(offsets=(8, 16))}, bytes(16)),
        "has a both with and without 'transformer.'",
    ),
    "half a character in a name": (
        safetensors_bytes(b'{"\\ud83d":%s}' % ONE, bytes(8)),
        "damaged header (Error while deserializing header: invalid JSON in header: …). "
        "Download again",
    ),
    "Git LFS": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 548105171\n",
        "is a Git LFS pointer, expected the weights. Run 'git lfs pull'",
    ),
    "web page": (
        b"<!DOCTYPE html><html><body>Not Found</body></html>",
        WEB_PAGE,
    ),
    "web page after a blank line": (b"\n <HTML><body>Sign in</body></HTML>", WEB_PAGE),
    "gzip": (
        b"\x1f\x8b\x08" + bytes(40),
        "is compressed (gzip), expected the weights. Unpack it first",
    ),
    "zip": (
        b"PK\x03\x04" + bytes(40),
        "is a zip archive, perhaps of PyTorch, expected safetensors. If so, "
        "rename it to pytorch_model.bin",
    ),
}
# Fields of the wrong kind: the values, and what was expected.
FIELDS = {
    "dtype": ([5, None, {"F32": None}], "expected a name such as F32. Download again"),
    "shape": (
        [[-2], [2.0], [True, 2], ["2"], "2", 2, [[2]], {"0": 2}, None],
        "expected integers from 0. Download again",
    ),
    "data_offsets": (
        [[-8, 0], [8, 0], [0.0, 8.0], [False, True], ["0", "8"], "08", [0, 4, 8], [8], 8, None],
        "expected [begin, end]. Download again",
    ),
}
METADATA = [{"step": 1}, {"author": None}, {"a": {"b": "c"}}, ["text"], "text", 7]


@pytest.mark.parametrize(("data", "words"), FILES.values(), ids=FILES)
def test_a_damaged_weights_file(folder, refused, data, words):
    (folder / WEIGHTS).write_bytes(data)
    refused(CheckpointError, f"{folder / WEIGHTS}: {words}", folder)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [(key, value, words) for key, (values, words) in FIELDS.items() for value in values],
)
def test_a_field_of_the_wrong_kind(folder, refused, key, value, words):
    good = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    (folder / WEIGHTS).write_bytes(safetensors_bytes({"x": {**good, key: value}}, bytes(8)))
    words = f"{folder / WEIGHTS}: x has {key} {value!r}, {words}"
    refused(CheckpointError, words, folder)


@pytest.mark.parametrize("value", [[], None, "F32", ["F32", [2], [0, 8]], {"dtype": "F32"}])
def test_an_entry_of_another_form(folder, refused, value):
    """Lists too: the library takes one in the order of the fields for an entry."""
    (folder / WEIGHTS).write_bytes(safetensors_bytes({"x": value}, bytes(8)))
    got = "shape None, expected integers from 0"
    if value != {"dtype": "F32"}:
        got = "dtype None, expected a name such as F32"
    refused(CheckpointError, f"{folder / WEIGHTS}: x has {got}. Download again", folder)


@pytest.mark.parametrize("metadata", METADATA)
def test_metadata_that_is_not_text(folder, refused, metadata):
    header = {"__metadata__": metadata, "x": entry()}
    (folder / WEIGHTS).write_bytes(safetensors_bytes(header, bytes(8)))
    words = f"{folder / WEIGHTS}: __metadata__ is not an object of texts. Save it again"
    refused(CheckpointError, words, folder)


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(path.parent)  # the name of a socket is short
        server.bind(path.name)
        os.chdir(here)


NOT_FILES = {
    "folder": (Path.mkdir, "is a folder, expected a file"),
    "FIFO": (os.mkfifo, "is not a regular file, expected a file"),
    "socket": (make_socket, "is not a regular file, expected a file"),
    "device": (lambda path: path.symlink_to(os.devnull), "is not a regular file, expected a file"),
}


@pytest.mark.parametrize("name", [WEIGHTS, "config.json", "generation_config.json"])
@pytest.mark.parametrize(("make", "words"), NOT_FILES.values(), ids=NOT_FILES)
def test_what_is_not_a_file(folder, refused, make, words, name):
    (folder / name).unlink()
    make(folder / name)
    words = f"{folder / name}: {words}"
    refused(FileError, words, folder)


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "tokenizer_config.json"])
@pytest.mark.parametrize(("make", "words"), NOT_FILES.values(), ids=NOT_FILES)
def test_what_is_not_a_file_of_the_vocabulary(vocabulary, refused, make, words, name):
    (vocabulary / name).unlink()
    make(vocabulary / name)
    refused(FileError, f"{vocabulary / name}: {words}", vocabulary, "tokenize")


@pytest.mark.parametrize("name", [WEIGHTS, "config.json"])
def test_a_file_that_may_not_be_read(folder, refused, monkeypatch, name):
    """By a stand-in for `open`: the superuser, as whom tests may run, may read everything."""

    def forbid(path, *args, **options):
        if path.name == name:
            raise PermissionError(13, "Permission denied", str(path))
        return open(path, *args, **options)

    monkeypatch.setattr(Path, "open", forbid)
    words = f"{folder / name}: Permission denied"
    refused(FileError, words, folder)


MISSING = {
    WEIGHTS: "no such file. Expected one of model.safetensors, model.safetensors.index.json, "
    "pytorch_model.bin, pytorch_model.bin.index.json, model.ckpt.index, ckpt.pt in the folder",
    "config.json": "no such file, expected it next to the weights",
}


@pytest.mark.parametrize(("name", "words"), MISSING.items(), ids=MISSING)
def test_a_missing_file(folder, refused, name, words):
    (folder / name).unlink()
    refused(FileError, f"{folder / name}: {words}", folder)


@pytest.mark.parametrize("name", [WEIGHTS, "config.json"])
def test_a_link_to_nothing(folder, refused, name):
    """A hub cache of which a part was deleted."""
    (folder / name).unlink()
    (folder / name).symlink_to("../../blobs/0a1b")
    words = "is a link to ../../blobs/0a1b, which is not there. Download again"
    refused(FileError, f"{folder / name}: {words}", folder)


def test_weights_of_another_program(folder, refused):
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")
    words = "is a safetensors file, expected one of PyTorch. Rename it to model.safetensors"
    refused(CheckpointError, f"{folder / 'pytorch_model.bin'}: {words}", folder)


NO_FOLDER = "no such folder. Expected a checkpoint folder or a hub name"
MODELS = {
    "nothing": ("none/such", NO_FOLDER),
    "a name too long": ("x/" * 3000, NO_FOLDER),
    "a component too long": ("x" * 300, NO_FOLDER),
    "a NUL": ("a\0b", NO_FOLDER),
    "half a character": ("a\udcff", NO_FOLDER),
    "a newline": ("a\nb", NO_FOLDER),
    "a file": (
        "model/config.json",
        "is a file, expected a folder with config.json. Convert a file of nanoGPT or llm.c with "
        "'npgpt2 convert'",
    ),
}


@pytest.mark.parametrize(("name", "words"), MODELS.values(), ids=MODELS)
def test_a_model_that_is_no_folder(folder, run, name, words):
    path = folder.parent / name
    line = cli.one_line(f"{path}: {words}")
    assert run("inspect", "--model", path) == (4, "", f"npgpt2: error: {line}\n")


@pytest.mark.parametrize("name", ["x" * 300, "none"])
def test_a_checkpoint_that_is_no_folder(tmp_path, name):
    with pytest.raises(FileError) as caught:
        Checkpoint.open(tmp_path / name)
    words = "no such folder, expected one with config.json in it"
    assert str(caught.value) == f"{tmp_path / name}: {words}"


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("size", [700_000, 5000, 100])
def test_a_file_that_shrinks_while_it_is_read(folder, mmap, size):
    checkpoint = Checkpoint.open(folder)
    os.truncate(folder / WEIGHTS, size)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.read(mmap=mmap)
    words = "has become shorter while it was read: … of … bytes. Download again"
    assert says(f"{folder / WEIGHTS}: {words}", str(caught.value))


@pytest.mark.parametrize("mmap", [True, False])
def test_a_file_that_goes_while_it_is_read(folder, mmap):
    checkpoint = Checkpoint.open(folder)
    os.truncate(folder / WEIGHTS, 0)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.read(mmap=mmap)
    words = "empty" if mmap else "shorter while it was read: … of … bytes"
    assert says(f"{folder / WEIGHTS}: has become {words}. Download again", str(caught.value))
    (folder / WEIGHTS).unlink()
    with pytest.raises(FileError) as gone:
        checkpoint.read(mmap=mmap)
    assert str(gone.value) == f"{folder / WEIGHTS}: No such file or directory"


def test_a_file_that_goes_between_two_tensors(folder):
    """Without a map each tensor is read from the file by its name."""
    checkpoint = Checkpoint.open(folder)

    def meddle(names, _):
        for name in names:
            yield name
            (folder / WEIGHTS).unlink(missing_ok=True)

    with pytest.raises(FileError) as caught:
        checkpoint.read(mmap=False, progress=meddle)
    assert str(caught.value) == f"{folder / WEIGHTS}: No such file or directory"


# ── claims of size: answered within a second, in a few megabytes ─────────────────────────────────


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"n_layer": 10**9},
            "config.json has n_layer 1,000,000,000, but the weights have only 40 tensors",
        ),
        (
            {"vocab_size": 2**31 - 1},
            f"1 of the wrong shape (wte.weight is (512, 64), expected (2147483647, 64)). {TENSORS}",
        ),
        (
            {"n_positions": 2**31 - 1},
            f"1 of the wrong shape (wpe.weight is (128, 64), expected (2147483647, 64)). {TENSORS}",
        ),
        (
            {"n_embd": 2**30, "n_head": 1},
            "40 of the wrong shape (h.0.attn.c_attn.bias is (192,), expected (3221225472,), "
            "h.0.attn.c_attn.weight is (64, 192), expected (1073741824, 3221225472), "
            "h.0.attn.c_proj.bias is (64,), expected (1073741824,) and 37 more). " + TENSORS,
        ),
        (
            {"n_inner": 2**31 - 1},
            "9 of the wrong shape (h.0.mlp.c_fc.bias is (256,), expected (2147483647,), "
            "h.0.mlp.c_fc.weight is (64, 256), expected (64, 2147483647), "
            "h.0.mlp.c_proj.weight is (256, 64), expected (2147483647, 64) and 6 more). " + TENSORS,
        ),
    ],
)
def test_a_config_that_claims_much(folder, refused, changes, words):
    edit_json(folder / "config.json", **changes)
    refused(CheckpointError, f"{folder}: {words}", folder)


@pytest.mark.parametrize("length", [2**34 - 8, 2**30])
def test_a_header_of_gigabytes(folder, refused, length):
    """A sparse file: it has the size it claims, and no blocks on the disk."""
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", length) + b"{")
    os.truncate(folder / WEIGHTS, 2**34)
    words = (
        f"{folder / WEIGHTS}: has a header of {length:,} bytes in a file of 17,179,869,184: "
        "not safetensors, or damaged. Download again"
    )
    refused(CheckpointError, words, folder)


def test_a_config_of_gigabytes(folder, refused):
    os.truncate(folder / "config.json", 2**34)
    words = f"{folder / 'config.json'}: has 17,179,869,184 bytes, expected 268,435,456 at most"
    refused(FileError, words, folder)


@pytest.mark.parametrize("end", [2**40, 2**63, 2**70])
def test_data_of_exabytes(folder, refused, end):
    header = {"wte.weight": entry(shape=(end // 4,), offsets=(0, end))}
    (folder / WEIGHTS).write_bytes(safetensors_bytes(header, bytes(8)))
    words = f"{folder / WEIGHTS}: has 8 of {end:,} bytes of data. Download again"
    refused(CheckpointError, words, folder)


def test_a_key_twice_among_50_000(vocabulary, refused):
    pairs = [f'"t{i}": {i}' for i in range(50_000)]
    (vocabulary / "vocab.json").write_text("{" + ", ".join([*pairs, pairs[-1]]) + "}")
    words = f"{vocabulary / 'vocab.json'}: key 't49999' occurs twice, expected once"
    refused(TokenizerError, words, vocabulary, "tokenize")


# ── odd files that load ──────────────────────────────────────────────────────────────────────────


def test_all_bfloat16_values(folder):
    """All 65,536 bit patterns as the upper half of a float32, NaNs with their payload."""
    bits = np.arange(1 << 16, dtype="<u2").reshape(1024, 64)
    data = pack({**tiny_tensors(), "wte.weight": bits}, {"wte.weight": "BF16"})
    (folder / WEIGHTS).write_bytes(data)
    edit_json(folder / "config.json", vocab_size=1024)
    with pytest.warns(WeightsWarning, match="wte.weight has 256 NaN or infinite values of 65,536"):
        wte = GPT2.from_pretrained(folder).params.wte.weight
    assert np.array_equal(wte.view("<u4"), bits.astype("<u4") << 16)


def test_all_float16_values(folder):
    """Against Python's own reader of half precision."""
    bits = np.arange(1 << 16, dtype="<u2")
    expected = np.array(struct.unpack("<65536e", bits.tobytes()), "f4").reshape(1024, 64)
    data = pack(
        {**tiny_tensors(), "wte.weight": bits.view("<f2").reshape(1024, 64)}, {"wte.weight": "F16"}
    )
    (folder / WEIGHTS).write_bytes(data)
    edit_json(folder / "config.json", vocab_size=1024)
    with pytest.warns(WeightsWarning, match="wte.weight has 2,048 NaN or infinite"):
        wte = GPT2.from_pretrained(folder).params.wte.weight
    np.testing.assert_array_equal(wte, expected, strict=True)


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("pad", range(8))
def test_dtypes_at_every_alignment(folder, dtype, mmap, pad):
    """Whole tensors of one dtype whose data begin at any byte."""
    rng = np.random.default_rng(pad)
    arrays = {name: rng.normal(size=x.shape) for name, x in tiny_tensors().items()}
    if dtype == "BF16":
        stored = {name: x.astype("f4").view("u4") >> 16 for name, x in arrays.items()}
        arrays = {name: (x << 16).astype("u4").view("f4") for name, x in stored.items()}
    else:
        stored = arrays
        arrays = {name: x.astype(STORED[dtype]) for name, x in arrays.items()}
    data = pack(stored, dict.fromkeys(stored, dtype), pad=pad)
    (folder / WEIGHTS).write_bytes(data)
    for name in ("float32", "float64"):
        model = GPT2.from_pretrained(folder, name, mmap=mmap)
        assert_same(model, {key: x.astype(name) for key, x in arrays.items()})


def shuffled(tensors):
    names = list(tensors)
    np.random.default_rng(0).shuffle(names)
    return {name: tensors[name] for name in names}


def with_buffers(tensors):
    """As transformers 4 saved them: masks of any dtype, and of no size."""
    mask = np.tril(np.ones((1, 1, 128, 128)))
    buffers = {"h.0.attn.bias": mask, "h.1.attn.masked_bias": np.array(-1e4)}
    return {**buffers, **tensors, "transformer.h.2.attn.bias": np.zeros((0, 4))}


GOOD = {
    "padded header": lambda t: pack(t, pad=5000),
    "any order": lambda t: pack(shuffled(t)),
    "without transformer.": pack,
    "with transformer.": lambda t: pack({f"transformer.{name}": x for name, x in t.items()}),
    "mask buffers": lambda t: pack(with_buffers(t), {"h.0.attn.bias": "U8"}),
    "the tied head written twice": lambda t: pack({**t, "lm_head.weight": t["wte.weight"]}),
    "only the head of a tied pair": lambda t: pack(
        {"lm_head.weight" if name == "wte.weight" else name: x for name, x in t.items()}
    ),
    "metadata": lambda t: safetensors_bytes(
        pack(t)[8:].split(b"}}", 1)[0] + b'},"__metadata__":{"format":"pt"}}',
        b"".join(x.tobytes() for x in t.values()),
    ),
}


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("write", GOOD.values(), ids=GOOD)
def test_odd_files_that_load(folder, write, mmap):
    tensors = tiny_tensors()
    (folder / WEIGHTS).write_bytes(write(tensors))
    assert_same(GPT2.from_pretrained(folder, mmap=mmap), tensors)


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_of_its_own(folder, tied):
    """The file decides, whatever the config says."""
    tensors = tiny_tensors()
    tensors["lm_head.weight"] = 2 * tensors["wte.weight"]
    (folder / WEIGHTS).write_bytes(pack(tensors))
    edit_json(folder / "config.json", tie_word_embeddings=tied)
    model = GPT2.from_pretrained(folder)
    assert_same(model, tensors)
    assert not model.config.tie_word_embeddings


def write_shards(folder, parts):
    """`parts`: file → tensors. Returns the index's table."""
    (folder / WEIGHTS).unlink()
    where = {name: file for file, tensors in parts.items() for name in tensors}
    for file, tensors in parts.items():
        (folder / file).write_bytes(pack(tensors))
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return where


@pytest.fixture
def shards(folder):
    """The tiny checkpoint in two shards, and the table of its index."""
    tensors = tiny_tensors()
    names = list(tensors)
    parts = {
        f"model-0000{n}-of-00002.safetensors": {name: tensors[name] for name in half}
        for n, half in enumerate((names[:20], names[20:]), 1)
    }
    return write_shards(folder, parts)


@pytest.mark.parametrize("mmap", [True, False])
def test_shards(folder, shards, mmap):
    assert_same(GPT2.from_pretrained(folder, mmap=mmap), tiny_tensors())


def test_a_hub_cache_of_links(folder, tmp_path):
    """The hub's cache: names that are links to files named by their content."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "main"
    folder.rename(blobs)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(blobs.iterdir())):
        path.rename(blobs / f"{number:040x}")
        (snapshot / path.name).symlink_to(f"../../blobs/{number:040x}")
    folder.symlink_to(snapshot)
    model = GPT2.from_pretrained(folder)
    assert_same(model, tiny_tensors())
    assert model.encode("the king") == [84, 258, 346, 299]
    folder.unlink()
    folder.mkdir()  # for the fixture to remove


# ── sets of tensors that are not the config's ────────────────────────────────────────────────────


def without(*names):
    return lambda t: {name: x for name, x in t.items() if name not in names}


def changed(**arrays):
    """Tensors put in, by their names with __ for a dot."""
    return lambda t: {**t, **{n.replace("__", "."): make(t) for n, make in arrays.items()}}


SETS = {
    "missing": (without("h.1.ln_1.bias"), f"h.1.ln_1.bias missing, 1 of 40. {TENSORS}"),
    "many missing": (
        lambda t: {name: x for name, x in t.items() if "mlp" not in name},
        "h.0.mlp.c_fc.weight, h.0.mlp.c_fc.bias, h.0.mlp.c_proj.weight and 9 more missing, "
        f"12 of 40. {TENSORS}",
    ),
    "wrong shape": (
        changed(wpe__weight=lambda t: t["wpe.weight"][:100]),
        f"1 of the wrong shape (wpe.weight is (100, 64), expected (128, 64)). {TENSORS}",
    ),
    "transposed": (
        changed(h__0__mlp__c_fc__weight=lambda t: t["h.0.mlp.c_fc.weight"].T),
        "1 of the wrong shape (h.0.mlp.c_fc.weight is (256, 64), expected (64, 256), transposed). "
        + TENSORS,
    ),
    "zero-size": (
        changed(ln_f__bias=lambda t: np.zeros(0)),
        f"1 of the wrong shape (ln_f.bias is (0,), expected (64,)). {TENSORS}",
    ),
    "70 dimensions": (
        changed(ln_f__bias=lambda t: ("F32", (1,) * 69 + (64,), 256)),
        f"1 of the wrong shape (ln_f.bias is ({'1, ' * 69}64), expected (64,)). {TENSORS}",
    ),
    "unexpected": (
        changed(h__3__ln_1__bias=lambda t: np.zeros(64), classifier=lambda t: np.zeros(2)),
        f"2 unexpected (classifier, h.3.ln_1.bias). {TENSORS}, with architecture "
        "GPT2LMHeadModel: classifier is of a GPT2ForTokenClassification",
    ),
    "all together": (
        lambda t: {
            **without("h.0.ln_1.bias", "ln_f.bias")(t),
            "wte.weight": t["wte.weight"].T,
            "h.9.x": np.zeros(1),
        },
        "h.0.ln_1.bias, ln_f.bias missing, 2 of 40; 1 of the wrong shape (wte.weight is (64, 512), "
        f"expected (512, 64), transposed); 1 unexpected (h.9.x). {TENSORS}",
    ),
    "none": (lambda t: {}, "config.json has n_layer 3, but the weights have only 0 tensors"),
    "a name that writes on the terminal": (
        changed(**{"\x1b[2Ja\nb": lambda t: np.zeros(2)}),
        rf"1 unexpected (\x1b[2Ja\nb). {TENSORS}",
    ),
}


@pytest.mark.parametrize(("change", "words"), SETS.values(), ids=SETS)
def test_a_set_of_tensors(folder, refused, change, words):
    (folder / WEIGHTS).write_bytes(pack(change(tiny_tensors())))
    refused(CheckpointError, f"{folder}: {words}", folder)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "F4", "U8", "I64", "BOOL"])
def test_a_dtype_that_is_no_weight(folder, refused, dtype):
    """Also of a stored head, which is compared with wte before the dtypes are asked for."""
    wte = dtype, (512, 64), {"F4": 16384, "I64": 262144}.get(dtype, 32768)
    data = pack({**tiny_tensors(), "wte.weight": wte, "lm_head.weight": wte})
    (folder / WEIGHTS).write_bytes(data)
    words = f"1 of an unknown dtype (wte.weight is {dtype}, expected one of F64, F32, F16, BF16)"
    refused(CheckpointError, f"{folder}: {words}. {TENSORS}", folder)


@pytest.mark.parametrize("shape", [(), (1,) * 70, (0, 64), (64, 0), (32768,)])
def test_a_head_and_wte_of_the_same_wrong_shape(folder, refused, shape):
    """They are compared before the shapes are: NumPy has no arrays of more than 64 dimensions."""
    wte = "F32", shape, 4 * math.prod(shape)
    data = pack({**tiny_tensors(), "wte.weight": wte, "lm_head.weight": wte})
    (folder / WEIGHTS).write_bytes(data)
    words = f"1 of the wrong shape (wte.weight is {shape}, expected (512, 64)). {TENSORS}"
    refused(CheckpointError, f"{folder}: {words}", folder)


def test_vocab_size_beside_the_rows_of_wte(folder, refused):
    edit_json(folder / "config.json", vocab_size=511)
    words = f"1 of the wrong shape (wte.weight is (512, 64), expected (511, 64)). {TENSORS}"
    refused(CheckpointError, f"{folder}: {words}", folder)


def test_a_shard_is_missing(folder, shards, refused):
    (folder / shards["wte.weight"]).unlink()
    words = f"{folder / shards['wte.weight']}: no such file, but {INDEX} names it. Download it"
    refused(FileError, words, folder)


SHARDS = ["../x.safetensors", "/etc/passwd", "a/b", "a\\b", "..", ".", "", "a\0b"]


@pytest.mark.parametrize("shard", SHARDS)
def test_a_shard_that_leaves_the_folder(folder, shards, refused, shard):
    index = {"weight_map": {**shards, "wte.weight": shard}}
    (folder / INDEX).write_text(json.dumps(index))
    words = f"{folder / INDEX}: names the shard {shard!r}, expected a file in the same folder"
    refused(CheckpointError, words, folder)


IMPOSSIBLE = {"long": "x" * 5000, "half a character": "\ud83d", "absent": "absent.safetensors"}


@pytest.mark.parametrize("shard", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_a_shard_of_an_impossible_name(folder, shards, refused, shard):
    where = {name: shard if file == shards["wte.weight"] else file for name, file in shards.items()}
    (folder / INDEX).write_text(json.dumps({"weight_map": where}))
    said = str(folder / shard).replace("\ud83d", "\\ud83d")
    refused(FileError, f"{said}: no such file, but {INDEX} names it. Download it", folder)


@pytest.mark.parametrize("table", [None, [], "x", {"wte.weight": 5}, {"wte.weight": None}])
def test_an_index_without_a_table(folder, shards, refused, table):
    (folder / INDEX).write_text(json.dumps({"weight_map": table}))
    words = f"{folder / INDEX}: weight_map is not an object of tensor → file"
    refused(CheckpointError, words, folder)


def test_an_index_that_disagrees_with_a_shard(folder, shards, refused):
    del shards["wte.weight"]
    (folder / INDEX).write_text(json.dumps({"weight_map": shards}))
    words = f"{folder / INDEX}: disagrees with model-00002-of-00002.safetensors about wte.weight"
    refused(CheckpointError, words, folder)


def test_a_tensor_in_two_shards(folder, refused):
    tensors = tiny_tensors()
    parts = {"a": tensors, "b": {"transformer.wte.weight": tensors["wte.weight"]}}
    write_shards(folder, parts)
    words = f"{folder / INDEX}: disagrees with b about wte.weight"
    refused(CheckpointError, words, folder)


def test_a_damaged_shard(folder, shards, refused):
    os.truncate(folder / shards["wte.weight"], 1000)
    words = (
        f"{folder / shards['wte.weight']}: has a header of 1,781 bytes in a file of 1,000: "
        "not safetensors, or damaged. Download again"
    )
    refused(CheckpointError, words, folder)


# ── NaN and infinity among the weights ───────────────────────────────────────────────────────────


@pytest.fixture
def poisoned(folder):
    """A function: write a tensor with three numbers of one kind into the checkpoint."""

    def poison(value, name="ln_f.bias"):
        tensors = {key: x.copy() for key, x in tiny_tensors().items()}
        tensors[name].reshape(-1)[[1, 5, 7]] = value
        (folder / WEIGHTS).write_bytes(pack(tensors))
        return folder

    return poison


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["ln_f.bias", "h.1.attn.c_attn.weight"])
def test_nan_and_infinity_are_said(poisoned, run, value, name):
    folder, size = poisoned(value, name), tiny_tensors()[name].size
    text = f"{folder / WEIGHTS}: {name} has 3 NaN or infinite values of {size:,}"
    with pytest.warns(WeightsWarning) as caught:
        GPT2.from_pretrained(folder)
    assert [str(warning.message) for warning in caught] == [text]
    with pytest.raises(CheckpointError) as strict:
        GPT2.from_pretrained(folder, strict=True)
    assert str(strict.value) == f"{text}, expected finite weights. Download again"

    code, out, err = run("inspect", "wpe.weight[0, 0]", "--model", folder)
    assert (code, err) == (0, f"npgpt2: warning: {text}\n")
    assert out
    answer = run("inspect", "wpe.weight[0, 0]", "--model", folder, "--strict")
    assert answer == (3, "", f"npgpt2: error: {strict.value}\n")


@pytest.mark.filterwarnings("ignore::npgpt2.base.errors.WeightsWarning", "ignore::RuntimeWarning")
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_no_text_from_nan_or_infinity(poisoned, run, value):
    folder = poisoned(value)
    model = GPT2.from_pretrained(folder)
    words = "logits: NaN or infinity. The weights have them, or values overflow"
    for options in ({"temperature": 0}, {"seed": 1}, {"num_beams": 2}):
        with pytest.raises(CheckpointError, match=f"^{words}$"):
            model.generate("KING", **options)
    with pytest.raises(CheckpointError, match=f"^{words}$"):
        model.score("KING HENRY")
    for command in ("generate", "score"):
        code, out, err = run(command, "KING HENRY", "--model", folder)
        assert (code, out) == (3, "")
        assert err.splitlines()[-1] == f"npgpt2: error: {words}"


def test_float64_beyond_float32(folder):
    tensors = tiny_tensors()
    tensors["ln_f.bias"] = np.full(64, 1e300)
    (folder / WEIGHTS).write_bytes(pack(tensors, {"ln_f.bias": "F64"}))
    with pytest.warns(WeightsWarning, match="ln_f.bias has 64 NaN or infinite values of 64"):
        GPT2.from_pretrained(folder)
    assert (GPT2.from_pretrained(folder, "float64").params.ln_f.bias == 1e300).all()


def test_large_weights_are_sound(folder):
    """Their squares overflow, they do not."""
    tensors = tiny_tensors()
    tensors["ln_f.bias"] = np.full(64, 1e38, "f4")
    (folder / WEIGHTS).write_bytes(pack(tensors))
    assert_same(GPT2.from_pretrained(folder, strict=True), tensors)


# ── config.json ──────────────────────────────────────────────────────────────────────────────────

COUNT = "expected an integer from 1 to 2147483647"
FRACTION = "expected a number from 0 to 1"
NONLINEAR = (
    "expected one of gelu, gelu_fast, gelu_new, gelu_pytorch_tanh, quick_gelu, relu, silu, swish, "
    "tanh"
)
ELSEWHERE = "This architecture is not implemented here. Use transformers"
PLAIN = "not implemented here. Expected a plain GPT-2"
CONFIGS = [
    ({"n_embd": 66}, "n_embd: got 66, expected a multiple of n_head (4)"),
    *[
        ({"n_layer": value}, f"n_layer: got {value!r}, {COUNT}")
        for value in (0, -1, "12", 12.5, True, 1e9, None, 2**31, [3])
    ],
    ({"n_head": 0}, f"n_head: got 0, {COUNT}"),
    ({"hidden_size": -1, "n_embd": None}, f"n_embd: got None, {COUNT}"),
    ({"n_inner": 0}, f"n_inner: got 0, {COUNT}"),
    ({"layer_norm_epsilon": float("nan")}, f"layer_norm_epsilon: got nan, {FRACTION}"),
    ({"layer_norm_epsilon": "1e-5"}, f"layer_norm_epsilon: got '1e-5', {FRACTION}"),
    (
        {"initializer_range": float("inf")},
        "initializer_range: got inf, expected a number from 0 to inf",
    ),
    (
        {"initializer_range": 10**400},
        "initializer_range: got 1000000000…, expected a number from 0 to inf",
    ),
    ({"resid_pdrop": True}, f"resid_pdrop: got True, {FRACTION}"),
    ({"scale_attn_weights": "false"}, "scale_attn_weights: got 'false', expected true or false"),
    ({"activation_function": "mish"}, f"activation_function: got 'mish', {NONLINEAR}"),
    ({"activation_function": ["relu"]}, f"activation_function: got ['relu'], {NONLINEAR}"),
    ({"activation_function": None}, f"activation_function: got None, {NONLINEAR}"),
    ({"eos_token_id": "0"}, "eos_token_id: got '0', expected a token id or null"),
    ({"eos_token_id": [0, 1.5]}, "eos_token_id: got [0, 1.5], expected a token id or null"),
    ({"pruned_heads": {"0": [9]}}, "pruned_heads: got heads [9] in layer 0, expected 0 to 3"),
    ({"pruned_heads": {"7": [1]}}, "pruned_heads: got layer 7, expected 0 to 2"),
    (
        {"pruned_heads": {"0": [0, 1, 2, 3]}},
        "pruned_heads: got all 4 heads of layer 0, expected fewer",
    ),
    (
        {"pruned_heads": {"0": [float("inf")]}},
        "pruned_heads: got {'0': [inf]}, expected {layer: [heads]}",
    ),
    ({"pruned_heads": [1]}, "pruned_heads: got [1], expected {layer: [heads]}"),
    (
        {"model_type": "bert", "architectures": ["BertModel"]},
        "model_type is 'bert' (BertModel), expected 'gpt2'. " + ELSEWHERE,
    ),
    (
        {"architectures": ["BertModel"]},
        "architectures names 'BertModel', expected GPT-2. " + ELSEWHERE,
    ),
    (
        {"model_type": 5, "architectures": None},
        "model_type is 5 (5), expected 'gpt2'. " + ELSEWHERE,
    ),
    ({"architectures": 5}, "architectures is 5, expected a list of names"),
    ({"architectures": "GPT2"}, "architectures is 'GPT2', expected a list of names"),
    ({"rope_scaling": {"type": "linear"}}, "rope_scaling is {'type': 'linear'}: " + PLAIN),
    ({"quantization_config": {"bits": 4}}, "quantization_config is {'bits': 4}: " + PLAIN),
    (
        {"architectures": ["GPT2LMHeadCustomModel"], "attention_head_type": "multiquery"},
        "attention_head_type is 'multiquery': " + PLAIN,
    ),
]
# What config.json says of models that are no GPT-2 of OpenAI's form, as they are published.
OTHERS = {
    "gpt_neo": {
        "architectures": ["GPTNeoForCausalLM"], "attention_types": [[["global", "local"], 6]],
        "attention_layers": ["global", "local"], "hidden_size": 768, "intermediate_size": None,
        "num_heads": 12, "num_layers": 12, "window_size": 256,
    },
    "gpt_bigcode": {
        "architectures": ["GPTBigCodeForCausalLM"], "attention_softmax_in_fp32": True,
        "multi_query": True, "n_embd": 2048, "n_head": 16, "n_inner": 8192, "n_layer": 24,
        "scale_attention_softmax_in_fp32": True, "validate_runner_input": True,
    },
    "biogpt": {
        "activation_dropout": 0.0, "architectures": ["BioGptForCausalLM"], "hidden_act": "gelu",
        "hidden_size": 1024, "layerdrop": 0.0, "num_attention_heads": 16, "scale_embedding": True,
    },
    "openai-gpt": {
        "afn": "gelu", "architectures": ["OpenAIGPTLMHeadModel"], "n_ctx": 512, "n_embd": 768,
        "n_head": 12, "n_layer": 12, "n_positions": 512, "n_special": 0, "vocab_size": 40478,
    },
    "gptj": {
        "architectures": ["GPTJForCausalLM"], "n_embd": 4096, "n_head": 16, "n_layer": 28,
        "rotary": True, "rotary_dim": 64, "tie_word_embeddings": False,
    },
    "gpt_neox": {
        "architectures": ["GPTNeoXForCausalLM"], "hidden_act": "gelu", "hidden_size": 768,
        "rotary_emb_base": 10000, "rotary_pct": 0.25, "use_parallel_residual": True,
    },
    "codegen": {
        "architectures": ["CodeGenForCausalLM"], "n_embd": 1024, "n_head": 16, "n_layer": 20,
        "rotary_dim": 32, "tokenizer_class": "GPT2Tokenizer",
    },
    "opt": {
        "architectures": ["OPTForCausalLM"], "do_layer_norm_before": True, "ffn_dim": 3072,
        "hidden_size": 768, "num_attention_heads": 12, "word_embed_proj_dim": 768,
    },
    "llama": {
        "architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "hidden_size": 4096,
        "num_key_value_heads": 32, "rms_norm_eps": 1e-06, "rope_scaling": None,
    },
    "bert": {
        "architectures": ["BertForMaskedLM"], "hidden_act": "gelu", "hidden_size": 768,
        "position_embedding_type": "absolute", "type_vocab_size": 2,
    },
    "megatron-bert": {
        "architectures": ["MegatronBertForMaskedLM"], "hidden_size": 1024, "type_vocab_size": 2,
    },
    "bloom": {"architectures": ["BloomForCausalLM"], "hidden_size": 1024, "n_layer": 24},
    "imagegpt": {"architectures": ["ImageGPTForCausalImageModeling"], "n_embd": 512, "n_layer": 24},
    "gpt2-ja": {"architectures": ["GPT2LMHeadModel"], "n_ctx": 768, "n_embd": 512},
}  # fmt: skip
CONFIG_FILES = {
    "empty": (b"", "not JSON (Expecting value…). Download again"),
    "not JSON": (
        b"n_layer = 12",
        "not JSON (Expecting value: line 1 column 1 (char 0)). Download again",
    ),
    "cut off": (b'{"n_layer": 1', "not JSON (Expecting ',' delimiter…). Download again"),
    "nested": (b'{"a":' * 100_000, "not JSON (maximum recursion depth…). Download again"),
    "5,000 digits": (
        b'{"n_layer":' + b"1" * 5000 + b"}",
        "not JSON (Exceeds the limit…). Download again",
    ),
    "a list": (b"[]", "got a JSON list, expected an object. Download again"),
    "a key twice": (
        b'{"n_layer":1,"n_head":1,"n_layer":2}',
        "key 'n_layer' occurs twice, expected once",
    ),
    "byte-order mark": (
        b"\xef\xbb\xbf{}",
        "starts with a byte-order mark, expected UTF-8. Save it without one",
    ),
    "UTF-16": (
        '{"n_layer": 1}'.encode("utf-16"),
        "not UTF-8 at byte 0, expected JSON. Download again",
    ),
    "Git LFS": (
        b"version https://git-lfs.github.com/spec/v1\n",
        "is a Git LFS pointer, expected JSON. Run 'git lfs pull'",
    ),
    "web page": (
        b"<!doctype html>",
        "is a web page, expected JSON: the download failed. Download again",
    ),
    "gzip": (b"\x1f\x8b\x08", "is compressed (gzip), expected JSON. Unpack it first"),
    "Latin-1": ('{"é": 1}'.encode("latin-1"), "not UTF-8 at byte 2, expected JSON. Download again"),
}


@pytest.mark.parametrize(("changes", "words"), CONFIGS)
def test_a_config_value(folder, refused, changes, words):
    edit_json(folder / "config.json", **changes)
    words = f"{folder / 'config.json'}: {words}"
    refused(ConfigError, words, folder)


@pytest.mark.parametrize("kind", OTHERS)
def test_another_architecture(folder, refused, kind):
    """By what it is called; and where that is missing, by what its model is called."""
    names = OTHERS[kind]["architectures"]
    path = folder / "config.json"
    path.write_text(json.dumps({"model_type": kind, **OTHERS[kind]}))
    words = f"{path}: model_type is {kind!r} ({names[0]}), expected 'gpt2'. {ELSEWHERE}"
    refused(ConfigError, words, folder)
    if names[0].startswith("GPT2"):
        return
    path.write_text(json.dumps(OTHERS[kind]))
    words = f"{path}: architectures names {names[0]!r}, expected GPT-2. {ELSEWHERE}"
    refused(ConfigError, words, folder)


@pytest.mark.parametrize(("data", "words"), CONFIG_FILES.values(), ids=CONFIG_FILES)
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", INDEX])
def test_a_config_file(folder, refused, name, data, words):
    (folder / name).write_bytes(data)
    if name == INDEX:
        (folder / WEIGHTS).unlink()
    error = CheckpointError if name == INDEX else ConfigError
    refused(error, f"{folder / name}: {words}", folder)


def test_a_generation_config_value(folder, refused):
    edit_json(folder / "generation_config.json", eos_token_id="x")
    words = (
        f"{folder / 'generation_config.json'}: eos_token_id: got 'x', expected a token id or null"
    )
    refused(ConfigError, words, folder)


def test_remote_code_is_ignored_and_said(folder, run):
    edit_json(folder / "config.json", auto_map={"AutoModel": "evil.Model"})
    (folder / "evil.py").write_text("raise SystemExit('code was run')")
    text = f"{folder / 'config.json'}: auto_map names code: ignored, not run"
    with pytest.warns(UserWarning, match="auto_map") as caught:
        assert_same(GPT2.from_pretrained(folder), tiny_tensors())
    assert [str(warning.message) for warning in caught] == [text]
    code, _, err = run("inspect", "--model", folder)
    assert (code, err) == (0, f"npgpt2: warning: {text}\n")


def test_a_config_with_windows_lines(folder):
    path = folder / "config.json"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert GPT2.from_pretrained(folder).config == GPT2Config.from_file(TINY / "config.json")


# ── vocabularies ─────────────────────────────────────────────────────────────────────────────────

IDS = "expected an integer"
VOCABULARIES = {
    "hole": ({"ARD": 600}, "no token has id 511, expected ids without gaps"),
    "an id twice": ({"ARD": 6}, "id 6 is both '&' and 'ARD'"),
    "an id below 0": ({"ARD": -1}, f"'ARD' has id -1, {IDS}"),
    "a fraction": ({"ARD": 1.5}, f"'ARD' has id 1.5, {IDS}"),
    "true": ({"ARD": True}, f"'ARD' has id True, {IDS}"),
    "text": ({"ARD": "511"}, f"'ARD' has id '511', {IDS}"),
    "null": ({"ARD": None}, f"'ARD' has id None, {IDS}"),
    "half a character": ({"\ud83d": 512}, "not Unicode text (surrogates not allowed)"),
    "no bytes": ({"!": None}, f"'!' has id None, {IDS}"),
}
MERGES = {
    "three parts": (b"a b c", "line 5: got 'a b c', expected two tokens with a space between"),
    "one part": (b"ab", "line 5: got 'ab', expected two tokens with a space between"),
    "nothing after the space": (
        b"a ",
        "line 5: got 'a ', expected two tokens with a space between",
    ),
    "nothing before it": (b" a", "line 5: got ' a', expected two tokens with a space between"),
    "a megabyte": (
        b"x" * 10**6,
        f"line 5: got {'x' * 40!r}, expected two tokens with a space between",
    ),
    "not UTF-8": (b"\xff a", "not UTF-8 at byte …, expected merges. Download again"),
}
UNKNOWN = {
    b"a Zebra": "'Zebra' is not in the vocabulary, but it is a byte or part of a merge",
    b"z z": "merge result 'zz' is not in the vocabulary",
}
MERGE_FILES = {
    b"": "has 0 bytes, expected merges. Download again",
    b"<html>": "is a web page, expected merges: the download failed. Download again",
    b"version https://git-lfs.github.com/spec/v1\n": "is a Git LFS pointer, expected merges. "
    "Run 'git lfs pull'",
}


@pytest.mark.parametrize(("changes", "words"), VOCABULARIES.values(), ids=VOCABULARIES)
def test_a_vocabulary(vocabulary, refused, changes, words):
    edit_json(vocabulary / "vocab.json", **changes)
    words = f"{vocabulary / 'vocab.json'}: {words}"
    refused(TokenizerError, words, vocabulary, "tokenize")


@pytest.mark.parametrize(("data", "words"), CONFIG_FILES.values(), ids=CONFIG_FILES)
@pytest.mark.parametrize("name", ["vocab.json", "tokenizer_config.json", "tokenizer.json"])
def test_a_file_of_the_vocabulary(vocabulary, refused, name, data, words):
    (vocabulary / name).write_bytes(data)
    refused(TokenizerError, f"{vocabulary / name}: {words}", vocabulary, "tokenize")


@pytest.mark.parametrize(("line", "words"), MERGES.values(), ids=MERGES)
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_merge_line(vocabulary, refused, line, words, end):
    lines = (vocabulary / "merges.txt").read_bytes().split(b"\n")
    (vocabulary / "merges.txt").write_bytes(end.join([*lines[:4], line, *lines[4:]]))
    refused(TokenizerError, f"{vocabulary / 'merges.txt'}: {words}", vocabulary, "tokenize")


@pytest.mark.parametrize(("line", "words"), UNKNOWN.items())
def test_a_merge_of_what_is_not_in_the_vocabulary(vocabulary, refused, line, words):
    with (vocabulary / "merges.txt").open("ab") as file:
        file.write(line)
    refused(TokenizerError, f"{vocabulary / 'vocab.json'}: {words}", vocabulary, "tokenize")


@pytest.mark.parametrize(("data", "words"), MERGE_FILES.items())
def test_a_file_of_merges(vocabulary, refused, data, words):
    (vocabulary / "merges.txt").write_bytes(data)
    refused(TokenizerError, f"{vocabulary / 'merges.txt'}: {words}", vocabulary, "tokenize")


def test_a_merge_twice(vocabulary, refused):
    lines = (vocabulary / "merges.txt").read_bytes().split(b"\n")
    (vocabulary / "merges.txt").write_bytes(b"\n".join([*lines[:4], *lines[3:]]))
    words = f"{vocabulary / 'vocab.json'}: two merges make the same token, expected one"
    refused(TokenizerError, words, vocabulary, "tokenize")


def test_merges_with_a_byte_order_mark(vocabulary, refused):
    path = vocabulary / "merges.txt"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    words = "starts with a byte-order mark. Save it as plain UTF-8"
    refused(TokenizerError, f"{path}: {words}", vocabulary, "tokenize")


def test_windows_lines(vocabulary):
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        data = (vocabulary / name).read_bytes()
        (vocabulary / name).write_bytes(data.replace(b"\n", b"\r\n"))
    text = "O Romeo, the king"
    assert load_tokenizer(vocabulary).encode(text) == load_tokenizer(TINY).encode(text)


@pytest.mark.parametrize("gone", ["vocab.json", "merges.txt"])
def test_half_a_vocabulary(vocabulary, refused, gone):
    (vocabulary / gone).unlink()
    refused(FileError, f"{vocabulary / gone}: No such file or directory", vocabulary, "tokenize")


def test_no_vocabulary(vocabulary, refused):
    for name in ("vocab.json", "merges.txt"):
        (vocabulary / name).unlink()
    words = (
        f"{vocabulary}: has no vocabulary, expected tokenizer.json, or vocab.json and merges.txt, "
        "beside the weights"
    )
    refused(FileError, words, vocabulary, "tokenize")


UNKNOWN_FORM = "the tokenizer files have an unknown form (…). Download again"
SPECS = [
    (lambda s: s.update(model=[1]), UNKNOWN_FORM),
    (lambda s: s.update(model={**s["model"], "vocab": [1]}), UNKNOWN_FORM),
    (lambda s: s.update(added_tokens=[5]), UNKNOWN_FORM),
    (lambda s: s.update(added_tokens=[{"content": "x"}]), UNKNOWN_FORM),
    (
        lambda s: s["added_tokens"].append({"content": "", "id": 512}),
        "id 512 is an added token without text",
    ),
    (
        lambda s: s["added_tokens"].append({"content": "\ud83d", "id": 512}),
        "not Unicode text (surrogates not allowed)",
    ),
    (lambda s: s["added_tokens"].append({"content": "x", "id": 512.0}), f"'x' has id 512.0, {IDS}"),
    (lambda s: s["model"].update(merges=[["a"]]), "merge 0: got ['a'], expected two tokens"),
    (lambda s: s["model"].update(merges=[["a", 5]]), "merge 0: got ['a', 5], expected two tokens"),
    (lambda s: s["model"].update(merges=["a b c"]), "merge 0: got 'a b c', expected two tokens"),
    (lambda s: s["model"].update(merges=5), UNKNOWN_FORM),
]


@pytest.mark.parametrize(("change", "words"), SPECS)
def test_a_tokenizer_json(folder, refused, change, words):
    spec = json.loads((folder / "tokenizer.json").read_text())
    change(spec)
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(spec))
    where = folder if words is UNKNOWN_FORM else path
    refused(TokenizerError, f"{where}: {words}", folder, "tokenize")


@pytest.mark.parametrize("table", [{"x": {"content": "a"}}, {"512": {}}, {"512": 5}, [5]])
def test_a_table_of_added_tokens(vocabulary, refused, table):
    edit_json(vocabulary / "tokenizer_config.json", added_tokens_decoder=table)
    words = f"{vocabulary}: {UNKNOWN_FORM}"
    refused(TokenizerError, words, vocabulary, "tokenize")


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_a_tokenizer_that_cuts_words_first(vocabulary, refused, file):
    edit_json(vocabulary / file, tokenizer_class="BertJapaneseTokenizer")
    words = (
        f"{vocabulary / file}: tokenizer_class is 'BertJapaneseTokenizer', which splits text into "
        "words with MeCab: not implemented here. Give ids, not text"
    )
    refused(TokenizerError, words, vocabulary, "tokenize")


@pytest.fixture
def wordpieces(vocabulary):
    """A copy of the tiny checkpoint whose vocabulary is BERT's."""
    pytest.importorskip("tokenizers", reason="the extra 'tokenizers' is not installed")
    for name in vocabulary_files.FILES:
        (vocabulary / name).unlink(missing_ok=True)
    (vocabulary / "vocab.txt").write_text("[PAD]\n[UNK]\nthe\nking\n")
    return vocabulary


UNKNOWN_LACKS = "vocab.txt: has no {}, expected a token for unknown words"
WORDPIECES = {
    "no unknown": ("vocab.txt", b"the\nking\n", "/" + UNKNOWN_LACKS.format("[UNK]")),
    "not UTF-8": (
        "vocab.txt",
        b"[UNK]\n\xff\n",
        "/vocab.txt: not UTF-8 at byte 6, expected a vocabulary. Download again",
    ),
    "another unknown": (
        "special_tokens_map.json", b'{"unk_token": "<?>"}', "/" + UNKNOWN_LACKS.format("<?>")
    ),
    "a hole": ("added_tokens.json", b'{"[A]": 9}', ": '[A]' has id 9, expected 4"),
    "the id of another": ("added_tokens.json", b'{"[A]": 2}', ": '[A]' has id 2, expected 4"),
    "a fraction": (
        "added_tokens.json", b'{"[A]": 4.5}', ": '[A]' has id 4.5, expected an integer"
    ),
    "no text": ("added_tokens.json", b'{"": 4}', ": id 4 is an added token without text"),
    "a list of roles": (
        "special_tokens_map.json",
        b"[]",
        "/special_tokens_map.json: got a JSON list, expected an object. Download again",
    ),
    "a role without text": (
        "special_tokens_map.json",
        b'{"unk_token": {}}',
        ": the tokenizer files have an unknown form (KeyError: 'content'). Download again",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("file", "data", "words"), WORDPIECES.values(), ids=WORDPIECES)
def test_a_vocabulary_of_berts(wordpieces, refused, file, data, words):
    (wordpieces / file).write_bytes(data)
    refused(TokenizerError, f"{wordpieces}{words}", wordpieces, "tokenize")


# ── prompts ──────────────────────────────────────────────────────────────────────────────────────

EMPTY = (
    "prompt: is empty, expected at least one token. For a text without a prompt give "
    "'<|endoftext|>'"
)
LONGER = "prompt: is longer than the context: {} > 128 tokens. Shorten it"
PROMPTS = {
    "empty": ("", EMPTY),
    "no ids": ([], EMPTY),
    "one token too many": ([5] * 129, LONGER.format(129)),
    "a megabyte of a letter": ("z" * 10**6, LONGER.format("1,000,000")),
    "a megabyte of spaces": (" " * 10**6 + "king", LONGER.format("1,000,001")),
    "a megabyte of lines": ("\n" * 10**6 + "king", LONGER.format("1,000,002")),
    "-1": ([262, -1], "prompt: has the id -1, expected 0 to 511"),
    "512": ([512], "prompt: has the id 512, expected 0 to 511"),
    "50257": ([50257], "prompt: has the id 50257, expected 0 to 511"),
    "2^70": ([2**70], "prompt: has the id 1180591620717411303424, expected 0 to 511"),
    "1.5": ([262, 1.5], "prompt: has the id 1.5, expected 0 to 511"),
    "1.0": ([1.0], "prompt: has the id 1.0, expected 0 to 511"),
    "True": ([True], "prompt: has the id True, expected 0 to 511"),
    "text among ids": ([262, None], "prompt: has the id None, expected 0 to 511"),
    "an array of fractions": (
        np.array([1.5]),
        "prompt: has the id np.float64(1.5), expected 0 to 511",
    ),
    "None": (None, "prompt: got None, expected text or ids"),
    "a number": (5, "prompt: got 5, expected text or ids"),
    "bytes": (b"king", "prompt: got b'king', expected text or ids"),
}


@pytest.mark.parametrize(("prompt", "words"), PROMPTS.values(), ids=PROMPTS)
def test_a_prompt(model, prompt, words):
    for call in (model.encode, lambda prompt: list(model.stream(prompt))):

        def refused(call=call):
            with pytest.raises(InputError) as caught:
                call(prompt)
            return str(caught.value)

        assert within(1, refused) == words


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        ([], "prompts: the list is empty, expected at least one prompt"),
        (["KING", ""], EMPTY),
        (["KING", [262, -1]], "prompt: has the id -1, expected 0 to 511"),
        (["KING", 5], "prompt: got 5, expected text or ids"),
        ([262, 1.5], "prompt: has the id 1.5, expected 0 to 511"),
        ([True], "prompt: has the id True, expected 0 to 511"),
        (b"KING", "prompt: got b'KING', expected text or ids"),
        (5, "prompt: got 5, expected text or ids"),
        (None, "prompt: got None, expected text or ids"),
    ],
)
def test_several_prompts(model, prompts, words):
    with pytest.raises(InputError) as caught:
        model.generate(prompts)
    assert str(caught.value) == words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ([1.5, 2], "prompt: has the id 1.5, expected 0 to 511"),
        ([-1, 2], "prompt: has the id -1, expected 0 to 511"),
        ([True, 2], "prompt: has the id True, expected 0 to 511"),
        (None, "prompt: got None, expected text or ids"),
        (5, "prompt: got 5, expected text or ids"),
        (
            [5],
            "text: has 1 token, expected at least two: the first token has no context",
        ),
    ],
)
def test_what_cannot_be_scored(model, text, words):
    with pytest.raises(InputError) as caught:
        model.score(text)
    assert str(caught.value) == words


def test_too_little_to_score(run):
    text = "text: has 0 tokens, expected at least two: the first token has no context"
    assert run("score", "", "--model", TINY) == (3, "", f"npgpt2: error: {text}\n")


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ([[-1]], "input_ids: got -1 at (0, 0), expected 0 to 511"),
        ([[0, 50257]], "input_ids: got 50257 at (0, 1), expected 0 to 511"),
        ([[1.5]], "input_ids: got dtype float64, expected integers"),
        ([[True]], "input_ids: got dtype bool, expected integers"),
        ([[2**70]], "input_ids: got dtype object, expected integers"),
        ([1, 2], "input_ids: got shape (2,), expected (B, T). For one text pass [ids]"),
        (
            "O Romeo",
            "input_ids: got text, expected ids. Encode it first: [model.encode(text)]",
        ),
        ([[]], "input_ids: got shape (1, 0), expected (B, T)"),
        ([[5] * 129], "input_ids: are longer than the context: 129 > 128 tokens"),
    ],
)
def test_ids_of_a_forward_pass(model, ids, words):
    with pytest.raises(InputError) as caught:
        model(ids)
    assert str(caught.value) == words


def test_a_full_context_writes_one_token(model):
    """1,024 tokens of 1,024 are no error: the token after them can be told."""
    (text,) = model.generate([5] * 128, temperature=0)
    assert (len(text.ids), text.finish_reason) == (1, "context")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a\ud83d", "text: a lone surrogate (U+D83D) at character 1, expected Unicode"),
        ("\udcff", "text: a lone surrogate (U+DCFF) at character 0, expected Unicode"),
        ("é\ude00\ud83d", "text: a lone surrogate (U+DE00) at character 1, expected Unicode"),
    ],
)
def test_a_lone_surrogate(model, text, words):
    for call in (model.encode, model.generate, model.score):
        with pytest.raises(TokenizerError) as caught:
            call(text)
        assert str(caught.value) == words


TEXTS = {
    "NUL": "a\0b",
    "right to left": "\u202bשלום עולם\u202c مرحبا",
    "a joined emoji": "👩\u200d👩\u200d👧\u200d👦🏳️\u200d🌈",
    "marks": "e\u0301\u0323 n\u0303",
    "noncharacters": "\ufffe\uffff\U0010ffff",
    "controls": "\x1b[2J\x7f\x85",
    "all white space": " \t\r\n\x0b\x0c\x85\xa0\u1680\u2028\u2029\u202f\u3000 x",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_strange_text(run, text, monkeypatch):
    """Text in, the same bytes out; a NUL cannot be in an argument, but in standard input."""
    tokenizer = load_tokenizer(TINY)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    give(monkeypatch, text.encode())
    code, out, err = run("tokenize", "-", "--model", TINY, "--json")
    assert (code, err) == (0, "")
    assert bytes.fromhex(" ".join(json.loads(out)["bytes"])) == text.encode()


def give(monkeypatch, data):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))


@pytest.mark.parametrize("space", " \n\x85\u3000")
def test_a_megabyte_of_white_space(space):
    """GPT-2's pattern cuts it before its last space, however long it is."""
    encode = load_tokenizer(TINY).encode
    for length in (50, 10**6):
        ids = encode("a" + space * length + "king!" + space)
        assert ids == [*encode("a" + space * (length - 1)), *encode(space + "king!" + space)]


def test_end_of_text_as_text(run):
    text = "a<|endoftext|>"
    assert json.loads(run("tokenize", text, "--model", TINY, "--json")[1])["ids"] == [65, 0]
    plain = json.loads(run("tokenize", text, "--model", TINY, "--json", "--plain")[1])["ids"]
    assert len(plain) > 2
    assert 0 not in plain


@pytest.mark.parametrize("command", ["tokenize", "generate", "score"])
def test_standard_input_that_is_not_utf8(run, monkeypatch, command):
    give(monkeypatch, b"seventeen letters\xff and more")
    text = "standard input: not UTF-8 at byte 17, expected text. Convert it first (iconv)"
    assert run(command, "-", "--model", TINY) == (3, "", f"npgpt2: error: {text}\n")


def test_a_text_file_that_is_not_utf8(run, tmp_path):
    path = tmp_path / "book.txt"
    path.write_bytes(b"caf\xe9")
    code, out, err = run("score", path, "--model", TINY)
    assert (code, out) == (3, "")
    text = f"{path}: not UTF-8 at byte 3, expected text. Convert it first (iconv)"
    assert err == f"npgpt2: reading the file {path}\nnpgpt2: error: {text}\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ab\udcff", "not UTF-8 at byte 2, expected text. Convert it first (iconv)"),
        ("ab\ud83d", "a lone surrogate at character 2, expected text"),
    ],
)
@pytest.mark.parametrize(
    ("command", "name"), [("tokenize", "TEXT"), ("score", "TEXT"), ("generate", "PROMPT")]
)
def test_an_argument_that_is_not_text(run, command, name, text, words):
    """Bytes that are not UTF-8 come as lone surrogates U+DC80 … U+DCFF."""
    answer = run(command, text, "--model", TINY)
    assert answer == (3, "", f"npgpt2: error: {name}: {words}\n")


@pytest.mark.parametrize("length", [300, 5000])
def test_a_text_too_long_for_a_name(run, length):
    """`score` asks first whether its argument is a file."""
    code, out, _ = run("score", "ab" * (length // 2), "--model", TINY, "--json", "--stride", 128)
    assert code == 0
    assert json.loads(out)["tokens"] > length // 8


def test_a_megabyte_on_the_command_line(run):
    answer = within(1, lambda: run("generate", "z" * 10**6, "--model", TINY))
    assert answer == (3, "", f"npgpt2: error: {LONGER.format('1,000,000')}\n")


# ── options ──────────────────────────────────────────────────────────────────────────────────────

WHOLE = INTEGER = "expected an integer from 1"
SEED = "expected an integer from 0 to 18446744073709551615"
NAN, INFINITY = float("nan"), float("inf")
# The values of an option, and what was expected.
OPTIONS = {
    "max_new_tokens": ([0, -1, 1.5, 1e9, True, "5", None], WHOLE),
    "num_samples": ([0, -1, 4097, 10**9], f"{INTEGER} to 4096"),
    "num_beams": ([0, -1, 4097, 10**9], f"{INTEGER} to 4096"),
    "top_k": ([0, -1, 2.5, True], f"{INTEGER}. Leave it out for no limit"),
    "temperature": (
        [NAN, -1, INFINITY, -INFINITY, "1", None, True, 10**400],
        "expected a number from 0 (greedy) up",
    ),
    "top_p": ([0, 1.5, -0.1, NAN, INFINITY, "0.5"], "expected a number above 0 and up to 1"),
    "min_p": ([0, 1.5, -0.1, NAN, INFINITY, "0.5"], "expected a number above 0 and up to 1"),
    "repetition_penalty": (
        [0, -1, NAN, INFINITY, 1e-320, 1e300],
        "expected a number from 1e-100 to 1e100",
    ),
    "seed": (
        [-1, 2**70, 2**64, 1.5, True, "7"],
        SEED,
    ),
    "stop": (["", ("",), ("a", ""), 5, (5,), None], "expected one or more non-empty strings"),
}
# An option as typed, what the line says.
ARGUMENTS = [
    ("--max-new-tokens", "0", f"got 0, {WHOLE}"),
    ("--max-new-tokens", "-1", f"got -1, {WHOLE}"),
    ("--max-new-tokens", "1e9", "got '1e9', expected an integer. See 'npgpt2 generate --help'"),
    ("--temperature", "nan", "got nan, expected a number from 0 (greedy) up"),
    ("--temperature", "-1", "got -1.0, expected a number from 0 (greedy) up"),
    ("--temperature", "inf", "got inf, expected a number from 0 (greedy) up"),
    ("--temperature", "hot", "got 'hot', expected a number. See 'npgpt2 generate --help'"),
    ("--top-k", "0", f"got 0, {INTEGER}. Leave it out for no limit"),
    ("--top-k", "-1", f"got -1, {INTEGER}. Leave it out for no limit"),
    ("--top-p", "0", "got 0.0, expected a number above 0 and up to 1"),
    ("--top-p", "1.5", "got 1.5, expected a number above 0 and up to 1"),
    ("--min-p", "1.5", "got 1.5, expected a number above 0 and up to 1"),
    ("--seed", "-1", f"got -1, {SEED}"),
    ("--seed", str(2**70), f"got {2**70}, {SEED}"),
    pytest.param(
        "--seed",
        "9" * 5000,
        "got '999…9', expected an integer. See 'npgpt2 generate --help'",
        id="5,000 digits",
    ),
    ("--stop", "", "got [''], expected one or more non-empty strings"),
    ("--repetition-penalty", "0", "got 0.0, expected a number from 1e-100 to 1e100"),
    ("--num-samples", "0", f"got 0, {INTEGER} to 4096"),
    ("--num-beams", "0", f"got 0, {INTEGER} to 4096"),
    (
        "--dtype",
        "float16",
        "got 'float16', expected one of float32, float64. See 'npgpt2 generate --help'",
    ),
]


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option(name):
    values, words = OPTIONS[name]
    for value in values:
        with pytest.raises(OptionError) as caught:
            GenerationOptions(**{name: value})
        assert str(caught.value) == f"{name}: got {value!r}, {words}"


@pytest.mark.parametrize(("flag", "value", "words"), ARGUMENTS)
def test_an_option_on_the_command_line(run, flag, value, words):
    """Before a model is looked for: it may take minutes to load."""
    code, out, err = run("generate", "text", "--model", "/none", flag, value)
    assert (code, out) == (2, "")
    assert says(f"npgpt2: error: {flag}: {words}\n", err)
    assert err.count("\n") == 1


COMMAND_LINES = {
    "nothing": ([], 2, "the following arguments are required: COMMAND. See 'npgpt2 --help'"),
    "no such command": (
        ["write"],
        2,
        "COMMAND: got 'write', expected one of …. See 'npgpt2 --help'",
    ),
    "no text": (
        ["tokenize"],
        2,
        "the following arguments are required: TEXT|FILE. See 'npgpt2 tokenize --help'",
    ),
    "no such option": (
        ["info", "--a\nb"],
        2,
        "unrecognized arguments: --a\\nb. See 'npgpt2 info --help'",
    ),
    "a text without quotes": (
        ["tokenize", "O", "Romeo"],
        2,
        "unrecognized arguments: Romeo: give one text, in quotes. See 'npgpt2 tokenize --help'",
    ),
    "an empty model": (["tokenize", "a", "--model", ""], 4, f"'': {NO_FOLDER}"),
    "two things": (
        ["inspect", "wte", "--prompt", "a"],
        2,
        "--prompt: got TENSOR as well, expected one of the two",
    ),
    "no name": (
        ["inspect", "a b", "--model", TINY],
        2,
        "TENSOR: got 'a b', expected a name such as wte.weight[:5]",
    ),
    "no slice": (
        ["inspect", "wpe.weight[0:9:0]", "--model", TINY],
        2,
        "TENSOR: got the slice [0:9:0] for shape (128, 64): slice step cannot be zero",
    ),
    "no index": (
        ["inspect", "wpe.weight[512]", "--model", TINY],
        2,
        "TENSOR: got the slice [512] for shape (128, 64): index 512 is out of bounds for axis 0 "
        "with size 128",
    ),
    "no such tensor": (
        ["inspect", "h.0.wte", "--model", TINY],
        3,
        "h.0.wte: no parameter 'h.0.wte' in the checkpoint. 'npgpt2 inspect' lists all names",
    ),
    "stride": (
        ["score", "a b c", "--stride", "0", "--model", TINY],
        2,
        "--stride: got 0, expected an integer from 1 to 128",
    ),
    "empty prompt": (["generate", "", "--model", TINY], 3, EMPTY),
}


@pytest.mark.parametrize(("argv", "code", "words"), COMMAND_LINES.values(), ids=COMMAND_LINES)
def test_a_command_line(run, monkeypatch, argv, code, words):
    monkeypatch.delenv("NPGPT2_MODEL", raising=False)
    got, out, err = run(*argv)
    assert (got, out) == (code, "")
    assert says(f"npgpt2: error: {words}\n", err)
    assert err.count("\n") == 1


def test_a_billion_new_tokens(model):
    """The context ends them, and nothing is set aside for them."""
    (text,) = model.generate("KING", max_new_tokens=10**9, seed=1)
    assert text.finish_reason in ("context", "eos")


def test_the_smallest_temperature_is_greedy(model):
    cold, greedy = (
        model.generate("KING", temperature=t, seed=1, max_new_tokens=20, top_p=None)
        for t in (1e-320, 0)
    )
    assert cold == greedy


def test_a_dtype_that_is_not_computed_in():
    with pytest.raises(OptionError, match="dtype: got 'float16', expected 'float32' or 'float64'"):
        GPT2.from_pretrained(TINY, "float16")


# ── the family of exceptions ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (ConfigError, ValueError),
        (CheckpointError, ValueError),
        (TensorNotFound, KeyError),
        (TokenizerError, ValueError),
        (InputError, ValueError),
        (OptionError, ValueError),
        (FileError, OSError),
        (errors.MissingPackage, ImportError),
    ],
)
def test_each_is_also_what_a_caller_would_expect(error, builtin):
    assert issubclass(error, errors.NpGPT2Error)
    assert issubclass(error, builtin)


def test_the_text_of_a_key_error_is_not_quoted():
    assert str(TensorNotFound("h.9: no such tensor")) == "h.9: no such tensor"


# ── the process: tracebacks, pipes, signals ──────────────────────────────────────────────────────

NPGPT2 = [sys.executable, "-m", "npgpt2"]
PIPE = subprocess.PIPE


def start(*argv):
    return subprocess.Popen([*NPGPT2, *argv], stdin=PIPE, stdout=PIPE, stderr=PIPE)


def test_debug_shows_the_traceback(run):
    code, out, err = run("tokenize", "a", "--model", "/none/such", "--debug")
    lines = err.splitlines()
    assert (code, out) == (4, "")
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1] == f"npgpt2: error: /none/such: {NO_FOLDER}"


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (RuntimeError("a\nb"), 3, "RuntimeError: a\\nb. This is a bug: run again with --debug"),
        (MemoryError("Unable to allocate"), 4, "memory: not enough (Unable to allocate)"),
        (OSError(5, "Input/output error", "/a"), 4, "/a: Input/output error"),
        (OptionError("top_k", "x" * 10**6), 2, "--top-k: xxx"),
    ],
)
def test_other_errors(run, monkeypatch, error, code, words):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("npgpt2.cli.tokenize.model_folder", fail)
    got, out, err = run("tokenize", "a")
    assert (got, out) == (code, "")
    assert err.startswith(f"npgpt2: error: {words}")
    assert err.count("\n") == 1
    assert len(err) < 3000


def test_bytes_that_are_not_text_from_a_shell():
    done = subprocess.run([*NPGPT2, "tokenize", b"ab\xff", "--model", TINY], capture_output=True)
    text = b"TEXT: not UTF-8 at byte 2, expected text. Convert it first (iconv)"
    assert (done.returncode, done.stdout) == (3, b"")
    assert done.stderr == b"npgpt2: error: " + text + b"\n"


def test_a_reader_that_goes():
    """`| head -1`: a megabyte of lines, of which one is read."""
    with start("tokenize", "-", "--model", TINY) as process:
        process.stdin.write(b"a b " * 50_000)
        process.stdin.close()
        assert process.stdout.readline() == b" 65  a   61\n"
        process.stdout.close()
        assert process.wait() == 0
        assert process.stderr.read() == b""


def test_a_reader_that_goes_before_the_first_letter():
    with start("generate", "-", "--model", TINY) as process:
        process.stdout.close()
        process.stdin.write(b"KING")
        process.stdin.close()
        assert process.wait() == 0
        assert process.stderr.read() == b""


def test_a_reader_of_errors_that_goes():
    """`2>&1 | head -0`: the exit code stays."""
    with start("tokenize", "-", "--model", "/none/such") as process:
        process.stderr.close()
        process.stdin.close()
        assert process.wait() == 4


def waits_for_more(process):
    """All of its standard input is read, and it sleeps until there is more.

    A signal a moment earlier is heard at the next byte: Python looks for one before it waits.
    """
    left = fcntl.ioctl(process.stdin, termios.FIONREAD, bytes(4))
    state = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]
    return left == bytes(4) and state == "S"


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux whether a process waits")
def test_control_c():
    """While it reads: 300 kB fill no pipe, so the reading has begun when they are written."""
    with start("tokenize", "-", "--model", TINY) as process:
        process.stdin.write(b"a" * 300_000)
        process.stdin.flush()
        until(lambda: waits_for_more(process))
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130
        assert process.stdout.read() == b""
        assert process.stderr.read() == b"\n"


CLOSED = {
    "0<&-": (4, "npgpt2: error: standard input: is closed, expected text\n"),
    "1>&-": (4, "npgpt2: error: standard output: is closed, expected a file, pipe or terminal\n"),
    "2>&-": (0, ""),
}


@pytest.mark.parametrize(("closed", "answer"), CLOSED.items(), ids=CLOSED)
def test_a_stream_that_is_closed(closed, answer):
    argv = ["sh", "-c", f'exec "$@" {closed}', "sh", *NPGPT2, "tokenize", "-", "--model", TINY]
    done = subprocess.run(argv, input=b"the king", capture_output=True)
    assert (done.returncode, done.stderr.decode()) == answer
    assert done.stdout.decode().count("\n") == (5 if done.returncode == 0 else 0)


@pytest.mark.parametrize("command", ["tokenize", "generate"])
def test_a_disk_that_is_full(tmp_path, command):
    """As a limit on the size of files."""

    argv = ["sh", "-c", 'ulimit -f 0; exec "$@"', "sh", *NPGPT2, command, "KING", "--model", TINY]
    with (tmp_path / "out.txt").open("wb") as out:
        done = subprocess.run(argv, stdout=out, stderr=PIPE, env=uncovered())
    assert (done.returncode, done.stderr) == (4, b"npgpt2: error: system: File too large\n")
