"""Exported graphs: what they compute, against NumPy; and what they look like, to their clients."""

import hashlib
import json
import re

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from cases import formula_tensors
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx.reference import ReferenceEvaluator
from onnx_cases import (
    FP32,
    KINDS,
    Pass,
    Talk,
    cross_pairs,
    error,
    errors,
    graph_passes,
    initializers,
    metadata,
    newest_opset,
    numpy_model,
    numpy_passes,
    random_config,
    random_talk,
    same_arg_max,
    save,
    shared_buffers,
    with_exact_products,
)

from npgpt2 import GPT2, GPT2Config
from npgpt2.base.errors import CheckpointError
from npgpt2.model.ops import ACTIVATIONS
from npgpt2.model.params import named_parameters
from npgpt2_onnx import export, quality
from npgpt2_onnx.graph import names
from npgpt2_onnx.graph.builder import FLOAT, Graph
from npgpt2_onnx.graph.language_model import OPSET
from npgpt2_onnx.graph.ops import activation
from npgpt2_onnx.graph.precision import PRECISIONS
from npgpt2_onnx.run.exported import Exported
from npgpt2_onnx.run.session import Session, graphs_in
from npgpt2_onnx.write import data
from npgpt2_onnx.write.quantize import dequantize, quantize
from npgpt2_onnx.write.verify import BOUNDS, check_weights, reference

ALL = tuple(PRECISIONS)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A function: checkpoint and options of `export` → its graphs; the same call, the same files.

    Without the proof that an export asks of itself: these tests look for themselves.
    """
    made = {}

    def make(source, precisions=("fp32",), graphs=KINDS, **options):
        key = source, repr((precisions, graphs, sorted(options.items())))
        if key not in made:
            out = tmp_path_factory.mktemp("export") / "out"
            export(source, out, precisions=precisions, graphs=graphs, proof=False, **options)
            made[key] = graphs_in(out)
        return made[key]

    return make


@pytest.fixture
def session(exported, tiny):
    """A function (kind, precision) → the tiny model's graph, opened."""
    return lambda kind, precision="fp32": Session(exported(tiny, ALL)[precision, kind])


def talks(config, seed=0):
    """A prompt with steps and a chunk; the whole context; a batch, padded and not, with steps."""
    r, n = np.random.default_rng(seed), config.n_positions
    ids = lambda rows, t: r.integers(0, config.vocab_size, (rows, t))  # noqa: E731
    whole = lambda rows, t: Pass(ids(rows, t), np.ones((rows, t), bool))  # noqa: E731
    yield Talk([whole(1, n // 2), whole(1, 1), whole(1, 1), whole(1, n // 4), whole(1, 1)])
    yield Talk([whole(1, n)])
    yield Talk([whole(3, 20), whole(3, 1), whole(3, 1)])
    for side in ("left", "right"):
        mask = np.arange(20) >= np.array([19, 7, 0])[:, None]
        mask = mask if side == "left" else mask[:, ::-1]
        yield Talk([Pass(ids(3, 20), mask), whole(3, 1), whole(3, 1)])


# ── float32, to the last digits that it has ──────────────────────────────────────────────────────


def require_numpys(paths, model):
    """Several graphs of one model: NumPy, which takes longest, computes once for all."""
    sessions = [Session(path) for path in paths]
    assert [s.kind for s in sessions] == [*KINDS]
    for i, talk in enumerate(talks(model.config)):
        truth = numpy_passes(model, talk)
        for session in sessions:
            if session.kind == "gqa" and talk.on_the_left:
                continue
            found = graph_passes(session, talk)
            where = f"{session.kind}, talk {i}: {errors(found, truth)}"
            assert max(errors(found, truth)) <= FP32, where
            assert same_arg_max(found, truth, FP32), where


def single_precision(graphs):
    return [graphs["fp32", kind] for kind in KINDS]


def test_float32_is_numpys_float64(exported, tiny, wide):
    require_numpys(single_precision(exported(tiny, ALL)), wide)


def test_float32_of_the_shared_checkpoint(exported, shared):
    folder = shared("checkpoints/shakespeare-3m")
    model = GPT2.from_pretrained(folder, dtype="float64")
    require_numpys(single_precision(exported(folder, ALL)), model)


@pytest.mark.long  # 4.5 GB
def test_float32_of_the_124m_shape(exported, tmp_path):
    config = GPT2Config(n_positions=256)
    tensors = dict(named_parameters(GPT2.from_random(config).params))
    save(config, tmp_path / "c", tensors)
    require_numpys(single_precision(exported(tmp_path / "c")), numpy_model(config, tensors, "f8"))


@pytest.mark.parametrize("opset", [OPSET, 18, 20, newest_opset()])
def test_onnx_s_own_evaluator_agrees(exported, tiny, wide, opset):
    """The portable graph says what it means in ONNX's terms, whoever runs it."""
    path = exported(tiny, ("fp32",), ("portable",), opset=opset)["fp32", "portable"]
    evaluator, session = ReferenceEvaluator(onnx.load(path)), Session(path)

    class Evaluated:
        kind, dtype, config = session.kind, session.dtype, session.config

        def forward(self, ids, **inputs):
            logits, *rest = evaluator.run(None, session.feeds(ids, **inputs))
            return logits, list(zip(rest[::2], rest[1::2], strict=True))

    r, left = np.random.default_rng(1), np.arange(9) >= np.array([[5], [0]])
    one = np.ones((2, 1), bool)
    for talk in (
        Talk([Pass(r.integers(0, 512, (1, t)), np.ones((1, t), bool)) for t in (9, 1, 4)]),
        Talk([Pass(r.integers(0, 512, (2, m.shape[1])), m) for m in (left, one)]),
    ):
        truth = numpy_passes(wide, talk)
        assert max(errors(graph_passes(Evaluated(), talk), truth)) <= FP32
        assert max(errors(graph_passes(session, talk), truth)) <= FP32


# ── every switch, by the throw of a die ──────────────────────────────────────────────────────────

ROOMY, NARROW = 60, 30


def random_case(seed, roomy):
    r = np.random.default_rng(seed)
    config = random_config(r, roomy)
    kind = KINDS[seed % 3] if config.head_dim % 8 == 0 else KINDS[seed % 2 * 2]
    # Narrow models are chaotic: of what is rounded on purpose they would keep nothing.
    precision = ALL[seed // 3 % 4] if roomy else "fp32"
    opset = int(r.integers(OPSET, newest_opset() + 1))
    return config, kind, precision, opset, random_talk(r, config, kind)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed", "roomy"),
    [(seed, True) for seed in range(ROOMY)] + [(seed, False) for seed in range(NARROW)],
)
def test_random_configurations(seed, roomy, tmp_path):
    config, kind, precision, opset, talk = random_case(seed, roomy)
    tensors = formula_tensors(config)
    out = export(
        save(config, tmp_path / "c", tensors), tmp_path / "o",
        precisions=[precision], graphs=[kind], opset=opset, proof=False,
    )  # fmt: skip
    path = graphs_in(out)[precision, kind]
    session = Session(path)
    assert (session.kind, session.precision.name, session.config) == (kind, precision, config)
    wide, single = (reference(session.graph, dtype) for dtype in ("float64", "float32"))
    truth = numpy_passes(wide, talk)
    cross = () if talk.states is None else cross_pairs(single, talk.states)
    # A LayerNorm over two or three numbers makes rounding errors large, NumPy's own as well.
    floor = max(FP32, 8 * max(errors(numpy_passes(single, talk), truth)))
    bound = BOUNDS[precision] if roomy else floor
    found = graph_passes(session, talk, cross)
    assert max(errors(found, truth)) <= bound
    assert same_arg_max(found, truth, bound)
    if precision in ("int8", "int4"):  # and what else the graph does is as good as float32
        found = graph_passes(Session(with_exact_products(path)), talk, cross)
        assert max(errors(found, truth)) <= floor


def test_the_die_has_thrown_everything():
    drawn = [random_case(seed, True) for seed in range(ROOMY)]
    configs = [config for config, *_ in drawn]
    assert {c.activation_function for c in configs} == set(ACTIVATIONS)
    assert {(kind, precision) for _, kind, precision, *_ in drawn} == {
        (kind, precision) for kind in KINDS for precision in ALL
    }
    assert {opset for *_, opset, _ in drawn} == set(range(OPSET, newest_opset() + 1))
    for name in ("scale_attn_weights", "scale_attn_by_inverse_layer_idx", "add_cross_attention",
                 "tie_word_embeddings"):  # fmt: skip
        assert {getattr(c, name) for c in configs} == {False, True}
    assert {bool(c.pruned_heads) for c in configs} == {False, True}
    assert {c.n_inner is None for c in configs} == {False, True}
    for kind in KINDS:
        here = [(c, talk) for c, k, _, _, talk in drawn if k == kind]
        assert any(talk.masked for _, talk in here)
        assert any(c.pruned_heads for c, _ in here)
        assert any(talk.states is not None for _, talk in here)
        assert any(talk.states_mask is not None for _, talk in here)
        assert any(len(talk.passes) == 3 for _, talk in here)
        assert any(p.position_ids is not None for _, talk in here for p in talk.passes)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
@pytest.mark.parametrize(("opset", "fused"), [(17, False), (20, False), (17, True)])
def test_activations_far_out(name, opset, fused):
    """From where a float has no cube to where it is all that is left."""
    far = 10.0 ** np.arange(-30, 31)
    x = np.concatenate([np.linspace(-12, 12, 2401), far, -far, [0.0]]).astype("f4")
    g = Graph(opset, FLOAT, fused)
    y = activation(g, name, g.input("x", FLOAT, ["n"]))
    g.output(y, FLOAT, ["n"])
    run = ort.InferenceSession(g.model("g").SerializeToString(), providers=["CPUExecutionProvider"])
    [got] = run.run(None, {"x": x})
    want = ACTIVATIONS[name](x.astype("f8"))
    assert np.isfinite(got).all()
    # A part of x is the right measure: of what lies far out on the left nothing is left over.
    assert (np.abs(got - want) <= 6e-7 * np.abs(x)).all()


# ── names, order, types: what clients look for ───────────────────────────────────────────────────


def shape_of(value):
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


def dtype_of(value):
    return onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ALL)
def test_the_contract(exported, tiny, precision, kind):
    path = exported(tiny, ALL)[precision, kind]
    graph = onnx.load(path, load_external_data=False).graph
    floats = "FLOAT16" if precision == "fp16" else "FLOAT"
    past, total = "past_sequence_length", "past_sequence_length + sequence_length"
    inputs = [
        ("input_ids", "INT64", ["batch_size", "sequence_length"]),
        ("attention_mask", "INT64", ["batch_size", total]),
        ("position_ids", "INT64", ["batch_size", "sequence_length"]),
    ]
    kept = "sequence_length" if kind == "portable" else 1  # who asks for all gets more
    outputs = [("logits", "FLOAT", ["batch_size", kept, 512])]
    for i in range(3):
        for part in ("key", "value"):
            inputs.append((f"past_key_values.{i}.{part}", floats, ["batch_size", 4, past, 16]))
            outputs.append((f"present.{i}.{part}", floats, ["batch_size", 4, total, 16]))
    held = {proto.name for proto in graph.initializer}
    seen = [v for v in graph.input if v.name not in held]
    assert [(v.name, dtype_of(v), shape_of(v)) for v in seen] == inputs
    assert [(v.name, dtype_of(v), shape_of(v)) for v in graph.output] == outputs
    session = Session(path)
    onnx_types = {"INT64": "tensor(int64)", "FLOAT": "tensor(float)", "FLOAT16": "tensor(float16)"}
    for values, expected in ((session.ort.get_inputs(), inputs),
                             (session.ort.get_outputs(), outputs)):  # fmt: skip
        assert [(v.name, v.type, v.shape) for v in values] == [
            (name, onnx_types[dtype], shape) for name, dtype, shape in expected
        ]
    optional = [v.name for v in session.ort.get_overridable_initializers()]
    assert optional == ([] if kind == "portable" else ["all_logits"])


def test_the_contract_of_a_model_with_an_encoder_and_pruned_heads(exported, tmp_path):
    config = GPT2Config(
        vocab_size=23, n_positions=16, n_embd=48, n_layer=2, n_head=3,
        add_cross_attention=True, pruned_heads={1: [0, 2]},
    )  # fmt: skip
    for path in exported(save(config, tmp_path)).values():
        session = Session(path)
        heads, e = (3, 1), "encoder_sequence_length"
        past = [(f"past_key_values.{i}.{part}", heads[i]) for i in (0, 1) for part in KV]
        cross = [f"past_key_values.{i}.encoder.{part}" for i in (0, 1) for part in KV]
        assert [(v.name, v.shape) for v in session.ort.get_inputs()[3:]] == [
            *((name, ["batch_size", h, "past_sequence_length", 16]) for name, h in past),
            *((name, ["batch_size", 3, e, 16]) for name in cross),
            ("encoder_attention_mask", ["batch_size", e]),
        ]
        assert [v.shape[1] for v in session.ort.get_outputs()[1:]] == [3, 3, 1, 1]


KV = ("key", "value")


@pytest.mark.parametrize(("opset", "ir"), [(17, 8), (18, 8), (19, 9), (21, 10)])
def test_opset_and_ir_are_the_oldest_that_will_do(exported, tiny, opset, ir):
    for (_, kind), path in exported(tiny, opset=opset).items():
        model = onnx.load(path, load_external_data=False)
        domains = {entry.domain: entry.version for entry in model.opset_import}
        assert domains == {"": opset} | ({} if kind == "portable" else {"com.microsoft": 1})
        assert model.ir_version == ir


def test_only_quantized_weights_bring_another_domain_into_the_portable_graph(exported, tiny):
    for (precision, kind), path in exported(tiny, ALL).items():
        model = onnx.load(path, load_external_data=False)
        foreign = {node.op_type for node in model.graph.node if node.domain}
        if kind == "portable":
            assert foreign == ({"MatMulNBits"} if precision in ("int8", "int4") else set())
            if not foreign:
                onnx.checker.check_model(str(path), full_check=True)
        else:
            own = {"gqa": "GroupQueryAttention", "mha": "MultiHeadAttention"}
            assert {own[kind], "FastGelu"} <= foreign
            # Of the last block, what is asked for: the stream and the heads.
            gathered = [n.name for n in model.graph.node if n.op_type == "GatherND"]
            assert [name.split("/")[1] for name in gathered] == ["h.2", "h.2"]
            # It is for CUDA, which these graphs are made for.
            assert ("SkipLayerNormalization" in foreign) == (kind == "mha" or precision == "fp16")


@pytest.mark.parametrize("kind", KINDS)
def test_nodes_are_named_by_their_path_and_values_as_npgpt2_taps_them(exported, tiny, model, kind):
    graph = onnx.load(exported(tiny, ALL)["fp32", kind], load_external_data=False).graph
    found = [node.name for node in graph.node]
    assert len(set(found)) == len(found)
    for node in graph.node:  # '/h.1/attn/c_attn/MatMul', numbered where there are several
        assert re.fullmatch(rf"/(.+/)*{node.op_type}(_\d+)?", node.name), node.name
    values = [name for node in graph.node for name in node.output if name]
    assert len(set(values)) == len(values)
    assert all(values)
    taps = []
    model([[1, 2]], tap=lambda name, array: taps.append(name))
    # What one operator does together has no names in between.
    gone = () if kind == "portable" else ("probs", "c_fc", "c_proj", "wpe")
    missing = {name for name in taps if not name.endswith(gone) and name not in values}
    assert missing == set()
    made_by = {node.output[0]: node.name for node in graph.node}
    assert made_by["h.1.attn.c_attn"] == "/h.1/attn/c_attn/Add"
    assert made_by["h.2.ln_2"].startswith("/h.2/ln_2/")


@pytest.mark.parametrize(("precision", "bits"), [("int8", 8), ("int4", 4)])
def test_quantized_products_are_in_whole_numbers(exported, tiny, precision, bits):
    """Accuracy level 4; and the head in 8 bits even where all else has 4."""
    for kind in KINDS:
        graph = onnx.load(exported(tiny, ALL)[precision, kind], load_external_data=False).graph
        found = {
            node.name: {a.name: a.i for a in node.attribute}
            for node in graph.node
            if node.op_type == "MatMulNBits"
        }
        assert len(found) == 3 * 4 + 1
        for name, attributes in found.items():
            head = name.startswith("/lm_head")
            assert attributes["bits"] == (8 if head else bits), name
            assert attributes["accuracy_level"] == 4, name
            assert attributes["block_size"] == (128 if attributes["K"] % 128 == 0 else 64), name


def test_metadata_says_what_was_exported(exported, tiny):
    digest = hashlib.sha256((tiny / "model.safetensors").read_bytes()).hexdigest()
    for (precision, kind), path in exported(tiny, ALL).items():
        found = metadata(path)
        assert (found["precision"], found["graph"]) == (precision, kind)
        assert json.loads(found["checkpoint_sha256"]) == {"model.safetensors": digest}
        assert GPT2Config.from_dict(json.loads(found["config"])) == Session(path).config


def test_the_same_checkpoint_gives_the_same_bytes(tiny, tmp_path):
    folders = [export(tiny, tmp_path / name, precisions=ALL, graphs=KINDS) for name in "ab"]
    one, two = ({p.relative_to(f): p for p in f.rglob("*") if p.is_file()} for f in folders)
    assert one.keys() == two.keys()
    assert len(one) >= 12 + 4 + 3
    for name, path in one.items():
        assert path.read_bytes() == two[name].read_bytes(), name


@pytest.mark.parametrize("chunk", [1 << 10, 12_000, 1 << 16])
def test_weights_that_pass_through_in_pieces(exported, tiny, tmp_path, monkeypatch, chunk):
    """What a large model is written by; the tiny one is one piece otherwise."""
    monkeypatch.setattr(data, "CHUNK", chunk)
    out = export(tiny, tmp_path / "out", precisions=ALL, graphs=["gqa"], proof=False)
    for path in graphs_in(out).values():
        [name] = {entry["location"] for entry in initializers(path).values()}
        whole = exported(tiny, ALL)["fp32", "gqa"].parent / name
        assert (path.parent / name).read_bytes() == whole.read_bytes(), name


def test_graphs_of_a_precision_share_one_file_of_weights(exported, shared):
    folder = shared("checkpoints/shakespeare-3m")
    graphs = exported(folder, ALL)
    size = (folder / "model.safetensors").stat().st_size
    # Of 4 bytes a number: 2 in fp16, a little over 1 in int8, and in int4, but for wte, over ½.
    for precision, part in (("fp32", 1.0), ("fp16", 0.5), ("int8", 0.27), ("int4", 0.175)):
        files = {
            path.parent / name
            for (p, _), path in graphs.items()
            if p == precision
            for name in {entry["location"] for entry in initializers(path).values()}
        }
        [file] = files
        assert file.parent == graphs[precision, "portable"].parent
        assert file.stat().st_size <= 1.05 * part * size
        assert file.stat().st_size >= 0.9 * part * size


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_wte_is_quantized_once_for_both_of_its_uses(exported, tiny, precision):
    for kind in KINDS:
        path = exported(tiny, ALL)[precision, kind]
        assert [name for name in initializers(path) if name.startswith(("wte", "lm_head"))] == [
            "wte.weight.int8",
            "wte.weight.scales",
        ]
        for name in ("wte.weight.int8", "wte.weight.scales"):
            nodes = onnx.load(path, load_external_data=False).graph.node
            readers = [node.name.split("/")[1] for node in nodes if name in node.input]
            assert sorted(readers) == ["lm_head", "wte"]


def test_every_number_of_a_graph_is_the_checkpoints_or_its_rounding(exported, tiny, model):
    for path in exported(tiny, ALL).values():
        rows = check_weights(Exported.open(path), model)
        assert len(rows) == 3 * 12 + 4
        assert all(row.good for row in rows), [row for row in rows if not row.good]


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_a_block_whose_ends_are_equally_far_from_zero(tmp_path, precision):
    """The one that is cut off moves by a whole step, to the last digit of float32."""
    config = GPT2Config(vocab_size=90, n_positions=16, n_embd=64, n_layer=1, n_head=2)
    tensors = formula_tensors(config)
    far = np.linspace(1, 2, 90)
    tensors["wte.weight"][:, 5], tensors["wte.weight"][:, 9] = far, -far
    tensors["h.0.mlp.c_fc.weight"][7, :90] = tensors["h.0.mlp.c_fc.weight"][8, :90] = far
    tensors["h.0.mlp.c_fc.weight"][8] *= -1
    out = export(
        save(config, tmp_path / "c", tensors), tmp_path / "o", precisions=[precision], proof=False
    )
    for path in graphs_in(out).values():
        rows = check_weights(Exported.open(path), GPT2.from_pretrained(tmp_path / "c"))
        assert all(row.good for row in rows), [row for row in rows if not row.good]


# ── what a graph shows of its inside ─────────────────────────────────────────────────────────────


@pytest.mark.parametrize("precision", ALL)
@pytest.mark.parametrize("kind", KINDS)
def test_states_and_attention_maps_are_what_npgpt2_taps(exported, tiny, precision, kind):
    path = exported(tiny, ALL, attentions=True)[precision, kind]
    if precision in ("int8", "int4"):
        path = with_exact_products(path)
    session, r = Session(path), np.random.default_rng(2)
    ids = r.integers(0, 512, (2, 11))
    mask = np.arange(11) < [[11], [7]]
    shown = {}
    model = reference(session.graph)
    model(ids, attention_mask=mask, tap=lambda name, x: shown.update({name: x.copy()}))
    outputs = [output.name for output in session.ort.get_outputs()]
    tail = outputs[1 + 2 * 3 :]
    maps = ["h.{}.attn.probs"] if kind == "portable" else []
    layered = [name.format(i) for i in range(3) for name in [*maps, "h.{}.resid_mlp"]]
    assert tail == ["embed", *layered, "ln_f"]
    found = session.run(tail, session.feeds(ids, mask=mask))
    bound = BOUNDS["fp16"] if precision == "fp16" else FP32
    for name, got in zip(tail, found, strict=True):
        assert got.dtype == np.float32
        want = shown[name]
        if name.endswith("probs"):
            real = np.broadcast_to(mask[:, None, :, None], want.shape)
        else:
            real = np.broadcast_to(mask[:, :, None], want.shape)
        assert error(got * real, want * real) <= bound, name


def test_attention_maps_of_an_encoder_and_behind_a_past(exported, tmp_path):
    config = GPT2Config(vocab_size=23, n_positions=16, n_embd=32, n_layer=2, n_head=2,
                        add_cross_attention=True, scale_attn_by_inverse_layer_idx=True)  # fmt: skip
    tensors = formula_tensors(config)
    save(config, tmp_path, tensors)
    for opset in (17, newest_opset()):
        path = exported(tmp_path, ("fp32",), ("portable",), attentions=True, opset=opset)
        session = Session(path["fp32", "portable"])
        model = numpy_model(config, {k: v.astype("f4") for k, v in tensors.items()}, "f8")
        states = np.random.default_rng(3).standard_normal((1, 5, 32)).astype("f4")
        cross = [tuple(a.astype("f4") for a in pair) for pair in cross_pairs(model, states)]
        past, cache = None, None
        for ids in (np.array([[3, 1, 4, 1]]), np.array([[5, 9]])):
            shown = {}
            cache = model(
                ids, past_key_values=cache, encoder_hidden_states=states,
                tap=lambda name, x, into=shown: into.update({name: x.copy()}),
            ).past_key_values  # fmt: skip
            wanted = ["h.0.attn.probs", "h.1.attn.probs", "h.1.crossattention.probs",
                      *names.present(0), *names.present(1)]  # fmt: skip
            feeds = session.feeds(ids, past=past, cross=cross)
            *maps, k0, v0, k1, v1 = session.run(wanted, feeds)
            past = [(k0, v0), (k1, v1)]
            for name, got in zip(wanted, maps, strict=False):
                assert error(got, shown[name]) <= FP32, name


# ── the last position, or all ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["gqa", "mha"])
def test_without_asking_only_the_last_real_tokens_logits_come(session, kind):
    graph = session(kind)
    r = np.random.default_rng(4)
    mask = np.arange(9) < [[9], [4], [1]]
    ids = r.integers(0, 512, (3, 9))
    every, past = graph.forward(ids, mask=mask)
    assert every.shape == (3, 9, 512)
    [last] = graph.run(["logits"], graph.feeds(ids, mask=mask, all_logits=False))
    assert last.shape == (3, 1, 512)
    assert error(last[:, 0], every[[0, 1, 2], [8, 3, 0]]) <= 1e-6
    more = np.concatenate([mask, np.ones((3, 1), bool)], 1)
    feeds = graph.feeds(ids[:, :1], mask=more, past=past, all_logits=False)
    [step] = graph.run(["logits"], feeds)
    assert error(step, graph.forward(ids[:, :1], mask=more, past=past)[0]) <= 1e-6
    if kind == "mha":  # padding on the left: the last column is real
        left = mask[:, ::-1]
        every, _ = graph.forward(ids, mask=left)
        [last] = graph.run(["logits"], graph.feeds(ids, mask=left, all_logits=False))
        assert error(last[:, 0], every[:, -1]) <= 1e-6


# ── GroupQueryAttention: only right padding, and a cache that stays where it is ──────────────────

WRONG = {
    "left padding": ([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]], 5),
    "one token of left padding": ([[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]], 5),
    "a hole": ([[1, 1, 1, 1, 1], [1, 0, 1, 1, 1]], 5),
    "a hole and right padding": ([[1, 0, 1, 1, 0], [1, 1, 1, 1, 1]], 5),
    "a row of padding": ([[0, 0, 0, 0, 0], [1, 1, 1, 1, 1]], 5),
    "padding behind a past": ([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]], 1),
    "a past padded on the left": ([[0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]], 1),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("precision", ALL)
def test_gqa_refuses_padding_that_it_would_ignore(session, precision, case):
    graph, (mask, new) = session("gqa", precision), WRONG[case]
    ids = np.arange(10).reshape(2, 5)
    past = None if new == 5 else graph.forward(ids)[1]
    with pytest.raises(CheckpointError, match=r"padding goes on the right .* model\.onnx takes"):
        graph.forward(ids[:, :new], mask=np.array(mask), past=past)


def test_gqa_refuses_padding_between_several_new_tokens(session):
    graph = session("gqa")
    _, past = graph.forward(np.array([[1, 2, 3]]))
    for tail in ([1, 1, 0], [0, 1, 1], [1, 0, 1]):
        with pytest.raises(CheckpointError, match="padding goes on the right"):
            graph.forward(np.array([[4, 5, 6]]), mask=np.array([[1, 1, 1, *tail]]), past=past)
    graph.forward(np.array([[4, 5, 6]]), past=past)


def test_gqa_refuses_several_tokens_behind_the_pasts_of_a_batch(session):
    graph = session("gqa")
    _, past = graph.forward(np.array([[1, 2, 3], [4, 5, 6]]))
    with pytest.raises(CheckpointError, match="batch_size must be 1"):
        graph.forward(np.array([[4, 5], [6, 7]]), past=past)


@pytest.mark.parametrize("precision", ALL)
@pytest.mark.parametrize("capacity", [9, 40])
def test_one_buffer_for_past_and_present(session, wide, precision, capacity):
    """Bound as both, it gives the numbers of separate ones; what is behind them is not read."""
    graph, r = session("gqa", precision), np.random.default_rng(5)
    rows, prompt, steps = 3, 5, 4
    ids = r.integers(0, 512, (rows, prompt + steps))
    mask = np.arange(prompt) < [[5], [2], [4]]
    binding, held = shared_buffers(graph, rows, capacity)
    past, at = None, 0
    for t in (prompt, *[1] * steps):
        if at:
            mask = np.concatenate([mask, np.ones((rows, 1), bool)], 1)
        feeds = graph.feeds(ids[:, at : at + t], mask=mask, past=past)
        for name in ("input_ids", "attention_mask", "position_ids"):
            binding.bind_cpu_input(name, feeds[name])
        binding.bind_output("logits", "cpu")
        graph.ort.run_with_iobinding(binding)
        got = binding.get_outputs()[-1].numpy()
        want, past = graph.forward(ids[:, at : at + t], mask=mask, past=past)
        lengths = mask.sum(1)
        last = (lengths if t > 1 else np.ones(rows, int)) - 1
        assert error(got[:, 0], want[np.arange(rows), last]) <= 1e-6
        for i, pair in enumerate(past):
            for name, array in zip(names.past(i), pair, strict=True):
                shared = held[name].numpy()
                for row, n in enumerate(lengths):
                    assert error(shared[row, :, :n], array[row, :, :n]) <= 1e-6
        at += t


# ── precisions ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ALL)
def test_a_neighbour_in_the_batch_changes_nothing(session, precision, kind):
    """A prompt, padded on the right, and a step behind it: each row alone, and with others.

    With other neighbours to the last bit. Alone, products have another shape, and BLAS another
    order of sums: where a number is rounded to 8 or 16 bits, the last digit may decide.
    """
    bound = {"fp32": 1e-6, "fp16": 2e-3}.get(precision, 2e-2)
    graph, r = session(kind, precision), np.random.default_rng(6)
    ids, last = r.integers(0, 512, (3, 12)), r.integers(0, 512, (3, 1))
    lengths = np.array([12, 5, 9])
    mask = np.arange(12) < lengths[:, None]
    logits, past = graph.forward(ids, mask=mask)
    longer = np.concatenate([mask, np.ones((3, 1), bool)], 1)
    step, _ = graph.forward(last, mask=longer, past=past)
    for row, n in enumerate(lengths):
        alone, own = graph.forward(ids[row : row + 1, :n])
        assert error(logits[row, :n], alone[0]) <= bound
        for pair, single in zip(past, own, strict=True):
            for many, one in zip(pair, single, strict=True):
                assert error(many[row, :, :n], one[0]) <= bound
        assert error(step[row], graph.forward(last[row : row + 1], past=own)[0][0]) <= bound
    ids[1:], last[1:] = r.integers(0, 512, (2, 12)), r.integers(0, 512, (2, 1))
    again, past = graph.forward(ids, mask=mask)
    np.testing.assert_array_equal(again[0], logits[0])
    np.testing.assert_array_equal(graph.forward(last, mask=longer, past=past)[0][0], step[0])


numbers = st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=False)


@example(x=np.full((2, 3), 2.0**-126, "f4"), bits=8, block=16)  # whose step has no inverse
@example(x=np.full((1, 1), 1.9457409e-38, "f4"), bits=8, block=16)  # whose scale is not normal
@example(x=np.full((2, 3), -np.finfo("f4").max, "f4"), bits=4, block=16)
@given(
    x=hnp.arrays(
        np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40), elements=numbers
    ),
    bits=st.sampled_from([4, 8]),
    block=st.sampled_from([16, 32]),
)
def test_a_number_moves_by_half_a_step_or_at_the_short_end_a_whole_one(x, bits, block):
    codes, scales = quantize(x, bits, block)
    rows, width = x.shape
    blocks = -(-width // block)
    assert codes.shape == (rows, blocks, block * bits // 8)
    assert (codes.dtype, scales.dtype, scales.shape) == (np.uint8, np.float32, (rows, blocks))
    back = dequantize(codes, scales, bits, width)
    assert (back.shape, back.dtype) == (x.shape, np.float32)
    step = np.repeat(np.abs(scales), block, 1)[:, :width].astype("f8")
    toward = np.sign(x) == -np.sign(np.repeat(scales, block, 1)[:, :width])  # has one code more
    slack = np.where(toward, 0.5, 1.0) * step * (1 + 1e-5)
    assert (np.abs(back.astype("f8") - x) <= slack + 1e-45).all()
    # What is farthest from zero is exact, and zero is zero.
    padded = np.pad(x, ((0, 0), (0, blocks * block - width))).reshape(rows, blocks, block)
    exact = np.pad(back, ((0, 0), (0, blocks * block - width))).reshape(rows, blocks, block)
    at = np.abs(padded).argmax(-1)[..., None]
    np.testing.assert_allclose(
        np.take_along_axis(exact, at, -1),
        np.take_along_axis(padded, at, -1),
        rtol=1e-6,
        atol=2.0**-143,  # 128 codes of a scale whose last place, below normal numbers, is 2⁻¹⁴⁹
    )
    assert (back[x == 0] == 0).all()


# ── what a precision costs on a text ─────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "windows",
    [pytest.param(12, marks=pytest.mark.slow), pytest.param(None, marks=pytest.mark.long)],
)
def test_quality_on_shakespeare(exported, shared, windows):
    folder = shared("checkpoints/shakespeare-3m")
    text = shared("tiny-shakespeare/input.txt").read_text()
    model = GPT2.from_pretrained(folder)
    ids = model.tokenizer.encode(text[int(0.9 * len(text)) :])
    ids = ids[: windows and windows * 256]
    graphs = exported(folder, ALL)
    sessions = [Session(graphs[precision, "gqa"]) for precision in ALL]
    rows = quality(ids, sessions, model)
    assert [row.graph for row in rows] == [s.path.name for s in sessions]
    for row in rows:
        assert row.good, row
    single, half, eight, four = rows
    assert single.perplexity == pytest.approx(
        model.score(ids, stride=model.config.n_positions).perplexity, rel=0.02
    )
    assert single.kl < half.kl < eight.kl < four.kl
    assert eight.kl > 1e-6  # rounded it is
