"""Prompt-lookup decoding: the same text, from fewer runs of the model."""

import re

import numpy as np
import pytest
from command_line import runner
from hypothesis import given
from hypothesis import strategies as st
from onnx_cases import KINDS

from npgpt2.base.errors import OptionError
from npgpt2.generation.options import GenerationOptions
from npgpt2.generation.prompt_lookup import LONGEST, SHORTEST, Lookup, PromptLookup
from npgpt2_onnx import OnnxModel, export

CHANT = "O Romeo, O Romeo, O Romeo, O Romeo, O"
PROMPTS = [CHANT, "KING", "a", "The quality of mercy is not strained. It droppeth as the"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory, tiny):
    return {
        kind: export(
            tiny, tmp_path_factory.mktemp("prompt_lookup") / kind, graphs=[kind], proof=False
        )
        for kind in KINDS
    }


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(1, 50))
def test_a_draft_is_what_followed_the_same_tokens_the_last_time(ids, most):
    text = Lookup()
    for token in ids:
        text.extend([token])
    at_once = Lookup()
    at_once.extend(ids)
    draft = text.draft(most)
    assert at_once.draft(most) == draft
    expected = []
    for n in range(min(LONGEST, len(ids)), SHORTEST - 1, -1):
        stood = [i + n for i in range(len(ids) - n) if ids[i : i + n] == ids[-n:]]
        if stood:
            expected = (ids[stood[-1] :] * most)[:most]  # and round again
            break
    assert draft == expected


class Parrot:
    """A model that says 0 1 2 3 4 0 1 2 …, but stumbles at some positions; it knows its past."""

    def __init__(self, stumbles=()):
        self.past, self.runs, self.stumbles = [], 0, stumbles

    def __call__(self, ids, every=False):
        self.runs += 1
        start = len(self.past)
        self.past += ids[0].tolist()
        said = [
            7 if at in self.stumbles else (self.past[at] + 1) % 5 if self.past[at] < 5 else 0
            for at in range(start, len(self.past))
        ]
        logits = np.eye(8)[said][None]
        return logits if every else logits[:, -1]

    def rewind(self, tokens):
        assert 0 <= tokens <= len(self.past)
        self.past = self.past[: len(self.past) - tokens]


def written(step, prompt, tokens):
    text, ids = list(prompt), np.array([prompt])
    for _ in range(tokens):
        text.append(int(step(ids).argmax()))
        ids = np.array([text[-1:]])
    return text


@pytest.mark.parametrize("most", [1, 2, 3, 16])
@pytest.mark.parametrize("stumbles", [(), (13,), (13, 14, 40, 41, 42, 60), range(7, 200, 3)])
def test_whatever_was_drafted_the_model_is_asked_about_the_text_alone(most, stumbles):
    told, parrot = [], Parrot(stumbles)
    step = PromptLookup(parrot, most, 1000, told.append)
    text = written(step, [0, 1, 2], 90)
    assert text == written(Parrot(stumbles), [0, 1, 2], 90)
    assert parrot.past[: len(text) - 1] == text[:-1]
    assert all(1 <= n <= 1 + most for n in told)
    assert len(told) in (parrot.runs - 1, parrot.runs - 2)  # the last was not told of yet
    assert sum(told) <= 90
    if not stumbles:
        fewest = {1: 50, 2: 36, 3: 29, 16: 16}
        assert parrot.runs <= fewest[most]


def test_drafts_stay_within_the_context():
    parrot = Parrot()
    written(PromptLookup(parrot, 16, 30), [0, 1, 2], 27)
    assert len(parrot.past) <= 30


@pytest.mark.parametrize("options", [{"temperature": 0}, {"seed": 5}, {"seed": 6, "top_k": 2},
                                     {"temperature": 0, "repetition_penalty": 1.3},
                                     {"temperature": 0, "use_cache": False},
                                     {"temperature": 0, "stop": ("me", ".")}])  # fmt: skip
@pytest.mark.parametrize("most", [1, 3, 16, 1000])
def test_the_text_is_the_same(wide, options, most):
    for prompt in PROMPTS:
        plain = wide.generate(prompt, max_new_tokens=60, **options)
        assert wide.generate(prompt, max_new_tokens=60, prompt_lookup=most, **options) == plain


def test_the_text_is_the_same_up_to_the_end_of_the_context(wide):
    for prompt in PROMPTS:
        [text] = wide.generate(prompt, max_new_tokens=500, temperature=0, prompt_lookup=16)
        assert [text] == wide.generate(prompt, max_new_tokens=500, temperature=0)
        assert text.finish_reason == "context"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{"temperature": 0}, {"seed": 5},
                                     {"temperature": 0, "use_cache": False}])  # fmt: skip
def test_the_text_is_the_same_under_onnx_runtime(exported, kind, options):
    runner = OnnxModel.from_pretrained(exported[kind])
    for prompt in PROMPTS[:2]:
        plain = runner.generate(prompt, max_new_tokens=50, **options)
        assert runner.generate(prompt, max_new_tokens=50, prompt_lookup=8, **options) == plain


def test_a_text_that_repeats_itself_needs_fewer_steps(wide):
    ids = wide.encode(CHANT)
    told = []
    options = GenerationOptions(80, temperature=0, repetition_penalty=0.5, prompt_lookup=16)
    count = sum(len(piece.ids) for piece in wide.pieces([ids], options, told.append))
    assert count == 80
    assert len(told) < 40


@pytest.mark.parametrize(("options", "message"), [
    ({"prompt_lookup": -1}, "prompt_lookup: got -1, expected an integer from 0"),
    ({"prompt_lookup": True}, "prompt_lookup: got True"),
    ({"prompt_lookup": 5000}, "prompt_lookup: got 5000"),
    ({"prompt_lookup": 4, "num_beams": 2}, "prompt_lookup: works on one text at a time"),
    ({"prompt_lookup": 4, "num_samples": 2}, "prompt_lookup: works on one text at a time"),
])  # fmt: skip
def test_what_does_not_go_together(options, message):
    with pytest.raises(OptionError, match=re.escape(message)):
        GenerationOptions(**options)


def test_several_prompts_are_no_one_text(model):
    with pytest.raises(OptionError, match="one text at a time, got 2 prompts"):
        model.generate(["a", "b"], prompt_lookup=4)


@pytest.mark.parametrize("flag", [["--prompt-lookup"], ["--prompt-lookup", "4"]])
def test_on_the_command_line(flag, tiny, capsys):
    npgpt2 = runner(capsys)
    command = ["generate", CHANT, "--model", tiny, "--temperature", "0", "--max-new-tokens", "80",
               "--repetition-penalty", "0.5"]  # fmt: skip
    (_, plain, plain_err), (code, out, err) = npgpt2(*command), npgpt2(*command, *flag)
    assert (code, out) == (0, plain)
    assert float(re.search(r"/s, (\d+\.\d) per step", err)[1]) > 1.3
    assert "per step" not in plain_err


def test_a_prompt_behind_it_is_told_from_a_number(tiny, capsys):
    code, out, err = runner(capsys)("generate", "--model", tiny, "--prompt-lookup", "O Romeo")
    assert (code, out) == (2, "")
    assert "--prompt-lookup: got 'O Romeo', expected an integer. Put the prompt before" in err
