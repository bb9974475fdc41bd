"""Checkpoints in other people's formats: the same numbers, and nothing that a bad file can do."""

import json
import pickle
import shutil
import struct
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
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
from safetensors.numpy import load_file

from npgpt2 import GPT2
from npgpt2.checkpoint import Checkpoint
from npgpt2.errors import CheckpointError, ConfigError, FileError
from npgpt2.formats.find import find
from npgpt2.formats.tensors import Files
from npgpt2.golden.llmc import write_llmc
from npgpt2.params import named_parameters

TINY = Path(__file__).parent / "data" / "tiny"
BIN = "pytorch_model.bin"
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


def test_shards(folder, model, arrays):
    where = {}
    names = list(arrays)
    for n, part in enumerate((names[:10], names[10:]), 1):
        file = f"pytorch_model-{n:05}-of-00002.bin"
        (folder / file).write_bytes(torch_zip(*state({name: arrays[name] for name in part})))
        where |= dict.fromkeys(part, file)
    (folder / f"{BIN}.index.json").write_text(json.dumps({"weight_map": where}))
    same(folder, model, "PyTorch in shards")
    (folder / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(FileError, match=r"this shard is missing, pytorch_model\.bin\.index"):
        Checkpoint.open(folder)


RAN = []


class Bomb:
    def __reduce__(self):
        return RAN.append, (1,)


X = np.arange(12, dtype="f4")
SYSTEM = Call(Global("posix", "system"), ("true",))
BAD = {  # → what the pickle holds, and the words
    "a command": (SYSTEM, "refused global posix.system"),
    "a command among tensors": ({"a": tensor_of("0", X), "b": SYSTEM}, "refused global posix"),
    "eval": (Call(Global("builtins", "eval"), ("1",)), "refused global builtins.eval"),
    "a class of torch's": (Global("torch.nn.modules.linear", "Linear"), "refused global torch.nn"),
    "a dotted name": (Global("torch", "FloatStorage.from_file"), "refused global torch.FloatStor"),
    "a call of a storage": (Call(Global("torch", "FloatStorage"), (9,)), "refused a call of torch"),
    "a reference": (Reference(("module", 1)), "a reference that is no storage"),
    "a storage of objects": (Reference(("storage", Global("torch", "Size"), "0", "cpu", 1)), "sto"),
    "a negative count": ({"a": tensor_of("0", X, count=-1)}, "has a storage"),
    "beyond": ({"a": tensor_of("0", X, offset=1)}, "reaches number 12 of a storage of 12"),
    "far beyond": ({"a": tensor_of("0", X, 0, (2, 2), (2**62, 1))}, "reaches number"),
    "a negative stride": ({"a": tensor_of("0", X, 11, (12,), (-1,))}, "a tensor of shape"),
    "a negative offset": ({"a": tensor_of("0", X, -4)}, "a tensor of shape"),
    "a negative shape": ({"a": tensor_of("0", X, 0, (-1,), (1,))}, "a tensor of shape"),
    "a number seen often": ({"a": tensor_of("0", X, 0, (1 << 40,), (0,))}, "over 12 numbers"),
    "65 axes": ({"a": tensor_of("0", X, 0, (1,) * 65, (1,) * 65)}, "65 axes"),
    "strides missing": ({"a": tensor_of("0", X, 0, (12,), ())}, "a tensor of shape"),
    "no dictionary": ([1, 2], "holds no tensors by name"),
    "nothing": ({}, "holds no tensors by name"),
    "a text for a tensor": ({"a": "b"}, "'a' is a str, expected a tensor"),
    "a number for a name": ({1: tensor_of("0", X)}, "1 is a Tensor, expected a tensor"),
    "a tensor for a name": ({tensor_of("0", X): 1}, "has a Tensor for a key"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_no_tensor_needs_is_refused_by_name(folder, write, case):
    contents, words = BAD[case]
    storages = {"0": X} if "Reference" in repr(contents) else {}
    (folder / BIN).write_bytes(write(contents, storages))
    with pytest.raises(CheckpointError) as error:
        Checkpoint.open(folder)
    assert words in str(error.value)
    assert str(folder / BIN) in str(error.value)


PICKLES = {  # bytes → the words
    "a bomb": (pickle.dumps(Bomb(), 2), "refused global"),
    "a bomb of protocol 4": (pickle.dumps(Bomb(), 4), "refused global"),
    "an object": (pickle.dumps(Path("x"), 2), "refused global"),
    "empty": (b"", "damaged pickle"),
    "no end": (b"\x80\x02}", "damaged pickle"),
    "an opcode that is none": (b"\x80\x02\xff.", "damaged pickle"),
    "nothing on the stack": (b"\x80\x02.", "damaged pickle"),
    "a memo that is not there": (b"\x80\x02h\x05.", "damaged pickle"),
    "no mark": (b"\x80\x02t.", "damaged pickle"),
    "items of a list": (b"\x80\x02](K\x01K\x02u.", "damaged pickle"),
    "an append to a dictionary": (b"\x80\x02}K\x01a.", "damaged pickle"),
    "a text longer than the file": (b"\x80\x02X\xff\xff\xff\x7fabc.", "damaged pickle"),
    "bytes of 2 to the 63": (b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7fabc.", "damaged pickle"),
    "an instance": (b"\x80\x02(iposix\nsystem\n.", "refused opcode INST"),
    "an object by opcode": (b"\x80\x02c__main__\nA\n)\x81.", "refused global __main__.A"),
    "a registered extension": (b"\x80\x02\x82\x01.", "refused opcode EXT1"),
    "a persistent id as text": (b"\x80\x02Px\n.", "refused opcode PERSID"),
    "a set": (b"\x80\x04\x8f.", "refused opcode EMPTY_SET"),
    "a buffer": (b"\x80\x05\x97.", "refused opcode NEXT_BUFFER"),
    "a million steps": (b"\x80\x02" + b"N0" * 500_000 + b".", "refused opcode POP"),
    "a million nulls": (b"\x80\x02" + b"N" * 1_000_000 + b".", "more than 300,000 steps"),
    "a list in itself": (b"\x80\x02]q\x00h\x00a.", "holds no tensors by name"),
    "a dictionary in itself": (b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.", "is a dict, expected"),
}


@pytest.mark.parametrize("case", PICKLES)
def test_pickles_are_never_run(folder, case):
    data, words = PICKLES[case]
    with zipfile.ZipFile(folder / BIN, "w") as archive:
        archive.writestr("archive/data.pkl", data)
    with pytest.raises(CheckpointError) as error:
        Checkpoint.open(folder)
    assert words in str(error.value)
    (folder / BIN).write_bytes(data)  # and as a stream, of which it is the first pickle
    with pytest.raises(CheckpointError):
        Checkpoint.open(folder)
    assert RAN == []


def test_deep_nesting_is_no_crash(folder):
    deep = b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."
    with zipfile.ZipFile(folder / BIN, "w") as archive:
        archive.writestr("archive/data.pkl", deep)
    with pytest.raises(CheckpointError, match="no tensors by name"):
        Checkpoint.open(folder)


ARCHIVES = {  # how an archive is written → the words
    "compressed": ({"compress": zipfile.ZIP_DEFLATED}, "is compressed or encrypted"),
    "big-endian": ({"order": "big"}, "was written on a big-endian machine"),
}


@pytest.mark.parametrize("case", ARCHIVES)
def test_archives_that_torch_save_does_not_write(folder, arrays, case):
    options, words = ARCHIVES[case]
    (folder / BIN).write_bytes(torch_zip(*state(arrays), **options))
    with pytest.raises(CheckpointError, match=words):
        Checkpoint.open(folder)


def test_a_stream_of_a_big_endian_machine(folder, arrays):
    (folder / BIN).write_bytes(torch_stream(*state(arrays), little=False))
    with pytest.raises(CheckpointError, match="was written on a big-endian machine"):
        Checkpoint.open(folder)


def test_every_truncation_is_an_error(folder, write):
    """Of a small file, at every byte."""
    table, storages = state({"a": X, "b": X.reshape(3, 4)})
    data = write(table, storages)
    for end in range(len(data)):
        (folder / BIN).write_bytes(data[:end])
        with pytest.raises(CheckpointError):
            Checkpoint.open(folder)


def test_a_storage_that_is_not_there_or_too_short(folder):
    table, _storages = state({"a": X})
    (folder / BIN).write_bytes(torch_zip(table, {}))
    with pytest.raises(CheckpointError, match="has no archive/data/0, which a tensor lies in"):
        Checkpoint.open(folder)
    (folder / BIN).write_bytes(torch_zip(table, {"0": X[:5]}))
    with pytest.raises(CheckpointError, match="storage 0 has 20 of 48 bytes"):
        Checkpoint.open(folder)
    (folder / BIN).write_bytes(torch_stream(table, {"0": X[:5]}))
    with pytest.raises(CheckpointError, match="storage 0"):
        Checkpoint.open(folder)


def test_a_name_twice_and_no_pickle(folder):
    with zipfile.ZipFile(folder / BIN, "w") as archive:
        archive.writestr("archive/version", "3")
    with pytest.raises(CheckpointError, match=r"an archive without data\.pkl"):
        Checkpoint.open(folder)
    with zipfile.ZipFile(folder / BIN, "w") as archive:
        archive.writestr("archive/data.pkl", pickled({}))
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("archive/data.pkl", pickled({"a": 1}))
    with pytest.raises(CheckpointError, match="an archive with a name twice"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("entry", ["data.pkl", "byteorder", "data/0"])
def test_an_entry_that_is_encrypted(folder, entry):
    data = bytearray(torch_zip(*state({"a": X})))
    at = data.rfind(f"archive/{entry}".encode())  # in the directory: its flags lie before it
    data[at - 46 + 8] |= 1
    (folder / BIN).write_bytes(data)
    with pytest.raises(CheckpointError, match="is compressed or encrypted"):
        Checkpoint.open(folder)


def test_an_archive_with_long_numbers(folder):
    data = torch_zip(*state({"a": X}))
    end = data.rfind(b"PK\x05\x06")
    record = b"PK\x06\x06" + bytes(36) + struct.pack("<QQ", 2**40, 0)
    locator = b"PK\x06\x07" + struct.pack("<IQI", 0, end, 1)
    (folder / BIN).write_bytes(data[:end] + record + locator + data[end:])
    with pytest.raises(CheckpointError, match="a directory of 1,099,511,627,776 bytes"):
        Checkpoint.open(folder)


def test_two_storages_of_one_name(folder):
    table = {"a": tensor_of("0", X), "b": tensor_of("0", X.astype("f8"))}
    (folder / BIN).write_bytes(torch_zip(table, {"0": X.astype("f8")}))
    with pytest.raises(CheckpointError, match="two storages named '0'"):
        Checkpoint.open(folder)


def test_an_archive_whose_directory_claims_much(folder, arrays):
    data = bytearray(torch_zip(*state(arrays)))
    end = data.rfind(b"PK\x05\x06")
    data[end + 12 : end + 16] = struct.pack("<I", 2**31)
    (folder / BIN).write_bytes(data)
    with pytest.raises(CheckpointError, match="a directory of 2,147,483,648 bytes"):
        Checkpoint.open(folder)


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


def test_a_changed_number_is_found_by_its_checksum(openai):
    folder = openai()
    path = folder / "model.ckpt.data-00000-of-00001"
    data = bytearray(path.read_bytes())
    data[12345] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"the checksum does not match\. Download again"):
        Checkpoint.open(folder).read()


def test_a_compressed_index_and_a_missing_part(openai):
    with pytest.raises(CheckpointError, match="a compressed block"):
        Checkpoint.open(openai(kind=b"\1"))
    folder = openai()
    (folder / "model.ckpt.data-00000-of-00001").unlink()
    with pytest.raises(FileError, match=r"model\.ckpt\.data-00000-of-00001: No such file"):
        Checkpoint.open(folder).read()
    (folder / "hparams.json").unlink()
    with pytest.raises(FileError, match=r"hparams\.json"):
        Checkpoint.open(folder)


def test_hparams_that_are_no_gpt2(openai):
    folder = openai()
    (folder / "hparams.json").write_text(json.dumps(HPARAMS | {"n_head": 5}))
    with pytest.raises(ConfigError, match=r"hparams\.json: n_embd: got 64, expected a multiple"):
        Checkpoint.open(folder)


# ── nanoGPT, llm.c ───────────────────────────────────────────────────────────────────────────────


def nanogpt_file(arrays, prefix="", bias=True, layers=3):
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
    arguments = {"n_layer": layers, "n_head": 4, "n_embd": 64, "block_size": 128, "bias": bias,
                 "vocab_size": len(named[wte]), "dropout": 0.0}  # fmt: skip
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


def test_nanogpt_without_biases_has_zeros(tmp_path, arrays):
    (tmp_path / "ckpt.pt").write_bytes(nanogpt_file(arrays, bias=False))
    found = dict(named_parameters(Checkpoint.open(tmp_path).read()))
    for name, array in arrays.items():
        got = found[name.removeprefix("transformer.")]
        np.testing.assert_array_equal(got, 0 * array if name.endswith("bias") else array)


def test_nanogpts_claim_of_a_billion_layers_is_no_work(tmp_path, arrays):
    (tmp_path / "ckpt.pt").write_bytes(nanogpt_file(arrays, layers=10**9))
    with pytest.raises(
        CheckpointError, match=r"n_layer 1,000,000,000, the weights have 41 tensors"
    ):
        Checkpoint.open(tmp_path)


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


def test_a_state_dictionary_by_itself_wants_its_config(tmp_path, arrays):
    (tmp_path / "model.pt").write_bytes(torch_zip(*state(arrays)))
    with pytest.raises(CheckpointError, match=r"has no model_args.*needs its config\.json"):
        Checkpoint.open(tmp_path / "model.pt")


def test_llmcs_checkpoint_is_the_model(tmp_path, model):
    write_llmc(tmp_path / "c", model, batch=1, length=4)
    same(tmp_path / "c" / "gpt2_124M.bin", model, "llm.c")


def test_llmcs_file_of_another_length(tmp_path, model):
    write_llmc(tmp_path / "c", model, batch=1, length=4)
    path = tmp_path / "c" / "gpt2_124M.bin"
    data = path.read_bytes()
    for other in (data[:-1], data + b"\0", data[:1024], data[:7]):
        path.write_bytes(other)
        with pytest.raises((CheckpointError, ConfigError)):
            Checkpoint.open(path)
