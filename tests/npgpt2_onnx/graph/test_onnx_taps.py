"""`export --taps`: every intermediate of the portable graph, beside the NumPy model's own."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from cases import CASES, SMALL, formula_tensors
from command_line import runner
from onnx_cases import (
    FP32,
    FP32_INSIDE,
    cross_pairs,
    error,
    newest_opset,
    random_config,
    save,
    with_exact_products,
)

from npgpt2 import GPT2Config
from npgpt2.base.errors import OptionError
from npgpt2.model.taps import tap_names
from npgpt2_onnx import OnnxModel, export
from npgpt2_onnx.graph.language_model import OPSET
from npgpt2_onnx.graph.precision import PRECISIONS
from npgpt2_onnx.run.session import Session, graphs_in
from npgpt2_onnx.write.verify import BOUNDS, reference, verify

# Of the cases that PyTorch's numbers are kept for, each config once.
SWITCHES = {str(switches): switches for switches, _ in CASES.values()}


@pytest.fixture(scope="module")
def exported(tiny, tmp_path_factory):
    """The tiny model in every precision, proved: {(precision, kind): path}."""
    out = tmp_path_factory.mktemp("taps") / "out"
    return graphs_in(export(tiny, out, precisions=[*PRECISIONS], taps=True))


def shown(model, ids, **inputs):
    """Everything that a NumPy pass taps, by name, and its cache."""
    found = {}
    out = model(ids, tap=lambda name, x: found.update({name: x.copy()}), use_cache=True, **inputs)
    return found, out.past_key_values


def put_out(session, ids, **inputs):
    """Everything that a graph puts out, by name, and its presents."""
    found = session.outputs(session.feeds(ids, **inputs))
    layers = range(session.config.n_layer)
    past = [tuple(found[f"present.{i}.{part}"] for part in ("key", "value")) for i in layers]
    return {name: x for name, x in found.items() if not name.startswith("present")}, past


def require_taps(got, want, config, bound):
    """All names in `tap_names`' order, float32, and NumPy's numbers."""
    names = [tap.name for tap in tap_names(config)]
    assert [name for name in got if "cross" not in name] == ["logits", *names[:-1]]
    for name, array in got.items():
        assert array.dtype == np.float32, name
        # NumPy looks up the positions of one row where all have the same.
        expected = np.broadcast_to(want[name], array.shape) if name == "wpe" else want[name]
        assert error(array, expected) <= bound, (name, error(array, expected))


def passes(model, session, bound, seed=0, states=None):
    """A prompt of two rows, and two tokens behind it, through both."""
    config, r = model.config, np.random.default_rng(seed)
    encoder = {} if states is None else {"encoder_hidden_states": states}
    cross = () if states is None else [
        tuple(a.astype(session.dtype) for a in pair) for pair in cross_pairs(model, states)
    ]  # fmt: skip
    cache = past = None
    for tokens in (5, 2):
        ids = r.integers(0, config.vocab_size, (2, tokens))
        want, cache = shown(model, ids, past_key_values=cache, **encoder)
        got, past = put_out(session, ids, past=past, cross=cross)
        require_taps(got, want, config, bound)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_tap_is_numpys(exported, precision):
    path = exported[precision, "portable"]
    if precision in ("int8", "int4"):
        path = with_exact_products(path)
    session = Session(path)
    bound = BOUNDS["fp16"] if precision == "fp16" else FP32_INSIDE
    passes(reference(session.graph), session, bound)


@pytest.mark.slow
@pytest.mark.parametrize("opset", [OPSET, newest_opset()])
@pytest.mark.parametrize("switches", SWITCHES.values(), ids=SWITCHES)
def test_every_tap_with_every_switch(tmp_path, switches, opset):
    config = GPT2Config(**SMALL | {"eos_token_id": None} | switches)
    require_model(tmp_path, config, opset)


@pytest.mark.parametrize("seed", range(12))
def test_every_tap_by_the_throw_of_a_die(tmp_path, seed):
    """Widths, pruned heads and all switches at once."""
    opset = min(OPSET + seed % 7, newest_opset())
    require_model(tmp_path, random_config(np.random.default_rng(seed)), opset)


def test_the_die_has_pruned_heads_and_encoders():
    drawn = [random_config(np.random.default_rng(seed)) for seed in range(12)]
    assert {bool(c.pruned_heads) for c in drawn} == {c.add_cross_attention for c in drawn}
    assert any(c.pruned_heads and c.add_cross_attention for c in drawn)


def require_model(tmp_path, config, opset):
    tensors = formula_tensors(config)
    out = export(
        save(config, tmp_path / "c", tensors), tmp_path / "o",
        graphs=["portable"], taps=True, opset=opset, proof=False,
    )  # fmt: skip
    session = Session(graphs_in(out)["fp32", "portable"])
    states = None
    if config.add_cross_attention:
        states = np.random.default_rng(3).standard_normal((2, 4, config.n_embd))
    model, single = (reference(session.graph, dtype) for dtype in ("float64", "float32"))
    # Where a narrow model makes NumPy's own rounding errors large, the graph may have as much.
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (2, 5))
    encoder = {} if states is None else {"encoder_hidden_states": states}
    want, mine = (shown(m, ids, **encoder)[0] for m in (model, single))
    floor = max(error(mine[name], want[name]) for name in want)
    passes(model, session, max(FP32, 8 * floor), states=states)


# ── names, types and shapes, as the graph declares them ──────────────────────────────────────────


def declared(path):
    """A graph's outputs, as it says them itself: (name, type, axes)."""
    found = []
    for value in onnx.load(path, load_external_data=False).graph.output:
        tensor = value.type.tensor_type
        axes = [d.dim_param or d.dim_value for d in tensor.shape.dim]
        found.append((value.name, onnx.TensorProto.DataType.Name(tensor.elem_type), axes))
    return found


def test_names_and_axes(tmp_path):
    config = GPT2Config(
        vocab_size=23, n_positions=16, n_embd=48, n_layer=2, n_head=3, n_inner=20,
        pruned_heads={1: [0, 2]}, add_cross_attention=True,
    )  # fmt: skip
    out = export(save(config, tmp_path / "c"), tmp_path / "o", graphs=["portable"], taps=True)
    b, t = "batch_size", "sequence_length"
    s, e = f"past_sequence_length + {t}", "encoder_sequence_length"
    wanted = [(name, [b, t, 48]) for name in ("wte", "wpe", "embed")]
    for i, heads in enumerate((3, 1)):
        wanted += [(f"h.{i}.{name}", shape) for name, shape in (
            ("ln_1", [b, t, 48]), ("attn.c_attn", [b, t, 48 * heads]),
            ("attn.probs", [b, heads, t, s]), ("attn.heads", [b, t, 16 * heads]),
            ("attn.c_proj", [b, t, 48]), ("resid_attn", [b, t, 48]),
            ("crossattention.probs", [b, 3, t, e]),
            ("ln_2", [b, t, 48]), ("mlp.c_fc", [b, t, 20]), ("mlp.act", [b, t, 20]),
            ("mlp.c_proj", [b, t, 48]), ("resid_mlp", [b, t, 48]),
        )]  # fmt: skip
    wanted.append(("ln_f", [b, t, 48]))
    found = declared(out / "onnx" / "model.onnx")
    assert found[0] == ("logits", "FLOAT", [b, t, 23])
    assert [name for name, *_ in found[1:5]] == [
        f"present.{i}.{part}" for i in (0, 1) for part in ("key", "value")
    ]
    assert found[5:] == [(name, "FLOAT", shape) for name, shape in wanted]


def test_attentions_are_a_choice_of_the_taps(tiny, exported, tmp_path):
    """Asked for both, the portable graph has all, the others what `attentions` gives them."""
    both = graphs_in(export(tiny, tmp_path / "both", attentions=True, taps=True, proof=False))
    some = graphs_in(export(tiny, tmp_path / "some", attentions=True, proof=False))
    none = graphs_in(export(tiny, tmp_path / "none", proof=False))
    portable, gqa = ("fp32", "portable"), ("fp32", "gqa")
    assert both[portable].read_bytes() == exported[portable].read_bytes()
    assert both[gqa].read_bytes() == some[gqa].read_bytes()
    assert exported[gqa].read_bytes() == none[gqa].read_bytes()
    shown = [entry for entry in declared(some[portable]) if entry not in declared(none[portable])]
    every = [entry for entry in declared(exported[portable]) if entry in shown]
    assert every == shown
    assert len(shown) == 1 + 2 * 3 + 1


def test_of_float32_taps_cost_no_node(exported, tiny, tmp_path):
    plain = export(tiny, tmp_path / "out", graphs=["portable"], proof=False) / "onnx/model.onnx"
    nodes = [
        onnx.load(path, load_external_data=False).graph.node
        for path in (plain, exported["fp32", "portable"])
    ]
    assert [n.SerializeToString() for n in nodes[0]] == [n.SerializeToString() for n in nodes[1]]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_declared_shapes_are_those_that_onnx_infers(exported, precision):
    onnx.checker.check_model(str(exported[precision, "portable"]), full_check=True)


# ── clients ──────────────────────────────────────────────────────────────────────────────────────


def test_it_is_verified_and_writes_as_before(exported, model, tiny, tmp_path):
    assert all(row.good for row in verify({k: p for k, p in exported.items() if k[0] == "fp32"}))
    out = export(tiny, tmp_path / "out", graphs=["portable"], taps=True)
    written = OnnxModel.from_pretrained(out)
    assert written.session.kind == "portable"
    for options in ({"temperature": 0}, {"temperature": 0, "use_cache": False}, {"num_beams": 2}):
        got, want = (
            m.generate("O Romeo, ", max_new_tokens=5, **options)[0].text for m in (written, model)
        )
        assert got == want, options
    assert (out / "genai_config.json").exists()


def test_weights_that_are_shared(tiny, tmp_path):
    folder = tmp_path / "tiny"
    folder.mkdir()
    for path in tiny.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    export(folder, share_weights=True, taps=True)
    session = Session(folder / "model.onnx")
    passes(reference(session.graph), session, FP32_INSIDE)


# ── what is refused ──────────────────────────────────────────────────────────────────────────────


def test_refusals(tiny, tmp_path, capsys):
    with pytest.raises(OptionError) as refused:
        export(tiny, tmp_path / "out", graphs=["gqa"], taps=True)
    assert str(refused.value) == "taps: needs the portable graph. Add --graph portable"
    config = GPT2Config(**SMALL | {"eos_token_id": None})
    labelled = replace(config, architectures=("GPT2ForTokenClassification",))
    with pytest.raises(OptionError) as refused:
        export(save(labelled, tmp_path / "c"), tmp_path / "out", taps=True)
    assert str(refused.value) == "taps: needs a language model. Leave it out"
    command = runner(capsys)
    code, _, err = command("export", tiny, "-o", tmp_path / "out", "--taps", "--graph", "mha")
    want = "npgpt2: error: --taps: needs the portable graph. Add --graph portable\n"
    assert (code, err) == (2, want)
    assert not (tmp_path / "out").exists()


def test_the_command(tiny, tmp_path, capsys):
    code, out, _ = runner(capsys)("export", tiny, "-o", tmp_path / "out", "--taps")
    assert code == 0
    assert "onnx/model.onnx " in out
    shown = {name for name, *_ in declared(tmp_path / "out/onnx/model.onnx")}
    assert {tap.name for tap in tap_names(GPT2Config(n_layer=3))} <= shown
