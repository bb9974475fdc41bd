"""The lens: what a graph says of a hidden state, beside ln_f, head and softmax in NumPy."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from cases import SMALL, formula_tensors
from onnx_cases import FP32, error, newest_opset, numpy_model, save

from npgpt2 import GPT2, GPT2Config
from npgpt2.base.errors import CheckFailed, CheckpointError
from npgpt2.model.forward import lm_head
from npgpt2.model.ops import layer_norm, softmax
from npgpt2.model.params import build_tree, named_parameters
from npgpt2_onnx import export
from npgpt2_onnx.graph.language_model import OPSET
from npgpt2_onnx.graph.layout import layout
from npgpt2_onnx.graph.lens import build_lens
from npgpt2_onnx.graph.precision import PRECISIONS
from npgpt2_onnx.run.exported import Exported
from npgpt2_onnx.write import verify
from npgpt2_onnx.write.verify import BOUNDS, check_lens, reference

CASES = {
    "tied": {},
    "own head": {"tie_word_embeddings": False},
    "epsilon": {"layer_norm_epsilon": 1e-2},
    "one token": {"vocab_size": 1},
    "an encoder": {"add_cross_attention": True},
    "pruned heads": {"pruned_heads": {1: [0, 2]}},
}


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    """The tiny model's portable graphs in every precision, and their files of weights."""
    out = tmp_path_factory.mktemp("lens") / "out"
    export(tiny, out, precisions=[*PRECISIONS], graphs=["portable"], proof=False)
    return out / "onnx"


def add_lens(folder, config, precision="fp32", opset=OPSET, top=5):
    """A lens beside a graph."""
    p = PRECISIONS[precision]
    built = build_lens(config, p, layout(config, p, f"model{p.suffix}.onnx_data"), opset, top)
    path = folder / f"lens{p.suffix}.onnx"
    path.write_bytes(built.SerializeToString(deterministic=True))
    return path


def run(path, hidden):
    return ort.InferenceSession(path).run(["probs", "ids"], {"hidden": hidden.astype("f4")})


def twin(model, hidden):
    """(N, V)."""
    params, eps = model.params, model.config.layer_norm_epsilon
    return softmax(lm_head(layer_norm(hidden, *params.ln_f, eps), params))


def require_best(found, truth, bound):
    """Probabilities and ids (N, K) are those of the K largest, in falling order."""
    probs, ids = found
    assert (probs.dtype, ids.dtype) == (np.float32, np.int64)
    k = ids.shape[1]
    assert error(probs, np.take_along_axis(truth, ids, -1)) <= bound
    assert error(probs, -np.sort(-truth, -1)[:, :k]) <= bound
    assert (np.diff(probs, axis=-1) <= 0).all()
    assert all(len(set(row)) == k for row in ids.tolist())


@pytest.mark.parametrize("opset", [OPSET, newest_opset()])
@pytest.mark.parametrize("switches", CASES.values(), ids=CASES)
def test_it_is_numpys(tmp_path, switches, opset):
    config = GPT2Config(**SMALL | {"bos_token_id": None, "eos_token_id": None} | switches)
    tensors = formula_tensors(config)
    source = save(config, tmp_path / "c", tensors)
    out = export(source, tmp_path / "o", graphs=["portable"], proof=False) / "onnx"
    path = add_lens(out, config, opset=opset, top=7)
    hidden = np.random.default_rng(1).standard_normal((6, config.n_embd)).astype("f4") * 3
    model = numpy_model(config, tensors, "f8")
    found = run(path, hidden)
    assert found[1].shape == (6, min(7, config.vocab_size))
    require_best(found, twin(model, hidden.astype("f8")), 20 * FP32)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_in_every_precision(folder, precision):
    config = Exported.open(folder / "model.onnx").config
    p = PRECISIONS[precision]
    model = reference(Exported.open(folder / f"model{p.suffix}.onnx"))
    states = []
    keep = lambda name, x: states.append(x[0].copy()) if "resid_mlp" in name else None  # noqa: E731
    model(np.arange(9)[None], tap=keep)
    hidden = np.concatenate(states)
    truth = twin(model, hidden)
    probs, ids = run(add_lens(folder, config, precision), hidden)
    if precision == "fp32":
        require_best((probs, ids), truth, 20 * FP32)
    bound = BOUNDS[precision]
    assert np.abs(probs - np.take_along_axis(truth, ids, -1)).max() <= bound


def test_behind_the_last_block_it_is_the_model(folder, model):
    shown = {}
    ids = np.arange(7)[None]
    logits = model(ids, tap=lambda name, x: shown.update({name: x.copy()})).logits[0]
    path = add_lens(folder, model.config)
    _, best = run(path, shown["h.2.resid_mlp"][0])
    assert best[:, 0].tolist() == logits.argmax(-1).tolist()


@pytest.mark.parametrize("n", [1, 300])
def test_any_number_of_states(folder, model, n):
    probs, ids = run(add_lens(folder, model.config), np.ones((n, 64)))
    assert probs.shape == ids.shape == (n, 5)


def test_what_the_graph_declares(folder, model):
    path = add_lens(folder, model.config, top=3)
    session = ort.InferenceSession(path)
    put = [(v.name, v.type, v.shape) for v in (*session.get_inputs(), *session.get_outputs())]
    assert put == [
        ("hidden", "tensor(float)", ["N", 64]),
        ("probs", "tensor(float)", ["N", 3]),
        ("ids", "tensor(int64)", ["N", 3]),
    ]
    onnx.checker.check_model(str(path), full_check=True)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_it_reads_where_the_model_reads_and_no_more(precision, tied):
    config = GPT2Config(n_layer=2, tie_word_embeddings=tied)
    p = PRECISIONS[precision]
    tensors = layout(config, p, "model.onnx_data")
    graph = build_lens(config, p, tensors).graph
    found = {proto.name: proto for proto in graph.initializer if proto.external_data}
    head = "wte.weight" if tied else "lm_head.weight"
    parts = [f"{head}.int8", f"{head}.scales"] if p.bits else [head]
    assert set(found) == {*parts, "ln_f.weight", "ln_f.bias"}
    for name, proto in found.items():
        assert proto == tensors[name].proto()
    used = {name for node in graph.node for name in node.input}
    assert {proto.name for proto in graph.initializer} <= used


# ── the proof that a site asks of it ─────────────────────────────────────────────────────────────


def test_a_good_one_passes(folder, model):
    check_lens(add_lens(folder, model.config), model)


@pytest.mark.parametrize("what", ["gain", "tokens", "NaN"])
def test_another_models_lens_fails(folder, model, what):
    tensors = {name: array.copy() for name, array in named_parameters(model.params)}
    if what == "gain":
        tensors["ln_f.weight"][3] *= 1.05
    elif what == "tokens":
        tensors["wte.weight"] = np.roll(tensors["wte.weight"], 1, 0)
    else:
        tensors["ln_f.bias"][0] = np.nan
    path, other = add_lens(folder, model.config), GPT2(model.config, build_tree(tensors))
    with pytest.raises(CheckFailed) as failed, np.errstate(invalid="ignore"):
        check_lens(path, other)
    assert str(failed.value).startswith(
        "lens.onnx: the probabilities of the most probable tokens differ by "
    )
    assert str(failed.value).endswith("Nothing was written")


def test_one_that_does_not_run(folder, model, tmp_path):
    built = add_lens(folder, model.config).read_bytes()
    (tmp_path / "lens.onnx").write_bytes(built)  # without its weights
    with pytest.raises(CheckpointError, match=r"^/.*/lens\.onnx: onnxruntime: "):
        check_lens(tmp_path / "lens.onnx", model)


def test_right_tokens_with_wrong_probabilities_fail(folder, model, monkeypatch):
    real = verify._run_lens

    def halved(path, hidden):
        probs, ids = real(path, hidden)
        return probs / 2, ids

    monkeypatch.setattr(verify, "_run_lens", halved)
    with pytest.raises(CheckFailed):
        check_lens(add_lens(folder, model.config), model)
