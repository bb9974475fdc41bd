"""The same numbers as PyTorch, without PyTorch: literals that `data/make_expected.py` wrote."""

import json
from pathlib import Path

import numpy as np
import pytest
from cases import CASES, by_name, config_of, formula_tensors, real

from npgpt2 import GPT2
from npgpt2.model.params import build_tree

EXPECTED = json.loads((Path(__file__).parents[1] / "data" / "expected.json").read_text())


def outputs(name, dtype):
    config, inputs = config_of(name), CASES[name][1]
    params = build_tree({k: v.astype(dtype) for k, v in formula_tensors(config).items()})
    out = GPT2(config, params)(
        **inputs, use_cache=False, output_attentions=True, output_hidden_states=True
    )
    return real(by_name(out), inputs)


@pytest.mark.parametrize("name", CASES)
def test_float64_is_pytorchs_to_the_last_digits(name):
    found = outputs(name, np.float64)
    assert found.keys() == EXPECTED["cases"][name].keys()
    for key, expected in EXPECTED["cases"][name].items():
        value = found[key]
        assert value.dtype == np.float64
        assert list(value.shape) == expected["shape"]
        scale = expected["norm"] / max(1, value.size) ** 0.5
        values = value.reshape(-1)[expected["at"]]
        assert np.abs(values - expected["values"]).max() <= 1e-12 * max(
            scale, np.abs(expected["values"]).max()
        ), key
        assert np.linalg.norm(value) == pytest.approx(expected["norm"], rel=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_float32_is_as_near_to_float64_as_pytorchs(name):
    """Twice PyTorch's own distance, over the whole of each output; never a bound of nothing."""
    exact, found = outputs(name, np.float64), outputs(name, np.float32)
    for key, expected in EXPECTED["cases"][name].items():
        assert found[key].dtype == np.float32
        error = np.linalg.norm(found[key] - exact[key])
        # A loss is one number, which PyTorch may hit by luck: half a digit of float32 is granted.
        floor = np.finfo("f4").eps * expected["norm"] if not expected["shape"] else 0
        assert error <= max(2 * expected["float32_error"], floor), key


def test_tiny_checkpoint_thinks_the_same(wide):
    tiny = EXPECTED["tiny"]
    assert wide.encode(tiny["prompt"]) == tiny["prompt_ids"]
    logits = wide([tiny["prompt_ids"]]).logits[0, -1, :8]
    assert logits == pytest.approx(tiny["last_logits"], rel=1e-12, abs=1e-13)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("greedy", {"temperature": 0}),
        ("greedy, repetition penalty 1.3", {"temperature": 0, "repetition_penalty": 1.3}),
        ("3 beams", {"num_beams": 3}),
        ("4 beams, repetition penalty 1.2", {"num_beams": 4, "repetition_penalty": 1.2}),
    ],
)
def test_tiny_checkpoint_writes_the_same(model, name, options):
    [text] = model.generate(EXPECTED["tiny"]["prompt"], max_new_tokens=40, **options)
    assert text.ids == EXPECTED["tiny"]["texts"][name]
    assert text.finish_reason == "length"
