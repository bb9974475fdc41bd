"""Every way back against the slope of its forward; then all that makes steps of gradients."""

import json
import math
import re
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from cases import CASES, IDS, LABELS, LEFT, RIGHT, SMALL, STATES, T, formula_tensors, ids, uniforms
from hypothesis import given
from hypothesis import strategies as st
from train_cases import RUNS, ten_steps

from npgpt2 import GPT2, GPT2Config
from npgpt2.base import arrays
from npgpt2.base.errors import InputError
from npgpt2.generation import scoring
from npgpt2.model import fast
from npgpt2.model import ops as plain
from npgpt2.model.params import Embedding, LayerNorm, Linear, build_tree, named_parameters
from npgpt2.train import gradients as public
from npgpt2.train import model, ops, optimizer
from npgpt2.train.corpus import Batch
from npgpt2.train.loss import Gradients
from npgpt2.train.model import Rows, Run
from npgpt2.train.ops import NO_DROP, Drop
from npgpt2.train.optimizer import AdamW, Flat, learning_rate

FLOATS = ("float32", "float64")
STEP = 5e-5  # a longer one is wrong by its fourth power, a shorter one by rounding
EXPECTED = json.loads((Path(__file__).parents[1] / "data" / "train_expected.json").read_text())


def slope(f, h=STEP):
    """f′(0), wrong by h⁴ only: two central differences, extrapolated as Richardson did."""
    near, far = ((f(s) - f(-s)) / (2 * s) for s in (h, 2 * h))
    return near + (near - far) / 3


def assert_gradient(f, arrays, gradients, h=STEP):
    """`gradients` are those of the number f() by `arrays`: so it rises in a random direction.

    Twice the gradient's own is added to it: f is steep there, and the relative error has a meaning.
    """
    length = math.sqrt(sum(float((g * g).sum()) for g in gradients))
    assert 0 < length < math.inf
    random = [uniforms(900 + i, x.shape) for i, x in enumerate(arrays)]
    directions = [u + 2 / length * g for u, g in zip(random, gradients, strict=True)]
    before = [x.copy() for x in arrays]

    def moved(s):
        for x, start, u in zip(arrays, before, directions, strict=True):
            x[...] = start + s * u
        return f()

    expected = slope(moved, h)
    moved(0.0)
    found = sum(float((g * u).sum()) for g, u in zip(gradients, directions, strict=True))
    assert abs(found - expected) <= 1e-7 * abs(found)


def test_the_check_itself_passes_what_is_right_and_nothing_else():
    x = uniforms(1, (4, 5))
    f, right = lambda: float((x**3).sum()), 3 * x**2
    assert_gradient(f, [x], [right])
    one = np.zeros_like(x)
    one[0, 0] = np.nan
    for wrong in (0 * x, -right, right * (1 + 1e-6), right + one, np.full_like(x, np.inf)):
        with pytest.raises(AssertionError):
            assert_gradient(f, [x], [wrong])
    with pytest.raises(AssertionError):  # what depends on nothing proves nothing
        assert_gradient(lambda: 1.0, [x], [0 * x])
    with pytest.raises(AssertionError):
        assert_gradient(lambda: math.nan, [x], [right])
    assert slope(lambda s: math.exp(3 * s)) == pytest.approx(3, rel=1e-11)


# ── each op: a function of arrays → its result, and the result's gradient → those of the arrays ──


def with_node(op, node):
    """An op of x and parameters. The gradients of these are added to what is there: `start`."""

    def run(x, *p, start=0.0):
        y, back = op(x, *p)
        d = node(*(np.full_like(w, start) for w in p))
        return y, lambda dy: [back(dy, d), *d]

    return run


def embedding(weight, start=0.0):
    y, back = ops.embedding(np.array([[4, 1, 1], [0, 4, 4]]), weight)
    d = Embedding(np.full_like(weight, start))

    def gradients(dy):
        back(dy, d)  # ids have no gradient
        return [*d]

    return y, gradients


def elementwise(op):
    def run(x):
        y, back = op(x.copy())  # an activation's way back writes over what it was given
        return y, lambda dy: [back(dy)]

    return run


def attention(causal, mask, p):
    def run(q, k, v):
        drop = Drop(p, seed=5, site="probs")
        y, back = ops.attention(q, k, v, 0.7, drop, causal, mask)

        def gradients(dy):
            d = [np.full_like(x, np.nan) for x in (q, k, v)]  # to be written over
            back(dy, *d)
            return d

        return y, gradients

    return run


def cross_entropy(logits):
    nats, back = ops.cross_entropy(logits.copy(), np.array([[2, -100, 0], [4, 4, 1]]))
    return np.asarray(nats, logits.dtype), lambda dy: [back(float(dy))]


MASKS = {
    "nothing padded": None,
    "left": LEFT.astype(bool),
    "right": RIGHT.astype(bool),
    "middle": np.array([[1, 0, 1, 0, 0, 1, 1], [1] * T], bool),
    "a row": np.array([[0] * T, [1] * T], bool),
}
NODES = {
    "linear": (with_node(ops.linear, Linear), [(2, 3, 4), (4, 5), (5,)]),
    "layer_norm": (
        with_node(partial(ops.layer_norm, eps=0.1), LayerNorm),
        [(2, 3, 6), (6,), (6,)],
    ),
    "head": (with_node(ops.head, Embedding), [(2, 3, 4), (7, 4)]),
    "embedding": (embedding, [(5, 3)]),
}
OPS = {
    **NODES,
    **{
        f"activation {name}": (elementwise(partial(ops.activation, name)), [(2, 3, 5)])
        for name in plain.ACTIVATIONS
    },
    "dropout": (elementwise(partial(ops.dropout, drop=Drop(0.4, seed=1))), [(2, 3, 5)]),
    "cross_entropy": (cross_entropy, [(2, 3, 5)]),
    **{
        f"attention, padding {name}, causal {causal}, dropout {p}": (
            attention(causal, mask, p),
            [(2, 3, T, 4)] * 3,
        )
        for name, mask in MASKS.items()
        for causal in (True, False)
        for p in (0.0, 0.3)
    },
    "attention to fewer": (attention(False, None, 0.3), [(2, 3, 9, 4), *[(2, 3, 4, 4)] * 2]),
}


def arrays_of(name, dtype="float64"):
    return [(2 * uniforms(i, shape)).astype(dtype) for i, shape in enumerate(OPS[name][1])]


@pytest.mark.parametrize("name", OPS)
def test_gradients_of_an_op_are_its_slopes(name, monkeypatch):
    op, arrays = OPS[name][0], arrays_of(name)
    for queries in (3, 128) if "attention" in name else (128,):
        monkeypatch.setattr(ops, "QUERIES", queries)
        y, back = op(*arrays)
        dy = uniforms(50, y.shape)
        for x, gradient in zip(arrays, back(dy), strict=True):
            assert_gradient(lambda: float((op(*arrays)[0] * dy).sum()), [x], [gradient])  # noqa: B023


@pytest.mark.parametrize("name", OPS)
def test_an_op_keeps_the_dtype_and_what_it_was_given(name):
    found = {}
    for dtype in FLOATS:
        arrays = arrays_of(name, dtype)
        y, back = OPS[name][0](*arrays)
        dy = uniforms(50, y.shape).astype(dtype)
        before = [x.copy() for x in (dy, *arrays)]
        gradients = back(dy)
        found[dtype] = [y, *gradients]
        assert {x.dtype for x in found[dtype]} == {np.dtype(dtype)}
        assert [g.shape for g in gradients] == OPS[name][1]
        for x, same in zip((dy, *arrays), before, strict=True):
            np.testing.assert_array_equal(x, same)
    for narrow, wide in zip(found["float32"], found["float64"], strict=True):
        np.testing.assert_allclose(narrow, wide, rtol=0, atol=2e-6 * np.abs(wide).max())


@pytest.mark.parametrize("name", NODES)
def test_gradients_of_parameters_are_added_to_what_is_there(name):
    op, arrays = OPS[name][0], arrays_of(name)
    (y, back), (_, more) = op(*arrays), op(*arrays, start=3.0)
    dy = uniforms(50, y.shape)
    parameters = slice(name != "embedding", None)
    first, added = back(dy), more(dy)
    for once, both in zip(first[parameters], added[parameters], strict=True):
        np.testing.assert_allclose(both, 3 + once, rtol=1e-14)
    if parameters.start:
        np.testing.assert_array_equal(first[0], added[0])


@pytest.mark.parametrize("dtype", FLOATS)
def test_forwards_that_call_the_same_arithmetic_have_the_same_bits(dtype):
    x, w, b = (uniforms(i, s).astype(dtype) for i, s in enumerate([(2, 3, 4), (4, 5), (5,)]))
    np.testing.assert_array_equal(ops.linear(x, w, b)[0], fast.linear(x, w, b))
    np.testing.assert_array_equal(ops.embedding(IDS % 4, w)[0], w[IDS % 4])
    assert list(ops.SLOPES) == list(plain.ACTIVATIONS)
    for name, act in plain.ACTIVATIONS.items():
        np.testing.assert_array_equal(ops.activation(name, 5 * x)[0], act(5 * x))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("causal", [True, False])
def test_attention_has_the_bits_of_the_plain_one(dtype, mask, causal, monkeypatch):
    q, k, v = (uniforms(i, (2, 3, T, 4)).astype(dtype) for i in range(3))
    for queries in (3, 128):
        monkeypatch.setattr(ops, "QUERIES", queries)
        monkeypatch.setattr(fast, "QUERIES", queries)
        found, _ = ops.attention(q, k, v, 0.7, NO_DROP, causal, mask)
        expected, _ = fast.attention(q, k, v, 0.7, causal, mask)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_other_forwards_are_the_plain_ones_to_the_last_digits(dtype):
    x, w, b = (uniforms(i, s).astype(dtype) for i, s in enumerate([(5, 7, 40), (40,), (40,)]))
    table, targets = uniforms(3, (11, 40)).astype(dtype), ids(4, (5, 7), 11)
    targets[0] = -100
    eps = float(np.finfo(dtype).eps)
    expected = plain.layer_norm(x, w, b, 1e-5)
    np.testing.assert_allclose(ops.layer_norm(x, w, b, 1e-5)[0], expected, rtol=0, atol=4 * eps)
    logits = ops.head(x, table)[0]
    np.testing.assert_allclose(logits, x @ table.T, rtol=0, atol=16 * eps)
    nats = scoring.cross_entropy(logits.astype("f8"), targets).sum()
    assert ops.cross_entropy(logits, targets)[0] == pytest.approx(nats, rel=4 * eps)


# ── what each op does where it is not plain ──────────────────────────────────────────────────────


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", plain.ACTIVATIONS)
def test_slopes_take_any_size_without_a_warning(name, dtype):
    big = np.finfo(dtype).max ** 0.25
    x = np.array([-big, -1e4, -100, -1, -1e-30, 0, 1e-30, 1, 100, 1e4, big], dtype)
    with np.errstate(all="raise", under="ignore"):
        slopes = ops.activation(name, x)[1](np.ones_like(x))
    far = 0 if name == "tanh" else 1
    np.testing.assert_allclose(slopes[[0, 1, 2, -3, -2, -1]], [0, 0, 0, far, far, far], atol=1e-6)
    assert np.isfinite(slopes).all()


def test_slopes_in_blocks_are_the_same(monkeypatch):
    x, dy = 4 * uniforms(7, (5, 13)), uniforms(8, (5, 13))
    for name in ops.SLOPES:
        whole = ops.activation(name, x.copy())[1](dy)
        with monkeypatch.context() as patch:
            patch.setattr(arrays, "BLOCK", 8)
            np.testing.assert_array_equal(ops.activation(name, x.copy())[1](dy), whole)


@pytest.mark.parametrize("causal", [True, False])
def test_attention_gives_padding_no_gradient(causal):
    q, k, v, dy = (uniforms(i, (2, 3, T, 4)) for i in range(4))
    for mask in (m for m in MASKS.values() if m is not None):
        _, back = ops.attention(q, k, v, 0.7, NO_DROP, causal, mask)
        dq, dk, dv = np.full((3, *q.shape), np.nan)
        back(dy, dq, dk, dv)
        padded = ~mask[:, None, :, None] & np.ones(q.shape, bool)
        assert not dk[padded].any()
        assert not dv[padded].any()
        assert np.isfinite(dq).all()
    assert not dq[0].any()  # the last mask: all of a row is padding
    assert dq[1].any()


def test_an_embeddings_unused_rows_get_nothing_and_repeated_ones_all():
    d = Embedding(np.zeros((4, 2)))
    ops.embedding(np.array([[3, 1, 3], [3, 3, 1]]), np.ones((4, 2)))[1](np.ones((2, 3, 2)), d)
    np.testing.assert_array_equal(d.weight, [[0, 0], [2, 2], [0, 0], [4, 4]])


@pytest.mark.parametrize("dtype", FLOATS)
def test_cross_entropy_takes_huge_logits_and_those_that_are_ruled_out(dtype):
    logits = np.array([[1e4, 0.0, -np.inf], [0.0, 1e4, -np.inf], [-np.inf, 3.0, 3.0]], dtype)
    nats, back = ops.cross_entropy(logits, np.array([0, 0, 2]))
    assert nats == pytest.approx(1e4 + math.log(2))
    np.testing.assert_array_equal(back(2.0), [[0, 0, 0], [-2, 2, 0], [0, 1, -1]])


@pytest.mark.parametrize("dtype", FLOATS)
def test_targets_that_are_ignored_have_no_loss_and_no_gradient(dtype):
    logits = uniforms(0, (3, 4, 5)).astype(dtype)
    targets = np.full((3, 4), -100)
    nats, back = ops.cross_entropy(logits.copy(), targets)
    assert nats == 0
    assert not back(1.0).any()
    targets[1, 2] = 4
    nats, back = ops.cross_entropy(logits.copy(), targets)
    gradient = back(1.0)
    one = scoring.cross_entropy(logits[1, 2], np.array(4))
    assert nats == pytest.approx(float(one), rel=4 * float(np.finfo(dtype).eps))
    assert abs(gradient[1, 2].sum()) <= 4 * np.finfo(dtype).eps
    gradient[1, 2] = 0
    assert not gradient.any()
    chosen, back = ops.cross_entropy(logits.copy(), np.full((3, 4), 2), ignore_index=2)
    assert chosen == 0
    assert not back(1.0).any()


# ── dropout ──────────────────────────────────────────────────────────────────────────────────────

HALF = Drop(0.5, seed=7, step=11, row=3, site="h.0.attn.probs")


def test_the_same_draw_is_the_same_mask_and_any_other_another():
    shape = (2, 3, 1001)
    mask = HALF.draw(shape)
    np.testing.assert_array_equal(mask, HALF._replace().draw(shape))
    others = [
        HALF._replace(**other)
        for other in ({"seed": 8}, {"step": 12}, {"row": 5}, {"site": "h.1.attn.probs"},
                      {"seed": 2**64 - 1}, {"step": 2**40})
    ]  # fmt: skip
    for other in [*others, HALF.at(0), HALF.at(128)]:
        agree = (other.draw(shape) == mask).sum()
        assert abs(agree - mask.size / 2) <= 5 * math.sqrt(mask.size / 4), other
    assert abs((mask[0] == mask[1]).sum() - 3003 / 2) <= 5 * math.sqrt(3003 / 4)


@given(st.integers(1, 5), st.integers(0, 5), st.integers(1, 9))
def test_a_rows_mask_does_not_depend_on_how_the_batch_is_split(rows, cut, size):
    whole = HALF.draw((rows, size))
    parts = [HALF.draw((min(cut, rows), size))]
    parts.append(HALF._replace(row=HALF.row + len(parts[0])).draw((rows - len(parts[0]), size)))
    np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("p", [1e-3, 0.1, 0.3, 0.5, 0.9])
def test_dropout_keeps_its_share_and_the_expectation(p, dtype):
    x, drop = np.ones((4, 300, 167), dtype), HALF._replace(probability=p)
    y, _ = ops.dropout(x, drop)
    kept, spread = (y != 0).sum(), math.sqrt(x.size * p * (1 - p))
    assert abs(kept - x.size * (1 - p)) <= 5 * spread
    share = 1 - drop.threshold / 65536
    assert share == pytest.approx(1 - p, abs=1e-5)
    np.testing.assert_allclose(y[y != 0] * share, 1, rtol=2 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", FLOATS)
def test_dropout_of_nothing_is_x_itself_and_of_everything_zeros(dtype):
    x = uniforms(1, (2, 3, 5)).astype(dtype)
    y, back = ops.dropout(x, HALF._replace(probability=0.0))
    assert y is x
    assert back(x) is x
    y, back = ops.dropout(x, HALF._replace(probability=1.0))
    for zeros in (y, back(x)):
        assert zeros.dtype == x.dtype
        np.testing.assert_array_equal(zeros, np.zeros_like(x))


def test_forward_and_back_drop_the_same():
    x = uniforms(1, (2, 3, 50))
    y, back = ops.dropout(x, HALF)
    np.testing.assert_array_equal(y, np.where(y == 0, 0, 2 * x))
    np.testing.assert_array_equal(back(x), y)


# ── the whole model ──────────────────────────────────────────────────────────────────────────────

DROP = Drop(0.0, seed=3, step=1, row=4)  # the probabilities are the config's
RATES = {"embd_pdrop": 0.3, "attn_pdrop": 0.2, "resid_pdrop": 0.25}
CROSS = {"add_cross_attention": True}
ENCODER_MASK = np.array([[1, 1, 1, 0, 0], [0, 1, 1, 1, 1]], bool)
LONG = {
    "ids": ids(1006, (2, 135)),
    "targets": ids(1007, (2, 135)),
    "positions": np.arange(135)[None],
    "mask": uniforms(1008, (2, 135)) < 0.6,
}
EVERYTHING = {
    **CROSS,
    "tie_word_embeddings": False,
    "n_inner": 17,
    "activation_function": "gelu",
    "scale_attn_by_inverse_layer_idx": True,
    "pruned_heads": {0: (1,), 1: (0, 2)},
}
# name → (config, what is passed to the model)
MODELS = {
    **{f"activation {name}": ({"activation_function": name}, {}) for name in plain.ACTIVATIONS},
    "no scale": ({"scale_attn_weights": False}, {}),
    "inverse layer": ({"scale_attn_by_inverse_layer_idx": True}, {}),
    "n_inner": ({"n_inner": 17}, {}),
    "epsilon": ({"layer_norm_epsilon": 1e-2}, {}),
    "own head": ({"tie_word_embeddings": False}, {}),
    "one layer, one head": ({"n_layer": 1, "n_head": 1}, {}),
    "pruned heads": ({"pruned_heads": {0: (1,), 1: (0, 2)}}, {}),
    "token types": ({}, {"types": ids(1004)}),
    "positions": ({}, {"positions": ids(1005, below=16)}),
    **{f"padding {name}": ({}, {"mask": mask}) for name, mask in MASKS.items()},
    "some ignored": ({}, {"targets": LABELS}),
    "dropout": ({}, {"drop": DROP}),
    "blocks of queries": ({"n_positions": 140, "n_layer": 1}, {**LONG, "drop": DROP}),
    "cross-attention": (CROSS, {"encoder": STATES}),
    "cross-attention, masked": (CROSS, {"encoder": STATES, "encoder_mask": ENCODER_MASK}),
    "cross-attention, dropout": (CROSS, {"encoder": STATES, "drop": DROP}),
    "everything": (
        EVERYTHING,
        {
            "targets": LABELS,
            "mask": MASKS["middle"],
            "types": ids(1004),
            "encoder": STATES,
            "encoder_mask": ENCODER_MASK,
            "drop": DROP,
        },
    ),
}


def case(name, dtype="float64"):
    """Parameters and a run of one of MODELS."""
    switches, given = MODELS[name]
    config = GPT2Config(**SMALL | {"n_layer": 2} | RATES | switches)
    rows = {"ids": IDS, "targets": ids(1009), "positions": np.arange(T)[None], **given}
    drop = rows.pop("drop", None)
    if "encoder" in rows:
        rows["encoder"] = rows["encoder"].astype(dtype)
    return parameters(config, dtype), Run(config, Rows(**rows), drop)


def parameters(config, dtype="float64"):
    return build_tree({k: v.astype(dtype) for k, v in formula_tensors(config).items()})


def zeros_like(params):
    return build_tree({name: np.zeros_like(x) for name, x in named_parameters(params)})


def leaves(params):
    return [x for _, x in named_parameters(params)]


def loss_and_gradients(params, run):
    """Σ −log p; and its gradients by name, with that of the encoder's states."""
    d = zeros_like(params)
    encoder = run.rows.encoder
    d_encoder = {} if encoder is None else {"encoder": np.zeros_like(encoder)}
    rows = run.rows._replace(d_encoder=d_encoder.get("encoder"))
    nats, back = model.loss(params, run._replace(rows=rows))
    back(1.0, d)
    return nats, dict(named_parameters(d)) | d_encoder


def step_of(config):
    return 1e-5 if config.activation_function == "relu" else STEP  # a longer one meets its corners


@pytest.mark.parametrize("name", MODELS)
def test_gradients_of_the_model_are_the_slopes_of_its_loss(name):
    params, run = case(name)
    _, found = loss_and_gradients(params, run)
    arrays = dict(named_parameters(params))
    if run.rows.encoder is not None:
        arrays["encoder"] = run.rows.encoder
    assert found.keys() == arrays.keys()
    for key, x in arrays.items():
        assert_gradient(lambda: model.loss(params, run)[0], [x], [found[key]], step_of(run.config))


@pytest.mark.parametrize("name", [name for name in MODELS if "drop" not in MODELS[name][1]])
def test_the_loss_is_that_of_the_plain_model(name):
    params, run = case(name)
    rows = run.rows
    out = GPT2(run.config, params)(
        rows.ids,
        attention_mask=rows.mask,
        position_ids=rows.positions,
        token_type_ids=rows.types,
        encoder_hidden_states=rows.encoder,
        encoder_attention_mask=rows.encoder_mask,
    )
    expected = scoring.cross_entropy(out.logits, rows.targets).sum()
    assert model.loss(params, run)[0] == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("name", MODELS)
def test_float32_is_float64_rounded_and_stays_float32(name):
    nats, found = loss_and_gradients(*case(name, "float32"))
    wide_nats, wide = loss_and_gradients(*case(name))
    assert type(nats) is float
    assert nats == pytest.approx(wide_nats, rel=1e-6)
    largest = max(np.abs(g).max() for g in wide.values())
    for key, gradient in found.items():
        assert gradient.dtype == np.float32
        np.testing.assert_allclose(gradient, wide[key], rtol=0, atol=2e-5 * largest, err_msg=key)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", MODELS)
def test_checkpointing_gives_the_same_bits(name, dtype):
    params, run = case(name, dtype)
    nats, kept = loss_and_gradients(params, run)
    again, checkpointed = loss_and_gradients(params, run._replace(checkpointing=True))
    assert again == nats
    for key, gradient in kept.items():
        np.testing.assert_array_equal(checkpointed[key], gradient, err_msg=key)


def test_checkpointing_keeps_the_inputs_of_the_blocks_and_nothing_else():
    rows = Rows(ids(1, (8, 32)), ids(2, (8, 32)), np.arange(32)[None])

    def held(layers, checkpointing):
        config = GPT2Config(**SMALL | {"n_positions": 32, "n_layer": layers} | RATES)
        params = parameters(config)
        tracemalloc.start()
        kept = model.loss(params, Run(config, rows, DROP, checkpointing))
        size, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        del kept
        return size

    stream = 8 * 32 * SMALL["n_embd"] * 8
    more = {c: (held(8, c) - held(2, c)) / 6 for c in (True, False)}
    assert stream <= more[True] <= 1.1 * stream
    assert more[False] > 10 * stream


def test_a_way_back_adds_to_what_is_there():
    params, run = case("everything")
    d, d_encoder = zeros_like(params), np.zeros_like(STATES)
    run = run._replace(rows=run.rows._replace(d_encoder=d_encoder))
    for _ in range(2):
        model.loss(params, run)[1](1.0, d)
    _, once = loss_and_gradients(params, run)
    for key, twice in (*named_parameters(d), ("encoder", d_encoder)):
        np.testing.assert_allclose(twice, 2 * once[key], rtol=1e-12, err_msg=key)


def test_what_back_is_given_scales_every_gradient():
    params, run = case("everything")
    _, once = loss_and_gradients(params, run)
    d = zeros_like(params)
    model.loss(params, run)[1](0.25, d)
    for key, quarter in named_parameters(d):
        np.testing.assert_allclose(quarter, 0.25 * once[key], rtol=1e-12, err_msg=key)


def test_a_tied_heads_gradient_joins_that_of_the_embedding():
    params, run = case("epsilon")
    _, tied = loss_and_gradients(params, run)
    untied = params._replace(lm_head=Embedding(params.wte.weight.copy()))
    _, apart = loss_and_gradients(untied, run)
    head, wte = apart.pop("lm_head.weight"), apart["wte.weight"]
    assert head.any()
    assert wte.any()
    np.testing.assert_allclose(tied["wte.weight"], wte + head, rtol=0, atol=1e-13)
    assert tied.keys() == apart.keys()


def test_tokens_that_are_padding_get_no_gradient():
    """Token 22 stands in the padding only, and the head has a table of its own."""
    for mask in MASKS.values():
        if mask is not None:
            params, run = case("own head")
            real = np.where(run.rows.ids == 22, 21, run.rows.ids)
            targets = np.where(mask, run.rows.targets, -100)
            rows = run.rows._replace(ids=np.where(mask, real, 22), targets=targets, mask=mask)
            _, found = loss_and_gradients(params, run._replace(rows=rows))
            assert not found["wte.weight"][22].any()
            assert all(np.isfinite(gradient).all() for gradient in found.values())


def test_without_an_encoder_the_cross_attention_gets_no_gradient():
    params, run = case("cross-attention")
    without = run._replace(rows=run.rows._replace(encoder=None))
    _, found = loss_and_gradients(params, without)
    for key, gradient in found.items():
        assert gradient.any() != ("cross" in key), key


def test_dropout_draws_once_at_each_place_under_a_name_of_its_own(monkeypatch):
    drawn, draw = [], Drop.draw
    monkeypatch.setattr(Drop, "draw", lambda drop, shape: drawn.append(drop) or draw(drop, shape))
    _, run = case("blocks of queries")
    config = GPT2Config(**SMALL | {"n_positions": 140, "n_layer": 2} | RATES | CROSS)
    run = run._replace(config=config, rows=run.rows._replace(encoder=STATES))
    loss_and_gradients(parameters(config), run)
    places = {"embed": 0.3}
    for layer in "01":
        for kind in ("attn", "crossattention"):
            places |= {f"h.{layer}.{kind}.probs.{start}": 0.2 for start in (0, 128)}
            places |= {f"h.{layer}.{kind}.c_proj": 0.25}
        places |= {f"h.{layer}.mlp.c_proj": 0.25}
    assert len(drawn) == len(places)
    assert {drop.site: drop.probability for drop in drawn} == places
    assert {drop[1:4] for drop in drawn} == {DROP[1:4]}


@pytest.mark.parametrize(
    ("kind", "dropped"),
    [
        ("embd_pdrop", "wte|wpe|h.0.ln_1.weight"),
        ("attn_pdrop", "attention.*weight|attn.*weight|c_attn|q_attn|ln_1|ln_cross_attn"),
        ("resid_pdrop", "h[.]"),
    ],
)
def test_what_is_dropped_whole_gets_no_gradient(kind, dropped):
    rates = dict.fromkeys(RATES, 0.0) | {kind: 1.0}
    config = GPT2Config(**SMALL | CROSS | {"tie_word_embeddings": False} | rates)
    _, run = case("cross-attention")
    _, found = loss_and_gradients(parameters(config), run._replace(config=config, drop=DROP))
    for key, gradient in found.items():
        if key != "encoder":
            assert np.isfinite(gradient).all()
            assert gradient.any() != bool(re.search(dropped, key)), key


# ── `gradients`, for whoever asks ────────────────────────────────────────────────────────────────

PUBLIC = {
    name: (switches, inputs)
    for name, (switches, inputs) in CASES.items()
    if name != "one token" and not inputs.keys() & {"inputs_embeds", "head_mask", "logits_to_keep"}
}


@pytest.mark.parametrize("name", PUBLIC)
def test_public_gradients_are_the_slopes_of_the_models_own_loss(name, small):
    switches, inputs = PUBLIC[name]
    wide = small(**switches)
    inputs = {"labels": LABELS, **inputs}

    def loss():
        return float(wide(**inputs, use_cache=False).loss)

    found, d = public(wide, **inputs)
    assert type(found) is float
    assert found == pytest.approx(loss(), rel=1e-14)
    assert type(d) is type(wide.params)
    parameters, gradients = leaves(wide.params), leaves(d)
    assert_gradient(loss, parameters, gradients, step_of(wide.config))
    again, same = public(wide, **inputs, gradient_checkpointing=True)
    assert again == found
    for checkpointed, g in zip(leaves(same), gradients, strict=True):
        np.testing.assert_array_equal(checkpointed, g)


def test_public_gradients_have_the_models_dtype(small):
    loss, d = public(small("float32"), IDS)
    assert type(loss) is float
    assert {x.dtype for x in leaves(d)} == {np.dtype("float32")}


def test_labels_are_by_default_the_ids_themselves(small):
    wide = small()
    (loss, d), (same, expected) = public(wide, IDS), public(wide, IDS, IDS)
    assert loss == same
    for g, x in zip(leaves(d), leaves(expected), strict=True):
        np.testing.assert_array_equal(g, x)


@pytest.mark.parametrize("mask", [LEFT, RIGHT])
def test_by_default_padding_changes_nothing(mask, small):
    """Rows of 4 or 5 tokens and of 7: the mean over both is that of each by itself."""
    wide = small()
    loss, d = public(wide, IDS, attention_mask=mask)
    weights = mask.sum(1) - 1
    alone = [public(wide, row[None, real == 1]) for row, real in zip(IDS, mask, strict=True)]
    assert loss == pytest.approx(weights @ [nats for nats, _ in alone] / weights.sum(), rel=1e-13)
    rows = [dict(named_parameters(tree)) for _, tree in alone]
    for key, g in named_parameters(d):
        expected = (weights[0] * rows[0][key] + weights[1] * rows[1][key]) / weights.sum()
        np.testing.assert_allclose(g, expected, rtol=0, atol=1e-13, err_msg=key)


@pytest.mark.parametrize(
    ("named", "inputs"),
    [
        ("input_ids", {"input_ids": None}),
        ("input_ids", {"input_ids": [1, 2, 3]}),
        ("input_ids", {"input_ids": [[1, 23]]}),
        ("input_ids", {"input_ids": [[0.5, 1.0]]}),
        ("input_ids", {"input_ids": [[1] * 17]}),
        ("labels: nothing to predict", {"input_ids": [[1]]}),
        ("labels: nothing to predict", {"labels": np.full_like(IDS, -100)}),
        ("labels: nothing to predict", {"labels": np.where(np.arange(T) == 0, IDS, -100)}),
        ("labels: nothing to predict", {"attention_mask": np.zeros_like(IDS)}),
        ("labels", {"labels": IDS[:, 1:]}),
        ("labels", {"labels": IDS + 23}),
        ("attention_mask", {"attention_mask": LEFT[:1]}),
        ("attention_mask", {"attention_mask": LEFT + 1}),
        ("position_ids", {"position_ids": IDS + 16}),
        ("token_type_ids", {"token_type_ids": IDS + 23}),
        ("token_type_ids", {"token_type_ids": IDS[:1]}),
        ("no cross-attention", {"encoder_hidden_states": STATES}),
        ("encoder_attention_mask", {"encoder_attention_mask": ENCODER_MASK}),
    ],
)
def test_public_gradients_refuse_what_does_not_fit(named, inputs, small):
    with pytest.raises(InputError, match=named):
        public(small(), **{"input_ids": IDS} | inputs)


# ── `Gradients`, for training ────────────────────────────────────────────────────────────────────

ROWS = Batch(ids(1010, (7, T)), np.where(uniforms(1011, (7, T)) < -0.8, -100, ids(1012, (7, T))))
DROPPING = GPT2Config(**SMALL | RATES)


def summed(batches, shares=1, drop=None, config=DROPPING, **options):
    """Nats and gradients of batches that begin at the rows they are given with."""
    params = Flat.of(parameters(config))
    with ThreadPoolExecutor(shares) as pool:
        adding = Gradients(params, config, shares, pool, **options)
        nats = sum(
            adding.add(batch, ROWS.ids.size, drop and drop._replace(row=row))
            for row, batch in batches.items()
        )
    return nats, adding.total()


def assert_same(found, expected, bound):
    assert found[0] == pytest.approx(expected[0], rel=bound)
    pairs = zip(named_parameters(found[1].tree), named_parameters(expected[1].tree), strict=True)
    for (key, g), (_, x) in pairs:
        np.testing.assert_allclose(g, x, rtol=0, atol=bound * np.abs(x).max(), err_msg=key)


@pytest.mark.parametrize("drop", [None, DROP])
def test_the_sum_is_the_gradient_of_the_loss_whatever_the_shares(drop):
    """With 8 shares for 7 rows one has nothing to do."""
    run = Run(DROPPING, Rows(*ROWS, np.arange(T)[None]), drop and drop._replace(row=0))
    params = parameters(DROPPING)
    d = zeros_like(params)
    nats, back = model.loss(params, run)
    back(1 / ROWS.ids.size, d)
    for shares in (1, 2, 3, 8):
        found = summed({0: ROWS}, shares, drop)
        assert_same(found, (nats, Flat.of(d)), 1e-13)
        again = summed({0: ROWS}, shares, drop, gradient_checkpointing=True)
        assert again[0] == found[0]
        np.testing.assert_array_equal(again[1].array, found[1].array)


@pytest.mark.parametrize("drop", [None, DROP])
@pytest.mark.parametrize("shares", [1, 2])
def test_small_batches_add_up_to_the_large_one(shares, drop):
    parts = {at: Batch(*(x[at : at + 2] for x in ROWS)) for at in range(0, 7, 2)}
    assert_same(summed(parts, shares, drop), summed({0: ROWS}, 1, drop), 1e-12)


def test_rows_that_are_counted_wrong_are_dropped_otherwise():
    (nats, _), (other, _) = (summed({row: ROWS}, 1, DROP) for row in (0, 1))
    assert abs(nats - other) > 1e-3


def test_without_a_drop_the_configs_dropout_rests():
    none = GPT2Config(**SMALL | dict.fromkeys(RATES, 0.0))
    found, expected = summed({0: ROWS}), summed({0: ROWS}, 1, DROP, none)
    assert found[0] == expected[0]
    np.testing.assert_array_equal(found[1].array, expected[1].array)
    assert summed({0: ROWS}, 1, DROP)[0] != found[0]


def test_gradient_checkpointing_is_asked_for_and_runs_every_block_twice(monkeypatch):
    layers, block = [], model.block
    monkeypatch.setattr(
        model, "block", lambda x, p, layer, run: layers.append(layer) or block(x, p, layer, run)
    )
    gpt2 = GPT2(DROPPING, parameters(DROPPING))
    for checkpointing, expected in ((False, [0, 1, 2]), (True, [0, 1, 2, 2, 1, 0])):
        for compute in (partial(public, gpt2, IDS), partial(summed, {0: ROWS})):
            layers.clear()
            compute(gradient_checkpointing=checkpointing)
            assert layers == expected


def test_who_takes_the_total_and_clears_it_begins_anew():
    params = Flat.of(parameters(DROPPING))
    with ThreadPoolExecutor(3) as pool:
        adding = Gradients(params, DROPPING, 3, pool)
        adding.add(ROWS, 7)
        first = adding.total()
        before = first.array.copy()
        first.array[...] = 0
        adding.add(ROWS, 7)
        np.testing.assert_array_equal(adding.total().array, before)
        np.testing.assert_array_equal(adding.total().array, before)  # nothing is added twice


def test_parameters_are_read_again_at_every_call():
    params = Flat.of(parameters(DROPPING))
    with ThreadPoolExecutor(1) as pool:
        adding = Gradients(params, DROPPING, 1, pool)
        nats = adding.add(ROWS, 7)
        params.array[...] *= 0.5
        assert abs(adding.add(ROWS, 7) - nats) > 1e-3


def test_validation_counts_nats_and_targets_and_drops_nothing():
    params = Flat.of(parameters(DROPPING))
    batches = [Batch(*(x[at : at + 3] for x in ROWS)) for at in range(0, 7, 3)]
    with ThreadPoolExecutor(2) as pool:
        nats, count = Gradients(params, DROPPING, 2, pool).nats(params.tree, batches)
    assert count == (ROWS.targets != -100).sum()
    assert nats == pytest.approx(summed({0: ROWS})[0], rel=1e-14)


# ── AdamW ────────────────────────────────────────────────────────────────────────────────────────


def frozen(name):
    return name in ("wte.weight", "ln_f.bias")


def test_flat_is_matrices_then_vectors_then_what_is_frozen():
    params = parameters(DROPPING)
    flat = Flat.of(params, frozen)
    copy = flat.zeros()
    assert (copy.decayed, copy.trained) == (flat.decayed, flat.trained)
    assert copy.array.dtype == flat.array.dtype
    assert not copy.array.any()
    taken = np.zeros(flat.array.size, int)
    for (key, x), (name, view), (other, zeros) in zip(
        named_parameters(params), named_parameters(flat.tree), named_parameters(copy.tree),
        strict=True,
    ):  # fmt: skip
        assert key == name == other
        np.testing.assert_array_equal(view, x)
        assert not np.shares_memory(view, x)
        at = (view.ctypes.data - flat.array.ctypes.data) // view.itemsize
        assert (zeros.ctypes.data - copy.array.ctypes.data) // zeros.itemsize == at
        assert zeros.shape == x.shape
        taken[at : at + view.size] += 1
        if frozen(name):
            assert flat.trained <= at
        elif view.ndim == 2:
            assert at + view.size <= flat.decayed
        else:
            assert flat.decayed <= at
            assert at + view.size <= flat.trained
    assert (taken == 1).all()
    flat.array[...] = 7
    assert all((view == 7).all() for _, view in named_parameters(flat.tree))


def trained(dtype="float64", **options):
    """Parameters with something frozen, their gradients, and AdamW."""
    flat = Flat.of(parameters(DROPPING, dtype), frozen)
    gradient = flat.zeros()
    gradient.array[...] = uniforms(9, gradient.array.shape)
    return flat, gradient, AdamW(flat, flat.zeros(), flat.zeros(), **options)


def test_steps_of_adamw_are_its_formula():
    """With an eps that is not small, so that its place under or beside the root tells."""
    beta1, beta2, eps, decay = 0.8, 0.7, 0.1, 0.3
    flat, gradient, adamw = trained(beta1=beta1, beta2=beta2, eps=eps, weight_decay=decay)
    p, m, v = flat.array.copy(), 0.0, 0.0
    n = np.arange(p.size)
    for t, lr in enumerate((0.1, 0.03, 0.2), 1):
        gradient.array[...] = g = uniforms(t, p.shape)
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
        step = m / (1 - beta1**t) / (np.sqrt(v / (1 - beta2**t)) + eps)
        step += decay * p * (n < flat.decayed)
        p -= lr * step * (n < flat.trained)
        adamw.step(gradient, lr, adamw.norm(gradient))
        np.testing.assert_allclose(flat.array, p, rtol=0, atol=1e-14)
        np.testing.assert_array_equal(gradient.array, g)
    assert adamw.steps == 3


def test_weight_decay_alone_shrinks_matrices_and_nothing_else():
    flat, gradient, adamw = trained(weight_decay=0.25)
    before = dict(named_parameters(parameters(DROPPING)))
    gradient.array[...] = 0
    adamw.step(gradient, 0.5, 0.0)
    for name, x in named_parameters(flat.tree):
        decayed = x.ndim == 2 and not frozen(name)
        np.testing.assert_array_equal(x, before[name] * (0.875 if decayed else 1), err_msg=name)


def test_what_is_frozen_is_not_touched_and_not_measured():
    flat, gradient, adamw = trained(clip=1.0)
    norm = adamw.norm(gradient)
    assert norm == pytest.approx(np.linalg.norm(gradient.array[: flat.trained]), rel=1e-14)
    gradient.array[flat.trained :] = np.nan
    before = flat.array.copy()
    assert adamw.norm(gradient) == norm
    adamw.step(gradient, 0.1, norm)
    np.testing.assert_array_equal(flat.array[flat.trained :], before[flat.trained :])
    assert (flat.array[: flat.trained] != before[: flat.trained]).all()
    for moment in (adamw.first, adamw.second):
        assert not moment.array[flat.trained :].any()


def test_the_length_of_a_gradient_is_taken_in_float64():
    _, gradient, adamw = trained("float32")
    gradient.array[...] = 1e30
    length = 1e30 * math.sqrt(adamw.params.trained)
    assert adamw.norm(gradient) == pytest.approx(length, rel=1e-7)


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_gradient_that_is_too_long_is_cut_and_a_shorter_one_is_not(dtype):
    def moment(clip):
        """The first is a tenth of the gradient that was taken."""
        _, gradient, adamw = trained(dtype, clip=clip)
        norm = adamw.norm(gradient)
        adamw.step(gradient, 0.1, norm)
        return norm, adamw.first.array

    norm, whole = moment(None)
    np.testing.assert_array_equal(moment(1.001 * norm)[1], whole)
    assert 10 * np.linalg.norm(moment(0.5)[1]) == pytest.approx(0.5, rel=1e-6)
    np.testing.assert_allclose(moment(norm / 4)[1], whole / 4, rtol=1e-6)


def test_pieces_and_threads_change_no_bit(monkeypatch):
    def parameters_after_a_step(**options):
        flat, gradient, adamw = trained("float32", clip=0.5, **options)
        adamw.step(gradient, 0.1, 20.0)
        return flat.array

    whole = parameters_after_a_step()
    monkeypatch.setattr(optimizer, "BLOCK", 100)
    np.testing.assert_array_equal(parameters_after_a_step(), whole)
    with ThreadPoolExecutor(2) as pool:
        np.testing.assert_array_equal(parameters_after_a_step(each=pool.map, shares=3), whole)


def test_a_learning_rate_warms_up_in_a_line_and_goes_down_half_a_cosine():
    rates = [learning_rate(step, 3.0, 10, 110, "cosine") for step in range(111)]
    assert rates[:10] == pytest.approx([0.3 * (step + 1) for step in range(10)])
    assert rates[10] == 3.0
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert rates[35] == pytest.approx(1.5 * (1 + math.sqrt(0.5)))
    assert rates[60] == pytest.approx(1.5)
    assert rates[110] == 0.0


def test_a_constant_learning_rate_only_warms_up():
    rates = [learning_rate(step, 3.0, 4, 10, "constant") for step in range(10)]
    assert rates == [0.75, 1.5, 2.25, *[3.0] * 7]


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_a_learning_rate_without_warm_up_or_with_nothing_else(schedule):
    assert learning_rate(0, 3.0, 0, 10, schedule) == 3.0
    assert learning_rate(0, 3.0, 0, 1, schedule) == 3.0
    for steps in (1, 4, 8):
        rates = [learning_rate(step, 2.0, 8, steps, schedule) for step in range(steps)]
        assert rates == [0.25 * (step + 1) for step in range(steps)]


# ── ten steps ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("shares", [1, 3])
@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-6), ("float64", 1e-12)])
@pytest.mark.parametrize("name", RUNS)
def test_ten_losses_are_pytorchs(name, dtype, bound, shares):
    losses, norms = ten_steps(name, dtype, shares)
    expected = EXPECTED["runs"][name][dtype]
    np.testing.assert_allclose(losses, expected["losses"], rtol=0, atol=bound)
    np.testing.assert_allclose(norms, expected["norms"], rtol=10 * bound)
    clip = RUNS[name][1]
    assert clip is None or norms.min() > 1.5 * clip
