import json
import math

import numpy as np
import pytest

from npgpt2 import GPT2
from npgpt2.base.errors import InputError, OptionError
from npgpt2.generation.scoring import windows


@pytest.mark.parametrize("stride", [1, 3, 7, 8])
@pytest.mark.parametrize("length", [2, 7, 8, 9, 23, 24, 25])
def test_every_token_is_scored_once_with_all_the_context_there_is(length, stride):
    scored = []
    for start, first, stop in windows(length, 8, stride):
        assert 0 <= start < stop <= length
        assert stop - start <= 8
        assert first > start
        scored += range(first, stop)
    assert len(scored) == len(set(scored))
    unscored = set(range(length)) - set(scored)
    assert unscored == (set(range(0, length, 8)) if stride == 8 else {0})


def test_a_text_in_one_window_is_the_models_loss(wide):
    ids = wide.encode("The quality of mercy is not strained.")
    score = wide.score(ids)
    assert score.nats / score.tokens == pytest.approx(wide([ids], labels=[ids]).loss, rel=1e-12)
    assert np.isnan(score.logprobs[0])
    assert score.perplexity == pytest.approx(math.exp(score.nats / score.tokens))


def test_bits_per_byte_counts_the_bytes_of_scored_tokens(wide):
    text = "Ö, Romeo 字"
    score = wide.score(text)
    first = len(wide.tokenizer.token_bytes(int(score.ids[0])))
    assert score.bytes == len(text.encode()) - first
    assert score.bits_per_byte == pytest.approx(score.nats / math.log(2) / score.bytes)


def test_a_long_text_is_scored_by_windows(wide):
    ids = wide.encode("It was the best of times, it was the worst of times. ")
    ids = [token + shift for shift in range(12) for token in ids]
    score = wide.score(ids, stride=48)
    assert score.tokens == len(ids) - 1
    for at in (1, 127, 128, 170, 200, len(ids) - 1):
        start = 0 if at < 128 else 48 * -(-(at - 127) // 48)  # the first window that reaches it
        logits = wide([ids[start:at]]).logits[0, -1]
        expected = logits[ids[at]] - logits.max() - np.log(np.exp(logits - logits.max()).sum())
        assert score.logprobs[at] == pytest.approx(expected, rel=1e-12)


def test_the_trained_checkpoint_has_the_perplexity_pytorch_found(shared):
    folder = shared("checkpoints/shakespeare-3m")
    corpus = shared("tiny-shakespeare/input.txt").read_text(encoding="utf-8")
    held_out = corpus[int(0.9 * len(corpus)) :]
    score = GPT2.from_pretrained(folder).score(held_out, stride=256)
    expected = json.loads((folder / "reference.json").read_text())["validation_nats_per_token"]
    # PyTorch summed it in float32.
    assert score.nats / score.tokens == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("stride", [0, -1, 129, 1.5, True])
def test_a_stride_outside_the_window(model, stride):
    with pytest.raises(OptionError, match="stride: got"):
        model.score("KING of", stride=stride)


@pytest.mark.parametrize("ids", [[], [1]])
def test_nothing_to_score(model, ids):
    with pytest.raises(InputError, match="expected at least two"):
        model.score(ids)
