import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npgpt2 import GenerationOptions
from npgpt2.base.errors import OptionError
from npgpt2.generation import sampling

LOGITS = np.log([0.4, 0.3, 0.2, 0.1])


def kept(logits):
    return np.flatnonzero(np.isfinite(logits)).tolist()


def test_top_p_keeps_the_token_that_crosses():
    assert kept(sampling.top_p(LOGITS, 0.39)) == [0]
    assert kept(sampling.top_p(LOGITS, 0.41)) == [0, 1]
    assert kept(sampling.top_p(LOGITS, 0.71)) == [0, 1, 2]
    assert kept(sampling.top_p(LOGITS, 1e-9)) == [0]
    assert kept(sampling.top_p(LOGITS, 1.0)) == [0, 1, 2, 3]


def test_top_k_and_min_p():
    assert kept(sampling.top_k(LOGITS, 1)) == [0]
    assert kept(sampling.top_k(LOGITS, 3)) == [0, 1, 2]
    assert kept(sampling.top_k(LOGITS, 99)) == [0, 1, 2, 3]
    assert kept(sampling.top_k(np.array([1.0, 2.0, 2.0]), 1)) == [1, 2]  # equals stay together
    assert kept(sampling.min_p(LOGITS, 0.6)) == [0, 1]
    assert kept(sampling.min_p(LOGITS, 1.0)) == [0]


@pytest.mark.parametrize("t", [1e-320, 1e-9, 1e9])
def test_any_temperature_is_without_a_warning(t):
    with np.errstate(all="raise", under="ignore", over="raise"):
        found = sampling.softmax(sampling.temperature(LOGITS, t))
    assert found == pytest.approx([1, 0, 0, 0] if t < 1 else [0.25] * 4)


def test_filters_leave_their_input_alone():
    before = LOGITS.copy()
    sampling.repetition_penalty(LOGITS, [1, 1], 3.0)
    for f in (sampling.temperature, sampling.top_p, sampling.min_p):
        f(LOGITS, 0.5)
    sampling.top_k(LOGITS, 2)
    np.testing.assert_array_equal(LOGITS, before)


def test_a_token_seen_twice_is_penalised_once():
    once, twice = (sampling.repetition_penalty(LOGITS, seen, 2.0) for seen in ([1], [1, 1]))
    np.testing.assert_array_equal(once, twice)


@given(st.floats(0, 1, exclude_max=True), st.integers(0, 2**32))
def test_draw_inverts_the_distribution(uniform, seed):
    probs = np.random.default_rng(seed).dirichlet(np.full(9, 0.3))
    with np.errstate(divide="ignore"):
        token = sampling.draw(np.log(probs), uniform)
    assert probs[token] > 0
    assert probs[:token].sum() <= uniform + 1e-12
    assert uniform <= probs[: token + 1].sum() + 1e-12


def test_draw_never_takes_what_is_ruled_out():
    logits = np.array([-np.inf, 0.0, -np.inf])
    for uniform in (0.0, 0.5, np.nextafter(1, 0)):
        assert sampling.draw(logits, uniform) == 1


def test_frequencies_are_the_probabilities():
    stream = sampling.uniforms(seed=1, sample=0)
    drawn = [sampling.draw(LOGITS, next(stream)) for _ in range(20_000)]
    np.testing.assert_allclose(np.bincount(drawn) / 20_000, [0.4, 0.3, 0.2, 0.1], atol=0.01)


def test_streams_of_seeds_and_samples_differ_and_repeat():
    def first(seed, sample):
        stream = sampling.uniforms(seed, sample)
        return [next(stream) for _ in range(3)]

    assert first(5, 0) == first(5, 0)
    assert len({tuple(first(s, n)) for s in (0, 1, 2**64 - 1) for n in (0, 1)}) == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens: got 0, expected an integer from 1"),
        ({"top_k": 0}, "top_k: got 0"),
        ({"top_p": 0}, "top_p: got 0"),
        ({"min_p": 1.5}, "min_p: got 1.5"),
        ({"temperature": float("nan")}, "temperature: got nan"),
        ({"seed": 2**64}, "seed: got 18446744073709551616"),
        ({"stop": ("a", "")}, "stop: got"),
        ({"num_beams": 3, "temperature": 0.5}, "temperature: beam search does not sample"),
        ({"num_beams": 2, "num_samples": 3}, "num_samples: got 3, expected at most num_beams"),
    ],
)
def test_options_outside_their_range(options, message):
    with pytest.raises(OptionError, match=message):
        GenerationOptions(**options)
