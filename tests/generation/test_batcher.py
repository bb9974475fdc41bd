"""Texts that share a batch: each is, to the last bit, what it is alone."""

import random

import numpy as np
import pytest

from npgpt2 import GPT2, GenerationOptions
from npgpt2.base.errors import CheckpointError, ConfigError, OptionError
from npgpt2.generation import batcher
from npgpt2.generation.batcher import CHUNK, Batcher, Job, Prefixes
from npgpt2_onnx import OnnxModel, export

TEXT = "The quality of mercy is not strained. It droppeth as the gentle rain from heaven upon "
ENGINES = ["numpy", "fp32", "fp16", "int8", "int4"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The tiny checkpoint, exported in every precision."""
    out = tmp_path_factory.mktemp("exported") / "tiny"
    return export("tests/data/tiny", out, precisions=("fp32", "fp16", "int8", "int4"))


@pytest.fixture
def engine(request, folder):
    if request.param == "numpy":
        return GPT2.from_pretrained("tests/data/tiny")
    return OnnxModel.from_pretrained(folder, request.param)


class Heard:
    """A job, and what came of it."""

    def __init__(self, model, prompt, sample=0, every=False, reads_only=False, **options):
        text = model.writing(model.encode(prompt), GenerationOptions(**options), sample)
        self.pieces, self.logits, self.prompt_logits, self.error = [], [], [], None
        self.job = Job(text, self._tell, self._fail, reads_only=reads_only)
        if every:
            self.job.tell_prompt = lambda start, x: self.prompt_logits.append((start, x.copy()))

    def _tell(self, piece, logits):
        assert self.error is None
        self.pieces.append(piece)
        self.logits.append(logits.copy())

    def _fail(self, error):
        self.error = error

    @property
    def ids(self):
        return [token for piece in self.pieces for token in piece.ids]

    @property
    def text(self):
        return "".join(piece.text for piece in self.pieces)

    @property
    def finish(self):
        return self.pieces[-1].finish if self.pieces else None


def finish(batcher, *heard):
    for one in heard:
        batcher.add(one.job)
    while batcher.step():
        pass
    assert batcher.busy == 0
    assert (batcher.slots.lengths == 0).all()
    return heard


def some(model, count, seed=0):
    """Requests of every kind: short and long prompts, greedy and sampled, with stops."""
    chosen = random.Random(seed)
    for n in range(count):
        prompt = TEXT[: chosen.choice([1, 5, 40, 86])] * chosen.choice([1, 1, 2])
        options = [
            {"temperature": 0},
            {"seed": n, "temperature": 1.0, "top_p": 0.9},
            {"seed": n, "stop": ("e",)},
            {"seed": n, "top_k": 5, "repetition_penalty": 1.3, "logit_bias": {260: 3.0}},
        ][chosen.randrange(4)]
        yield Heard(model, prompt, max_new_tokens=chosen.randrange(1, 30), **options)


@pytest.mark.parametrize("engine", ENGINES, indirect=True)
def test_a_text_is_the_same_bits_whoever_shares_its_batch(engine):
    """They begin at different steps, in other slots, and some go away in the middle."""
    alone = [finish(Batcher(engine.slots(4)), one)[0] for one in some(engine, 14)]
    together, batcher, chosen = list(some(engine, 14)), Batcher(engine.slots(4)), random.Random(1)
    leaving = list(some(engine, 14, seed=5))
    for one, other in zip(together, leaving, strict=True):
        batcher.add(one.job)
        batcher.add(other.job)
        for _ in range(chosen.randrange(4)):
            batcher.step()
            chosen.choice(leaving).job.gone |= chosen.random() < 0.3
    finish(batcher)
    for one, other in zip(together, alone, strict=True):
        assert (one.ids, one.text, one.finish) == (other.ids, other.text, other.finish)
        assert all(map(np.array_equal, one.logits, other.logits))
    assert len({one.finish for one in together}) > 1
    assert any(len(one.pieces) < 2 for one in leaving)  # some did go away


@pytest.mark.parametrize("engine", ["numpy", "fp32"], indirect=True)
def test_it_is_the_text_that_generate_writes(engine):
    for options in ({"temperature": 0}, {"seed": 3}, {"seed": 4, "stop": ("\n",)}):
        [want] = engine.generate(TEXT, max_new_tokens=30, **options)
        [one] = finish(Batcher(engine.slots(3)), Heard(engine, TEXT, max_new_tokens=30, **options))
        assert (one.ids, one.text, one.finish) == (want.ids, want.text, want.finish_reason)
    samples = [Heard(engine, TEXT, n, seed=9, max_new_tokens=9) for n in range(3)]
    finish(Batcher(engine.slots(2)), *samples)
    wanted = engine.generate(TEXT, seed=9, num_samples=3, max_new_tokens=9)
    assert [one.ids for one in samples] == [want.ids for want in wanted]


@pytest.mark.parametrize("engine", ENGINES, indirect=True)
def test_a_prefix_is_read_once_and_gives_the_same_bits(engine, monkeypatch):
    first = Heard(engine, TEXT * 2, temperature=0, max_new_tokens=8)
    assert 2 * CHUNK > len(first.job.prompt) > CHUNK
    batcher = Batcher(engine.slots(2))
    finish(batcher, first)
    read = []
    prefill = batcher.slots.prefill
    monkeypatch.setattr(
        batcher.slots, "prefill", lambda s, ids, e: read.append(len(ids)) or prefill(s, ids, e)
    )
    again = Heard(engine, TEXT * 2, temperature=0, max_new_tokens=8)
    other = Heard(engine, first.job.prompt[:CHUNK] + [5, 6, 7], temperature=0, max_new_tokens=2)
    strange = Heard(engine, [5] + first.job.prompt[:CHUNK], temperature=0, max_new_tokens=2)
    whole = Heard(engine, first.job.prompt[:CHUNK], temperature=0, max_new_tokens=2)
    finish(batcher, again, other, strange, whole)
    assert read == [len(first.job.prompt) - CHUNK, 3, CHUNK, 1, CHUNK]
    assert [h.job.reused for h in (again, other, strange, whole)] == [CHUNK, CHUNK, 0, 0]
    assert again.ids == first.ids
    assert all(map(np.array_equal, again.logits, first.logits))


def test_prefixes_go_when_there_is_no_room_the_longest_unused_first():
    block = [np.zeros((2, 1, CHUNK, 1), "f4")]
    prefixes = Prefixes(2 * block[0].nbytes)
    a, b, c = ([n] * CHUNK for n in (1, 2, 3))
    for ids in (a, b):
        prefixes.keep(ids, lambda: block)
    assert prefixes.known([*a, 9]) == [block]  # used again: b is the one to go
    prefixes.keep(c, lambda: block)
    assert [len(prefixes.known([*ids, 9])) for ids in (a, b, c)] == [1, 0, 1]
    assert prefixes.known(a) == []  # its last token's logits are wanted
    small = Prefixes(block[0].nbytes - 1)
    small.keep(a, lambda: block)
    assert small.known([*a, 9]) == []


@pytest.fixture
def one_piece(monkeypatch):
    """A step reads one piece of a prompt: the tiny model's context has only two."""
    monkeypatch.setattr(batcher, "PIECES", 1)


def test_a_step_reads_two_pieces_at_most(model):
    batcher = Batcher(model.slots(4))
    jobs = [Heard(model, p, temperature=0, max_new_tokens=3) for p in ("a", "b", "c", "a" * 90)]
    for one in jobs:
        batcher.add(one.job)
    batcher.step()
    assert [len(one.ids) for one in jobs] == [2, 2, 0, 0]
    batcher.step()
    assert [len(one.ids) for one in jobs] == [3, 3, 2, 0]
    assert batcher.reading is jobs[3].job
    finish(batcher)


def test_a_long_prompt_does_not_stall_those_who_write(model, one_piece):
    batcher = Batcher(model.slots(2))
    writer = Heard(model, "a", temperature=0, max_new_tokens=40)
    batcher.add(writer.job)
    batcher.step()
    long = Heard(model, list(range(1, 121)), temperature=0, max_new_tokens=5)
    batcher.add(long.job)
    before = len(writer.ids)
    batcher.step()
    assert len(writer.ids) == before + 1  # one piece was read, and one token written
    assert batcher.reading is long.job
    assert long.ids == []
    batcher.step()
    assert (len(writer.ids), len(long.ids)) == (before + 2, 2)  # after its prompt, and the step's
    finish(batcher)


@pytest.mark.parametrize("where", ["waiting", "reading", "writing"])
def test_who_goes_away_frees_its_slot_within_one_step(model, where, one_piece):
    batcher = Batcher(model.slots(1))
    gone = Heard(model, list(range(1, 121)), temperature=0, max_new_tokens=5)
    other = Heard(model, "KING", temperature=0, max_new_tokens=5)
    batcher.add(gone.job)
    batcher.add(other.job)
    for _ in range(["waiting", "reading", "writing"].index(where)):
        batcher.step()
    told = len(gone.pieces)
    gone.job.gone = True
    batcher.step()
    assert len(gone.pieces) == told
    assert batcher.writing == [other.job]
    assert len(other.ids) == 2
    finish(batcher)


def test_logits_of_the_prompt_and_nothing_written(model):
    ids = list(range(1, 101))
    one = Heard(model, ids, every=True, reads_only=True, temperature=0)
    batcher = Batcher(model.slots(2))
    for _ in range(2):  # what is known of the prompt is no use: the logits of all are wanted
        finish(batcher, one)
        assert [start for start, _ in one.prompt_logits] == [0, CHUNK]
        together = np.concatenate([x for _, x in one.prompt_logits])
        assert together.shape == (100, 512)
        assert np.abs(together - model.logits(np.array([ids]))[0]).max() < 1e-4
        assert (one.ids, one.text, one.finish) == ([], "", "length")
        one = Heard(model, ids, every=True, reads_only=True, temperature=0)


def test_a_full_context_writes_one_token_and_ends(model):
    full = Heard(model, list(range(1, 129)), temperature=0, max_new_tokens=5)
    near = Heard(model, list(range(1, 126)), temperature=0, max_new_tokens=50)
    finish(Batcher(model.slots(2)), full, near)
    assert (len(full.ids), full.finish) == (1, "context")
    assert (len(near.ids), near.finish) == (3, "context")


def test_what_fails_fails_alone(model, monkeypatch):
    """NaN in one row, in a prompt, and an engine that raises."""
    bad, good, later = (Heard(model, p, temperature=0, max_new_tokens=6) for p in ("a", "b", "c"))
    [want] = model.generate("b", temperature=0, max_new_tokens=6)
    batcher = Batcher(model.slots(2))
    step = batcher.slots.step

    def broken(ids):
        logits = step(ids)
        if len(bad.ids) == 2 and bad.error is None:
            logits[batcher.writing.index(bad.job)] = np.nan
            for buffer in batcher.slots._cache.room(0):
                buffer[batcher.writing.index(bad.job)] = np.nan  # as damaged weights leave it
        return logits

    monkeypatch.setattr(batcher.slots, "step", broken)
    finish(batcher, bad, good, later)
    assert isinstance(bad.error, CheckpointError)
    assert good.ids == want.ids
    assert later.error is None
    assert np.isfinite(later.logits[-1]).all()

    def fails(*_):
        raise CheckpointError("onnxruntime: out of memory")

    both = [Heard(model, p, temperature=0, max_new_tokens=6) for p in ("a", "b")]
    monkeypatch.setattr(batcher.slots, "step", fails)
    finish(batcher, *both)
    assert [str(one.error) for one in both] == ["onnxruntime: out of memory"] * 2
    monkeypatch.setattr(batcher.slots, "step", step)
    monkeypatch.setattr(batcher.slots, "prefill", fails)
    [one] = finish(batcher, Heard(model, "a", temperature=0))
    assert str(one.error) == "onnxruntime: out of memory"
    assert one.pieces == []


def test_slots_need_a_graph_with_one_shared_cache(tmp_path):
    out = export("tests/data/tiny", tmp_path / "portable", graphs=["portable"])
    with pytest.raises(ConfigError, match="is a portable graph, slots need one with GroupQuery"):
        OnnxModel.from_pretrained(out).slots(2)


@pytest.mark.parametrize("engine", ["fp32", "fp16", "int8"], indirect=True)
def test_hidden_states_of_a_graph_are_those_of_numpy(engine, model):
    ids = np.array([[5, 6, 7], [8, 9, 10]])
    states, want = engine.hidden(ids), model.hidden(ids)
    assert (states.shape, states.dtype) == (want.shape, np.float32)
    assert np.abs(states - want).max() / np.abs(want).max() < {"fp32": 1e-5}.get(
        engine.session.precision.name, 0.05
    )
    assert np.array_equal(want, model(ids).last_hidden_state)


def test_a_bias_is_added_before_anything_else(model):
    never = dict.fromkeys(model.generate("KING", temperature=0)[0].ids[:1], -100)
    assert model.generate("KING", temperature=0, logit_bias=never)[0].ids[0] not in never
    always = model.generate("KING", seed=1, max_new_tokens=4, logit_bias={77: 100})[0]
    assert always.ids == [77] * 4
    beams = model.generate("KING", num_beams=2, max_new_tokens=4, logit_bias={77: 100})[0]
    assert beams.ids == [77] * 4


@pytest.mark.parametrize(("bias", "said"), [
    ([1], "logit_bias: got [1], expected {id: number}"),
    ({-1: 1}, "logit_bias: got -1, expected a token id, an integer from 0"),
    ({"5": 1}, "logit_bias: got '5', expected a token id, an integer from 0"),
    ({5: 101}, "logit_bias: got 101, expected a number from -100 to 100"),
    ({5: float("nan")}, "logit_bias: got nan, expected a number from -100 to 100"),
    ({512: 1}, "logit_bias: has the id 512, expected 0 to 511"),
])  # fmt: skip
def test_a_bias_out_of_range(model, bias, said):
    for more in ({}, {"num_beams": 2}):
        with pytest.raises(OptionError) as error:
            model.generate("KING", logit_bias=bias, **more)
        assert str(error.value) == said
