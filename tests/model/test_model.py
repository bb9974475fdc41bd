"""The forward pass as a whole: what has to be the same however it is cut, padded or cached."""

import re

import numpy as np
import pytest
from cases import EMBEDS, HEAD_MASK, IDS, LABELS, LEFT, RIGHT, SMALL, STATES

from npgpt2 import GPT2, GPT2Config, KVCache
from npgpt2.base.errors import ConfigError, InputError

CLOSE = {"rtol": 0, "atol": 1e-12}  # float64; logits here are of the order of 1


def steps(model, ids, cuts, **inputs):
    """Logits of ids given in pieces, put together."""
    cache, logits = None, []
    for start, stop in zip([0, *cuts], [*cuts, ids.shape[1]], strict=True):
        now = dict(inputs)
        if "attention_mask" in now:
            now["attention_mask"] = now["attention_mask"][:, :stop]
        if start and "encoder_hidden_states" in now:  # the cache has their keys and values
            del now["encoder_hidden_states"], now["encoder_attention_mask"]
        out = model(ids[:, start:stop], past_key_values=cache, **now)
        assert cache is None or out.past_key_values is cache
        cache = out.past_key_values
        assert cache.length == stop
        logits.append(out.logits)
    return np.concatenate(logits, 1)


@pytest.mark.parametrize("cut", range(1, IDS.shape[1]))
@pytest.mark.parametrize("mask", [None, LEFT, RIGHT])
def test_whole_is_split_at_every_point(small, cut, mask):
    model = small()
    inputs = {} if mask is None else {"attention_mask": mask}
    real = np.ones(IDS.shape, bool) if mask is None else mask.astype(bool)
    whole = model(IDS, use_cache=False, **inputs).logits
    np.testing.assert_allclose(steps(model, IDS, [cut], **inputs)[real], whole[real], **CLOSE)
    every = steps(model, IDS, range(1, IDS.shape[1]), **inputs)
    np.testing.assert_allclose(every[real], whole[real], **CLOSE)


def test_whole_is_split_with_cross_attention(small):
    model = small(add_cross_attention=True)
    inputs = {
        "encoder_hidden_states": STATES,
        "encoder_attention_mask": np.array([[1, 1, 0, 0, 0], [0, 1, 1, 1, 1]]),
    }
    whole = model(IDS, use_cache=False, **inputs).logits
    np.testing.assert_allclose(steps(model, IDS, [1, 4], **inputs), whole, **CLOSE)
    without = model(IDS, use_cache=False).logits
    assert abs(without - whole).max() > 1e-3  # the states do count


def test_padded_rows_are_the_single_rows(small):
    model = small()
    for mask in (LEFT, RIGHT):
        real = mask[0].astype(bool)
        padded = model(IDS, attention_mask=mask).logits[0, real]
        np.testing.assert_allclose(padded, model(IDS[:1, real]).logits[0], **CLOSE)
    other = IDS.copy()
    other[0, :3] = 0  # whatever stands in the padding
    np.testing.assert_array_equal(
        model(other, attention_mask=LEFT).logits[1], model(IDS, attention_mask=LEFT).logits[1]
    )
    np.testing.assert_array_equal(
        model(other, attention_mask=LEFT).logits[0, 3:],
        model(IDS, attention_mask=LEFT).logits[0, 3:],
    )


def test_a_fully_masked_row_attends_to_nothing(small):
    out = small()(IDS, attention_mask=np.array([[0] * 7, [1] * 7]), output_attentions=True)
    assert np.isfinite(out.logits).all()
    assert not any(probs[0].any() for probs in out.attentions)
    assert all(np.allclose(probs[1].sum(-1), 1) for probs in out.attentions)


def test_the_output_is_a_tuple_in_transformers_order(small):
    model = small()
    out = model(IDS, labels=LABELS, output_attentions=True, output_hidden_states=True)
    loss, logits, cache, hidden, attentions = out
    assert (loss, logits, cache) == (out.loss, out.logits, out.past_key_values)
    assert len(hidden) == SMALL["n_layer"] + 1
    assert [h.shape for h in hidden] == [(2, 7, 12)] * 4
    assert [a.shape for a in attentions] == [(2, 3, 7, 7)] * 3
    np.testing.assert_array_equal(hidden[-1], out.last_hidden_state)
    assert [type(x) for x in model(IDS, use_cache=False)] == [np.ndarray]
    assert out[1] is out.logits


def test_attentions_with_a_past_have_its_columns(small):
    model = small()
    first = model(IDS[:, :4])
    out = model(IDS[:, 4:], past_key_values=first.past_key_values, output_attentions=True)
    whole = model(IDS, output_attentions=True)
    for found, expected in zip(out.attentions, whole.attentions, strict=True):
        assert found.shape == (2, 3, 3, 7)
        np.testing.assert_allclose(found, expected[:, :, 4:], **CLOSE)


def test_use_cache_off_leaves_a_past_as_it_was(small):
    model = small()
    past = model(IDS[:, :4]).past_key_values
    kept = [[a.copy() for a in past[i]] for i in range(3)]
    out = model(IDS[:, 4:], past_key_values=past, use_cache=False)
    assert out.past_key_values is None
    assert past.length == 4
    for i in range(3):
        np.testing.assert_array_equal(past[i], kept[i])
    np.testing.assert_allclose(out.logits, model(IDS).logits[:, 4:], **CLOSE)
    assert small(use_cache=False)(IDS).past_key_values is None


@pytest.mark.parametrize("past", [0, 3])
@pytest.mark.parametrize("cross", [False, True])
def test_the_last_block_computes_what_is_asked_for(small, cross, past):
    model = small(add_cross_attention=cross)
    r = np.random.default_rng(0)
    inputs = {"attention_mask": np.arange(7) >= [[0], [2]]}
    if cross:
        inputs["encoder_hidden_states"] = r.standard_normal((2, 4, model.config.n_embd))
    full = model(IDS, **inputs)
    cache = None
    if past:
        before = inputs | {"attention_mask": inputs["attention_mask"][:, :past]}
        cache = model(IDS[:, :past], **before).past_key_values
    few = model(IDS[:, past:], **inputs, past_key_values=cache, logits_to_keep=2)
    assert few.last_hidden_state.shape == (2, 2, model.config.n_embd)
    np.testing.assert_allclose(few.last_hidden_state, full.last_hidden_state[:, -2:], **CLOSE)
    np.testing.assert_allclose(few.logits, full.logits[:, -2:], **CLOSE)
    for layer in range(3):  # keys and values are those of every token
        for a, b in zip(few.past_key_values[layer], full.past_key_values[layer], strict=True):
            real = inputs["attention_mask"]
            np.testing.assert_allclose(a.swapaxes(1, 2)[real], b.swapaxes(1, 2)[real], **CLOSE)


def test_logits_to_keep(small):
    model = small()
    full = model(IDS).logits
    np.testing.assert_allclose(model(IDS, logits_to_keep=2).logits, full[:, -2:], **CLOSE)
    np.testing.assert_allclose(model(IDS, logits_to_keep=[0, 5]).logits, full[:, [0, 5]], **CLOSE)
    turned = model(IDS, logits_to_keep=[6, 5, 4, 3, 2, 1, 0], labels=LABELS)
    assert turned.loss == pytest.approx(model(IDS, labels=LABELS).loss, rel=1e-14)
    with pytest.raises(InputError, match=r"logits_to_keep: got .* positions below 7"):
        model(IDS, logits_to_keep=[7])
    one = model(IDS, logits_to_keep=1, labels=LABELS)
    assert one.logits.shape == (2, 1, 23)
    assert one.loss == pytest.approx(model(IDS, labels=LABELS).loss, rel=1e-14)


def test_loss_without_a_label_is_nan_and_no_warning(small):
    assert np.isnan(small()(IDS, labels=np.full_like(IDS, -100)).loss)
    assert small("float32")(IDS, labels=LABELS).loss.dtype == np.float32


def test_embeddings_stand_for_ids(small):
    model = small()
    rows = model.get_input_embeddings()[IDS]
    np.testing.assert_array_equal(model(inputs_embeds=rows).logits, model(IDS).logits)


def test_the_tap_shows_every_intermediate_by_name(small):
    model, seen = small(add_cross_attention=True), {}
    out = model(IDS, encoder_hidden_states=STATES, output_hidden_states=True,
                tap=lambda name, array: seen.update({name: array.copy()}))  # fmt: skip
    assert list(seen)[:4] == ["wte", "wpe", "embed", "h.0.ln_1"]
    layer = [name.removeprefix("h.2.") for name in seen if name.startswith("h.2.")]
    assert layer == [
        "ln_1", "attn.c_attn", "attn.probs", "attn.heads", "attn.c_proj", "resid_attn",
        "ln_cross_attn", "crossattention.q_attn", "crossattention.probs", "crossattention.heads",
        "crossattention.c_proj", "resid_cross",
        "ln_2", "mlp.c_fc", "mlp.act", "mlp.c_proj", "resid_mlp",
    ]  # fmt: skip
    assert list(seen)[-2:] == ["ln_f", "logits"]
    np.testing.assert_array_equal(seen["logits"], out.logits)
    np.testing.assert_array_equal(seen["h.0.resid_mlp"], out.hidden_states[1])
    np.testing.assert_array_equal(seen["h.1.attn.probs"].sum(-1).round(12), np.ones((2, 3, 7)))


def test_pruned_heads_are_masked_heads(small):
    whole = small()
    mask = np.ones((3, 3))
    mask[0, 1] = mask[2, 0] = mask[2, 2] = 0
    expected = whole(IDS, head_mask=mask)
    pruned = small().prune_heads({0: [1]}).prune_heads({2: [2, 0]})
    assert pruned.config.pruned_heads == {0: (1,), 2: (0, 2)}
    np.testing.assert_allclose(pruned(IDS).logits, expected.logits, **CLOSE)
    every = steps(pruned, IDS, range(1, 7))
    np.testing.assert_allclose(every, expected.logits, **CLOSE)
    assert [pruned(IDS).past_key_values[i][0].shape[1] for i in range(3)] == [2, 3, 1]
    again = GPT2Config.from_dict(pruned.config.to_dict())
    assert again == pruned.config
    with pytest.raises(ConfigError, match="all 3 heads of layer 1"):
        whole.prune_heads({1: [0, 1, 2]})
    with pytest.raises(InputError, match="does not work with a pruned model"):
        pruned(IDS, head_mask=HEAD_MASK)


def test_other_embeddings_and_other_vocabularies(small):
    model = small()
    twice = 2 * model.get_input_embeddings()
    assert model.set_input_embeddings(twice).get_input_embeddings() is twice
    assert model(IDS).logits.shape == (2, 7, 23)
    before = model(IDS).logits
    larger = model.resize_token_embeddings(30)(IDS).logits
    np.testing.assert_allclose(larger[:, :, :23], before, **CLOSE)
    np.testing.assert_allclose(
        larger[:, :, 25], before.mean(-1), rtol=0, atol=1e-12
    )  # a new row is the mean of the old ones
    assert model.resize_token_embeddings(5).config.vocab_size == 5
    own = small(tie_word_embeddings=False)
    with pytest.raises(InputError, match="as in lm_head, which is not tied"):
        own.set_input_embeddings(twice[:4])
    assert own.resize_token_embeddings(25)(IDS).logits.shape == (2, 7, 25)


def test_weights_are_never_written_to(small):
    model = small("float32", add_cross_attention=True)
    from npgpt2.model.params import named_parameters

    for _, array in named_parameters(model.params):
        array.flags.writeable = False
    embeds = EMBEDS.astype("f4")
    embeds.flags.writeable = False
    model(inputs_embeds=embeds, labels=LABELS, encoder_hidden_states=STATES)
    model(IDS, head_mask=HEAD_MASK, attention_mask=LEFT)


def test_rewinding_and_reordering_the_cache(small):
    model = small()
    cache = model(IDS[:, :5]).past_key_values
    cache.rewind(2)
    again = model(IDS[:, 2:], past_key_values=cache).logits
    np.testing.assert_allclose(again, model(IDS).logits[:, 2:], **CLOSE)
    cache = model(IDS[:, :5]).past_key_values
    cache.reorder([1, 1, 0])
    three = model(IDS[[1, 1, 0], 5:], past_key_values=cache).logits
    np.testing.assert_allclose(three, model(IDS).logits[[1, 1, 0], 5:], **CLOSE)
    with pytest.raises(InputError, match="expected 0 to 7"):
        cache.rewind(8)
    with pytest.raises(InputError, match="has 3 rows, but the input has 2"):
        model(IDS[:, :1], past_key_values=cache)


def test_the_cache_grows_by_doubling_up_to_the_context():
    config = GPT2Config(**SMALL | {"n_positions": 100})
    cache = KVCache(config, 1, capacity=30)
    sizes = []
    for _ in range(100):
        one = np.zeros((1, 3, 1, 4), "f4")
        for layer in range(3):
            cache.write(layer, one, one)
        cache.advance(1)
        sizes.append(cache.capacity)
    assert sorted(set(sizes)) == [30, 60, 100]
    assert "(1, 3, 100, 4)" in repr(cache)


def test_a_random_model_has_gpt2s_initialisation():
    config = GPT2Config(vocab_size=500, n_positions=200, n_embd=64, n_layer=8, n_head=4)
    model = GPT2.from_random(config, seed=3)
    block = model.params.h[5]
    assert model.params.wte.weight.std() == pytest.approx(0.02, rel=0.02)
    assert block.mlp.c_proj.weight.std() == pytest.approx(0.02 / 4, rel=0.02)
    assert (block.ln_1.weight == 1).all()
    assert not block.attn.c_attn.bias.any()
    assert model.num_parameters == sum(
        n for n in [500 * 64, 200 * 64, 8 * (12 * 64 * 64 + 13 * 64), 128]
    )
    assert (model.params.wpe.weight == GPT2.from_random(config, 3).params.wpe.weight).all()


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({}, "specify one of the two"),
        ({"input_ids": IDS, "inputs_embeds": EMBEDS}, "cannot specify both"),
        ({"input_ids": [[1], [1, 2]]}, "input_ids: not numbers, or rows of different length"),
        ({"input_ids": [1, 2]}, r"input_ids: got shape \(2,\), expected \(B, T\)"),
        ({"input_ids": np.zeros((1, 0), int)}, r"input_ids: got shape \(1, 0\)"),
        ({"input_ids": [[1.0]]}, "input_ids: got dtype float64, expected integers"),
        ({"input_ids": [[True]]}, "input_ids: got dtype bool"),
        ({"input_ids": [[0, 23]]}, r"input_ids: got 23 at \(0, 1\), expected 0 to 22"),
        ({"input_ids": [[-1]]}, r"input_ids: got -1 at \(0, 0\)"),
        ({"input_ids": [[1] * 17]}, "are longer than the context: 17 > 16 tokens"),
        ({"inputs_embeds": EMBEDS[0]}, r"inputs_embeds: got shape \(7, 12\)"),
        ({"input_ids": IDS, "attention_mask": LEFT[:, :3]}, r"attention_mask: got shape \(2, 3\)"),
        (
            {"input_ids": IDS, "attention_mask": 2 * LEFT},
            "attention_mask: got other values, expected 1 for real",
        ),
        ({"input_ids": IDS, "token_type_ids": [[0]]}, "token_type_ids: got shape"),
        ({"input_ids": IDS, "position_ids": IDS + 100}, "position_ids: got 1[0-9]+ at"),
        ({"input_ids": IDS, "labels": IDS - 1}, "labels: got -1 at"),
        ({"input_ids": IDS, "head_mask": [1, 1]}, r"head_mask: got shape \(2,\), expected \(3,\)"),
        ({"input_ids": IDS, "head_mask": np.ones((3, 5, 3, 1, 1))}, r"head_mask: got shape \(3, 5"),
        ({"input_ids": IDS, "encoder_hidden_states": STATES}, "has no cross-attention"),
        (
            {"input_ids": IDS, "encoder_attention_mask": [[1]]},
            "is given without encoder_hidden_states",
        ),
        ({"input_ids": IDS, "past_key_values": ((1, 2),)}, "past_key_values: got a tuple"),
        ({"input_ids": IDS, "logits_to_keep": -1}, "logits_to_keep: got -1"),
    ],
)
def test_arguments_that_do_not_fit(small, inputs, words):
    with pytest.raises(InputError, match=words):
        small()(**inputs)


def test_encoder_states_of_another_batch(small):
    model = small(add_cross_attention=True)
    with pytest.raises(InputError, match="got 1 rows, expected 2"):
        model(IDS, encoder_hidden_states=STATES[:1])
    with pytest.raises(InputError, match="encoder_attention_mask: got shape"):
        model(IDS, encoder_hidden_states=STATES, encoder_attention_mask=[[1]])


def test_of_a_pass_that_fails_nothing_is_kept(small):
    """Refused at the end, or interrupted in the middle: the same call then gives what it gave."""
    model, other = small(add_cross_attention=True), STATES[::-1] + 0.1
    first = {"encoder_hidden_states": STATES, "encoder_attention_mask": np.eye(2, 5) + 1 > 0}
    cache = model(IDS[:, :3], **first).past_key_values
    before = (cache.length, cache.cross_mask, dict(cache.cross))

    def interrupt(name, array):
        if name == "h.1.ln_1":
            raise KeyboardInterrupt

    for fault in ({"logits_to_keep": -1}, {"labels": [[99]]}, {"head_mask": [1, 1]},
                  {"tap": interrupt}):  # fmt: skip
        with pytest.raises((InputError, KeyboardInterrupt)):
            model(IDS[:, 3:5], past_key_values=cache, encoder_hidden_states=other, **fault)
        assert (cache.length, cache.cross_mask, cache.cross) == before
    again = model(IDS[:, 3:5], past_key_values=cache).logits
    np.testing.assert_allclose(again, model(IDS[:, :5], **first).logits[:, 3:], **CLOSE)


def test_new_encoder_states_replace_those_in_the_cache(small):
    model, other = small(add_cross_attention=True), STATES[:, :3] + 0.1
    cache = model(IDS[:, :3], encoder_hidden_states=STATES).past_key_values
    found = model(IDS[:, 3:], past_key_values=cache, encoder_hidden_states=other)
    cache = model(IDS[:, :3], encoder_hidden_states=STATES).past_key_values
    plain = model(IDS[:, 3:], past_key_values=cache)
    assert abs(found.logits - plain.logits).max() > 1e-3
    assert found.past_key_values.cross[0][0].shape == (2, 3, 3, 4)


def test_a_mask_on_a_later_step_covers_the_states_in_the_cache(small):
    model, mask = small(add_cross_attention=True), [[1] * 4 + [0]] * 2
    whole = model(IDS[:, :1], encoder_hidden_states=STATES, encoder_attention_mask=mask)
    cache = model(IDS[:, :1], encoder_hidden_states=STATES).past_key_values
    cache.rewind(0)
    later = model(IDS[:, :1], past_key_values=cache, encoder_attention_mask=mask)
    np.testing.assert_allclose(later.logits, whole.logits, **CLOSE)
    with pytest.raises(InputError, match="encoder_attention_mask: got shape"):
        model(IDS[:, :1], past_key_values=cache, encoder_attention_mask=[[1]] * 2)


def test_a_cache_of_another_model(small):
    model = small()
    for other in (small(n_layer=2), small(n_layer=4), small(n_head=1), small("float32"),
                  small().prune_heads({0: [1]})):  # fmt: skip
        with pytest.raises(InputError, match="was made for another model"):
            model(IDS, past_key_values=other(IDS).past_key_values)


@pytest.mark.parametrize("rows", [[2], [-1], [], [True, False], [0.5], [[0]]])
def test_rows_that_a_cache_does_not_have(small, rows):
    with pytest.raises(InputError, match="rows: got"):
        small()(IDS).past_key_values.reorder(rows)


def test_one_token_with_a_label_has_no_loss(small):
    assert np.isnan(small()([[1]], labels=[[1]]).loss)


def test_outputs_by_name_and_what_they_look_like(small):
    model = small()
    out = model(IDS)
    assert out["logits"] is out.logits
    assert out == out != model(IDS)
    assert re.fullmatch(
        r"GPT2\([\d,]+ parameters, float64; 3 layers of 3 heads, width \d+, context \d+, "
        r"vocabulary \d+\)", repr(model)
    )  # fmt: skip
    assert hash(model.config) == hash(small().config)
