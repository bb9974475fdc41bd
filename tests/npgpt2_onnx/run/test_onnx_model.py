"""ONNX Runtime behind the same calls as NumPy: the same texts, from every kind of graph."""

import json
import shutil
import subprocess
import sys
import threading

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from cases import formula_tensors
from onnx_cases import FP32, KINDS, cross_pairs, error, metadata, numpy_model, save

from npgpt2 import GPT2Config
from npgpt2.base.errors import (
    CheckpointError,
    FileError,
    InputError,
    MissingPackage,
    NpGPT2Error,
    OptionError,
)
from npgpt2.generation.generate import left_padded
from npgpt2_onnx import OnnxModel, export
from npgpt2_onnx.graph.versions import numbers
from npgpt2_onnx.run.model import ConcatStepper, InPlaceStepper
from npgpt2_onnx.run.session import Session, choose, graphs_in
from npgpt2_onnx.write.verify import BOUNDS

PROMPTS = ["O Romeo, ", "KING", "The quality of mercy is not strained. It droppeth as the", "a"]
STEPPERS = {"portable": ConcatStepper, "gqa": InPlaceStepper, "mha": ConcatStepper}


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tiny):
    """An export of the tiny model by kind, each with that graph alone; "all" has all."""
    where = tmp_path_factory.mktemp("exports")
    made = {
        kind: export(tiny, where / kind, graphs=[kind], proof=False) for kind in KINDS
    }  # fmt: skip
    made["all"] = export(
        tiny, where / "all", precisions=["fp32", "fp16", "int8", "int4"], graphs=KINDS, proof=False
    )
    return made


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def runner(folders, kind):
    return OnnxModel.from_pretrained(folders[kind])


@pytest.fixture(scope="module")
def expected():
    """What NumPy wrote, by options: the same for every kind of graph."""
    return {}


# ── what a model writes and says ─────────────────────────────────────────────────────────────────


def test_a_folder_with_one_graph_opens_that(runner, kind, folders):
    assert (runner.session.kind, runner.session.precision.name) == (kind, "fp32")
    assert runner.session.provider == "CPUExecutionProvider"
    assert isinstance(runner.stepper(), STEPPERS[kind])
    assert runner.folder == folders[kind]
    for word in (runner.session.path.name, "fp32", "CPUExecutionProvider", "3 layers of "):
        assert word in repr(runner)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0},
        {"seed": 5},
        {"seed": 6, "num_samples": 3, "top_k": 20, "repetition_penalty": 1.2},
        {"num_beams": 4, "num_samples": 2},
        {"num_beams": 2, "repetition_penalty": 1.3},
        {"seed": 5, "stop": (".", "th")},
        {"num_beams": 3, "stop": ("\n",)},
        {"seed": 7, "use_cache": False},
        {"num_beams": 3, "use_cache": False},
    ],
    ids=str,
)
def test_texts_are_numpys(runner, model, expected, options):
    """Prompts of different lengths, in one batch: padding, rows that end early, reordering."""
    count = 40 if options.get("use_cache", True) else 8
    found = runner.generate(PROMPTS, max_new_tokens=count, **options)
    if repr(options) not in expected:
        expected[repr(options)] = model.generate(PROMPTS, max_new_tokens=count, **options)
    assert found == expected[repr(options)]
    assert len(found) == len(PROMPTS) * options.get("num_samples", 1)


@pytest.mark.parametrize(
    "options", [{"temperature": 0}, {"seed": 5, "num_samples": 2}, {"num_beams": 2}], ids=str
)
def test_rows_of_a_batch_are_the_single_runs(runner, options):
    together = runner.generate(PROMPTS, max_new_tokens=80, **options)
    alone = [t for p in PROMPTS for t in runner.generate(p, max_new_tokens=80, **options)]
    assert together == alone


def test_a_text_ends_with_the_context(runner, model):
    full = list(range(1, 129))
    for prompts, options in (
        ("O Romeo, ", {"max_new_tokens": 10**9, "temperature": 0}),
        ([full], {"max_new_tokens": 5, "temperature": 0}),
        ([full], {"max_new_tokens": 5, "num_beams": 2}),
        (["a", full[:120], full], {"max_new_tokens": 100, "temperature": 0}),
        (["a", full[:120]], {"max_new_tokens": 150, "seed": 1, "num_samples": 2}),
    ):
        found = runner.generate(prompts, **options)
        assert found == model.generate(prompts, **options)
        assert "context" in {text.finish_reason for text in found}
    with pytest.raises(InputError, match="129 > 128 tokens"):
        runner.generate([[*full, 1]])


def test_stream_is_generate(runner, model):
    for options in ({"seed": 1}, {"temperature": 0, "stop": "\n"}):
        pieces = list(runner.stream("KING", max_new_tokens=60, **options))
        assert pieces == list(model.stream("KING", max_new_tokens=60, **options))
        [text] = runner.generate("KING", max_new_tokens=60, **options)
        assert "".join(pieces) == text.text


def test_score_is_numpys(runner, model):
    text = "To be, or not to be: that is the question. " * 12  # longer than the context
    for stride in (None, 128, 17):
        found, expected = runner.score(text, stride=stride), model.score(text, stride=stride)
        np.testing.assert_array_equal(found.ids, expected.ids)
        np.testing.assert_allclose(found.logprobs, expected.logprobs, rtol=0, atol=1e-4)
        assert found.nats == pytest.approx(expected.nats, rel=1e-6)
        assert (found.tokens, found.bytes) == (expected.tokens, expected.bytes)


def test_logits_of_all_positions(runner, wide):
    ids = np.random.default_rng(0).integers(0, 512, (2, 30))
    assert error(runner.logits(ids), wide.logits(ids)) <= FP32


def test_a_pruned_model_with_a_head_of_its_own(tmp_path, kind):
    """Caches of different widths by layer."""
    config = GPT2Config(vocab_size=40, n_positions=100, n_embd=48, n_layer=3, n_head=3,
                        pruned_heads={0: [1], 2: [0, 2]}, tie_word_embeddings=False,
                        eos_token_id=None, scale_attn_by_inverse_layer_idx=True)  # fmt: skip
    tensors = formula_tensors(config)
    out = export(save(config, tmp_path / "c", tensors), tmp_path / "o", graphs=[kind], proof=False)
    runner = OnnxModel.from_pretrained(out)
    model = numpy_model(config, tensors, "f4")
    prompts = [[3, 1, 4], [1, 5, 9, 2, 6, 5, 35], [8]]
    for options in ({"temperature": 0}, {"num_beams": 3}, {"seed": 2}):
        found = runner.generate(prompts, max_new_tokens=80, **options)
        assert [t.ids for t in found] == [
            t.ids for t in model.generate(prompts, max_new_tokens=80, **options)
        ]


def test_a_model_that_wants_an_encoder_says_so(tmp_path, kind):
    config = GPT2Config(vocab_size=23, n_positions=16, n_embd=48, n_layer=2, n_head=3,
                        add_cross_attention=True)  # fmt: skip
    tensors = formula_tensors(config)
    out = export(save(config, tmp_path / "c", tensors), tmp_path / "o", graphs=[kind], proof=False)
    runner = OnnxModel.from_pretrained(out)
    for call in (lambda: runner.generate([1, 2]), lambda: runner.score([1, 2, 3]), runner.stepper):
        with pytest.raises(InputError, match=r"encoder.*session\.forward\(ids, cross="):
            call()
    model = numpy_model(config, {k: v.astype("f4") for k, v in tensors.items()}, "f8")
    states = np.random.default_rng(0).standard_normal((1, 5, 48))
    cross = [tuple(a.astype("f4") for a in pair) for pair in cross_pairs(model, states)]
    logits, _ = runner.session.forward(np.array([[1, 2, 3]]), cross=cross)
    assert error(logits, model([[1, 2, 3]], encoder_hidden_states=states).logits) <= FP32


# ── Stepper: what the loops ask of an engine ─────────────────────────────────────────────────────


def both(runner, wide, mask=None, use_cache=True):
    """One conversation with both; a function that takes it further and compares."""
    steppers = [m.stepper(mask, use_cache) for m in (runner, wide)]

    def step(ids):
        got, want = (stepper(ids) for stepper in steppers)
        assert got.shape == (len(ids), 512)
        assert error(got, want) <= FP32
        return want

    def reorder(rows):
        for stepper in steppers:
            stepper.reorder(np.array(rows))

    return step, reorder


@pytest.mark.parametrize("use_cache", [True, False])
def test_stepper_tokens_one_by_one_and_several_at_once(runner, wide, use_cache):
    r = np.random.default_rng(0)
    for rows in (1, 3):
        step, _ = both(runner, wide, use_cache=use_cache)
        for t in (7, 1, 4, 1, 20, 3):
            step(r.integers(0, 512, (rows, t)))


@pytest.mark.parametrize("use_cache", [True, False])
def test_stepper_of_a_padded_batch(runner, wide, use_cache):
    r = np.random.default_rng(1)
    mask = np.arange(9) >= np.array([[0], [8], [3], [5]])
    step, reorder = both(runner, wide, mask, use_cache)
    for t in (9, 1, 1, 3, 1):
        step(r.integers(0, 512, (4, t)))
    reorder([2, 0, 3])  # a row ends
    for t in (1, 2):
        step(r.integers(0, 512, (3, t)))
    reorder([1, 1, 0, 2, 2])  # beams part
    for t in (1, 1, 2):
        step(r.integers(0, 512, (5, t)))
    reorder([4])
    for t in (1, 5, 1):
        step(r.integers(0, 512, (1, t)))


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
def test_stepper_of_every_precision(folders, kind, precision):
    """With a cache, padding and reordering it says what the graph says of the whole text.

    Not to the last digit: where a number is rounded to 8 bits, the last digit decides.
    """
    session = Session(graphs_in(folders["all"])[precision, kind])
    r, runner = np.random.default_rng(5), OnnxModel(session)
    texts = [r.integers(0, 512, n).tolist() for n in (11, 4, 7)]
    ids, mask = left_padded(texts)
    bound = BOUNDS[precision] / 4
    for use_cache in (True, False):
        step, rows = runner.stepper(mask, use_cache), [list(text) for text in texts]
        logits = step(ids)
        for i in range(5):
            for row, text in zip(logits, rows, strict=True):
                assert error(row, runner.logits(np.array([text]))[0, -1].astype("f8")) <= bound
            if i == 2:
                step.reorder(np.array([2, 0, 0]))
                rows = [list(rows[n]) for n in (2, 0, 0)]
            more = r.integers(0, 512, (3, 1 + i % 2))
            rows = [row + new.tolist() for row, new in zip(rows, more, strict=True)]
            logits = step(more)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("rows", [1, 3])
def test_stepper_tells_every_token_and_forgets_the_last(runner, wide, use_cache, rows):
    """Forward and back, as drafts are verified; also where the prompts were padded."""
    r = np.random.default_rng(7)
    mask = np.arange(6) >= np.array([[0], [2], [4]]) if rows == 3 else None
    steppers = [m.stepper(mask, use_cache) for m in (runner, wide)]
    for turn, (t, back) in enumerate([(6, 1), (1, 0), (4, 3), (1, 1), (70, 70), (2, 0), (1, 0)]):
        ids = r.integers(0, 512, (rows, t))
        got, want = (stepper(ids, every=True) for stepper in steppers)
        assert got.shape == want.shape == (rows, t, 512)
        real = mask if turn == 0 and mask is not None else np.ones((rows, t), bool)
        assert error(got[real], want[real]) <= FP32
        for stepper in steppers:
            stepper.rewind(back)


@pytest.mark.parametrize("tokens", [3, 4, 5, 11, 70])
def test_stepper_takes_a_long_prompt_in_pieces(folders, wide, monkeypatch, tokens):
    monkeypatch.setattr("npgpt2_onnx.run.model.PIECE", 4)
    runner, taken = OnnxModel.from_pretrained(folders["gqa"]), []
    run_bound = runner.session.run_bound

    def counted(binding, ids, *rest):
        taken.append(ids.shape[1])
        return run_bound(binding, ids, *rest)

    monkeypatch.setattr(runner.session, "run_bound", counted)
    ids = np.random.default_rng(9).integers(0, 512, (1, tokens))
    for every in (True, False):
        steppers = [m.stepper() for m in (runner, wide)]
        taken.clear()
        for n, more in enumerate((ids, ids[:, :1], ids[:, :2])):
            got, want = (stepper(more, every=every) for stepper in steppers)
            if n == 0:
                assert taken == [4] * (tokens // 4) + [tokens % 4] * (tokens % 4 > 0)
                for stepper in steppers:
                    stepper.rewind(1)  # into a piece, or to its beginning
            assert got.shape == want.shape
            assert error(got, want) <= FP32


def test_a_cache_with_room_does_not_move(folders, model, monkeypatch):
    def moved(*_):
        raise AssertionError("the cache has moved")

    monkeypatch.setattr("npgpt2.model.cache.KVCache._move", moved)
    runner = OnnxModel.from_pretrained(folders["gqa"])
    for one in (model, runner):
        for options in ({}, {"prompt_lookup": 8, "repetition_penalty": 0.5}):
            one.generate("KING", max_new_tokens=110, temperature=0, **options)
        step = one.stepper()  # is not told
        step(np.zeros((1, 64), np.int64))
        with pytest.raises(AssertionError, match="has moved"):
            step(np.zeros((1, 1), np.int64))


def test_stepper_reorder_of_rows_that_differ(runner, wide):
    r = np.random.default_rng(2)
    step, reorder = both(runner, wide)
    step(r.integers(0, 512, (3, 5)))
    for rows in ([2, 1, 0], [1, 1, 2], [0, 2, 1], [2]):
        reorder(rows)
        before = step(r.integers(0, 512, (len(rows), 1)))
    assert before.shape == (1, 512)


@pytest.mark.parametrize("prompt", [1, 63, 64, 65, 100])
def test_stepper_beyond_what_its_cache_was_made_for(runner, wide, prompt):
    """The first buffers hold 64 tokens; a longer prompt makes longer ones."""
    r = np.random.default_rng(prompt)
    step, reorder = both(runner, wide)
    step(r.integers(0, 512, (2, prompt)))
    for i in range(8):
        step(r.integers(0, 512, (2, 1)))
        if i == 3:
            reorder([1, 0])
    step, _ = both(runner, wide)
    step(r.integers(0, 512, (1, prompt)))
    step(r.integers(0, 512, (1, 128 - prompt)))  # up to the context's end, in one piece


def test_conversations_do_not_meet(runner, wide):
    """Two steppers of one session, in turn."""
    r = np.random.default_rng(3)
    first, _ = both(runner, wide)
    second, _ = both(runner, wide)
    for t in (6, 1, 1):
        first(r.integers(0, 512, (1, t)))
        second(r.integers(0, 512, (2, t + 1)))


def test_a_cache_of_numpys_goes_on_in_a_graph(runner, model, wide):
    """And back: keys and values are the same arrays."""
    r = np.random.default_rng(6)
    ids = r.integers(0, 512, (2, 12))
    cache = model(ids[:, :9]).past_key_values
    past = [cache[i] for i in range(3)]
    for t in (9, 10, 11):
        logits, past = runner.session.forward(ids[:, t : t + 1], past=past)
    want = wide(ids)
    assert error(logits[:, -1], want.logits[:, -1]) <= FP32
    for pair, other in zip(past, (want.past_key_values[i] for i in range(3)), strict=True):
        for got, expected in zip(pair, other, strict=True):
            assert error(got, expected) <= FP32


def test_stepper_goes_on_where_the_prompts_padding_was_a_hole(runner, wide):
    """The protocol says only: False where padding."""
    r = np.random.default_rng(4)
    mask = np.array([[True, False, True, True, True], [False, True, False, False, True]])
    step, _ = both(runner, wide, mask)
    for t in (5, 1, 1):
        step(r.integers(0, 512, (2, t)))


def test_what_is_beyond_the_context_is_an_error(runner):
    step = runner.stepper()
    step(np.ones((1, 128), np.int64))
    with pytest.raises(NpGPT2Error):
        step(np.ones((1, 1), np.int64))


# ── opening ──────────────────────────────────────────────────────────────────────────────────────


def test_threads(folders, kind):
    ids = np.arange(20)[None]
    one, two = (OnnxModel.from_pretrained(folders[kind], threads=n) for n in (1, 2))
    assert one.session.ort.get_session_options().intra_op_num_threads == 1
    assert two.session.ort.get_session_options().intra_op_num_threads == 2
    assert error(one.logits(ids), two.logits(ids)) <= 1e-6
    for wrong in (0, -1, 1025, 1.5, True, "2"):
        with pytest.raises(OptionError, match=r"threads: got .*, expected an integer from 1"):
            OnnxModel.from_pretrained(folders[kind], threads=wrong)


def kept(where):
    """The graphs that are kept there; what is under way has a name with a dot."""
    found = (path.relative_to(where) for path in where.rglob("*.onnx"))
    return sorted(where / p for p in found if not any(part.startswith(".") for part in p.parts))


def mark(path):
    """Change a kept graph so that whoever opens it shows it."""
    model = onnx.load(path, load_external_data=False)
    model.metadata_props.add(key="marked", value="yes")
    path.write_bytes(model.SerializeToString())


@pytest.fixture
def copied(folders, kind, tmp_path):
    """A copy of one export, to be changed."""
    return shutil.copytree(folders[kind], tmp_path / "copy")


def test_cache_dir_keeps_the_optimized_graph_and_opens_it(copied, kind, tmp_path):
    where, ids = tmp_path / "a" / "cache", np.arange(9)[None]
    plain = OnnxModel.from_pretrained(copied)
    first = OnnxModel.from_pretrained(copied, cache_dir=where)
    [file] = kept(where)
    second = OnnxModel.from_pretrained(copied, cache_dir=str(where))
    assert kept(where) == [file]
    for runner in (first, second):
        assert (runner.session.kind, runner.config) == (kind, plain.config)
        np.testing.assert_array_equal(runner.logits(ids), plain.logits(ids))
        assert runner.generate(PROMPTS, max_new_tokens=5, temperature=0) == plain.generate(
            PROMPTS, max_new_tokens=5, temperature=0
        )
    mark(file)
    assert metadata(OnnxModel.from_pretrained(copied, cache_dir=where).session)["marked"] == "yes"


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
def test_cache_dir_keeps_every_precision_as_its_kernels_want_it(folders, precision, tmp_path):
    ids = np.arange(9)[None]
    plain = OnnxModel.from_pretrained(folders["all"], precision).logits(ids)
    for _ in range(2):  # made, then opened
        runner = OnnxModel.from_pretrained(folders["all"], precision, cache_dir=tmp_path)
        np.testing.assert_array_equal(runner.logits(ids), plain)
    [file] = kept(tmp_path)
    size = sum(path.stat().st_size for path in file.parent.iterdir())
    stored = sum(tensor.nbytes for tensor in runner.session.graph.tensors.values())
    packed = size - stored > stored / 2
    # Of halves onnxruntime keeps them since 1.23.
    halves = ["fp16"] if numbers(ort.__version__) >= (1, 23) else []
    assert packed == (precision in ("fp32", *halves))


def test_cache_dir_sees_that_a_model_has_changed(copied, tmp_path, kind, model):
    where, ids = tmp_path / "cache", np.arange(9)[None]
    OnnxModel.from_pretrained(copied, cache_dir=where)
    mark(kept(where)[0])
    # Other weights in a graph that is the same to the byte.
    [data] = (copied / "onnx").glob("*.onnx_data")
    other = bytearray(data.read_bytes())
    other[: 512 * 64 * 4] = (np.frombuffer(other, "f4", 512 * 64) * 2).tobytes()
    data.write_bytes(other)
    changed = OnnxModel.from_pretrained(copied, cache_dir=where)
    assert "marked" not in metadata(changed.session)
    assert len(kept(where)) == 2
    assert error(changed.logits(ids), model.logits(ids)) > 0.1
    again = OnnxModel.from_pretrained(copied, cache_dir=where)
    np.testing.assert_array_equal(again.logits(ids), changed.logits(ids))
    # Another graph over the same weights.
    [graph] = (copied / "onnx").glob("*.onnx")
    mark(graph)
    assert metadata(OnnxModel.from_pretrained(copied, cache_dir=where).session)["marked"] == "yes"
    assert len(kept(where)) == 3


def test_cache_dir_after_a_writer_was_killed(copied, tmp_path, kind):
    """What a process that died on the way has left is never opened."""
    where = tmp_path / "cache"
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from npgpt2_onnx import OnnxModel\n"
        "end = lambda *a: os._exit(9)\n"  # written, not yet in its place
        "os.replace = os.rename = Path.replace = Path.rename = end\n"  # 3.10's paths keep os's
        "OnnxModel.from_pretrained(sys.argv[1], cache_dir=sys.argv[2])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, copied, where], capture_output=True)
    assert done.returncode == 9, done.stderr
    assert kept(where) == []
    for left in where.rglob("*.onnx"):
        left.write_bytes(left.read_bytes()[:500])  # or not even that
    ids = np.arange(9)[None]
    expected = OnnxModel.from_pretrained(copied).logits(ids)
    for _ in range(2):
        runner = OnnxModel.from_pretrained(copied, cache_dir=where)
        np.testing.assert_array_equal(runner.logits(ids), expected)
    [graph] = kept(where)
    graph.write_bytes(graph.read_bytes()[:500])  # of one that was whole, and is no more
    np.testing.assert_array_equal(
        OnnxModel.from_pretrained(copied, cache_dir=where).logits(ids), expected
    )


def test_cache_dir_of_several_at_once(folders, tmp_path):
    """Threads of a server that starts: the first that is done leaves its graph, all are right."""
    ids, start, found, wrong = np.arange(9)[None], threading.Barrier(4), [], []

    def open_it():
        start.wait()
        try:
            found.append(OnnxModel.from_pretrained(folders["gqa"], cache_dir=tmp_path).logits(ids))
        except NpGPT2Error as error:
            wrong.append(str(error))

    openers = [threading.Thread(target=open_it) for _ in range(4)]
    for opener in openers:
        opener.start()
    for opener in openers:
        opener.join()
    assert wrong == []
    assert len(kept(tmp_path)) == 1
    for logits in found:
        np.testing.assert_array_equal(logits, found[0])


def test_cache_dir_that_cannot_be_made(folders, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="file"):
        OnnxModel.from_pretrained(folders["gqa"], cache_dir=tmp_path / "file" / "cache")


def test_devices(folders):
    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with pytest.raises(MissingPackage, match=r"cuda: .*CPUExecutionProvider.*onnxruntime-gpu"):
        OnnxModel.from_pretrained(folders["all"], device="cuda")
    with pytest.raises(OptionError, match="device: got 'tpu', expected one of cpu, cuda"):
        OnnxModel.from_pretrained(folders["all"], device="tpu")


def test_the_graph_that_is_fastest_on_a_device(folders):
    chosen = {
        (device, precision): choose(folders["all"], device, precision)[:2]
        for device in ("cpu", "cuda")
        for precision in (None, "fp16", "int8", "int4")
    }
    assert chosen == {
        ("cpu", None): ("fp32", "gqa"), ("cpu", "fp16"): ("fp16", "gqa"),
        ("cpu", "int8"): ("int8", "gqa"), ("cpu", "int4"): ("int4", "gqa"),
        # There GroupQueryAttention has no float32.
        ("cuda", None): ("fp32", "mha"), ("cuda", "fp16"): ("fp16", "gqa"),
        ("cuda", "int8"): ("int8", "mha"), ("cuda", "int4"): ("int4", "mha"),
    }  # fmt: skip
    with pytest.raises(FileError, match="its fp32 graphs do not run on cuda"):
        choose(folders["gqa"], "cuda")


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
def test_a_precision_by_its_name(folders, precision):
    runner = OnnxModel.from_pretrained(folders["all"], precision)
    assert (runner.session.precision.name, runner.session.kind) == (precision, "gqa")
    [text] = runner.generate("O Romeo, ", max_new_tokens=4, temperature=0)
    assert len(text.ids) == 4


def test_what_is_not_there_is_said_with_what_is(folders, tmp_path):
    with pytest.raises(FileError, match=r"has no graph in int8, only in fp32\. .*--precision int8"):
        OnnxModel.from_pretrained(folders["gqa"], "int8")
    with pytest.raises(FileError, match=r"has no ONNX graph, .*npgpt2 export MODEL"):
        OnnxModel.from_pretrained(tmp_path)
    with pytest.raises(FileError, match="nowhere"):
        OnnxModel.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(FileError, match=r"model_mha\.onnx"):
        Session(folders["gqa"] / "onnx" / "model_mha.onnx")


def test_a_damaged_folder(copied, kind):
    [path], [data] = (list((copied / "onnx").glob(p)) for p in ("*.onnx", "*.onnx_data"))
    whole = data.read_bytes()
    data.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=path.name):
        OnnxModel.from_pretrained(copied)
    data.unlink()
    with pytest.raises(NpGPT2Error, match=data.name):
        OnnxModel.from_pretrained(copied)
    data.write_bytes(whole)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=path.name):
        OnnxModel.from_pretrained(copied)


def test_a_graph_from_somewhere_else(tmp_path):
    x, y = (
        onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1])
        for n in ("input_ids", "logits")
    )
    node = onnx.helper.make_node("Relu", ["input_ids"], ["logits"])
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "g", [x], [y]),
        opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8,
    )  # fmt: skip
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match=r"model\.onnx.* a graph that npgpt2 exported"):
        OnnxModel.from_pretrained(tmp_path)


def test_errors_of_a_run_are_one_line_that_names_the_graph(folders, kind, capfd):
    session = Session(graphs_in(folders[kind])["fp32", kind])
    with pytest.raises(NpGPT2Error, match=rf"{session.path.name}: .*512") as caught:
        session.forward(np.array([[512]]))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")  # it comes as an exception, not on standard error


def test_errors_of_a_run_do_not_say_where_onnx_runtime_was_built(folders):
    session = Session(graphs_in(folders["gqa"])["fp32", "gqa"])
    with pytest.raises(CheckpointError, match="padding goes on the right") as caught:
        session.forward(np.array([[1, 2]]), mask=np.array([[0, 1]]))
    assert "onnxruntime_src" not in str(caught.value)


def test_the_packages_names():
    import npgpt2_onnx

    assert npgpt2_onnx.OnnxModel is OnnxModel
    assert dir(npgpt2_onnx) == ["OnnxModel", "OnnxWithHead", "Session", "export", "quality"]
    with pytest.raises(AttributeError, match="no attribute 'OnnxModels'"):
        _ = npgpt2_onnx.OnnxModels


# ── the shared checkpoint: what PyTorch wrote ────────────────────────────────────────────────────


def test_texts_of_the_shared_checkpoint_are_pytorchs(shared, tmp_path, kind):
    folder = shared("checkpoints/shakespeare-3m")
    expected = json.loads((folder / "reference.json").read_text())
    out = export(folder, tmp_path / "o", graphs=[kind], proof=False)
    runner = OnnxModel.from_pretrained(out)
    for key, options in (("greedy_64", {"temperature": 0, "max_new_tokens": 64}),
                         ("beam4_32", {"num_beams": 4, "max_new_tokens": 32})):  # fmt: skip
        [text] = runner.generate(expected["prompt"], **options)
        assert text.prompt_ids + text.ids == expected[key]
