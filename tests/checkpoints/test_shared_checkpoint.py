"""The checkpoint of 3.1 M parameters that transformers wrote, against what PyTorch computed."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from npgpt2 import GPT2


@pytest.fixture
def folder(shared):
    return shared("checkpoints/shakespeare-3m")


def test_float64(folder):
    expected = load_file(folder / "reference_float64.safetensors")
    ids = expected["input_ids"]
    out = GPT2.from_pretrained(folder, dtype="float64")(ids, labels=ids)
    scale = np.abs(expected["logits"]).max()
    assert np.abs(out.logits - expected["logits"]).max() <= 1e-12 * scale
    # transformers casts logits to float32 for the loss, whatever they are.
    assert out.loss == pytest.approx(expected["loss"][0], rel=1e-7)


def test_float32_is_no_further_than_twice_pytorchs(folder):
    exact = load_file(folder / "reference_float64.safetensors")["logits"]
    peer = load_file(folder / "reference_float32.safetensors")
    out = GPT2.from_pretrained(folder)(
        peer["input_ids"], output_attentions=True, output_hidden_states=True
    )
    norm = np.linalg.norm
    assert norm(out.logits - exact) <= 2 * norm(peer["logits"] - exact)
    wide = GPT2.from_pretrained(folder, dtype="float64")(
        peer["input_ids"], output_attentions=True, output_hidden_states=True
    )
    for kind in ("hidden_states", "attentions"):
        for i, (found, truth) in enumerate(
            zip(getattr(out, kind), getattr(wide, kind), strict=True)
        ):
            assert norm(found - truth) <= 2 * norm(peer[f"{kind}.{i}"] - truth), (kind, i)


@pytest.mark.parametrize(
    ("key", "options"),
    [("greedy_64", {"temperature": 0, "max_new_tokens": 64}),
     ("beam4_32", {"num_beams": 4, "max_new_tokens": 32})],
)  # fmt: skip
def test_texts(folder, key, options):
    expected = json.loads((folder / "reference.json").read_text())
    [text] = GPT2.from_pretrained(folder).generate(expected["prompt"], **options)
    assert text.prompt_ids + text.ids == expected[key]
