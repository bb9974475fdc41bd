"""Models in memory: written as checkpoints, and changed in place."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from npgpt2 import GPT2, GPT2Config, GPT2WithHead
from npgpt2.base.errors import FileError, OptionError
from npgpt2.checkpoints.check import check
from npgpt2.checkpoints.convert import convert
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
@pytest.mark.parametrize("mmap", [True, False])
def test_weights_may_be_written_to_and_no_file_changes(tmp_path, stored, mmap):
    """Whatever the file's dtype, and whether it is mapped or read."""
    folder = tmp_path / "copy"
    convert(TINY, folder, stored)
    before = (folder / "model.safetensors").read_bytes()
    model, other = (GPT2.from_pretrained(folder, mmap=mmap) for _ in range(2))
    logits = other([[1, 2]]).logits
    for _, array in named_parameters(model.params):
        assert array.flags.writeable
        array += 1
    assert not np.allclose(model([[1, 2]]).logits, logits)
    assert np.array_equal(other([[1, 2]]).logits, logits)
    assert (folder / "model.safetensors").read_bytes() == before
    shutil.rmtree(folder)
