"""Checkpoints in other people's formats: the same numbers, and nothing that a bad file can do."""

import json
import os
import pickle
import shutil
import struct
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from cases import FROM_TENSORFLOW, formula_tensors
from command_line import runner
from foreign_files import (
    Call,
    Global,
    Reference,
    openai_names,
    pickled,
    state,
    storage_of,
    tensor_of,
    tensorflow,
    torch_stream,
    torch_zip,
)
from refusals import cheaply, says
from safetensors.numpy import load_file

from npgpt2 import GPT2, cli
from npgpt2.base.errors import CheckpointError, ConfigError, FileError
from npgpt2.checkpoints.checkpoint import Checkpoint
from npgpt2.checkpoints.formats.find import find
from npgpt2.checkpoints.formats.tensors import Files
from npgpt2.golden.llmc import write_llmc
from npgpt2.model.params import named_parameters
from npgpt2_onnx import export

TINY = Path(__file__).parents[1] / "data" / "tiny"
BIN, DATA = "pytorch_model.bin", "model.ckpt.data-00000-of-00001"
HPARAMS = {"n_vocab": 512, "n_ctx": 128, "n_embd": 64, "n_head": 4, "n_layer": 3}


@pytest.fixture(scope="module")
def arrays():
    """The tiny checkpoint's tensors, named as transformers does."""
    return load_file(TINY / "model.safetensors")


@pytest.fixture
def folder(tmp_path):
    """The tiny checkpoint's folder without weights."""
    copy = tmp_path / "model"
    shutil.copytree(TINY, copy)
    (copy / "model.safetensors").unlink()
    return copy


@pytest.fixture
def refused(capsys, tmp_path):
    """A function: what lies at a path is refused with just these words: in Python at once, by the
    commands in one line, and nothing is written."""
    run = runner(capsys)

    def refuse(error, words, path):
        text = str(cheaply(error, lambda: Checkpoint.open(path).read()))
        assert says(words, text), text
        code, line = 4 if error is FileError else 3, cli.one_line(text)
        answer = code, "", f"npgpt2: error: {line}\n"
        assert run("convert", path, "-o", tmp_path / "out") == answer
        assert not (tmp_path / "out").exists()
        if path.is_dir():
            assert run("generate", "KING", "--model", path) == answer
        code, out, err = run("check", path)
        assert (code, err) == (1, "")
        assert f"fault       {line}" in out.splitlines()

    return refuse


def same(path, model, kind, exact=True):
    """Whether what lies there is the tiny model, to the bit."""
    checkpoint = Checkpoint.open(path)
    assert checkpoint.kind == kind
    for mmap in (True, False):
        found = dict(named_parameters(checkpoint.read(mmap=mmap)))
        for name, array in named_parameters(model.params):
            assert found[name].dtype == np.float32
            np.testing.assert_array_equal(found[name], array)
    for name, array in named_parameters(model.params):
        pieces = list(checkpoint.pieces(name, 1000))
        assert max(map(len, pieces)) <= 1000
        np.testing.assert_array_equal(np.concatenate(pieces), array.reshape(-1))
    return checkpoint


# ── PyTorch ──────────────────────────────────────────────────────────────────────────────────────

WRITERS = {"zip": torch_zip, "stream": torch_stream}


@pytest.fixture(params=WRITERS)
def write(request):
    return WRITERS[request.param]


def test_a_state_dictionary_is_the_model(folder, model, arrays, write):
    (folder / BIN).write_bytes(write(*state(arrays)))
    same(folder, model, "PyTorch")


def test_it_writes_the_same_text(folder, model, arrays, write):
    (folder / BIN).write_bytes(write(*state(arrays)))
    options = {"max_new_tokens": 20, "temperature": 0}
    got = GPT2.from_pretrained(folder).generate("O Romeo, ", **options)[0].text
    assert got == model.generate("O Romeo, ", **options)[0].text


def test_buffers_a_stored_head_and_ordered_dictionaries(folder, model, arrays, write):
    bare = {name.removeprefix("transformer."): array for name, array in arrays.items()}
    bare["h.0.attn.bias"] = np.tri(128, dtype="u1").reshape(1, 1, 128, 128)
    bare["h.0.attn.masked_bias"] = np.array(-1e4, "f4")
    table, storages = state(bare)
    table["lm_head.weight"] = table["wte.weight"]  # one storage, two names
    (folder / BIN).write_bytes(write(table, storages))
    assert same(folder, model, "PyTorch").config.tie_word_embeddings


def test_views_of_one_storage_and_strides(folder, model, arrays, write):
    """All in one flat storage, linear weights transposed in it."""
    flat, table, at = [], {}, 0
    for name, array in arrays.items():
        turned = ".c_" in name and array.ndim == 2
        flat.append((array.T if turned else array).reshape(-1))
        table[name] = (at, array.shape, (1, array.shape[0]) if turned else None)
        at += array.size
    whole = np.concatenate(flat)
    tensors = {
        name: tensor_of("0", whole, offset, shape, strides)
        for name, (offset, shape, strides) in table.items()
    }
    (folder / BIN).write_bytes(write(tensors, {"0": whole}))
    same(folder, model, "PyTorch")


@pytest.mark.parametrize("dtype", ["f2", "f8", "bf16"])
def test_other_dtypes(folder, arrays, write, dtype):
    if dtype == "bf16":
        kept = {name: array.astype(ml_dtypes.bfloat16).view("u2") for name, array in arrays.items()}
        want = {n: (a.astype("u4") << 16).view("f4") for n, a in kept.items()}
    else:
        kept = {name: array.astype(dtype) for name, array in arrays.items()}
        want = {name: array.astype("f4") for name, array in kept.items()}
    (folder / BIN).write_bytes(write(*state(kept)))
    found = dict(named_parameters(Checkpoint.open(folder).read()))
    for name, array in want.items():
        np.testing.assert_array_equal(found[name.removeprefix("transformer.")], array)


ONE, TWO = (f"pytorch_model-0000{n}-of-00002.bin" for n in (1, 2))


@pytest.fixture
def shards(folder, arrays):
    """The tiny checkpoint in two shards; the table of their index."""
    where, names = {}, list(arrays)
    for file, part in ((ONE, names[:10]), (TWO, names[10:])):
        (folder / file).write_bytes(torch_zip(*state({name: arrays[name] for name in part})))
        where |= dict.fromkeys(part, file)
    (folder / f"{BIN}.index.json").write_text(json.dumps({"weight_map": where}))
    return where


def test_shards(folder, model, shards):
    same(folder, model, "PyTorch in shards")


def test_a_shard_is_missing(folder, shards, refused):
    (folder / TWO).unlink()
    words = f"no such file, but {BIN}.index.json names it. Download it"
    refused(FileError, f"{folder / TWO}: {words}", folder)


SAME = "expected a file in the same folder"
X_OF = "transformer.h.0.ln_1.bias"  # in the first shard
INDEXES = {  # the index's table is changed → the words
    "leaves the folder": ({X_OF: "../x"}, f"names the shard '../x', {SAME}"),
    "a root": ({X_OF: "/etc/passwd"}, f"names the shard '/etc/passwd', {SAME}"),
    "in the other shard": ({X_OF: TWO}, f"disagrees with {ONE} about h.0.ln_1.bias"),
    "in none": ({"more": ONE}, f"disagrees with {ONE} about more"),
    "a number": ({X_OF: 5}, "weight_map is not an object of tensor → file"),
}


@pytest.mark.parametrize(("changes", "words"), INDEXES.values(), ids=INDEXES)
def test_an_index(folder, shards, refused, changes, words):
    index = folder / f"{BIN}.index.json"
    index.write_text(json.dumps({"weight_map": {**shards, **changes}}))
    refused(CheckpointError, f"{index}: {words}", folder)


RAN = []


class Bomb:
    def __reduce__(self):
        return RAN.append, (1,)


X = np.arange(12, dtype="f4")
SYSTEM = Call(Global("posix", "system"), ("true",))
RUN = ": expected tensors. It was not executed"
NONE = "has no named tensors, expected a state dictionary"
BAD = {  # → what the pickle holds, and the words
    "a command": (SYSTEM, f"refused global posix.system{RUN}"),
    "a command among tensors": (
        {"a": tensor_of("0", X), "b": SYSTEM},
        f"refused global posix.system{RUN}",
    ),
    "eval": (Call(Global("builtins", "eval"), ("1",)), f"refused global builtins.eval{RUN}"),
    "a class of torch's": (
        Global("torch.nn.modules.linear", "Linear"),
        f"refused global torch.nn.modules.linear.Linear{RUN}",
    ),
    "a dotted name": (
        Global("torch", "FloatStorage.from_file"),
        f"refused global torch.FloatStorage.from_file{RUN}",
    ),
    "a call of a storage": (
        Call(Global("torch", "FloatStorage"), (9,)),
        f"refused a call of torch.FloatStorage{RUN}",
    ),
    "a reference": (Reference(("module", 1)), f"has a reference that is not a storage{RUN}"),
    "a storage of objects": (
        Reference(("storage", Global("torch", "Size"), "0", "cpu", 1)),
        f"has a storage of 'torch.Size', '0', 1 values{RUN}",
    ),
    "a negative count": (
        {"a": tensor_of("0", X, count=-1)},
        f"has a storage of 'torch.FloatStorage', '0', -1 values{RUN}",
    ),
    "beyond": (
        {"a": tensor_of("0", X, offset=1)},
        "has a tensor that reaches value 12 of a storage of 12. Download again",
    ),
    "far beyond": (
        {"a": tensor_of("0", X, 0, (2, 2), (2**62, 1))},
        "has a tensor that reaches value 4,611,686,018,427,387,905 of a storage of 12. "
        "Download again",
    ),
    "a negative stride": (
        {"a": tensor_of("0", X, 11, (12,), (-1,))},
        "has a tensor at 11 of shape (12,), strides (-1,). Download again",
    ),
    "a negative offset": (
        {"a": tensor_of("0", X, -4)},
        "has a tensor at -4 of shape (12,), strides (1,). Download again",
    ),
    "a negative shape": (
        {"a": tensor_of("0", X, 0, (-1,), (1,))},
        "has a tensor at 0 of shape (-1,), strides (1,). Download again",
    ),
    "a number seen often": (
        {"a": tensor_of("0", X, 0, (1 << 40,), (0,))},
        "has a tensor of shape (1099511627776,) over 12 values. Download again",
    ),
    "65 axes": (
        {"a": tensor_of("0", X, 0, (1,) * 65, (1,) * 65)},
        "has a tensor of 65 axes. Download again",
    ),
    "strides missing": (
        {"a": tensor_of("0", X, 0, (12,), ())},
        "has a tensor at 0 of shape (12,), strides (). Download again",
    ),
    "no dictionary": ([1, 2], NONE),
    "nothing": ({}, NONE),
    "a text for a tensor": ({"a": "b"}, "'a' is of type str, expected a tensor"),
    "a number for a name": ({1: tensor_of("0", X)}, "a tensor has the name 1, expected text"),
    "a tensor for a name": ({tensor_of("0", X): 1}, f"has a key of type Tensor{RUN}"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_no_tensor_needs_is_refused_by_name(folder, refused, write, case):
    contents, words = BAD[case]
    storages = {"0": X} if "Reference" in repr(contents) else {}
    (folder / BIN).write_bytes(write(contents, storages))
    refused(CheckpointError, f"{folder / BIN}: {words}", folder)


DAMAGED = "is not a file of torch.save, or is damaged ({}). Download again"
PICKLES = {  # bytes → the words
    "a bomb": (pickle.dumps(Bomb(), 2), f"refused global __builtin__.getattr{RUN}"),
    "a bomb of protocol 4": (pickle.dumps(Bomb(), 4), f"refused global builtins.getattr{RUN}"),
    "an object": (pickle.dumps(Path("x"), 2), f"refused global pathlib…{RUN}"),
    "empty": (b"", DAMAGED.format("pickle exhausted before seeing STOP")),
    "no end": (b"\x80\x02}", DAMAGED.format("pickle exhausted before seeing STOP")),
    "an opcode that is none": (
        b"\x80\x02\xff.",
        DAMAGED.format("at position 2, opcode b'\\xff' unknown"),
    ),
    "nothing on the stack": (b"\x80\x02.", DAMAGED.format("missing stack or memo entry")),
    "a memo that is not there": (b"\x80\x02h\x05.", DAMAGED.format("missing stack or memo entry")),
    "no mark": (b"\x80\x02t.", DAMAGED.format("missing stack or memo entry")),
    "items of a list": (
        b"\x80\x02](K\x01K\x02u.",
        DAMAGED.format("items of an object that is not a dictionary"),
    ),
    "an append to a dictionary": (
        b"\x80\x02}K\x01a.",
        DAMAGED.format("an append to an object that is not a list"),
    ),
    "a text longer than the file": (
        b"\x80\x02X\xff\xff\xff\x7fabc.",
        DAMAGED.format("expected 2147483647 bytes in a unicodestring4, but only 4 remain"),
    ),
    "bytes of 2 to the 63": (b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7fabc.", DAMAGED.format("…")),
    "an instance": (b"\x80\x02(iposix\nsystem\n.", f"refused opcode INST{RUN}"),
    "an object by opcode": (b"\x80\x02c__main__\nA\n)\x81.", f"refused global __main__.A{RUN}"),
    "a registered extension": (b"\x80\x02\x82\x01.", f"refused opcode EXT1{RUN}"),
    "a persistent id as text": (b"\x80\x02Px\n.", f"refused opcode PERSID{RUN}"),
    "a set": (b"\x80\x04\x8f.", f"refused opcode EMPTY_SET{RUN}"),
    "a buffer": (b"\x80\x05\x97.", f"refused opcode NEXT_BUFFER{RUN}"),
    "a million steps": (b"\x80\x02" + b"N0" * 500_000 + b".", f"refused opcode POP{RUN}"),
    "a million nulls": (
        b"\x80\x02" + b"N" * 1_000_000 + b".",
        f"is a pickle of more than 200,000 steps{RUN}",
    ),
    "a list in itself": (b"\x80\x02]q\x00h\x00a.", NONE),
    "a dictionary in itself": (
        b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.",
        "'a' is of type dict, expected a tensor",
    ),
}


@pytest.mark.parametrize("case", PICKLES)
def test_pickles_are_never_run(folder, refused, case):
    data, words = PICKLES[case]
    with zipfile.ZipFile(folder / BIN, "w") as archive:
        archive.writestr("archive/data.pkl", data)
    refused(CheckpointError, f"{folder / BIN}: {words}", folder)
    (folder / BIN).write_bytes(data)  # and as a stream, of which it is the first pickle
    with pytest.raises(CheckpointError):
        Checkpoint.open(folder)
    assert RAN == []


def test_deep_nesting_is_no_crash(folder, refused):
    deep = b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b"."
    with zipfile.ZipFile(folder / BIN, "w") as archive:
        archive.writestr("archive/data.pkl", deep)
    refused(CheckpointError, f"{folder / BIN}: {NONE}", folder)


BIG_ENDIAN = "is big-endian, expected little-endian"
ARCHIVES = {  # how an archive is written → the words
    "compressed": (
        {"compress": zipfile.ZIP_DEFLATED},
        "archive/byteorder is compressed or encrypted, expected plain bytes",
    ),
    "big-endian": ({"order": "big"}, BIG_ENDIAN),
}


@pytest.mark.parametrize("case", ARCHIVES)
def test_archives_that_torch_save_does_not_write(folder, refused, arrays, case):
    options, words = ARCHIVES[case]
    (folder / BIN).write_bytes(torch_zip(*state(arrays), **options))
    refused(CheckpointError, f"{folder / BIN}: {words}", folder)


def test_a_stream_of_a_big_endian_machine(folder, refused, arrays):
    (folder / BIN).write_bytes(torch_stream(*state(arrays), little=False))
    refused(CheckpointError, f"{folder / BIN}: {BIG_ENDIAN}", folder)


@pytest.mark.slow
def test_every_truncation_is_an_error(folder, write):
    """Of a small file, at every byte."""
    table, storages = state({"a": X, "b": X.reshape(3, 4)})
    data = write(table, storages)
    for end in range(len(data)):
        (folder / BIN).write_bytes(data[:end])
        with pytest.raises(CheckpointError):
            Checkpoint.open(folder)


def test_a_storage_that_is_not_there_or_too_short(folder, refused):
    table, _storages = state({"a": X})
    for data, words in (
        (torch_zip(table, {}), "has no archive/data/0, which a tensor needs. Download again"),
        (torch_zip(table, {"0": X[:5]}), "storage 0 has 20 of 48 bytes. Download again"),
        (torch_stream(table, {"0": X[:5]}), "has 20 of 48 bytes of storage 0. Download again"),
    ):
        (folder / BIN).write_bytes(data)
        refused(CheckpointError, f"{folder / BIN}: {words}", folder)


def test_a_name_twice_and_no_pickle(folder, refused):
    with zipfile.ZipFile(folder / BIN, "w") as archive:
        archive.writestr("archive/version", "3")
    words = "expected one of torch.save. Save it again"
    refused(CheckpointError, f"{folder / BIN}: is an archive without data.pkl, {words}", folder)
    with zipfile.ZipFile(folder / BIN, "w") as archive:
        archive.writestr("archive/data.pkl", pickled({}))
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("archive/data.pkl", pickled({"a": 1}))
    refused(CheckpointError, f"{folder / BIN}: is an archive with a name twice, {words}", folder)


@pytest.mark.parametrize("entry", ["data.pkl", "byteorder", "data/0"])
def test_an_entry_that_is_encrypted(folder, refused, entry):
    data = bytearray(torch_zip(*state({"a": X})))
    at = data.rfind(f"archive/{entry}".encode())  # in the directory: its flags lie before it
    data[at - 46 + 8] |= 1
    (folder / BIN).write_bytes(data)
    words = f"archive/{entry} is compressed or encrypted, expected plain bytes"
    refused(CheckpointError, f"{folder / BIN}: {words}", folder)


DIRECTORY = "is an archive with a directory of {} bytes, expected a few thousand. Download again"


def test_an_archive_with_long_numbers(folder, refused):
    data = torch_zip(*state({"a": X}))
    end = data.rfind(b"PK\x05\x06")
    record = b"PK\x06\x06" + bytes(36) + struct.pack("<QQ", 2**40, 0)
    locator = b"PK\x06\x07" + struct.pack("<IQI", 0, end, 1)
    (folder / BIN).write_bytes(data[:end] + record + locator + data[end:])
    refused(CheckpointError, f"{folder / BIN}: {DIRECTORY.format('1,099,511,627,776')}", folder)


def test_a_storage_that_many_tensors_share_is_no_way_to_grow(folder, write, refused):
    large = np.zeros(20_000, "f4")
    table = {f"h.{n}.x": tensor_of("0", large) for n in range(200)}
    (folder / BIN).write_bytes(write(table, {"0": large}))
    words = "its tensors have 16,000,000 bytes, but the file …"
    refused(CheckpointError, f"{folder / BIN}: {words}", folder)


def test_two_storages_of_one_name(folder, refused):
    table = {"a": tensor_of("0", X), "b": tensor_of("0", X.astype("f8"))}
    (folder / BIN).write_bytes(torch_zip(table, {"0": X.astype("f8")}))
    words = "has two storages named '0'. Download again"
    refused(CheckpointError, f"{folder / BIN}: {words}", folder)


def test_an_archive_whose_directory_claims_much(folder, refused, arrays):
    data = bytearray(torch_zip(*state(arrays)))
    end = data.rfind(b"PK\x05\x06")
    data[end + 12 : end + 16] = struct.pack("<I", 2**31)
    (folder / BIN).write_bytes(data)
    refused(CheckpointError, f"{folder / BIN}: {DIRECTORY.format('2,147,483,648')}", folder)


def test_the_first_of_a_storage_reference_is_kept():
    assert storage_of("0", X).entry[2:] == ("0", "cpu", 12)


# ── TensorFlow ───────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def openai(tmp_path, model):
    """A function: write the tiny model as OpenAI's release has it → the folder."""

    def make(**options):
        folder = tmp_path / "openai"
        folder.mkdir(exist_ok=True)
        named = openai_names(dict(named_parameters(model.params)))
        index, data = tensorflow(named, **options)
        (folder / "model.ckpt.index").write_bytes(index)
        (folder / "model.ckpt.data-00000-of-00001").write_bytes(data)
        (folder / "hparams.json").write_text(json.dumps(HPARAMS))
        return folder

    return make


def test_what_tensorflow_wrote():
    """Tensors, their places and their checksums, of a file that is TensorFlow's own."""
    folder = Path(__file__).parents[1] / "data" / "tensorflow"
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.config == FROM_TENSORFLOW
    found = dict(named_parameters(checkpoint.read()))
    wanted = formula_tensors(FROM_TENSORFLOW)
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array.astype("f4"))
    assert all(info.checksum is not None for info in checkpoint.tensors.values())


@pytest.mark.parametrize("per_block", [1, 7, 1000])
def test_openais_checkpoint_is_the_model(openai, model, per_block):
    checkpoint = same(openai(per_block=per_block), model, "TensorFlow")
    assert checkpoint.config.n_positions == 128


def test_every_byte_of_the_index_matters(openai, model):
    folder = openai()
    index = (folder / "model.ckpt.index").read_bytes()
    r = np.random.default_rng(0)
    for at in r.choice(len(index) - 48, 300, replace=False):
        damaged = bytearray(index)
        damaged[at] ^= 1 << int(r.integers(8))
        (folder / "model.ckpt.index").write_bytes(damaged)
        with pytest.raises(CheckpointError):
            Checkpoint.open(folder)
    for end in (*range(0, len(index), 97), len(index) - 1):
        (folder / "model.ckpt.index").write_bytes(index[:end])
        with pytest.raises(CheckpointError):
            Checkpoint.open(folder)


def test_a_changed_number_is_found_by_its_checksum(openai, refused):
    folder = openai()
    path = folder / "model.ckpt.data-00000-of-00001"
    data = bytearray(path.read_bytes())
    data[12345] ^= 1
    path.write_bytes(data)
    words = "h.0.attn.c_attn.weight: the checksum does not match. Download again"
    refused(CheckpointError, f"{path}: {words}", folder)


def test_a_changed_index_is_found_by_its_checksum(openai, refused):
    path = openai() / "model.ckpt.index"
    data = bytearray(path.read_bytes())
    data[99] ^= 4
    path.write_bytes(data)
    words = "the block at byte 0: the checksum does not match. Download again"
    refused(CheckpointError, f"{path}: {words}", path.parent)


def test_a_compressed_index(openai, refused):
    folder = openai(kind=b"\1")
    words = "damaged index: a block is compressed, expected a plain one. Download again"
    refused(CheckpointError, f"{folder / 'model.ckpt.index'}: {words}", folder)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (DATA, "no such file, but model.ckpt.index names it. Download it"),
        ("hparams.json", "No such file or directory"),
    ],
)
def test_a_missing_part(openai, refused, name, words):
    folder = openai()
    (folder / name).unlink()
    refused(FileError, f"{folder / name}: {words}", folder)


class Short(np.ndarray):
    """An array of which one number is not written."""

    def tobytes(self):
        return super().tobytes()[:-4]


ENTRIES = {  # the first tensor of the index → the words
    "too few bytes": (
        np.ones((128, 64), "f4").view(Short),
        "model/wpe has 32,764 bytes, expected those of shape (128, 64). Download again",
    ),
    "bytes for numbers": (
        np.ones((128, 64), "i1"),
        "damaged index: model/wpe is of a kind that GPT-2 does not have. Download again",
    ),
}


@pytest.mark.parametrize(("array", "words"), ENTRIES.values(), ids=ENTRIES)
def test_an_entry_of_the_index(openai, refused, array, words):
    path = openai() / "model.ckpt.index"
    index, data = tensorflow({"model/wpe": array})
    path.write_bytes(index)
    path.with_name(DATA).write_bytes(data)
    refused(CheckpointError, f"{path}: {words}", path.parent)


@pytest.mark.parametrize("size", [0, 1000, 764_159])
def test_data_that_were_cut_off(openai, refused, size):
    folder = openai()
    os.truncate(folder / DATA, size)
    words = f"has {size:,} of 764,160 bytes. Download again"
    refused(CheckpointError, f"{folder / DATA}: {words}", folder)


WHOLE = "expected an integer from 1 to 2147483647"
TOLD = {  # hparams.json → where, and the words
    "n_head": ({"n_head": 5}, "n_embd: got 64, expected a multiple of n_head (5)"),
    "text": ({"n_vocab": "512"}, f"n_vocab: got '512', {WHOLE}"),
    "true": ({"n_ctx": True}, f"n_ctx: got True, {WHOLE}"),
    "a fraction": ({"n_layer": 12.5}, f"n_layer: got 12.5, {WHOLE}"),
    "null": ({"n_embd": None}, f"n_embd: got None, {WHOLE}"),
    "negative": ({"n_ctx": -1}, f"n_ctx: got -1, {WHOLE}"),
}


@pytest.mark.parametrize(("changes", "words"), TOLD.values(), ids=TOLD)
def test_hparams_that_are_no_gpt2(openai, refused, changes, words):
    path = openai() / "hparams.json"
    path.write_text(json.dumps(HPARAMS | changes))
    refused(ConfigError, f"{path}: {words}", path.parent)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n_layer": 10**9}, "hparams.json has n_layer 1,000,000,000, but the weights have only "
         "40 tensors"),
        ({"n_ctx": 2**31 - 1}, "1 of the wrong shape (wpe.weight is (128, 64), expected "
         "(2147483647, 64)). Expected the tensors of the GPT-2 in hparams.json"),
    ],
)  # fmt: skip
def test_hparams_of_another_model(openai, refused, changes, words):
    folder = openai()
    (folder / "hparams.json").write_text(json.dumps(HPARAMS | changes))
    refused(CheckpointError, f"{folder}: {words}", folder)


# ── nanoGPT, llm.c ───────────────────────────────────────────────────────────────────────────────


def nanogpt_file(arrays, prefix="", bias=True, **arguments):
    """ckpt.pt of the same numbers: linear weights transposed, the head beside wte, an optimizer."""
    named = {}
    for name, array in arrays.items():
        if not bias and name.endswith("bias"):
            continue
        linear = ".c_" in name and array.ndim == 2
        named[prefix + name] = np.ascontiguousarray(array.T) if linear else array
    wte = f"{prefix}transformer.wte.weight"
    table, storages = state(named)
    table[f"{prefix}lm_head.weight"] = table[wte]
    arguments = {"n_layer": 3, "n_head": 4, "n_embd": 64, "block_size": 128, "bias": bias,
                 "vocab_size": len(named[wte]), "dropout": 0.0, **arguments}  # fmt: skip
    contents = {
        "model": table,
        "optimizer": {"state": {0: {"step": 3.0, "exp_avg": table[wte]}}, "param_groups": []},
        "model_args": arguments, "iter_num": 7, "best_val_loss": 2.5,
        "config": {"learning_rate": 6e-4, "dtype": "bfloat16", "compile": True, "none": None},
    }  # fmt: skip
    return torch_zip(contents, storages)


@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_nanogpts_checkpoint_is_the_model(tmp_path, model, arrays, prefix):
    (tmp_path / "ckpt.pt").write_bytes(nanogpt_file(arrays, prefix))
    for path in (tmp_path, tmp_path / "ckpt.pt"):
        checkpoint = same(path, model, "nanoGPT")
        assert checkpoint.config.activation_function == "gelu"
        assert checkpoint.config.tie_word_embeddings


def test_a_bias_of_nanogpts_that_is_missing(tmp_path, arrays):
    """Zeros stand for biases where model_args says that there are none, and nowhere else."""
    without = {name: x for name, x in arrays.items() if not name.endswith("c_attn.bias")}
    (tmp_path / "ckpt.pt").write_bytes(nanogpt_file(without))
    with pytest.raises(CheckpointError, match=r"h\.0\.attn\.c_attn\.bias.* missing, 3 of 40"):
        Checkpoint.open(tmp_path)


def test_nanogpt_without_biases_has_zeros(tmp_path, arrays):
    (tmp_path / "ckpt.pt").write_bytes(nanogpt_file(arrays, bias=False))
    found = dict(named_parameters(Checkpoint.open(tmp_path).read()))
    for name, array in arrays.items():
        got = found[name.removeprefix("transformer.")]
        np.testing.assert_array_equal(got, 0 * array if name.endswith("bias") else array)
    assert (export(tmp_path, tmp_path / "out") / "config.json").exists()  # proved, too


@pytest.fixture
def ckpt(tmp_path):
    folder = tmp_path / "nano"
    folder.mkdir()
    return folder / "ckpt.pt"


ARGUMENTS = {  # of nanoGPT's model_args → the words
    "missing": ({"n_layer": None}, f"n_layer: got None, {WHOLE}"),
    "text": ({"n_layer": "3"}, f"n_layer: got '3', {WHOLE}"),
    "negative": ({"n_head": -4}, f"n_head: got -4, {WHOLE}"),
    "a fraction": ({"block_size": 1.5}, f"block_size: got 1.5, {WHOLE}"),
    "true": ({"block_size": True}, f"block_size: got True, {WHOLE}"),
    "a list": ({"vocab_size": [512]}, "vocab_size: got a list, expected a number"),
    "no multiple": ({"n_embd": 66}, "n_embd: got 66, expected a multiple of n_head (4)"),
    "dropout": ({"dropout": "x"}, "dropout: got 'x', expected a number from 0 to 1"),
}


@pytest.mark.parametrize(("arguments", "words"), ARGUMENTS.values(), ids=ARGUMENTS)
def test_model_args(ckpt, refused, arrays, arguments, words):
    ckpt.write_bytes(nanogpt_file(arrays, **arguments))
    refused(ConfigError, f"{ckpt}: model_args: {words}", ckpt.parent)
    refused(ConfigError, f"{ckpt}: model_args: {words}", ckpt)


def test_model_args_of_another_model(ckpt, refused, arrays):
    ckpt.write_bytes(nanogpt_file(arrays, n_layer=10**9))
    words = "model_args has n_layer 1,000,000,000, but the weights have only 41 tensors"
    refused(CheckpointError, f"{ckpt}: {words}", ckpt.parent)
    ckpt.write_bytes(nanogpt_file(arrays, block_size=64))
    words = "1 of the wrong shape (wpe.weight is (128, 64), expected (64, 64)). Expected the "
    refused(
        CheckpointError, f"{ckpt.parent}: {words}tensors of the GPT-2 in model_args", ckpt.parent
    )


T = tensor_of("0", X)
ARGS = {"n_layer": 3, "n_head": 4, "n_embd": 64, "block_size": 128}
NO_ARGS = (
    "has no model_args, expected a checkpoint of nanoGPT. For a state dictionary with a "
    "config.json, give the folder of both"
)
CONTENTS = {  # what nanoGPT's file holds → the words
    "a state dictionary": ({"wte.weight": T}, NO_ARGS),
    "a list": ([T], NO_ARGS),
    "a tensor": (T, NO_ARGS),
    "no model": ({"model_args": ARGS}, NO_ARGS),
    "arguments in a list": ({"model": {"a": T}, "model_args": [3]}, NO_ARGS),
    "no tensors": ({"model": {}, "model_args": ARGS}, NONE),
    "a list of tensors": ({"model": [T], "model_args": ARGS}, NONE),
    "a number for a tensor": (
        {"model": {"a": 3}, "model_args": ARGS}, "'a' is of type int, expected a tensor",
    ),
    "a tensor twice": (
        {"model": {"wte.weight": T, "_orig_mod.wte.weight": T}, "model_args": ARGS},
        "has wte.weight both with and without 'transformer.'",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("contents", "words"), CONTENTS.values(), ids=CONTENTS)
def test_what_is_none_of_nanogpts(ckpt, refused, contents, words):
    ckpt.write_bytes(torch_zip(contents, {"0": X} if "Reference" in repr(contents) else {}))
    refused(CheckpointError, f"{ckpt}: {words}", ckpt.parent)


def test_a_padded_vocabulary_is_cut_to_gpt2s(tmp_path):
    wte = np.zeros((50_304, 4), "f4")
    wte[50_256:, 0] = [1, *[9] * 47]
    table, storages = state({"transformer.wte.weight": wte})
    arguments = {"n_layer": 1, "n_head": 1, "n_embd": 4, "block_size": 2, "vocab_size": 50_304}
    data = torch_zip({"model": table, "model_args": arguments}, storages)
    (tmp_path / "ckpt.pt").write_bytes(data)
    found = find(tmp_path)
    assert found.config.vocab_size == 50_257
    array = Files(mmap=True).array(found.tensors["wte.weight"], np.dtype("f4"))
    assert array.shape == (50_257, 4)
    assert array[:, 0].sum() == 1


def test_llmcs_checkpoint_is_the_model(tmp_path, model):
    write_llmc(tmp_path / "c", model, batch=1, length=4)
    same(tmp_path / "c" / "gpt2_124M.bin", model, "llm.c")


@pytest.fixture
def llmc(tmp_path, model):
    """llm.c's file of the tiny model: 1,024 bytes of header, then 764,160."""
    write_llmc(tmp_path / "c", model, batch=1, length=4)
    return tmp_path / "c" / "gpt2_124M.bin"


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (4, "has 4 of the 1,024 bytes of the header. Download again"),
        (1023, "has 1023 of the 1,024 bytes of the header. Download again"),
        (1024, "header: 3 layers of width 64 do not fit into 1,024 bytes. Download again"),
        (765_183, "has 765,183 of 765,184 bytes. Download again"),
        (765_185, "has 1 extra bytes at the end. Download again"),
    ],
)
def test_llmcs_file_of_another_length(llmc, refused, size, words):
    os.truncate(llmc, size)
    refused(CheckpointError, f"{llmc}: {words}", llmc)


BYTES = "bytes. Download again"
HEADERS = {  # number of the header's field, its value → the words
    "a debug state": (0, 20240327, "is an llm.c file of kind debug state, expected a "
                      "checkpoint, such as gpt2_124M.bin"),
    "tokens": (0, 20240520, "is an llm.c file of kind tokens, expected a checkpoint, such as "
               "gpt2_124M.bin"),
    "version": (1, 2, "has version 2 of llm.c's format, expected one of 1, 3, 5"),
    "bfloat16 by name": (1, 5, "has 382,080 extra bytes at the end. Download again"),
    "much context": (2, 2**31 - 1, "has 765,184 of 549,756,546,048 bytes. Download again"),
    "much vocabulary": (3, 2**31 - 1, "header: 512 rows of wte for 2,147,483,647 tokens. "
                        "Download again"),
    "many layers": (4, 10**9, "header: 1,000,000,000 layers, expected at most 1,000. "
                    "Download again"),
    "some layers": (4, 1000, f"header: 1,000 layers of width 64 do not fit into 765,184 {BYTES}"),
    "a layer more": (4, 4, "has 765,184 of 965,120 bytes. Download again"),
    "much width": (6, 2**30, "header: 3 layers of width 1,073,741,824 do not fit into "
                   f"765,184 {BYTES}"),
    "few rows": (7, 500, "header: 500 rows of wte for 512 tokens. Download again"),
    "negative rows": (7, -1, "header: -1 rows of wte for 512 tokens. Download again"),
    "many rows": (7, 2**30, "header: 1,073,741,824 rows of wte for 512 tokens. Download again"),
}  # fmt: skip
NUMBERS = {
    "positions": (2, -5, f"n_positions: got -5, {WHOLE}"),
    "vocabulary": (3, 0, f"vocab_size: got 0, {WHOLE}"),
    "layers": (4, -1, f"n_layer: got -1, {WHOLE}"),
    "heads": (5, 5, "n_embd: got 64, expected a multiple of n_head (5)"),
    "width": (6, -64, f"n_embd: got -64, {WHOLE}"),
}


def set_number(path, field, value):
    with path.open("r+b") as file:
        file.seek(4 * field)
        file.write(struct.pack("<i", value))


@pytest.mark.parametrize(("field", "value", "words"), HEADERS.values(), ids=HEADERS)
def test_llmcs_header(llmc, refused, field, value, words):
    set_number(llmc, field, value)
    refused(CheckpointError, f"{llmc}: {words}", llmc)


@pytest.mark.parametrize(("field", "value", "words"), NUMBERS.values(), ids=NUMBERS)
def test_llmcs_numbers(llmc, refused, field, value, words):
    set_number(llmc, field, value)
    refused(ConfigError, f"{llmc}: header: {words}", llmc)


# ── what stands in place of each file ────────────────────────────────────────────────────────────


@pytest.fixture
def place(folder, openai, ckpt, llmc, arrays, shards):
    """A function: the name of a file → its path, and the path of the checkpoint it is part of."""

    def find_it(name):
        if name == llmc.name:
            return llmc, llmc
        if name == ckpt.name:
            ckpt.write_bytes(nanogpt_file(arrays))
            return ckpt, ckpt.parent
        if name == BIN:
            (folder / BIN).write_bytes(torch_zip(*state(arrays)))
        at = openai() if name in OPENAIS else folder
        return at / name, at

    return find_it


OPENAIS = {"model.ckpt.index": "TensorFlow's index", DATA: "the weights", "hparams.json": "JSON"}
EXPECTED = {  # file → what it is expected to be
    **OPENAIS, BIN: "the weights", "ckpt.pt": "the weights", "gpt2_124M.bin": "the weights",
    TWO: "the weights", f"{BIN}.index.json": "JSON",
}  # fmt: skip
IMPOSTORS = {
    "Git LFS": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 548105171\n",
        "is a Git LFS pointer, expected {}. Run 'git lfs pull'",
    ),
    "web page": (
        b"<!DOCTYPE html><html><body>Not Found</body></html>",
        "is a web page, expected {}: the download failed. Download again",
    ),
    "gzip": (b"\x1f\x8b\x08" + bytes(40), "is compressed (gzip), expected {}. Unpack it first"),
}
NOT_FILES = {
    "folder": (Path.mkdir, "is a folder, expected a file"),
    "FIFO": (os.mkfifo, "is not a regular file, expected a file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "is not a regular file, expected a file"),
    "link": (
        lambda path: path.symlink_to("blobs/0a"),
        "is a link to blobs/0a, which is not there. Download again",
    ),
}


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize(("data", "words"), IMPOSTORS.values(), ids=IMPOSTORS)
def test_an_impostor(place, refused, name, data, words):
    path, checkpoint = place(name)
    path.write_bytes(data)
    error = ConfigError if name == "hparams.json" else CheckpointError
    refused(error, f"{path}: {words.format(EXPECTED[name])}", checkpoint)


PLACES = [  # of a folder in place of llm.c's file it is asked what is in it
    (name, kind)
    for name in EXPECTED
    for kind in NOT_FILES
    if name != "gpt2_124M.bin" or kind in ("FIFO", "device")
]


@pytest.mark.parametrize(("name", "kind"), PLACES)
def test_what_is_not_a_file(place, refused, name, kind):
    path, checkpoint = place(name)
    path.unlink()
    make, words = NOT_FILES[kind]
    make(path)
    if name == TWO and kind == "link":
        words = f"no such file, but {BIN}.index.json names it. Download it"
    refused(FileError, f"{path}: {words}", checkpoint)


OTHERS = {  # bytes → the words
    "empty": (b"", "has 0 bytes, expected the weights. Download again"),
    "a text": (b"Entry not found", DAMAGED.format("at position 0, opcode b'E' unknown")),
    "the start of an archive": (
        b"PK\x03\x04" + bytes(40),
        "is a zip archive of 44 bytes without its end: the download was cut off. Download again",
    ),
    "safetensors": (
        (TINY / "model.safetensors").read_bytes(),
        "is a safetensors file, expected one of PyTorch. Rename it to model.safetensors",
    ),
}


@pytest.mark.parametrize("name", [BIN, "ckpt.pt", TWO, "gpt2_124M.bin"])
@pytest.mark.parametrize(("data", "words"), OTHERS.values(), ids=OTHERS)
def test_what_is_not_pytorchs(place, refused, name, data, words):
    path, checkpoint = place(name)
    path.write_bytes(data)
    refused(CheckpointError, f"{path}: {words}", checkpoint)


@pytest.mark.parametrize("name", ["model.ckpt.index", DATA, BIN, "ckpt.pt", TWO, "gpt2_124M.bin"])
def test_what_may_not_be_read(place, refused, monkeypatch, name):
    """By a stand-in for `open`: the superuser, as whom tests may run, may read everything."""
    path, checkpoint = place(name)

    def forbid(self, *args, **options):
        if self.name == name:
            raise PermissionError(13, "Permission denied", str(self))
        return open(self, *args, **options)

    monkeypatch.setattr(Path, "open", forbid)
    refused(FileError, f"{path}: Permission denied", checkpoint)


@pytest.mark.parametrize("name", [DATA, BIN, "ckpt.pt", "gpt2_124M.bin"])
@pytest.mark.parametrize("mmap", [True, False])
def test_what_shrinks_while_it_is_read(place, name, mmap):
    path, folder = place(name)
    checkpoint = Checkpoint.open(folder)
    os.truncate(path, 5000)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.read(mmap=mmap)
    words = f"{path}: has become shorter while it was read: …5,000 of … bytes. Download again"
    assert says(words if mmap else words.replace("5,000", ""), str(caught.value))


# ── every number of 16 bits ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_all_values(tmp_path, dtype):
    """All 65,536 through every reader but safetensors' (`test_bad_input`); llm.c has no float16."""
    bits = np.arange(1 << 16, dtype="<u2").reshape(1024, 64)
    wide, array = (bits.astype("<u4") << 16).view("<f4"), bits
    if dtype == "float16":
        array = bits.view("<f2")
        wide = array.astype("<f4")
    table, storages = state({"wte.weight": array})
    arguments = {"n_layer": 1, "n_head": 1, "n_embd": 64, "block_size": 1, "vocab_size": 1024}
    index, data = tensorflow({"model/wte": array})
    files = {
        "zip/pytorch_model.bin": torch_zip(table, storages),
        "stream/pytorch_model.bin": torch_stream(table, storages),
        "nano/ckpt.pt": torch_zip({"model": table, "model_args": arguments}, storages),
        "openai/model.ckpt.index": index,
        f"openai/{DATA}": data,
        "openai/hparams.json": b"{}",
    }
    if dtype == "bfloat16":
        header = np.zeros(256, "<i4")
        header[:8] = 20240326, 5, 1, 1024, 1, 1, 64, 1024
        others = 64 + 12 * 64**2 + 13 * 64 + 2 * 64  # wpe, one layer, ln_f
        files["llmc/model.bin"] = header.tobytes() + array.tobytes() + bytes(2 * others)
    for name, written in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(written)
    paths = {path.parent for path in map(Path, files)} - {Path("llmc")}
    for name in (*paths, *(name for name in files if "llmc" in name)):
        info = find(tmp_path / name).tensors["wte.weight"]
        for mmap in (True, False):
            found = Files(mmap).array(info, np.dtype("f4"))
            np.testing.assert_array_equal(found.view("<u4"), wide.view("<u4"))
