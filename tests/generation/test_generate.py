"""Writing text: what must not depend on the cache, the batch, or how the text is cut."""

import itertools
import shutil

import numpy as np
import pytest
from patience import within

from npgpt2 import GPT2, GenerationOptions, KVCache
from npgpt2.base.errors import CheckpointError, InputError, OptionError
from npgpt2.generation.generate import Row, beam_search, write
from npgpt2.generation.language_model import _GrowingText

PROMPTS = ["O Romeo, ", "KING", "The quality of mercy is not strained. It droppeth as the", "a"]


@pytest.mark.parametrize("options", [{"temperature": 0}, {"seed": 5}, {"num_beams": 3}])
def test_cache_or_none_the_same_text(model, options):
    with_cache, without = (
        model.generate(PROMPTS, max_new_tokens=30, use_cache=use, **options)
        for use in (True, False)
    )
    assert [t.ids for t in with_cache] == [t.ids for t in without]


@pytest.mark.parametrize("options", [{"temperature": 0}, {"seed": 5, "num_samples": 3},
                                     {"num_beams": 2, "num_samples": 2},
                                     {"seed": 5, "stop": (".", "th")}])  # fmt: skip
def test_rows_of_a_batch_are_the_single_runs(model, options):
    together = model.generate(PROMPTS, max_new_tokens=90, **options)
    alone = [t for p in PROMPTS for t in model.generate(p, max_new_tokens=90, **options)]
    assert together == alone
    assert len(together) == len(PROMPTS) * options.get("num_samples", 1)


def test_the_same_seed_the_same_text(model):
    one, two, other = (model.generate("KING", seed=s, max_new_tokens=30)[0].ids for s in (1, 1, 2))
    assert one == two != other
    three = model.generate("KING", seed=1, max_new_tokens=30, num_samples=3)
    assert three[0].ids == one
    assert len({tuple(t.ids) for t in three}) == 3
    assert model.generate("KING")[0].ids != model.generate("KING")[0].ids  # seeds of their own


def test_a_text_ends_with_the_context_and_says_so(model):
    [text] = model.generate("O Romeo, ", max_new_tokens=10**9, temperature=0)
    assert text.finish_reason == "context"
    assert len(text.prompt_ids) + len(text.ids) == 128
    full = list(range(1, 129))
    [one] = model.generate([full], max_new_tokens=5, temperature=0)
    assert (len(one.ids), one.finish_reason) == (1, "context")
    [beam] = model.generate([full], max_new_tokens=5, num_beams=2)
    assert (len(beam.ids), beam.finish_reason) == (1, "context")
    short, long = model.generate(["a", full[:120]], max_new_tokens=100, temperature=0)
    assert (len(long.ids), len(short.ids)) == (8, 100)  # the longer row stops, the other goes on
    with pytest.raises(InputError, match="129 > 128 tokens"):
        model.generate([[*full, 1]])


def test_end_of_text_ends_a_row_and_is_not_written(small):
    for beams in (1, 3):
        model = small()
        options = {"num_beams": beams} if beams > 1 else {"temperature": 0}
        [before] = model.generate([3, 1], max_new_tokens=8, **options)
        eos = before.ids[2]
        cut = before.ids.index(eos)
        model = small(eos_token_id=(eos, 22))
        [text] = model.generate([3, 1], max_new_tokens=8, **options)
        if beams == 1:
            assert text.ids == before.ids[:cut]
            assert text.finish_reason == "eos"
        assert eos not in text.ids
        rows = model.generate([[3, 1], [3, 1], [5, 5, 5]], max_new_tokens=8, **options)
        assert rows[0] == rows[1] == text


def test_stop_texts_across_token_borders(model):
    [whole] = model.generate("O Romeo, ", max_new_tokens=40, temperature=0)
    for start, length in itertools.product((3, 10, 17), (1, 4, 9)):
        stop = whole.text[start : start + length]
        [text] = model.generate("O Romeo, ", max_new_tokens=40, temperature=0, stop=("∎", stop))
        assert text.text == whole.text[: whole.text.index(stop)]
        assert text.finish_reason == "stop"
        assert "".join(model.stream("O Romeo, ", max_new_tokens=40, temperature=0,
                                    stop=stop)) == text.text  # fmt: skip
    [beam] = model.generate("O Romeo, ", max_new_tokens=40, num_beams=2, stop="\n")
    assert "\n" not in beam.text


class Spelled:
    """A vocabulary of single characters."""

    def push(self, token):
        return chr(token)

    def finish(self):
        return "…"


def test_text_that_may_become_a_stop_text_is_held_back():
    text, shown = _GrowingText(Spelled(), ("aab", "c!")), []
    for char in "xaaaac?":
        assert not text.push(ord(char))
        shown.append(text.take(last=False))
    assert shown == ["x", "", "", "a", "a", "aa", "c?"]
    assert text.push(ord("a")) is text.push(ord("a")) is False
    assert text.push(ord("b"))
    assert text.take(last=True) == ""
    rest = _GrowingText(Spelled(), ("ab",))
    rest.push(ord("a"))
    assert rest.take(last=True) == "a…"


def test_a_stream_refuses_at_the_call(model):
    with pytest.raises(OptionError, match="colour: is not an option"):
        model.stream("KING", colour=3)
    with pytest.raises(OptionError, match="top_p"):
        model.stream("KING", top_p=3)
    with pytest.raises(InputError, match="is empty"):
        model.stream("")


def test_stream_is_generate(model):
    for seed in range(3):
        [text] = model.generate("KING", seed=seed, max_new_tokens=60)
        assert "".join(model.stream("KING", seed=seed, max_new_tokens=60)) == text.text
        assert model.tokenizer.decode(text.ids) == text.text


def test_a_model_without_a_vocabulary_takes_ids(small):
    model = small()
    [text] = model.generate([1, 2], max_new_tokens=3, temperature=0)
    assert (text.text, len(text.ids)) == ("", 3)
    assert np.isfinite(model.score([1, 2, 3]).nats)
    with pytest.raises(ValueError, match="no vocabulary"):
        model.generate("text")


def table_step(table):
    """A model that is a table: the logits of the next token by the last one."""

    class Step:
        rows = None

        def __call__(self, ids):
            return table[ids[:, -1]]

        def reorder(self, rows):
            self.rows = rows

    return Step()


def best_by_force(table, first, length):
    """The most probable text of a table, by trying all."""
    log_p = table - np.log(np.exp(table).sum(-1, keepdims=True))
    paths = itertools.product(range(len(table)), repeat=length)
    return max(paths, key=lambda p: sum(log_p[a, b] for a, b in itertools.pairwise((first, *p))))


def test_beam_search_wide_enough_finds_the_best_text():
    for seed in range(5):
        table = np.random.default_rng(seed).standard_normal((4, 4))
        options = GenerationOptions(num_beams=64, max_new_tokens=4)
        [best] = beam_search(table_step(table), [2], options, 100)
        assert tuple(best.ids) == best_by_force(table, 2, 4)


def test_beam_search_prefers_the_better_mean_to_the_better_sum():
    """Two texts: one that ends at once, and one of surer steps that ends later."""
    p = np.full((4, 4), 1e-9)
    p[0, 1], p[0, 3] = 0.45, 0.55  # 3 ends a text
    p[1, 1], p[1, 3] = 0.98, 0.02
    p /= p.sum(-1, keepdims=True)
    options = GenerationOptions(num_beams=2, num_samples=2, max_new_tokens=6)
    best, second = beam_search(table_step(np.log(p)), [0], options, 100, frozenset({3}))
    assert (best.ids, best.finish) == ([1] * 6, "length")
    assert best.score == pytest.approx((np.log(0.45) + 5 * np.log(0.98)) / 6, abs=1e-6)
    assert (second.ids, second.finish) == ([], "eos")
    assert second.score == pytest.approx(np.log(0.55), abs=1e-6)


def test_write_yields_each_row_in_turn_until_it_ends():
    table = np.full((4, 4), -9.0)
    table[0, 1] = table[1, 2] = table[2, 3] = table[3, 3] = 9
    options = GenerationOptions(temperature=0, max_new_tokens=3)
    tokens = list(
        write(table_step(table), [Row(p, options, 100, frozenset({3})) for p in ([0], [2])])
    )
    assert [tuple(t) for t in tokens] == [
        (0, 1, None), (1, None, "eos"), (0, 2, None), (0, None, "eos"),
    ]  # fmt: skip


def test_logits_of_nan_are_an_error():
    step = table_step(np.full((2, 2), np.nan))
    with pytest.raises(CheckpointError, match="logits: NaN"):
        list(write(step, [Row([0], GenerationOptions(temperature=0), 10)]))


def test_a_stop_text_needs_a_vocabulary_and_a_stream_is_one_text(model, small):
    with pytest.raises(OptionError, match="stop: needs a vocabulary, and this model has none"):
        small().generate([1], stop="a")
    with pytest.raises(OptionError, match="num_samples: a stream has one text"):
        list(model.stream("a", num_samples=2))


def test_a_folder_without_a_vocabulary_takes_ids(tiny, tmp_path):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(tiny / name, tmp_path)
    model = GPT2.from_pretrained(tmp_path)
    [text] = model.generate([1, 2], max_new_tokens=3, temperature=0)
    assert (text.text, len(text.ids)) == ("", 3)
    assert np.isnan(model.score([1, 2, 3]).bits_per_byte)


def test_ids_beyond_the_vocabulary_are_no_text(model):
    model.resize_token_embeddings(2000)
    [text] = model.generate("KING", seed=1, temperature=50.0, top_p=None, max_new_tokens=40)
    assert max(text.ids) >= 512
    assert text.text == model.tokenizer.decode([i for i in text.ids if i < 512])


def test_padding_beyond_the_context_grows_by_doubling(model):
    """After the longer rows have ended: not a copy of the whole cache for every column."""
    moves = []
    allocate = KVCache._allocate

    def count(self, *args):
        moves.append(args)
        return allocate(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KVCache, "_allocate", count)
        model.generate([[1] * 120, [1, 2]], max_new_tokens=120, temperature=0)
    assert len(moves) < 8


def test_a_very_long_stop_text_costs_no_more_than_what_is_held(model):
    """It was looked for from its end, once a token."""

    def write():
        return model.generate("KING", temperature=0, max_new_tokens=60, stop="\n" * 1_000_000)

    [text] = within(3, write)
    assert len(text.ids) == 60
