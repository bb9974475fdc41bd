"""Golden references: reproducible, tamper-proof, and the usual mistakes are known by name."""

import importlib
import io
import math
import re
import shutil
import warnings
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from npgpt2 import GPT2, GPT2Config
from npgpt2.base.arrays import BLOCK
from npgpt2.base.errors import ConfigError, FileError, GoldenError, InputError, OptionError
from npgpt2.golden import check, write
from npgpt2.golden.cases import CASES, Subject, batch_of, eight_inputs, padded_inputs
from npgpt2.golden.compare import compare
from npgpt2.golden.dump import Dumped
from npgpt2.golden.folder import load_golden
from npgpt2.golden.forward import Port, Switches
from npgpt2.golden.mistakes import ADAMW, forward_mistakes
from npgpt2.golden.reference import SLICE, Piece, reference, sliced, stride, sums
from npgpt2.golden.report import in_words
from npgpt2.model import forward as gpt2
from npgpt2.model import ops
from npgpt2.model.params import named_parameters
from npgpt2.model.taps import tap_names
from npgpt2.train import gradients

TINY = "tests/data/tiny"
FORWARD = forward_mistakes(GPT2Config())
NAMES = {m.name: m for m in FORWARD}


@pytest.fixture(scope="module")
def tiny_model():
    return GPT2.from_pretrained(TINY)


@pytest.fixture(scope="module")
def golden(tiny_model, tmp_path_factory):
    """A golden folder in slices."""
    return write(tmp_path_factory.mktemp("golden") / "slices", tiny_model, full=False)


@pytest.fixture(scope="module")
def whole(tiny_model, tmp_path_factory):
    """And one with whole tensors, of some cases."""
    cases = ["eight", "padded", "step", "gradients", "adamw"]
    return write(tmp_path_factory.mktemp("golden") / "whole", tiny_model, full=True, only=cases)


@pytest.fixture
def held(tmp_path):
    """A function: {name: array} → what `check` reports."""

    def report(tensors, against):
        path = tmp_path / "dump.safetensors"
        save_file({name: np.ascontiguousarray(a) for name, a in tensors.items()}, path)
        return check(path, against)

    return report


def case_of(model, case):
    """What a case computes, by name."""
    shown = {}
    CASES[case].compute(
        Subject(model), lambda name, a: shown.__setitem__(f"{case}/{name}", a.copy())
    )
    return shown


def port(model, how, inputs=None):
    shown = {}
    with np.errstate(all="ignore"):
        Port(model.params, model.config, how)(
            inputs or eight_inputs(model), lambda n, a: shown.__setitem__(f"eight/{n}", a)
        )
    return shown


# ── the second GPT-2 ─────────────────────────────────────────────────────────────────────────────


def test_without_mistakes_the_two_are_one(tiny_model):
    for name, a in case_of(tiny_model, "eight").items():
        if name != "eight/input_ids":
            np.testing.assert_allclose(port(tiny_model, Switches())[name], a, rtol=1e-5, atol=1e-5)


def test_tap_names_are_the_models(tiny_model):
    shown = case_of(tiny_model, "eight")
    del shown["eight/input_ids"]
    sizes = {"B": 1, "T": 8, "S": 8, "C": 64, "H·D": 64, "3·H·D": 192, "H": 4, "F": 256, "V": 512}
    expected = [(f"eight/{t.name}", tuple(sizes[a] for a in t.axes))
                for t in tap_names(tiny_model.config)]  # fmt: skip
    assert [(name, a.shape) for name, a in shown.items()] == expected


# ── a folder ─────────────────────────────────────────────────────────────────────────────────────


def test_written_twice_the_bytes_are_the_same(tiny_model, golden, tmp_path):
    again = write(tmp_path / "again", tiny_model, full=False)
    files = [p.relative_to(golden) for p in golden.rglob("*") if p.is_file()]
    assert len(files) == 5 + len(CASES)
    for name in files:
        assert (again / name).read_bytes() == (golden / name).read_bytes(), name


def test_what_is_read_is_what_was_written(tiny_model, whole):
    read = load_golden(whole)
    for case in ("eight", "padded", "gradients"):
        for name, a in case_of(tiny_model, case).items():
            r = read.references[name]
            assert (r.shape, r.dtype) == (a.shape, a.dtype)
            assert r.single.tobytes() == np.ascontiguousarray(a).tobytes()


def test_slices_are_of_the_whole(golden, whole):
    slices, full = load_golden(golden).references, load_golden(whole).references
    for name, r in full.items():
        s = slices[name]
        assert (s.shape, s.sha256, s.mean, s.rms) == (r.shape, r.sha256, r.mean, r.rms)
        kept = r.single if s.stride == 1 else r.single[:: s.stride][:SLICE]
        np.testing.assert_array_equal(s.single, kept)


def test_the_views_agree(golden):
    tensors = load_file(golden / "golden.safetensors")
    head, *lines = (golden / "index.tsv").read_text().splitlines()
    assert len(lines) == sum(":" not in name for name in tensors)
    for line in lines:
        row = dict(zip(head.split("\t"), line.split("\t"), strict=True))
        raw = (golden / row["file"]).read_bytes()[int(row["offset"]) :][: int(row["bytes"])]
        a = tensors[row["name"]]
        assert (raw, a.dtype.name) == (a.tobytes(), row["dtype"])
        if a.dtype.kind == "f":
            wide = tensors[row["name"] + ":float64"]
            assert wide.dtype == np.float64
            allowed = float(row["atol"]) + float(row["rtol"]) * np.abs(wide)
            assert np.all(np.abs(a - wide) <= allowed)
            assert float(row["atol"]) == 16 * float(row["noise"])


def test_float64_is_computed_in_float64(golden, tiny_model):
    wide = GPT2.from_pretrained(TINY, dtype="float64")
    r = load_golden(golden).references["eight/logits"]
    logits = case_of(wide, "eight")["eight/logits"].reshape(-1)
    np.testing.assert_allclose(r.double, sliced(logits, r.stride), rtol=1e-13)
    assert 0 < np.abs(r.double - r.single).max() < r.noise * 2


@settings(max_examples=150)
@given(data=st.data())
def test_a_tampered_byte_is_found(golden, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tampered") / "g"
    shutil.copytree(golden, folder)
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    path = data.draw(st.sampled_from(files))
    raw = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(raw)
    with pytest.raises((GoldenError, FileError)):
        load_golden(folder)
    shutil.rmtree(folder)


@pytest.mark.parametrize("do", ["missing", "more", "cut", "empty"])
def test_a_damaged_folder_is_refused(golden, tmp_path, do):
    shutil.copytree(golden, tmp_path / "g")
    path = tmp_path / "g" / "raw" / "eight.bin"
    if do == "missing":
        path.unlink()
    elif do == "more":
        path.with_name("nine.bin").write_bytes(b"9")
    else:
        path.write_bytes(path.read_bytes()[: 10 if do == "cut" else 0])
    with pytest.raises((GoldenError, FileError), match=r"(eight|nine)\.bin"):
        load_golden(tmp_path / "g")


def test_another_schema_is_refused(golden, tmp_path):
    shutil.copytree(golden, tmp_path / "g")
    text = (tmp_path / "g" / "manifest.json").read_text()
    (tmp_path / "g" / "manifest.json").write_text(text.replace("golden/1", "golden/2", 1))
    import hashlib

    new = hashlib.sha256((tmp_path / "g" / "manifest.json").read_bytes()).hexdigest()
    old = hashlib.sha256((golden / "manifest.json").read_bytes()).hexdigest()
    sums = tmp_path / "g" / "SHA256SUMS"
    sums.write_text(sums.read_text().replace(old, new))
    with pytest.raises(GoldenError, match=r"golden/2', expected 'npgpt2\.golden/1'"):
        load_golden(tmp_path / "g")


def test_a_folder_of_others_is_not_replaced(tiny_model, tmp_path):
    (tmp_path / "g").mkdir()
    (tmp_path / "g" / "thesis.txt").write_text("mine")
    with pytest.raises(FileError, match="exists and is not a golden folder"):
        write(tmp_path / "g", tiny_model, only=["one"], force=True)
    write(tmp_path / "h", tiny_model, only=["one"])
    with pytest.raises(FileError, match="already exists"):
        write(tmp_path / "h", tiny_model, only=["one"])
    write(tmp_path / "h", tiny_model, only=["eight"], force=True)
    assert "eight/logits" in load_golden(tmp_path / "h").references


def test_an_unknown_case(tiny_model, tmp_path):
    with pytest.raises(OptionError, match="cases: got 'nine', expected some of tokenizer, one"):
        write(tmp_path / "g", tiny_model, only=["nine"])


# ── mistakes, injected into the model itself ─────────────────────────────────────────────────────


def with_config(**changes):
    def change(model, patch):
        for name, value in changes.items():
            object.__setattr__(model.config, name, value)

    return change


def with_op(name, function):
    def change(model, patch):
        patch.setattr(gpt2, name, function)

    return change


def with_params(edit):
    """Every parameter through a function (name, array) → array."""

    def change(model, patch):
        from npgpt2.model.params import build_tree

        tree = {name: edit(name, a) for name, a in named_parameters(model.params)}
        model.params = build_tree(tree)

    return change


def attention(mask=lambda t: np.tri(t, dtype=bool), axis=-1):
    """Attention with another mask, or with its softmax over another axis."""

    def attend(q, k, v, scale, want_probs=False, **_):
        scores = np.where(mask(q.shape[2]), q * scale @ k.swapaxes(2, 3), -np.inf)
        probs = np.moveaxis(ops.softmax(np.moveaxis(scores, axis, -1).copy()), -1, axis)
        return probs @ v, probs

    return attend


def unbiased(x, weight, bias, eps):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(
        x.var(-1, ddof=1, keepdims=True) + eps
    ) * weight + bias


def post_ln(x, p, layer, run, tap):
    x = tap("resid_attn", x + gpt2.attn(x, p.attn, layer, run, tap.at("attn")))
    x = tap("ln_1", ops.layer_norm(x, *p.ln_1, 1e-5))
    x = tap("resid_mlp", x + gpt2.mlp(x, p.mlp, run, tap.at("mlp")))
    return tap("ln_2", ops.layer_norm(x, *p.ln_2, 1e-5))


def swapped(order):
    def edit(name, a):
        if "c_attn" not in name:
            return a
        thirds = np.split(a, 3, -1)
        return np.concatenate([thirds[order.index(part)] for part in "qkv"], -1)

    return with_params(edit)


def split_wrongly(x, config):
    return x.reshape(*x.shape[:2], config.head_dim, -1).transpose(0, 3, 1, 2)


def as_out_in(name, a):
    linear = name.endswith("weight") and a.ndim == 2 and name.startswith("h.")
    return a.reshape(a.shape[::-1]).T.copy() if linear else a


def without_bias(part):
    return with_params(lambda name, a: np.zeros_like(a) if name.endswith(f"{part}.bias") else a)


def in_half(x, weight, bias):
    total = np.zeros((*x.shape[:-1], weight.shape[1]), np.float16)
    for k in range(x.shape[-1]):
        total += x[..., k, None].astype(np.float16) * weight[k].astype(np.float16)
    return total.astype(np.float32) + bias


def with_gelu(function):
    return lambda model, patch: patch.setitem(
        ops.ACTIVATIONS, "gelu_new", lambda x, out=None: function(x).astype(x.dtype)
    )


def with_scale(function):
    return lambda model, patch: patch.setattr(GPT2Config, "attention_scale", function)


def tanh_gelu(x, cube=0.044715, slope=0.79788456):
    return x / 2 * (1 + np.tanh(slope * (x + cube * x**3)))


INJECTED = {
    "erf GELU": with_config(activation_function="gelu"),
    "sigmoid GELU": with_config(activation_function="quick_gelu"),
    "ReLU": with_config(activation_function="relu"),
    "eps 1e-06": with_config(layer_norm_epsilon=1e-6),
    "eps 1e-12": with_config(layer_norm_epsilon=1e-12),
    "unbiased variance": with_op("layer_norm", unbiased),
    "no 1/sqrt(d)": with_config(scale_attn_weights=False),
    "mask off by one: sees the next": with_op(
        "attention", attention(lambda t: np.tri(t, k=1, dtype=bool))),
    "mask off by one: not itself": with_op(
        "attention", attention(lambda t: np.tri(t, k=-1, dtype=bool))),
    "no mask": with_op("attention", attention(lambda t: np.ones((t, t), bool))),
    "softmax over queries": with_op("attention", attention(axis=-2)),
    "kqv for qkv": swapped("kqv"),
    "vqk for qkv": swapped("vqk"),
    "heads split along the wrong axis": with_op("split_heads", split_wrongly),
    "transposed weight: every linear layer": with_params(as_out_in),
    "missing bias: attn.c_attn": without_bias("attn.c_attn"),
    "missing bias: attn.c_proj": without_bias("attn.c_proj"),
    "missing bias: mlp.c_fc": without_bias("mlp.c_fc"),
    "missing bias: mlp.c_proj": without_bias("mlp.c_proj"),
    "post-LN": with_op("block", post_ln),
    "float16 accumulation": with_op("linear", in_half),
    "1/d instead of 1/sqrt(d)": with_scale(lambda config, layer: 1 / 16),
    "1/sqrt(n_embd) instead of 1/sqrt(d)": with_scale(lambda config, layer: 1 / 8),
    "GELU with 0.44715": with_gelu(lambda x: tanh_gelu(x, cube=0.44715)),
    "GELU with 2/π": with_gelu(lambda x: tanh_gelu(x, slope=0.63661977)),
    "GELU without 1/2": with_gelu(lambda x: 2 * tanh_gelu(x)),
    "missing bias: ln_1": without_bias("ln_1"),
    "missing bias: ln_2": without_bias("ln_2"),
    "missing bias: ln_f": without_bias("ln_f"),
}  # fmt: skip


# How errors grow from tensor to tensor is what tells sums in float16: logits alone do not.
BY_LOGITS = [name for name in INJECTED if name != "float16 accumulation"]


@pytest.mark.parametrize(
    ("name", "only"),
    [(n, "everything") for n in INJECTED] + [(n, "the logits") for n in BY_LOGITS],
)
def test_a_mistake_in_the_model_is_named(name, only, golden, held, monkeypatch):
    model = GPT2.from_pretrained(TINY)
    INJECTED[name](model, monkeypatch)
    with np.errstate(all="ignore"):
        shown = case_of(model, "eight")
    if only == "the logits":
        shown = {"eight/logits": shown["eight/logits"]}
    report = held(shown, golden)
    assert not report.agrees
    assert report.mistake is not None
    assert report.mistake.name == name


def test_positions_off_by_one(golden, held, tiny_model):
    shown = {}
    tiny_model(eight_inputs(tiny_model).ids, position_ids=np.arange(1, 9)[None],
               tap=lambda n, a: shown.__setitem__(f"eight/{n}", a.copy()))  # fmt: skip
    report = held(shown, golden)
    assert report.mistake.name == "positions begin at 1"
    assert report.first.reference.name == "eight/wpe"


def test_missing_ln_f(golden, held, tiny_model):
    shown = case_of(tiny_model, "eight")
    shown["eight/ln_f"] = shown["eight/h.2.resid_mlp"]
    shown["eight/logits"] = shown["eight/ln_f"] @ tiny_model.params.head.T
    report = held(shown, golden)
    assert report.mistake.name == "missing ln_f"


def test_an_untied_head(golden, held, tiny_model):
    shown = case_of(tiny_model, "eight")
    head = np.random.default_rng(0).standard_normal((512, 64)).astype(np.float32)
    shown["eight/logits"] = shown["eight/ln_f"] @ head.T
    report = held(shown, golden)
    assert report.mistake.name == "untied head"


def test_a_padded_vocabulary(golden, held, tiny_model):
    shown = case_of(tiny_model, "eight")
    logits = shown["eight/logits"]
    shown["eight/logits"] = np.concatenate([logits, np.zeros_like(logits[..., :64])], -1)
    report = held(shown, golden)
    assert report.agrees
    assert "a padded vocabulary of 576, without its last 64" in report.verdicts[-1].remark


@pytest.mark.parametrize("mistake", FORWARD, ids=lambda m: m.name)
def test_every_fingerprint_is_told_from_all_others(mistake, golden, held, tiny_model):
    everything = port(tiny_model, mistake.how)
    logits = {"eight/logits": everything["eight/logits"]}
    for shown in (everything, logits):
        report = held(shown, golden)
        if np.isnan(logits["eight/logits"]).all() and shown is logits:  # that says nothing
            assert report.mistake is None
            return
        assert report.mistake.sentence == mistake.sentence
        assert report.diagnoses[0].explained == report.diagnoses[0].of


def taps(model, case, *args, **kwargs):
    """What a call of the model shows, as a port would dump it."""
    shown = {}
    model(*args, **kwargs, tap=lambda n, a: shown.__setitem__(f"{case}/{n}", a.copy()))
    return shown


def test_mistakes_with_padding(golden, held, tiny_model):
    ids, right, mask = padded_inputs(tiny_model)
    columns = np.arange(8)[None]
    for name, mask_given, positions in (
        ("positions count padding", mask, columns),
        ("padding not masked", None, right),
        ("attention mask ignored", None, None),
    ):
        shown = taps(tiny_model, "padded", ids, attention_mask=mask_given, position_ids=positions)
        assert held(shown, golden).mistake.name == name


def test_mistakes_in_a_step(golden, held, tiny_model):
    ids = eight_inputs(tiny_model).ids
    past = tiny_model(ids[:, :-1]).past_key_values
    shown = taps(tiny_model, "step", ids[:, -1:], past_key_values=past, position_ids=[[0]])
    assert held(shown, golden).mistake.name == "positions restart after the cache"
    shown = taps(tiny_model, "step", ids[:, -1:], position_ids=[[7]])
    report = held({n: a for n, a in shown.items() if not n.endswith("probs")}, golden)
    assert report.mistake.name == "KV cache ignored"


def gradient_dump(loss, tree, times=1.0):
    dump = {f"gradients/{name}": d * np.float32(times) for name, d in named_parameters(tree)}
    return dump | {"gradients/loss": np.array([loss * times], np.float32)}


def test_mistakes_in_the_loss(golden, held, tiny_model):
    batch = batch_of(tiny_model)
    both = np.concatenate([batch.ids, batch.targets[:, -1:]], 1)
    loss, d = gradients(tiny_model, both)
    assert held(gradient_dump(loss, d), golden).agrees
    assert held(gradient_dump(loss, d, 32), golden).mistake.name == "sum instead of mean"
    assert held(gradient_dump(loss, d, 2), golden).mistake.name == "sum over rows"
    own = np.full_like(both, -100)  # as labels: shifted by one, they are what goes in
    own[:, 1:] = both[:, :-1]
    unshifted, e = gradients(tiny_model, both, own)
    assert held(gradient_dump(unshifted, e), golden).mistake.name == "targets not shifted"
    x = GPT2.from_pretrained(TINY)
    x.params = x.params._replace(lm_head=x.params.wte)
    object.__setattr__(x.config, "tie_word_embeddings", False)
    _, apart = gradients(x, both)
    for name, part in (("embedding", apart.wte.weight), ("head", apart.lm_head.weight)):
        dump = gradient_dump(loss, d) | {"gradients/wte.weight": part}
        assert held(dump, golden).mistake.name == f"wte: only the {name}'s gradient"


def adamw_step(model, how):
    """One step by formula, in float64."""
    batch = batch_of(model)
    both = np.concatenate([batch.ids, batch.targets[:, -1:]], 1)
    _, d = gradients(GPT2.from_pretrained(TINY, dtype="float64"), both)
    beta1, beta2, eps, decay, lr = 0.9, 0.999, 1e-3, 0.1, 1e-3
    dump = {}
    for (name, p), (_, g) in zip(named_parameters(model.params), named_parameters(d), strict=True):
        decays = decay * (p.ndim == 2 or how == "weight decay on every parameter")
        decays *= how != "no weight decay"
        if how == "weight decay in the gradient":
            g, decays = g + decays * p, 0.0
        m, v = (1 - beta1) * g, (1 - beta2) * g * g
        if how != "no bias correction":
            m, v = m / (1 - beta1), v / (1 - beta2)
        root = np.sqrt(v + eps) if how == "eps inside the root" else np.sqrt(v) + eps
        dump[f"adamw/1/{name}"] = (p - lr * (m / root + decays * p)).astype(np.float32)
    return dump


def test_mistakes_in_adamw(golden, held, tiny_model):
    assert held(adamw_step(tiny_model, "right"), golden).agrees
    for mistake in ADAMW:
        report = held(adamw_step(tiny_model, mistake.name), golden)
        assert report.mistake.name == mistake.name


@pytest.mark.parametrize(("first", "second"), [
    ("no 1/sqrt(d)", "erf GELU"), ("eps 1e-06", "no mask"), ("kqv for qkv", "missing ln_f"),
    ("positions begin at 1", "missing bias: mlp.c_fc"),
])  # fmt: skip
def test_of_two_mistakes_the_first_is_named(first, second, golden, held, tiny_model):
    from dataclasses import asdict

    changed = [
        {k: v for k, v in asdict(NAMES[name].how).items() if v != asdict(Switches())[k]}
        for name in (first, second)
    ]
    report = held(port(tiny_model, Switches(**(changed[0] | changed[1]))), golden)
    assert report.mistake.name == first
    assert report.diagnoses[0].explained < report.diagnoses[0].of
    assert report.diagnoses[0].then


@pytest.mark.parametrize("only", ["everything", "the logits"])
@pytest.mark.parametrize("stored", ["float16", "bfloat16"])
def test_tensors_rounded_on_their_way_are_known(stored, only, golden, held, tiny_model):
    shown = port(tiny_model, Switches(stored=stored))  # and dumped in float32
    if only == "the logits":
        shown = {"eight/logits": shown["eight/logits"]}
    report = held(shown, golden)
    assert report.mistake.name == f"{stored} tensors"


def test_a_context_too_short(tmp_path, small):
    with pytest.raises(ConfigError, match="n_positions: got 4, golden references need 8 or"):
        write(tmp_path / "g", small("float32", n_positions=4))


def test_what_is_no_known_mistake_is_not_named(golden, held, tiny_model):
    shown = case_of(tiny_model, "eight")
    shown["eight/h.1.mlp.act"] = shown["eight/h.1.mlp.act"] + 0.25
    report = held(shown, golden)
    assert report.mistake is None
    assert report.first.reference.name == "eight/h.1.mlp.act"


NO_MISTAKE = {
    "a little beyond the bound": lambda s: {"h.0.ln_1": s["h.0.ln_1"] + 1.4 * s["bound"]},
    "one number not kept": lambda s: {"h.0.mlp.act": plus(s["h.0.mlp.act"], s["unseen"], 30)},
    "NaN": lambda s: {"logits": s["logits"] * np.nan},
    "zeros": lambda s: {"logits": s["logits"] * 0},
    "infinity": lambda s: {"logits": np.full_like(s["logits"], np.inf)},
    "one logit": lambda s: {"logits": plus(s["logits"], 0, 0.5)},
    "only the second layer": lambda s: {"h.1.mlp.act": s["h.1.mlp.act"] + 0.25},
}


def plus(array, at, what):
    array = array.copy()
    array.reshape(-1)[at] += what
    return array


@pytest.mark.parametrize("name", NO_MISTAKE)
def test_what_is_no_usual_mistake_is_given_no_name(name, golden, held, tiny_model):
    shown = case_of(tiny_model, "eight")
    size = shown["eight/h.0.mlp.act"].size
    given = {n.removeprefix("eight/"): a for n, a in shown.items()} | {
        "bound": np.float32(load_golden(golden).references["eight/h.0.ln_1"].atol),
        "unseen": next(i for i in range(size) if i % stride(size)),
    }
    with np.errstate(all="ignore"):
        wrong = {f"eight/{n}": a for n, a in NO_MISTAKE[name](given).items()}
    report = held(shown | wrong, golden)
    assert not report.agrees
    assert report.first.reference.name in wrong
    assert report.mistake is None


def test_other_inputs_are_said(golden, held, tiny_model):
    shown = case_of(tiny_model, "eight")
    shown["eight/input_ids"] = shown["eight/input_ids"] + 1
    report = held(shown, golden)
    assert report.mistake.name == "other inputs"


def test_an_untied_model_whose_port_ties(tmp_path, held, small):
    model = small("float32", tie_word_embeddings=False, n_positions=16)
    golden = write(tmp_path / "g", model)
    shown = case_of(model, "eight")
    shown["eight/logits"] = shown["eight/ln_f"] @ model.params.wte.weight.T
    assert held(shown, golden).mistake.name == "tied head"


@pytest.mark.parametrize(("switches", "wrong"), [
    ({"activation_function": "gelu"}, "tanh GELU"),
    ({"layer_norm_epsilon": 1e-6}, "eps 1e-05"),
    ({"scale_attn_weights": False}, "1/sqrt(d)"),
    ({"scale_attn_by_inverse_layer_idx": True}, "1/sqrt(d)"),
])  # fmt: skip
def test_mistakes_are_those_of_the_models_config(switches, wrong, tmp_path, held, small):
    """Who computes OpenAI's GPT-2 where the config says otherwise."""
    model = small("float32", n_positions=16, **switches)
    golden = write(tmp_path / "g", model)
    for name in switches:
        object.__setattr__(model.config, name, getattr(GPT2Config(), name))
    report = held(case_of(model, "eight"), golden)
    assert report.mistake.name == wrong


def test_padding_may_compute_anything(golden, held, tiny_model):
    """The model's own numbers there, and NaN."""
    shown = {}
    ids, _, mask = padded_inputs(tiny_model)
    tiny_model(ids, attention_mask=mask, use_cache=False,
               tap=lambda n, a: shown.__setitem__(f"padded/{n}", a.copy()))  # fmt: skip
    assert held(shown, golden).agrees
    for name, a in shown.items():
        (a.transpose(0, 2, 1, 3) if name.endswith("probs") else a)[~mask] = np.nan
    assert held(shown, golden).agrees
    shown["padded/ln_f"][mask] += 1
    assert not held(shown, golden).agrees


def test_a_step_is_the_last_row_of_the_whole(golden):
    references = load_golden(golden).references
    wide = GPT2.from_pretrained(TINY, dtype="float64")
    eight = case_of(wide, "eight")
    for name, a in case_of(wide, "step").items():
        if a.dtype.kind == "f":
            b = eight[name.replace("step/", "eight/")]
            last = b[:, :, -1:] if name.endswith("probs") else b[:, -1:]
            np.testing.assert_allclose(a, last, rtol=1e-10, atol=1e-12)
            assert references[name].shape == last.shape


# ── layouts, dtypes, parts ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("against", ["golden", "whole"])
def test_every_case_agrees_with_itself(against, request, held, tiny_model):
    folder = request.getfixturevalue(against)
    for case in load_golden(folder).manifest["cases"]:
        report = held(case_of(tiny_model, case), folder)
        assert report.agrees, [v for v in report.verdicts if not v.agrees][:3]


LAYOUTS = {
    "(T, 3, H, D)": ("h.1.attn.c_attn", lambda a: a.reshape(8, 3, 4, 16)),
    "(3, H, T, D)": ("h.1.attn.c_attn", lambda a: a.reshape(8, 3, 4, 16).transpose(1, 2, 0, 3)),
    "(H, T, D)": ("h.1.attn.heads", lambda a: a.reshape(8, 4, 16).transpose(1, 0, 2)),
    "(T, H, D)": ("h.1.attn.heads", lambda a: a.reshape(1, 8, 4, 16)),
    "shape 8x64": ("ln_f", lambda a: a[0]),
    "shape 4x8x8": ("h.1.attn.probs", lambda a: a[0]),
}


@pytest.mark.parametrize("words", LAYOUTS)
def test_other_layouts_are_read_and_said(words, golden, held, tiny_model):
    name, change = LAYOUTS[words]
    a = case_of(tiny_model, "eight")[f"eight/{name}"]
    report = held({f"eight/{name}": change(a)}, golden)
    assert report.agrees
    assert report.verdicts[0].remark == words
    report = held({f"eight/{name}": change(a) * 1.001}, golden)
    assert not report.agrees


def test_weights_the_other_way_round(whole, held, tiny_model):
    d = case_of(tiny_model, "gradients")
    turned = {n: a.T for n, a in d.items() if n.endswith("c_fc.weight")}
    report = held(turned, whole)
    assert report.agrees
    assert {v.remark for v in report.verdicts} == {"(out, in)"}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_dtypes_have_their_own_bounds(dtype, golden, tmp_path, held, tiny_model):
    if dtype == "bfloat16":
        shown = port(tiny_model, Switches(stored="bfloat16"))
        (tmp_path / "d").mkdir()
        lines = ["name\tdtype\tshape\tfile"]
        for name, a in shown.items():
            file = name.replace("/", "_")
            bits = (a.view(np.uint32) >> 16).astype("<u2")
            (tmp_path / "d" / file).write_bytes(bits.tobytes())
            lines.append(f"{name}\tbfloat16\t{'x'.join(map(str, a.shape))}\t{file}")
        (tmp_path / "d" / "index.tsv").write_text("\n".join(lines))
        report = check(tmp_path / "d", golden)
    else:
        stored = dtype if dtype == "float16" else None
        shown = port(tiny_model, Switches(stored=stored))
        report = held({n: a.astype(dtype) for n, a in shown.items()}, golden)
        wrong = port(tiny_model, Switches(stored=stored, activation="relu"))
        found = held({n: a.astype(dtype) for n, a in wrong.items()}, golden)
        assert found.mistake.name == "ReLU"
    assert report.agrees, [v for v in report.verdicts if not v.agrees][:3]
    assert {v.remark for v in report.verdicts} == {dtype}


# ── the comparator ───────────────────────────────────────────────────────────────────────────────

X = np.array([[1.0, -2.0, 0.5], [0.0, 100.0, 1e-9]])
BOUNDS = (lambda r: r.atol + r.rtol * np.abs(r.double).reshape(2, 3))(
    reference("eight/x", Piece(X.astype("f4"), True), Piece(X, True))
)
AT = X == 0.5
VECTORS = {
    "itself": (X, True),
    "within the bound": (X + 0.9 * AT * BOUNDS, True),
    "beyond the bound": (X + 1.2 * AT * BOUNDS, False),
    "all within": (X - 0.9 * BOUNDS, True),
    "NaN": (np.where(AT, np.nan, X), False),
    "all NaN": (np.full_like(X, np.nan), False),
    "infinity": (np.where(AT, np.inf, X), False),
    "minus infinity": (np.where(X == 100, -np.inf, X), False),
    "zeros": (np.zeros_like(X), False),
    "the sign": (-X, False),
    "turned": (X.T.copy(), False),
    "flat": (X.reshape(-1), False),
    "cut": (X[:1], False),
    "more": (np.concatenate([X, X]), False),
    "empty": (np.zeros((0,)), False),
    "one number": (np.array(1.0), False),
    "whole numbers": (X.astype(np.int64), False),
    "booleans": (X.astype(bool), False),
}


@pytest.mark.parametrize("name", VECTORS)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_the_comparator(name):
    expected = reference("eight/x", Piece(X.astype("f4"), True), Piece(X, True))
    array, good = VECTORS[name]
    if array.dtype == np.float64:
        array = array.astype(np.float32)
    verdict = compare(expected, Dumped(array, array.dtype.name))
    assert verdict.agrees is good


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_that_costs_the_infinite_excuses_nothing(dtype):
    expected = reference("eight/x", Piece(X.astype("f4"), True), Piece(X, True))
    for array in (np.zeros_like(X), np.full_like(X, np.inf), np.full_like(X, np.nan)):
        dumped = Dumped(array.astype(np.float16), dtype)
        assert not compare(expected, dumped, half_cost=np.inf).agrees


@pytest.mark.parametrize("what", [np.nan, np.inf, 1e30])
def test_a_number_between_those_kept(what):
    x = np.linspace(-1, 1, 1000)
    expected = reference("eight/x", Piece(x.astype("f4"), False), Piece(x, False))
    wrong = plus(x.astype("f4"), 1, what)
    assert not compare(expected, Dumped(wrong, "float32")).agrees
    assert (
        "outside the kept values: the mean is" in compare(expected, Dumped(wrong, "float32")).remark
    )


def test_the_comparator_on_whole_numbers():
    ids = np.array([[3, 1, 2]], np.int32)
    expected = reference("greedy/ids", Piece(ids, True), Piece(ids, True))
    for array, good in [(ids, True), (ids.astype(np.int64), True), (ids + 1, False),
                        (ids.astype(np.float32), False), (ids[:, :2], False)]:  # fmt: skip
        assert compare(expected, Dumped(array, array.dtype.name)).agrees is good


def test_what_is_not_kept_is_held_by_its_sums(golden, held, tiny_model):
    a = case_of(tiny_model, "eight")["eight/h.0.mlp.act"]
    step = stride(a.size)
    unseen = next(i for i in range(a.size) if i % step or i // step >= SLICE)
    b = a.copy()
    b.reshape(-1)[unseen] += 30
    assert held({"eight/h.0.mlp.act": a}, golden).agrees
    assert not held({"eight/h.0.mlp.act": b}, golden).agrees


@pytest.mark.parametrize("size", [1, 31, 32, 33, 64, 512, 1000, 4096, 12345])
def test_a_slice_meets_every_row_and_column(size):
    step = stride(size)
    assert math.gcd(step, size) == 1
    kept = sliced(np.arange(size), step)
    assert len(kept) == (size if step == 1 else SLICE)
    assert (np.diff(kept) == step).all()


def test_names_that_are_not_known(golden, held, tiny_model):
    a = case_of(tiny_model, "eight")
    report = held({"eight/ln_f": a["eight/ln_f"], "eight/h.0.ln1": a["eight/h.0.ln_1"]}, golden)
    assert report.unknown == {"eight/h.0.ln1": "eight/h.0.ln_1"}
    assert not report.agrees
    with pytest.raises(
        GoldenError, match=r"has ln_f, expected a case and a tensor, such as eight/ln_f\."
    ):
        held({"ln_f": a["eight/ln_f"]}, golden)


def test_layouts_of_a_square_weight_are_told_by_its_numbers(whole, held, tiny_model):
    d = case_of(tiny_model, "gradients")
    name = "gradients/h.0.attn.c_proj.weight"
    report = held({name: d[name].T}, whole)
    assert report.agrees
    assert report.verdicts[0].remark == "(out, in)"


# ── dumps ────────────────────────────────────────────────────────────────────────────────────────


def test_npz(golden, tiny_model, tmp_path):
    np.savez(tmp_path / "d.npz", **case_of(tiny_model, "eight"))
    assert check(tmp_path / "d.npz", golden).agrees


BAD = {
    "no such file": ("d.npz", None, FileError, "d.npz: No such file"),
    "no npz": ("d.npz", b"PK but not really", GoldenError, "is not an npz file"),
    "no safetensors": ("d.safetensors", b"\x08" + bytes(7) + b"{       ", GoldenError, "not JSON"),
    "empty": ("d.safetensors", b"", GoldenError, "has 0 bytes"),
    "text": ("d.txt", b"1 2 3 4 5 6 7 8 9", GoldenError, "Expected safetensors, .npz, or a folder"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_dump_that_cannot_be_read(name, golden, tmp_path):
    file, data, error, words = BAD[name]
    if data is not None:
        (tmp_path / file).write_bytes(data)
    with pytest.raises(error, match=words):
        check(tmp_path / file, golden)


INDEXES = {
    "no index": (None, "has no index.tsv"),
    "no columns": ("eight/ln_f 1x8x64\n1\n", "line 1: has no name, dtype, shape, file"),
    "odd shape": ("name\tdtype\tshape\tfile\neight/ln_f\tfloat32\t8by8\tx\n", "line 2: got"),
    "odd dtype": ("name\tdtype\tshape\tfile\neight/ln_f\tfp8\t1x8x64\tx\n", "line 2: got 'fp8'"),
    "short": ("name\tdtype\tshape\tfile\neight/ln_f\tfloat32\t1x8x64\tx\n", "has 4 bytes"),
    "negative": ("name\tdtype\tshape\tfile\neight/ln_f\tfloat32\t-1x-1\ty\n", "the shape '-1x-1'"),
    "offset": ("name\tdtype\tshape\tfile\toffset\na\tf32\t1\ty\t-4\n", "the offset -4"),
    "huge": ("name\tdtype\tshape\tfile\na\tf32\t999999999999\ty\n", "expected 3,999,999,999,996"),
    "nul": ("name\tdtype\tshape\tfile\na\tf32\t1\t\0y\n", "a file name with"),
    "long": ("name\tdtype\tshape\tfile\neight/ln_f\tfloat32\t1x8\ty\n", "has 64 bytes"),
}


@pytest.mark.parametrize("name", INDEXES)
def test_raw_files_that_do_not_fit(name, golden, tmp_path):
    index, words = INDEXES[name]
    (tmp_path / "x").write_bytes(b"1234")
    (tmp_path / "y").write_bytes(b"1234" * 16)
    if index is not None:
        (tmp_path / "index.tsv").write_text(index)
    with pytest.raises(GoldenError, match=words):
        check(tmp_path, golden)


@pytest.mark.parametrize("form", ["npz", "raw"])
def test_a_name_that_comes_twice(form, golden, tiny_model, tmp_path):
    """Wrong first, then right."""
    a = case_of(tiny_model, "eight")["eight/ln_f"]
    if form == "npz":
        path = tmp_path / "d.npz"
        with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a duplicate name
            for array in (a * 0, a):
                data = io.BytesIO()
                np.save(data, array)
                archive.writestr("eight/ln_f.npy", data.getvalue())
    else:
        path = tmp_path
        (path / "a").write_bytes((a * 0).tobytes())
        (path / "b").write_bytes(a.tobytes())
        row = "eight/ln_f\tfloat32\t1x8x64\t"
        (path / "index.tsv").write_text(f"name\tdtype\tshape\tfile\n{row}a\n{row}b\n")
    with pytest.raises(GoldenError, match="has 'eight/ln_f' twice, expected once"):
        check(path, golden)


def test_pickles_are_not_opened(golden, tmp_path):
    np.savez(tmp_path / "d.npz", **{"eight/ln_f": np.array([{}], object)})
    with pytest.raises(GoldenError, match="not an npz file of plain arrays"):
        check(tmp_path / "d.npz", golden)


# ── what a port's author met ─────────────────────────────────────────────────────────────────────


def test_an_error_as_large_as_half_precision_makes_is_not_taken_for_it(golden, held, tiny_model):
    """In one place: a sum in float16 would show in others."""
    shown = port(tiny_model, Switches())
    for how in (
        lambda a: a * np.float32(1.001),
        lambda a: (a.view(np.uint32) & 0xFFFF0000).view(np.float32),
    ):
        wrong = {n: how(a) if "mlp.act" in n else a for n, a in shown.items()}
        report = held(wrong, golden)
        assert report.first.reference.name == "eight/h.0.mlp.act"
        assert report.mistake is None


def test_one_constant_of_gelu_is_not_sums_in_float16(golden, held, monkeypatch):
    monkeypatch.setitem(ops.ACTIVATIONS, "gelu_new", lambda x, out=None: ops._tanh_gelu(x, 0.8))
    report = held(case_of(GPT2.from_pretrained(TINY), "eight"), golden)
    assert report.first.reference.name == "eight/h.0.mlp.act"
    assert report.mistake is None or report.mistake.name != "float16 accumulation"


def test_where_nan_comes_no_mistake_goes_on_to_explain(golden, held, tiny_model):
    shown = port(tiny_model, Switches(activation="gelu"))
    shown["eight/h.1.resid_mlp"][0, 0, 5] = np.nan  # where no fingerprint is kept
    [why] = held(shown, golden).diagnoses
    assert (why.mistake.name, why.then) == ("erf GELU", "eight/h.1.resid_mlp")


def test_a_golden_folders_own_file_agrees(whole):
    report = check(whole / "golden.safetensors", whole)
    assert report.agrees
    assert not report.missing


def test_names_come_with_the_nearest(golden, held, tiny_model):
    shown = port(tiny_model, Switches())
    named = {"eight/wte": shown["eight/wte"], "h.0.ln_1": shown["eight/h.0.ln_1"]}
    report = held(named | {"xyzzy": shown["eight/wte"]}, golden)
    assert report.unknown == {"h.0.ln_1": "eight/h.0.ln_1", "xyzzy": ""}
    assert report.first is None
    assert not report.agrees


def hints(golden, held, shown):
    return "\n".join(in_words(held(shown, golden)))


def test_what_to_do_next(golden, held, tiny_model):
    shown = port(tiny_model, Switches())
    right, wrong = shown["eight/h.0.ln_1"], shown["eight/h.0.ln_1"] + np.float32(0.1)
    text = hints(golden, held, {"eight/h.0.ln_1": right.reshape(-1)})
    assert "this tensor was not compared: dump it as float32 of shape (1, 8, 64)" in text
    text = hints(golden, held, {"eight/h.0.ln_1": np.where(right > 0, right, np.nan)})
    assert re.search(r"\d+ of 512 are NaN or infinite", text)
    assert "look for a division by zero, an overflow or uninitialised memory" in text
    text = hints(golden, held, {"eight/h.0.ln_1": wrong})
    assert "dump the tensors before this one too, such as eight/embed" in text
    text = hints(golden, held, {"one/h.0.ln_1": wrong[:, :1]})
    assert "dump the tensors before this one too, such as one/embed" in text
    before = case_of(tiny_model, "eight")
    upto = {n: before[f"eight/{n}"] for n in ("input_ids", "wte", "wpe", "embed")}
    upto = {f"eight/{n}": a for n, a in upto.items()}
    text = hints(golden, held, upto | {"eight/h.0.ln_1": wrong, "eight/ln_f": wrong})
    assert "all tensors before this one agree, so this tensor is computed wrongly" in text
    assert "tensors that differ: 2 in eight (--all lists them)" in text


def test_many_unknown_names_are_counted(golden, held, tiny_model):
    shown = {"eight/wte": port(tiny_model, Switches())["eight/wte"]}
    text = hints(golden, held, shown | {f"x{i}": np.ones(1, "f4") for i in range(25)})
    assert text.count("unknown: x") == 10
    assert "unknown: 15 more; a dump with names that the golden folder does not have cannot" in text


# ── bounds, dumps and diagnoses by hand ───────────────────────────────────────────────────────────


def kept_of(x, dtype="f4"):
    return reference("eight/x", Piece(x.astype(dtype), False), Piece(x, False))


def test_what_keeps_the_mean_is_held_by_the_root_mean_square():
    x = np.linspace(-1, 1, 1000)
    wrong = plus(plus(x.astype("f4"), 1, 1e3), 2, -1e3)  # neither is kept
    verdict = compare(kept_of(x), Dumped(wrong, "float32"))
    assert not verdict.agrees
    assert "the root mean square is" in verdict.remark


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_held_between_the_numbers_kept(dtype):
    x = np.linspace(-1, 1, 1000)
    right = x.astype("f2") if dtype == "float16" else x.astype("f4")
    assert compare(kept_of(x), Dumped(right, dtype)).agrees
    assert not compare(kept_of(x), Dumped(plus(right, 1, 100), dtype)).agrees


def test_where_the_worst_number_is():
    x = np.linspace(-1, 1, 1000).reshape(25, 40)
    verdict = compare(kept_of(x), Dumped(plus(x.astype("f4"), 3 * 31, 1), "float32"))
    assert verdict.index == divmod(3 * 31, 40)
    whole = reference("eight/x", Piece(X.astype("f4"), True), Piece(X, True))
    verdict = compare(whole, Dumped(np.where(AT, np.nan, X + 1).astype("f4"), "float32"))
    assert verdict.index == (0, 2)
    assert np.isnan(verdict.got)


def test_whole_numbers_are_no_floats_though_they_are_equal():
    x = np.array([[1.0, -2.0, 3.0]])
    expected = reference("eight/x", Piece(x.astype("f4"), True), Piece(x, True))
    assert not compare(expected, Dumped(x.astype(np.int64), "int64")).agrees
    ones = reference("eight/x", Piece(np.ones(3, "f4"), True), Piece(np.ones(3), True))
    assert not compare(ones, Dumped(np.ones(3, bool), "bool")).agrees


def test_what_is_wrong_is_shown_as_it_was_written():
    x = np.arange(16.0).reshape(4, 4)
    expected = reference("eight/x.weight", Piece(x.astype("f4"), True), Piece(x, True))
    assert compare(expected, Dumped((x.T + 1).astype("f4"), "float32")).remark == ""


def test_bounds_by_hand():
    x = np.ones(8)
    same = reference("eight/x", Piece(x.astype("f4"), True), Piece(x, True))
    assert (same.noise, same.mean_atol, same.rms_atol) == (2.0**-26, 2.0**-22, 2.0**-22)
    assert (same.atol, same.rtol) == (2.0**-22, 2.0**-19)
    off = x.astype("f4")
    off[0] += np.float32(2.0**-10)  # less a rounding, then up to a power of two
    r = reference("eight/x", Piece(off, True), Piece(x, True))
    assert (r.noise, r.mean_atol, r.rms_atol) == (2.0**-10, 2.0**-9, 2.0**-8)


def test_sums_are_over_all_blocks():
    x = np.arange(BLOCK + 3.0)
    assert sums(x) == pytest.approx((x.mean(), np.sqrt((x * x).mean())), rel=1e-12)


def test_what_can_be_no_reference():
    for bad in (np.nan, np.inf):
        x = np.array([1.0, bad])
        with pytest.raises(GoldenError, match="is not finite"):
            reference("eight/x", Piece(x.astype("f4"), True), Piece(x, True))
    with pytest.raises(GoldenError, match="give different ids"):
        reference("greedy/ids", Piece(np.array([1, 2]), True), Piece(np.array([1, 3]), True))


def test_small_models_are_kept_whole_and_large_ones_in_slices(tiny_model, tmp_path, monkeypatch):
    module = importlib.import_module("npgpt2.golden.write")  # a function stands before it
    for name, limit in (("whole", 191_040), ("slices", 191_039)):
        monkeypatch.setattr(module, "SMALL", limit)
        read = load_golden(write(tmp_path / name, tiny_model, only=["one"])).references
        assert ({r.stride for r in read.values()} == {1}) is (name == "whole")


def test_what_cannot_be_written(tmp_path, small):
    with pytest.raises(InputError, match="model: is in float64, expected float32"):
        write(tmp_path / "g", small("float64"))
    with pytest.raises(GoldenError, match="tokenizer: nothing to write"):
        write(tmp_path / "g", small("float32"), only=["tokenizer"])
    assert not (tmp_path / "g").exists()


def test_greedy_ends_where_two_are_alike():
    model = GPT2.from_pretrained(TINY)
    wte, first = model.params.wte.weight, int(case_of(model, "greedy")["greedy/ids"][0])
    head = wte.copy()
    head[first - 1] = head[first]
    model.params = model.params._replace(lm_head=model.params.wte._replace(weight=head))
    object.__setattr__(model.config, "tie_word_embeddings", False)
    assert set(case_of(model, "greedy")) == {"greedy/prompt_ids"}


@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
def test_every_activation_has_mistakes(activation, small):
    model = small("float32", activation_function=activation)
    right = port(model, Switches())["eight/logits"]
    for m in forward_mistakes(model.config):
        if m.how.activation is not None:
            assert not np.array_equal(port(model, m.how)["eight/logits"], right), m.name


def test_a_raw_file_with_several_tensors(golden, tiny_model, tmp_path):
    a = case_of(tiny_model, "eight")
    data, lines = b"", ["name\tdtype\tshape\tfile\toffset"]
    for name in ("eight/wte", "eight/ln_f"):
        lines.append(f"{name}\tf32\t1x8x64\tx\t{len(data)}")
        data += a[name].tobytes()
    (tmp_path / "x").write_bytes(data)
    (tmp_path / "index.tsv").write_text("\n".join(lines))
    assert check(tmp_path, golden).agrees


def test_bfloat16_in_safetensors(golden, tiny_model, tmp_path):
    import json

    a = port(tiny_model, Switches(stored="bfloat16"))["eight/ln_f"]
    data = (a.view(np.uint32) >> 16).astype("<u2").tobytes()
    info = {"dtype": "BF16", "shape": [1, 8, 64], "data_offsets": [0, len(data)]}
    head = json.dumps({"eight/ln_f": info}).encode()
    head += b" " * (-len(head) % 8)
    path = tmp_path / "d.safetensors"
    path.write_bytes(len(head).to_bytes(8, "little") + head + data)
    report = check(path, golden)
    assert report.agrees
    assert report.verdicts[0].remark == "bfloat16"


def test_a_pickle_in_npz_is_never_run(golden, tmp_path, monkeypatch):
    def opened(*_, **__):
        raise AssertionError("a pickle is read")

    np.savez(tmp_path / "d.npz", **{"eight/ln_f": np.array([{}], object)})
    monkeypatch.setattr("pickle.load", opened)
    with pytest.raises(GoldenError, match="Object arrays cannot be loaded"):
        check(tmp_path / "d.npz", golden)


@pytest.mark.parametrize("kind", ["complex64", "U3", "datetime64[s]"])
def test_what_is_no_number_is_refused(kind, golden, tmp_path):
    np.savez(tmp_path / "d.npz", **{"eight/input_ids": np.zeros((1, 8), kind)})
    with pytest.raises(GoldenError, match="expected numbers"):
        check(tmp_path / "d.npz", golden)


def test_half_precision_has_no_more_than_its_own_cost(golden, held, tiny_model):
    shown = port(tiny_model, Switches(stored="float16"))["eight/ln_f"]
    cost = load_golden(golden).fingerprints["halves/ln_f"][1, 1]
    assert held({"eight/ln_f": shown.astype("f2")}, golden).agrees
    report = held({"eight/ln_f": (shown + 30 * cost).astype("f2")}, golden)
    assert not report.agrees


def test_a_line_more_in_the_sums_is_refused(golden, tmp_path):
    shutil.copytree(golden, tmp_path / "g")
    with (tmp_path / "g" / "SHA256SUMS").open("a") as file:
        file.write("what is this\n")
    with pytest.raises(GoldenError, match="the lines of SHA256SUMS are damaged"):
        load_golden(tmp_path / "g")


def test_where_all_agrees_no_mistake_is_named(golden, held, tiny_model):
    for case in ("eight", "padded", "step", "gradients", "adamw"):
        assert held(case_of(tiny_model, case), golden).diagnoses == []


def test_sums_in_float16_are_known_by_several_tensors_and_by_their_size(
    golden, held, tiny_model, monkeypatch
):
    right = case_of(tiny_model, "eight")
    INJECTED["float16 accumulation"](tiny_model, monkeypatch)
    half = case_of(tiny_model, "eight")
    name = "eight/h.0.mlp.c_proj"
    assert held(half, golden).mistake.name == "float16 accumulation"
    assert held({name: half[name]}, golden).mistake is None
    far = {n: a + 64 * (half[n] - a) if a.dtype.kind == "f" else a for n, a in right.items()}
    assert held(far, golden).mistake is None


def test_a_head_is_named_only_where_ln_f_is_right_and_it_is_tied(
    golden, held, tiny_model, small, tmp_path
):
    far = {"eight/logits": np.random.default_rng(0).standard_normal((1, 8, 512)).astype("f4") * 9}
    assert held(far, golden).mistake is None
    assert held(case_of(tiny_model, "eight") | far, golden).mistake.name == "untied head"
    model = small("float32", tie_word_embeddings=False)
    folder = write(tmp_path / "g", model, only=["eight"])
    shown = case_of(model, "eight")
    shown["eight/logits"] = shown["eight/logits"][..., ::-1] * 3
    assert held(shown, folder).mistake is None


def test_one_byte_changed_in_each_file_is_found(golden, tmp_path):
    shutil.copytree(golden, tmp_path / "g")
    for path in sorted(p for p in (tmp_path / "g").rglob("*") if p.is_file()):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        with pytest.raises((GoldenError, FileError)):
            load_golden(tmp_path / "g")
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    load_golden(tmp_path / "g")
