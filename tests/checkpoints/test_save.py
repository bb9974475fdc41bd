"""Models in memory: written as checkpoints, and changed in place."""

import errno
import json
import mmap
import shutil
from pathlib import Path

import numpy as np
import pytest

from npgpt2 import GPT2, GPT2Config, GPT2WithHead
from npgpt2.base.errors import FileError, OptionError, WeightsWarning
from npgpt2.checkpoints.check import check
from npgpt2.checkpoints.convert import convert
from npgpt2.checkpoints.formats import tensors
from npgpt2.model.params import named_parameters

TINY = Path(__file__).parents[1] / "data" / "tiny"
TEXT = "O Romeo, Romeo!"


def same(one, other):
    return all(
        np.array_equal(a, b) and name == same_name
        for (name, a), (same_name, b) in zip(
            named_parameters(one.params), named_parameters(other.params), strict=True
        )
    )


def test_a_model_comes_back_as_it_was(tmp_path, model):
    folder = model.save_pretrained(tmp_path / "copy")
    again = GPT2.from_pretrained(folder)
    assert same(model, again)
    assert again.config == model.config
    assert again.encode(TEXT) == model.encode(TEXT)
    assert check(folder).faults == []


def test_after_surgery(tmp_path):
    """Fewer heads and another vocabulary are written too."""
    model = GPT2.from_pretrained(TINY).prune_heads({1: [0, 3]}).resize_token_embeddings(515)
    again = GPT2.from_pretrained(model.save_pretrained(tmp_path / "pruned"))
    assert same(model, again)
    ids = [[1, 2, 514]]
    assert np.array_equal(model(ids).logits, again(ids).logits)


@pytest.mark.parametrize(("dtype", "precision"), [("float16", 2**-11), ("bfloat16", 2**-8)])
def test_in_half_precision(tmp_path, model, dtype, precision):
    folder = model.save_pretrained(tmp_path / "half", dtype=dtype)
    size = (folder / "model.safetensors").stat().st_size
    assert size < 1.1 * 2 * model.num_parameters
    a, b = model.params.wte.weight, GPT2.from_pretrained(folder).params.wte.weight
    assert 0 < np.abs(a - b).max() <= precision * np.abs(a).max()


def test_what_transformers_keeps_beside_the_model_is_kept(tmp_path):
    source = tmp_path / "source"
    shutil.copytree(TINY, source)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"task_specific_params": {"a": 1}}))
    (source / "generation_config.json").write_text('{"temperature": 0.5}')
    folder = GPT2.from_pretrained(source).save_pretrained(tmp_path / "copy")
    assert json.loads((folder / "config.json").read_text())["task_specific_params"] == {"a": 1}
    assert json.loads((folder / "generation_config.json").read_text()) == {"temperature": 0.5}


def test_a_value_beyond_float16_is_infinity(tmp_path):
    model = GPT2.from_pretrained(TINY)
    model.params.wpe.weight[0, 0] = 1e6
    folder = model.save_pretrained(tmp_path / "half", dtype="float16")
    with pytest.warns(WeightsWarning, match="1 NaN or infinite"):
        assert np.isinf(GPT2.from_pretrained(folder).params.wpe.weight[0, 0])


def test_a_file_that_the_system_will_not_map_for_writing_is_mapped_for_reading(monkeypatch):
    def refuse(number, size, access):
        if access == mmap.ACCESS_COPY:
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        return real(number, size, access=access)

    real = mmap.mmap
    monkeypatch.setattr(tensors.mmap_, "mmap", refuse)
    model = GPT2.from_pretrained(TINY)
    assert not model.params.wte.weight.flags.writeable
    assert model.generate("KING", max_new_tokens=2, temperature=0)[0].text == "HA"


def test_only_a_model_maps_for_writing(monkeypatch):
    """What reads alone needs no memory promised for all of a file."""
    asked = []
    real = mmap.mmap
    monkeypatch.setattr(
        tensors.mmap_, "mmap", lambda *a, access: asked.append(access) or real(*a, access=access)
    )
    check(TINY)
    assert set(asked) == {mmap.ACCESS_READ}


def test_another_head(tmp_path):
    config = GPT2Config(
        n_layer=1, n_head=2, n_embd=8, vocab_size=11, architectures=("GPT2ForTokenClassification",)
    )
    model = GPT2WithHead.from_random(config)
    assert same(model, GPT2WithHead.from_pretrained(model.save_pretrained(tmp_path / "head")))


def test_nothing_is_replaced_unless_asked_for(tmp_path, model):
    folder = model.save_pretrained(tmp_path / "copy")
    with pytest.raises(FileError, match=r"copy: already exists"):
        model.save_pretrained(folder)
    changed = GPT2.from_pretrained(TINY)
    changed.params.wpe.weight[0, 0] = 5
    changed.save_pretrained(folder, force=True)
    assert same(changed, GPT2.from_pretrained(folder))
    for place in (folder, tmp_path):
        with pytest.raises(FileError, match="the source is in this folder"):
            GPT2.from_pretrained(folder).save_pretrained(place, force=True)
    with pytest.raises(OptionError, match="dtype: got 'int8', expected one of float32"):
        model.save_pretrained(tmp_path / "other", dtype="int8")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("stored", ["float32", "float16"])
@pytest.mark.parametrize("mapped", [True, False])
def test_weights_may_be_written_to_and_no_file_changes(tmp_path, stored, mapped):
    """Whatever the file's dtype, and whether it is mapped or read."""
    folder = tmp_path / "copy"
    convert(TINY, folder, stored)
    before = (folder / "model.safetensors").read_bytes()
    model, other = (GPT2.from_pretrained(folder, mmap=mapped) for _ in range(2))
    logits = other([[1, 2]]).logits
    for _, array in named_parameters(model.params):
        assert array.flags.writeable
        array += 1
    assert not np.allclose(model([[1, 2]]).logits, logits)
    assert np.array_equal(other([[1, 2]]).logits, logits)
    assert (folder / "model.safetensors").read_bytes() == before
    shutil.rmtree(folder)
