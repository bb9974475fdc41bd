"""`npgpt2 convert` and `npgpt2 check`: any format → what transformers loads; every fault told."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import runner
from foreign_files import openai_names, state, tensorflow, torch_stream, torch_zip
from safetensors import safe_open
from safetensors.numpy import load_file

from npgpt2 import GPT2
from npgpt2.base.errors import FileError, OptionError
from npgpt2.checkpoints.check import check
from npgpt2.checkpoints.convert import convert
from npgpt2.golden.llmc import write_llmc
from npgpt2.model.params import named_parameters
from npgpt2_onnx import OnnxModel, export

TINY = Path(__file__).parents[1] / "data" / "tiny"
HPARAMS = {"n_vocab": 512, "n_ctx": 128, "n_embd": 64, "n_head": 4, "n_layer": 3}


@pytest.fixture
def npgpt2(capsys):
    return runner(capsys)


def bin_folder(path, write=torch_zip):
    """The tiny checkpoint with a pytorch_model.bin."""
    shutil.copytree(TINY, path)
    (path / "pytorch_model.bin").write_bytes(write(*state(load_file(TINY / "model.safetensors"))))
    (path / "model.safetensors").unlink()
    return path


def openai_folder(path, model):
    """The tiny checkpoint as OpenAI would have released it."""
    path.mkdir()
    index, data = tensorflow(openai_names(dict(named_parameters(model.params))))
    (path / "model.ckpt.index").write_bytes(index)
    (path / "model.ckpt.data-00000-of-00001").write_bytes(data)
    (path / "hparams.json").write_text(json.dumps(HPARAMS))
    shutil.copyfile(TINY / "vocab.json", path / "encoder.json")
    shutil.copyfile(TINY / "merges.txt", path / "vocab.bpe")
    return path


def test_every_format_becomes_the_same_folder(tmp_path, model):
    write_llmc(tmp_path / "c", model, batch=1, length=4)
    sources = {
        "safetensors": TINY,
        "zip": bin_folder(tmp_path / "zip"),
        "stream": bin_folder(tmp_path / "stream", torch_stream),
        "openai": openai_folder(tmp_path / "openai", model),
        "llm.c": tmp_path / "c" / "gpt2_124M.bin",
    }
    want = load_file(TINY / "model.safetensors")
    for name, source in sources.items():
        out = tmp_path / "out" / name
        convert(source, out)
        got = load_file(out / "model.safetensors")
        assert got.keys() == want.keys()
        for tensor, array in want.items():
            np.testing.assert_array_equal(got[tensor], array)
        with safe_open(out / "model.safetensors", "numpy") as file:
            assert file.metadata() == {"format": "pt"}  # transformers asks for it
        config = json.loads((out / "config.json").read_text())
        assert (config["model_type"], config["dtype"]) == ("gpt2", "float32")
        opened = GPT2.from_pretrained(out)
        np.testing.assert_array_equal(opened([[1, 2]]).logits, model([[1, 2]]).logits)
        if name != "llm.c":
            assert opened.encode("O Romeo, ") == model.encode("O Romeo, ")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_dtypes(tmp_path, model, dtype):
    convert(TINY, tmp_path / "out", dtype)
    for name, array in named_parameters(GPT2.from_pretrained(tmp_path / "out").params):
        source = dict(named_parameters(model.params))[name]
        if dtype == "bfloat16":  # half a step of seven bits at most
            assert (np.abs(array - source) <= np.abs(source) * 2.0**-8).all()
            assert not (array.view("u4") & 0xFFFF).any()
        else:
            np.testing.assert_array_equal(array, source.astype(dtype).astype("f4"))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == dtype


def test_shards_are_read_back_and_none_is_too_large(tmp_path, model):
    convert(TINY, tmp_path / "out", max_shard_size=200_000)
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 3
    assert files[0].name == f"model-00001-of-{len(files):05}.safetensors"
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 4 * model.num_parameters
    for file in files:
        arrays = load_file(file)
        assert sum(array.nbytes for array in arrays.values()) <= 200_000
    found = GPT2.from_pretrained(tmp_path / "out")
    np.testing.assert_array_equal(found([[1, 2]]).logits, model([[1, 2]]).logits)


def test_a_folder_that_is_there_stays(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(FileError, match="already exists"):
        convert(TINY, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]
    with pytest.raises(FileError) as error:  # what nobody converted is somebody's
        convert(TINY, tmp_path / "out", force=True)
    assert str(error.value) == (
        f"{tmp_path}/out: already exists and contains mine, expected only a converted checkpoint. "
        "It is not replaced. Choose another folder"
    )
    (tmp_path / "out" / "mine").rename(tmp_path / "out" / "config.json")
    convert(TINY, tmp_path / "out", max_shard_size=100_000, force=True)
    convert(TINY, tmp_path / "out", force=True)
    assert not list((tmp_path / "out").glob("*-of-*"))


def test_the_source_is_not_replaced(tmp_path):
    convert(TINY, tmp_path / "top")
    convert(TINY, tmp_path / "top" / "below")
    before = (tmp_path / "top" / "model.safetensors").read_bytes()
    for source in ("top", "top/below", "top/../top"):
        with pytest.raises(FileError, match=r"the source is in this folder, expected another one$"):
            convert(tmp_path / source, tmp_path / "top", "float16", force=True)
    assert (tmp_path / "top" / "model.safetensors").read_bytes() == before


def test_what_is_wrong_leaves_nothing(tmp_path):
    source = bin_folder(tmp_path / "bad")
    (source / "pytorch_model.bin").write_bytes(b"junk" * 100)
    with pytest.raises(Exception, match="pytorch_model"):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    for options, words in (
        ({"dtype": "int8"}, "dtype: got 'int8'"),
        ({"max_shard_size": 0}, "max_shard_size: got 0"),
    ):
        with pytest.raises(OptionError, match=words):
            convert(TINY, tmp_path / "out", **options)


def test_on_the_command_line(npgpt2, tmp_path):
    source, out = bin_folder(tmp_path / "bin"), tmp_path / "out"
    code, text, err = npgpt2("convert", source, "-o", out, "--dtype", "float16")
    assert (code, err) == (0, "")
    assert text.startswith(f"{out}: PyTorch → safetensors, 40 tensors, ")
    code, text, err = npgpt2("convert", source, "-o", out, "--max-shard-size", "lots")
    assert code == 2
    assert "--max-shard-size: got 'lots', expected a size such as 2GB or 500MB" in err
    code, _, err = npgpt2("convert", tmp_path / "none", "-o", out)
    assert code == 4
    assert "no such folder" in err
    assert npgpt2("convert", "shakespeare", "-o", tmp_path / "ours")[0] == 0


def test_without_a_vocabulary_it_says_what_is_missing(npgpt2, tmp_path, model):
    write_llmc(tmp_path / "c", model, batch=1, length=4)
    code, _, err = npgpt2("convert", tmp_path / "c" / "gpt2_124M.bin", "-o", tmp_path / "out")
    assert code == 0
    assert "has no vocabulary. Add GPT-2's vocab.json and merges.txt" in err


def test_a_foreign_checkpoint_is_exported_but_not_shared(npgpt2, tmp_path):
    source = bin_folder(tmp_path / "bin")
    code, _, err = npgpt2("export", source, "--share-weights")
    assert code == 2
    assert "--share-weights: the weights are PyTorch's, expected safetensors" in err
    assert npgpt2("export", source, "-o", tmp_path / "out")[0] == 0  # proved against NumPy
    assert npgpt2("verify", tmp_path / "out", "--against", TINY)[0] == 0


# ── check ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(TINY, tmp_path / "model")


def test_a_sound_folder(npgpt2, folder, tmp_path, model):
    code, out, err = npgpt2("check", folder)
    assert (code, err) == (0, "")
    assert "3 layers, 4 heads, n_embd 64, context 128, vocabulary 512" in out
    assert "safetensors, 40 tensors" in out
    assert out.endswith(f"{folder}: no faults\n")
    code, out, _ = npgpt2("check", openai_folder(tmp_path / "openai", model))
    assert code == 0
    assert "TensorFlow, 40 tensors" in out


def test_every_fault_is_told(npgpt2, folder):
    config = json.loads((folder / "config.json").read_text())
    config |= {"activation_function": "swoosh", "layer_norm_epsilon": -1}
    (folder / "config.json").write_text(json.dumps(config))
    arrays = {n: a.copy() for n, a in load_file(folder / "model.safetensors").items()}
    arrays["transformer.ln_f.bias"][3] = np.nan
    arrays["transformer.h.1.ln_1.weight"][:2] = np.inf
    from safetensors.numpy import save_file

    save_file(arrays, folder / "model.safetensors", {"format": "pt"})
    (folder / "tokenizer.json").write_text("{")
    code, out, _ = npgpt2("check", folder)
    assert code == 1
    for words in (
        "activation_function: got 'swoosh'",
        "layer_norm_epsilon: got -1",
        "ln_f.bias has 1 NaN or infinite values of 64",
        "h.1.ln_1.weight has 2 NaN or infinite values of 64",
        "tokenizer.json: not JSON",
        "5 faults",
    ):
        assert words in out


def test_missing_tensors_and_a_wrong_checksum(npgpt2, folder, tmp_path, model):
    arrays = load_file(folder / "model.safetensors")
    del arrays["transformer.ln_f.bias"], arrays["transformer.h.0.ln_1.bias"]
    from safetensors.numpy import save_file

    save_file(arrays, folder / "model.safetensors", {"format": "pt"})
    assert any("2 of 40" in fault for fault in check(folder).faults)
    openai = openai_folder(tmp_path / "openai", model)
    data = openai / "model.ckpt.data-00000-of-00001"
    changed = bytearray(data.read_bytes())
    changed[100] ^= 1
    changed[-100] ^= 1
    data.write_bytes(changed)
    faults = check(openai).faults
    assert len(faults) == 2
    assert all("the checksum does not match" in fault for fault in faults)


def test_nothing_to_check(npgpt2, tmp_path):
    words = "no such folder. Expected a checkpoint folder or a hub name"
    answer = npgpt2("check", tmp_path / "none")
    assert answer == (4, "", f"npgpt2: error: {tmp_path / 'none'}: {words}\n")
    code, out, _ = npgpt2("check", tmp_path)
    assert code == 1
    assert "Expected one of model.safetensors" in out


def test_weights_without_their_config(npgpt2, folder):
    """They may be sound: without it nobody knows."""
    (folder / "config.json").unlink()
    words = f"{folder / 'config.json'}: no such file, expected it next to the weights"
    code, out, _ = npgpt2("check", folder)
    assert code == 1
    assert out.splitlines()[-2:] == [f"fault       {words}", f"{folder}: 1 fault"]
    out = folder.parent / "out"
    assert npgpt2("convert", folder, "-o", out) == (4, "", f"npgpt2: error: {words}\n")
    assert not out.exists()


# ── OpenAI's vocabulary ──────────────────────────────────────────────────────────────────────────


@pytest.fixture
def openai(tmp_path, model):
    return openai_folder(tmp_path / "openai", model)


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_openais_folder_writes_as_it_is(openai, model, end, tmp_path):
    for name in ("encoder.json", "vocab.bpe"):
        (openai / name).write_bytes((openai / name).read_bytes().replace(b"\n", end))
    options = {"max_new_tokens": 9, "temperature": 0}
    expected = model.generate("O Romeo, ", **options)
    assert GPT2.from_pretrained(openai).generate("O Romeo, ", **options) == expected
    out = export(openai, tmp_path / "out")  # config.json and the vocabulary's names are made
    assert OnnxModel.from_pretrained(out).generate("O Romeo, ", **options) == expected
    assert {"config.json", "tokenizer.json", "vocab.json", "merges.txt"} <= set(os.listdir(out))


def edited(**changes):
    return lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def added(line):
    return lambda path: path.write_text(path.read_text() + line)


VOCABULARIES = {  # a file, what is done to it → exit code, the words
    "gone": ("encoder.json", Path.unlink, 4, "No such file or directory"),
    "merges gone": ("vocab.bpe", Path.unlink, 4, "No such file or directory"),
    "a hole": ("encoder.json", edited(ARD=600), 3, "no token has id 511, expected ids without "
               "gaps"),
    "an id twice": ("encoder.json", edited(ARD=6), 3, "id 6 is both '&' and 'ARD'"),
    "an id as text": ("encoder.json", edited(ARD="511"), 3, "'ARD' has id '511', expected an "
                      "integer"),
    "a list": ("encoder.json", lambda path: path.write_text("[]"), 3, "got a JSON list, expected "
               "an object. Download again"),
    "a web page": ("encoder.json", lambda path: path.write_text("<html>"), 3, "is a web page, "
                   "expected JSON: the download failed. Download again"),
    "a line": ("vocab.bpe", added("a b c\n"), 3, "line 257: got 'a b c', expected two tokens with "
               "a space between"),
    "no merges": ("vocab.bpe", lambda path: path.write_text(""), 3, "has 0 bytes, expected merges. "
                  "Download again"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "damage", "exit_code", "words"), VOCABULARIES.values(),
                         ids=VOCABULARIES)  # fmt: skip
def test_openais_vocabulary_damaged(npgpt2, openai, name, damage, exit_code, words):
    damage(openai / name)
    words = f"{openai / name}: {words}"
    answer = npgpt2("tokenize", "KING", "--model", openai)
    assert answer == (exit_code, "", f"npgpt2: error: {words}\n")
    code, out, _ = npgpt2("check", openai)
    assert (code, out.splitlines()[-2]) == (1, f"fault       {words}")
    code, _, err = npgpt2("convert", openai, "-o", openai.parent / "out")
    assert code == 0  # the weights are sound
    assert err.splitlines()[0] == f"npgpt2: warning: the vocabulary is damaged: {words}"
