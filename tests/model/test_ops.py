import math

import numpy as np
import pytest
from cases import uniforms
from hypothesis import given
from hypothesis import strategies as st

from npgpt2.base import arrays
from npgpt2.base.arrays import erf
from npgpt2.generation.scoring import cross_entropy
from npgpt2.model import fast, forward, ops

FLOATS = ("float32", "float64")


def array(key, *shape, dtype="float64", scale=1.0):
    return (scale * uniforms(key, shape)).astype(dtype)


@pytest.mark.slow
@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_few_rows_are_multiplied_in_pieces_as_they_are_at_once(dtype):
    """As near to the truth: BLAS sums in another order for each shape, and on each processor."""
    r = np.random.default_rng(0)
    wide = {"float32": np.float64, "float64": np.longdouble}[dtype]
    for rows in (0, 1, 2, 3, arrays.FEW, arrays.FEW + 1):
        for inner, outer in ((768, 2304), (3072, 40), (5, 7), (1, 1), (300_000, 33)):
            x = r.standard_normal((rows, inner)).astype(dtype)
            w = r.standard_normal((inner, outer)).astype(dtype)
            truth = x.astype(wide) @ w.astype(wide)
            for weight in (w, np.ascontiguousarray(w.T).T):  # and as the head has it
                y = arrays.product(x, weight)
                assert (y.shape, y.dtype) == ((rows, outer), dtype)
                error, bound = (np.abs(found - truth).max(initial=0) for found in (y, x @ w))
                assert error <= 4 * bound  # 1.75 is the worst seen, on an AMD EPYC (family 25)


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_op_keeps_its_dtype_and_its_inputs(dtype):
    x, w, b = (array(i, *s, dtype=dtype) for i, s in enumerate([(2, 3, 4), (4, 5), (5,)]))
    q = array(5, 2, 3, 4, 8, dtype=dtype)
    mask = np.array([[0, 1, 1, 1], [1, 1, 1, 1]], bool)
    before = [x.copy(), q.copy()]
    results = [
        ops.linear(x, w, b),
        ops.layer_norm(x, w[:, 0], w[:, 1], 1e-5),
        ops.softmax(x),
        cross_entropy(x, np.zeros((2, 3), int)),
        fast.linear(x, w, b),
        *ops.attention(q, q, q, 0.5, mask=mask, head_mask=q[:1, :, :1, :1]),
        *fast.attention(q, q, q, 0.5, mask=mask, head_mask=q[:1, :, :1, :1], want_probs=True),
        *(act(x) for act in ops.ACTIVATIONS.values()),
        erf(x),
    ]
    assert [r.dtype for r in results] == [np.dtype(dtype)] * len(results)
    np.testing.assert_array_equal(x, before[0])
    np.testing.assert_array_equal(q, before[1])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", ops.ACTIVATIONS)
def test_activations_take_any_size_without_a_warning(name, dtype):
    big = np.finfo(dtype).max ** 0.25
    x = np.array([-big, -1e4, -100, -1, -1e-30, 0, 1e-30, 1, 100, 1e4, big], dtype)
    with np.errstate(all="raise", under="ignore"):
        y = ops.ACTIVATIONS[name](x)
    assert np.isfinite(y).all()
    if name != "tanh":  # each of them is about x far on the right and about 0 far on the left
        assert y[-3:] == pytest.approx(x[-3:], rel=1e-6)
        assert np.abs(y[:3]).max() <= 1e-6


@pytest.mark.parametrize("name", ops.ACTIVATIONS)
def test_activations_in_blocks_and_in_place_are_the_same(name, monkeypatch):
    x = array(7, 5, 13, scale=4)
    whole = ops.ACTIVATIONS[name](x)
    monkeypatch.setattr(arrays, "BLOCK", 8)
    np.testing.assert_array_equal(ops.ACTIVATIONS[name](x), whole)
    assert ops.ACTIVATIONS[name](x, out=x) is x
    np.testing.assert_array_equal(x, whole)


@given(st.floats(-30, 30))
def test_erf_is_the_c_librarys(x):
    assert float(erf(np.array([x]))[0]) == pytest.approx(math.erf(x), rel=4e-16, abs=1e-300)


def test_erf_of_float32_is_within_two_units_of_the_last_place():
    x = np.linspace(-6, 6, 20001).astype("f4")
    exact = np.array([math.erf(float(v)) for v in x])
    assert np.abs(erf(x) - exact).max() <= 2 * np.finfo("f4").eps


def test_softmax_of_a_masked_row_is_zeros_and_of_large_numbers_no_warning():
    x = np.array([[-np.inf, -np.inf], [1e38, -1e38], [-np.inf, 5.0]], "f4")
    with np.errstate(all="raise", under="ignore"):
        np.testing.assert_array_equal(ops.softmax(x), [[0, 0], [1, 0], [0, 1]])


def naive_attention(q, k, v, scale, causal, mask, head_mask):
    """Query by query, from the definition."""
    (b, h, t, d), s = q.shape, k.shape[2]
    out, probs = np.zeros((b, h, t, d)), np.zeros((b, h, t, s))
    for i in np.ndindex(b, h, t):
        row, head, query = i
        seen = [j for j in range(s) if (not causal or j - query <= s - t)
                and (mask is None or mask[row, j])]  # fmt: skip
        if seen:
            e = np.exp([scale * q[i] @ k[row, head, j] for j in seen])
            probs[i][seen] = e / e.sum()
        if head_mask is not None:
            probs[i] *= np.broadcast_to(head_mask, probs.shape)[i]
        out[i] = probs[i] @ v[row, head]
    return out, probs


@pytest.mark.parametrize("queries", [2, 128])
@pytest.mark.parametrize("past", [0, 3])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("padded", [None, "left", "right", "row"])
@pytest.mark.parametrize("head_mask", [None, (1, 3, 1, 1), (2, 3, 5, "s")])
def test_attention_is_its_definition(monkeypatch, queries, past, causal, padded, head_mask):
    monkeypatch.setattr(fast, "QUERIES", queries)
    t, s = 5, 5 + past
    q, k, v = (array(i, 2, 3, n, 4) for i, n in ((1, t), (2, s), (3, s)))
    mask = None
    if padded:
        mask = np.ones((2, s), bool)
        mask[0, {"left": slice(0, 2), "right": slice(-2, None), "row": slice(None)}[padded]] = False
    if head_mask:
        head_mask = array(4, *(s if n == "s" else n for n in head_mask))
    expected = naive_attention(q, k, v, 0.7, causal, mask, head_mask)
    for found in (
        ops.attention(q, k, v, 0.7, causal, mask, head_mask),
        fast.attention(q, k, v, 0.7, causal, mask, head_mask, want_probs=True),
    ):
        np.testing.assert_allclose(found[0], expected[0], atol=1e-14)
        np.testing.assert_allclose(found[1], expected[1], atol=1e-14)
        if padded == "row":
            assert not found[0][0].any()
    assert fast.attention(q, k, v, 0.7, causal, mask, head_mask)[1] is None


def test_attention_of_rows_that_differ_in_length_is_that_of_each_alone():
    q, k, v = (array(i, 3, 2, n, 4) for i, n in ((1, 1), (2, 6), (3, 6)))
    lengths = np.array([6, 2, 5])
    found, probs = fast.attention(q, k, v, 0.7, lengths=lengths)
    assert probs is None
    for i, n in enumerate(lengths):
        alone, _ = ops.attention(q[i : i + 1], k[i : i + 1, :, :n], v[i : i + 1, :, :n], 0.7)
        np.testing.assert_allclose(found[i], alone[0], atol=1e-14)


def test_the_model_with_the_textbook_forms_is_the_same(small, monkeypatch):
    """Every intermediate, of a prompt with padding and of a step behind it."""
    model, mask = small(n_positions=16), np.array([[0, 1, 1, 1], [1, 1, 1, 1]])
    ids = np.array([[0, 3, 1, 4], [1, 5, 2, 6]])

    def everything():
        taken = {}
        keep = lambda name, x: taken.setdefault((name, x.shape), x.copy())  # noqa: E731
        out = model(ids, attention_mask=mask, tap=keep)
        both = np.concatenate([mask, [[1], [1]]], 1)
        model(ids[:, :1], attention_mask=both, past_key_values=out.past_key_values, tap=keep)
        return taken

    found = everything()

    def attention(*arrays, want_probs, lengths, **options):
        assert lengths is None
        return ops.attention(*arrays, **options)

    monkeypatch.setattr(forward, "linear", ops.linear)
    monkeypatch.setattr(forward, "attention", attention)
    monkeypatch.setattr(forward, "product", lambda x, weight: x @ weight)
    textbook = everything()
    assert len(found) > 2 * 10 * model.config.n_layer
    assert found.keys() == textbook.keys()
    for name, x in textbook.items():
        np.testing.assert_allclose(found[name], x, rtol=1e-12, atol=1e-13, err_msg=str(name))


def test_cross_entropy_of_huge_logits_is_finite():
    nats = cross_entropy(np.array([[1e4, 0.0], [0.0, 1e4]]), np.array([0, 0]))
    np.testing.assert_allclose(nats, [0, 1e4])
