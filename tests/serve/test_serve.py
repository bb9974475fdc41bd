"""`npgpt2 serve`: what OpenAI's own client gets, and what a server promises to everybody else.

Real processes, real sockets, on this machine alone; requests are counted and end by themselves.
"""

import concurrent.futures
import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from patience import PATIENCE, until
from server import answered, post, served

from npgpt2 import GPT2
from npgpt2.base.errors import MissingPackage
from npgpt2.generation.scoring import log_softmax
from npgpt2_onnx import export

openai = pytest.importorskip("openai")

TINY = "tests/data/tiny"
MERCY = "The quality of mercy is not strained. It droppeth as the gentle rain from heaven"
SLOW = ("--model", TINY, "--slots", "1")


@pytest.fixture(scope="module")
def server():
    """One that most tests ask; each leaves it idle."""
    with served("--model", TINY, "--slots", "4") as running:
        yield running
        until(lambda: running.metric("npgpt2_texts_held") == 0)
        log = running.log
    assert running.process.returncode == 0
    assert len(log.splitlines()) == 1, log  # nothing but where it is


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def truth():
    return GPT2.from_pretrained(TINY)


# ── OpenAI's own client ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("options", [
    {"temperature": 0}, {"seed": 3}, {"seed": 4, "temperature": 0.7, "top_p": 0.9},
    {"seed": 5, "n": 3}, {"seed": 6, "stop": ["e", "\n"]}, {"seed": 7, "logit_bias": {"77": 4}},
    {"temperature": 0, "max_tokens": 500},
])  # fmt: skip
def test_the_texts_are_those_of_generate(client, truth, options):
    ours = {"temperature": 1.0, "top_p": 1.0, "max_tokens": 16} | options
    ours["max_new_tokens"], ours["num_samples"] = ours.pop("max_tokens"), ours.pop("n", 1)
    ours["logit_bias"] = {int(k): v for k, v in ours.get("logit_bias", {}).items()}
    prompts = ["O Romeo, ", MERCY, "KING"]
    want = truth.generate(prompts, **ours)
    finish = {"eos": "stop", "context": "length"}
    together = client.completions.create(model="tiny", prompt=prompts, **options)
    ids = [truth.encode(prompt) for prompt in prompts]
    by_id = client.completions.create(model="tiny", prompt=ids, **options)
    one = client.completions.create(model="tiny", prompt=ids[0], **options)
    for answer, texts in ((together, want), (by_id, want), (one, want[: ours["num_samples"]])):
        assert [choice.text for choice in answer.choices] == [str(text) for text in texts]
        assert [choice.index for choice in answer.choices] == list(range(len(texts)))
        assert [choice.finish_reason for choice in answer.choices] == [
            finish.get(text.finish_reason, text.finish_reason) for text in texts
        ]
        assert answer.usage.completion_tokens == sum(len(text.ids) for text in texts)
    assert together.usage.prompt_tokens == sum(map(len, ids))
    assert together.usage.total_tokens == sum(map(len, ids)) + together.usage.completion_tokens
    assert (together.object, together.model) == ("text_completion", "tiny")


@pytest.mark.parametrize("options", [
    {"n": 2, "logprobs": 2}, {"stop": "e", "logprobs": 1}, {"echo": True, "logprobs": 0},
    {"echo": True, "max_tokens": 1}, {"stop": ["th", "the"], "echo": True, "logprobs": 3, "n": 2},
])  # fmt: skip
def test_streamed_it_is_the_same(client, options):
    asked = {"model": "tiny", "prompt": ["KING", MERCY], "seed": 1, "max_tokens": 24} | options
    whole = client.completions.create(**asked)
    usage = {"include_usage": True}
    events = list(client.completions.create(**asked, stream=True, stream_options=usage))
    assert events[-1].usage == whole.usage
    assert events[-1].choices == []
    assert all(event.usage is None for event in events[:-1])
    for choice in whole.choices:
        parts = [c for e in events for c in e.choices if c.index == choice.index]
        assert "".join(part.text for part in parts) == choice.text
        assert {part.finish_reason for part in parts[:-1]} <= {None}
        assert parts[-1].finish_reason == choice.finish_reason
        if choice.logprobs is None:
            assert all(part.logprobs is None for part in parts)
            continue
        told = [part.logprobs for part in parts if part.logprobs]
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            assert [x for one in told for x in getattr(one, name)] == getattr(choice.logprobs, name)
    assert len({event.id for event in events}) == 1


def test_without_usage_no_chunk_speaks_of_it(server):
    body = {"prompt": "KING", "stream": True, "max_tokens": 3}
    status, headers, text = server.request("POST", "/v1/completions", body)
    assert (status, headers.get_content_type()) == (200, "text/event-stream")
    events = text.strip().split("\n\n")
    assert events[-1] == "data: [DONE]"
    assert all("usage" not in json.loads(event[6:]) for event in events[:-1])


def test_logprobs_are_the_models_own(client, truth):
    """Of each token, before temperature and bias; the likeliest ones; where its text begins."""
    answer = client.completions.create(
        model="tiny", prompt=MERCY, max_tokens=12, temperature=0.5, seed=2, logprobs=3, echo=True,
        logit_bias={"77": 3},
    )  # fmt: skip
    [choice] = answer.choices
    told, ids = choice.logprobs, truth.encode(choice.text)
    written = truth.generate(
        MERCY, max_new_tokens=12, temperature=0.5, top_p=1, seed=2, logit_bias={77: 3}
    )[0]
    ids = truth.encode(MERCY) + written.ids
    assert choice.text == MERCY + written.text
    logprobs = log_softmax(truth.logits(np.array([ids])))[0]
    assert told.token_logprobs[0] is None
    assert told.top_logprobs[0] is None
    pieces = [truth.tokenizer.token_bytes(i).decode() for i in ids]
    assert told.tokens == pieces
    for n in range(1, len(ids)):
        assert told.token_logprobs[n] == pytest.approx(logprobs[n - 1, ids[n]], abs=1e-4)
        best = np.argsort(-logprobs[n - 1])[:3]
        assert list(told.top_logprobs[n].values()) == pytest.approx(logprobs[n - 1, best], abs=1e-4)
        assert choice.text[told.text_offset[n] :].startswith(pieces[n])
    assert len(told.tokens) == answer.usage.total_tokens


def test_tokens_of_a_stop_text_are_not_told(client):
    asked = {"model": "tiny", "prompt": "KING", "temperature": 0, "max_tokens": 40, "logprobs": 1}
    whole = client.completions.create(**asked).choices[0]
    stop = "".join(whole.logprobs.tokens[5:8])[1:]  # begins in the middle of a token
    stopped = client.completions.create(**asked, stop=stop).choices[0]
    assert (stopped.text, stopped.finish_reason) == (whole.text[: whole.text.index(stop)], "stop")
    shown = [at for at in whole.logprobs.text_offset if at < len(stopped.text)]
    assert stopped.logprobs.text_offset == shown
    assert stopped.logprobs.tokens == whole.logprobs.tokens[: len(shown)]


def test_half_a_character_is_told_by_its_bytes(client, truth):
    """é in two tokens: they begin at the same place."""
    ids = truth.encode("é")
    assert len(ids) == 2
    asked = {"model": "tiny", "prompt": "é", "max_tokens": 0, "echo": True, "logprobs": 0}
    told = client.completions.create(**asked).choices[0].logprobs
    assert told.tokens == ["bytes:\\xc3", "bytes:\\xa9"]
    assert told.text_offset == [0, 0]


def test_a_prompt_is_scored_and_nothing_written(client, truth):
    answer = client.completions.create(
        model="tiny", prompt=[MERCY, "O Romeo"], max_tokens=0, echo=True, logprobs=0
    )
    assert [choice.text for choice in answer.choices] == [MERCY, "O Romeo"]
    assert [choice.finish_reason for choice in answer.choices] == ["length", "length"]
    assert answer.usage.completion_tokens == 0
    for choice in answer.choices:
        score = truth.score(choice.text)
        assert sum(choice.logprobs.token_logprobs[1:]) == pytest.approx(-score.nats, abs=1e-3)


def test_models_and_embeddings(client, truth):
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "npgpt2"
    texts = ["O Romeo", MERCY]
    for encoding in ({}, {"encoding_format": "float"}):  # the client asks for base64 by itself
        answer = client.embeddings.create(model="tiny", input=texts, **encoding)
        for item, text in zip(answer.data, texts, strict=True):
            states = truth(np.array([truth.encode(text)])).last_hidden_state
            assert item.embedding == pytest.approx(states[0].mean(0), abs=1e-5)
    assert answer.usage.prompt_tokens == sum(len(truth.encode(text)) for text in texts)
    ids = client.embeddings.create(model="tiny", input=truth.encode("O Romeo"))
    assert ids.data[0].embedding == pytest.approx(truth.embed("O Romeo"), abs=1e-6)


@pytest.mark.parametrize("prompt", [
    "\0", "\n", " ", "שלום עולם", "👨‍👩‍👧‍👦", "e\u0301", "<|endoftext|>", "a<|endoftext|>b",
    "a" * 100, "\u202e<b>&amp;</b>\\", "\ufffd\ufeff",
])  # fmt: skip
def test_odd_prompts_are_prompts(server, truth, prompt):
    asked = {"temperature": 0, "max_tokens": 6}
    want = truth.generate(prompt, temperature=0, max_new_tokens=6)[0].text
    assert server.complete(prompt, **asked)["choices"][0]["text"] == want
    assert server.complete(prompt, **asked, echo=True)["choices"][0]["text"] == prompt + want


@pytest.mark.parametrize(("options", "ours"), [
    ({"temperature": 1e-320}, {"temperature": 0}), ({"temperature": 1e300}, {"temperature": 1e300}),
    ({"max_tokens": 10**9}, {"max_new_tokens": 10**9}), ({"top_k": 10**9}, {"top_k": 10**9}),
    ({"seed": 2**64 - 1}, {"seed": 2**64 - 1}), ({"stop": []}, {}), ({"stop": None}, {}),
    ({"logit_bias": None, "logprobs": None, "user": "me", "best_of": 1, "suffix": None}, {}),
    ({"n": None, "echo": None, "stream": None, "top_p": None, "temperature": None}, {}),
    ({"frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}}, {}),
])  # fmt: skip
def test_options_at_their_ends(server, truth, options, ours):
    asked = {"seed": 3, "max_tokens": 8, **options}
    wanted = {"seed": 3, "max_new_tokens": 8, "temperature": 1, "top_p": 1, **ours}
    [want] = truth.generate("KING", **wanted)
    [choice] = server.complete("KING", **asked)["choices"]
    assert choice["text"] == want.text


def test_exported_graphs_serve(tmp_path, truth):
    out = export(TINY, tmp_path / "tiny", precisions=("fp32", "int8"))
    with served("--model", str(out), "--engine", "onnx") as running:
        answer = running.complete(["KING", MERCY], temperature=0)
        want = truth.generate(["KING", MERCY], temperature=0, max_new_tokens=16)
        assert [choice["text"] for choice in answer["choices"]] == [str(text) for text in want]
        _, _, found = running.request("POST", "/v1/embeddings", {"input": "KING"})
        assert found["data"][0]["embedding"] == pytest.approx(truth.embed("KING"), abs=1e-4)


def test_the_same_seed_the_same_text_whoever_else_is_served(server):
    """Alone, then among others that come and go."""
    asked = {"seed": 11, "temperature": 1.2, "max_tokens": 40}
    alone = server.complete(MERCY, **asked)["choices"][0]["text"]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        others = [
            pool.submit(server.complete, "KING" * (n % 4 + 1), seed=n, max_tokens=5 + 9 * (n % 3))
            for n in range(16)
        ]
        same = [pool.submit(server.complete, MERCY, **asked) for _ in range(4)]
        assert {job.result()["choices"][0]["text"] for job in same} == {alone}
        assert all(job.result() for job in others)


def test_a_prompt_seen_before_is_not_read_again(server):
    asked = {"max_tokens": 1, "temperature": 0}
    prompt = list(range(1, 101))
    server.complete(prompt, **asked)
    read, reused = (
        server.metric(f"npgpt2_prompt_tokens{end}_total") for end in ("", "_reused")
    )  # fmt: skip
    server.complete(prompt, **asked)
    assert server.metric("npgpt2_prompt_tokens_total") == read + 100
    assert server.metric("npgpt2_prompt_tokens_reused_total") == reused + 64


# ── refusals ─────────────────────────────────────────────────────────────────────────────────────

DEEP = b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
FIELDS = (
    "model, prompt, max_tokens, temperature, top_p, n, stop, seed, logprobs, echo, logit_bias, "
    "stream, stream_options, top_k, min_p, repetition_penalty, user, best_of, frequency_penalty, "
    "presence_penalty, suffix"
)
PROMPTS = "expected text, ids, or a list of either"

# (what is sent, or the body itself; the field; the message)
REFUSED = [
    (b"", None, "body: is not JSON (Expecting value: line 1 column 1 (char 0)), "
                "expected an object"),
    (b"{", None, "body: is not JSON (Expecting property name enclosed in double quotes: "
                 "line 1 column 2 (char 1)), expected an object"),
    (b"\xff", None, "body: is not JSON ('utf-8' codec can't decode byte 0xff in position 0: "
                    "invalid start byte), expected an object"),
    (b"[]", None, "body: got a list, expected an object"),
    (b"null", None, "body: got null, expected an object"),
    (DEEP, None, "body: is not JSON (nested too deep), expected an object"),
    ({}, "prompt", "prompt: is missing"),
    ({"prompt": ""}, "prompt", "prompt: is empty, expected at least one token. For a text "
                               "without a prompt give '<|endoftext|>'"),
    ({"prompt": []}, "prompt", f"prompt: got [], {PROMPTS}"),
    ({"prompt": None}, "prompt", f"prompt: got None, {PROMPTS}"),
    ({"prompt": 5}, "prompt", f"prompt: got 5, {PROMPTS}"),
    ({"prompt": [1.5]}, "prompt", f"prompt: got [1.5], {PROMPTS}"),
    ({"prompt": [True]}, "prompt", f"prompt: got [True], {PROMPTS}"),
    ({"prompt": [1, "a"]}, "prompt", f"prompt: got [1, 'a'], {PROMPTS}"),
    ({"prompt": [[1], "a"]}, "prompt", f"prompt: got [[1], 'a'], {PROMPTS}"),
    ({"prompt": {"text": "a"}}, "prompt", f"prompt: got {{'text': 'a'}}, {PROMPTS}"),
    (b'{"prompt": [NaN]}', "prompt", f"prompt: got [nan], {PROMPTS}"),
    ({"prompt": [-1]}, "prompt", "prompt: has the id -1, expected 0 to 511"),
    ({"prompt": [512]}, "prompt", "prompt: has the id 512, expected 0 to 511"),
    ({"prompt": [2**70]}, "prompt", f"prompt: has the id {2**70}, expected 0 to 511"),
    ({"prompt": [[5], [512]]}, "prompt.1", "prompt.1: has the id 512, expected 0 to 511"),
    ({"prompt": ["a", ""]}, "prompt.1", "prompt.1: is empty, expected at least one token. For a "
                                        "text without a prompt give '<|endoftext|>'"),
    ({"prompt": list(range(129))}, "prompt", "prompt: is longer than the context: 129 > 128 "
                                             "tokens. Shorten it"),
    ({"prompt": "a" * 1_000_000}, "prompt", None),
    (b'{"prompt": "\\ud800"}', "prompt",
     "prompt: a lone surrogate (U+D800) at character 0, expected Unicode"),
    ({"prompt": "a", "colour": 1}, "colour", f"colour: is not a field, expected one of {FIELDS}"),
    ({"prompt": "a", "model": "../../etc"}, "model", "model: got '../../etc', expected tiny"),
    ({"prompt": "a", "model": "gpt2"}, "model", "model: got gpt2, expected tiny"),
    ({"prompt": "a", "model": 5}, "model", "model: got 5, input should be a valid string"),
    ({"prompt": "a", "n": 1_000_000}, "n",
     "n: got 1000000, input should be less than or equal to 128"),
    ({"prompt": "a", "n": 0}, "n", "n: got 0, input should be greater than or equal to 1"),
    ({"prompt": "a", "n": 1.0}, "n", "n: got 1.0, input should be a valid integer"),
    ({"prompt": "a", "n": True}, "n", "n: got True, input should be a valid integer"),
    ({"prompt": "a", "n": "2"}, "n", "n: got '2', input should be a valid integer"),
    ({"prompt": "a", "n": 70}, "n", "n: asks for 70 texts, expected at most 68"),
    ({"prompt": ["a"] * 69}, "prompt", "prompt: asks for 69 texts, expected at most 68"),
    ({"prompt": "a", "max_tokens": -1}, "max_tokens",
     "max_tokens: got -1, input should be greater than or equal to 0"),
    ({"prompt": "a", "max_tokens": 0}, "max_tokens",
     "max_tokens: got 0, expected at least 1, or echo"),
    ({"prompt": "a", "temperature": -1}, "temperature",
     "temperature: got -1, input should be greater than or equal to 0"),
    (b'{"prompt": "a", "temperature": NaN}', "temperature",
     "temperature: got nan, input should be a finite number"),
    (b'{"prompt": "a", "temperature": -Infinity}', "temperature",
     "temperature: got -inf, input should be a finite number"),
    (b'{"prompt": "a", "temperature": 1e999}', "temperature",
     "temperature: got inf, input should be a finite number"),
    (b'{"prompt": "a", "max_tokens": NaN}', "max_tokens",
     "max_tokens: got nan, input should be a valid integer"),
    (b'{"prompt": "a", "max_tokens": %s}' % (b"1" * 5000), "max_tokens",
     "max_tokens: got inf, input should be a valid integer"),
    (b'{"prompt": "a", "seed": %s}' % (b"1" * 5000), "seed",
     "seed: got inf, input should be a valid integer"),
    ({"prompt": "a", "seed": -1}, "seed",
     "seed: got -1, input should be greater than or equal to 0"),
    ({"prompt": "a", "seed": 2**70}, "seed",
     "seed: got 1180591620717411303424, input should be less than 18446744073709551616"),
    ({"prompt": "a", "top_p": 0}, "top_p", "top_p: got 0, input should be greater than 0"),
    ({"prompt": "a", "top_p": 1.5}, "top_p",
     "top_p: got 1.5, input should be less than or equal to 1"),
    ({"prompt": "a", "top_k": 0}, "top_k",
     "top_k: got 0, input should be greater than or equal to 1"),
    ({"prompt": "a", "logprobs": 50257}, "logprobs",
     "logprobs: got 50257, input should be less than or equal to 5"),
    ({"prompt": "a", "logprobs": True}, "logprobs",
     "logprobs: got True, input should be a valid integer"),
    ({"prompt": "a", "stop": ""}, "stop",
     "stop: got ('',), expected one or more non-empty strings"),
    ({"prompt": "a", "stop": ["a", ""]}, "stop",
     "stop: got ('a', ''), expected one or more non-empty strings"),
    ({"prompt": "a", "stop": ["a"] * 17}, "stop", "stop: got 17 texts, expected at most 16"),
    ({"prompt": "a", "stop": "a" * 1001}, "stop",
     "stop: got 1,001 characters, expected at most 1,000"),
    ({"prompt": "a", "logit_bias": {str(n): 1 for n in range(1025)}}, "logit_bias",
     "logit_bias: got 1,025 ids, expected at most 1,024"),
    ({"prompt": "a", "stop": 5}, "stop", "stop: got 5, input should be a valid string"),
    ({"prompt": "a", "logit_bias": {"512": 1}}, "logit_bias",
     "logit_bias: has the id 512, expected 0 to 511"),
    ({"prompt": "a", "logit_bias": {"x": 1}}, "logit_bias",
     "logit_bias: got x, expected a token id"),
    ({"prompt": "a", "logit_bias": {"5": 101}}, "logit_bias",
     "logit_bias: got 101.0, expected a number from -100 to 100"),
    (b'{"prompt": "a", "logit_bias": {"5": NaN}}', "logit_bias.5",
     "logit_bias.5: got nan, input should be a finite number"),
    ({"prompt": "a", "stream": 1}, "stream", "stream: got 1, input should be a valid boolean"),
    ({"prompt": "a", "stream_options": {"include_usage": True}}, "stream_options",
     "stream_options: needs stream. Leave it out"),
    ({"prompt": "a", "stream": True, "stream_options": {"x": 1}}, "stream_options.x",
     "stream_options.x: is not a field"),
    ({"prompt": "a", "best_of": 3}, "best_of", "best_of: got 3, input should be 1"),
    ({"prompt": "a", "presence_penalty": 1}, "presence_penalty",
     "presence_penalty: got 1, input should be 0"),
    ({"prompt": "a", "suffix": "b"}, "suffix", "suffix: got b, input should be None"),
]  # fmt: skip


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: str(case[2])[:60])
def test_a_refusal_names_the_field(server, case):
    body, param, message = case
    status, _, answer = server.request("POST", "/v1/completions", body)
    assert status == (404 if param == "model" and "expected tiny" in message else 400)
    error = answer["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["param"], error["type"]) == (param, "invalid_request_error")
    if message is not None:
        assert error["message"] == message
    assert len(error["message"]) < 600
    assert error["message"].startswith(f"{param or 'body'}: ")
    assert server.request("GET", "/readyz")[0] == 200


@pytest.mark.parametrize(("body", "param", "message"), [
    ({}, "input", "input: is missing"),
    ({"input": ""}, "input", "input: is empty, expected at least one token"),
    ({"input": ["a", ""]}, "input.1", "input.1: is empty, expected at least one token"),
    ({"input": "a", "dimensions": 5}, "dimensions",
     "dimensions: got 5, expected 64, the model's own"),
    ({"input": "a", "encoding_format": "hex"}, "encoding_format",
     "encoding_format: got hex, input should be 'float' or 'base64'"),
    ({"input": "a", "model": "b"}, "model", "model: got b, expected tiny"),
    ({"input": list(range(129))}, "input",
     "input: is longer than the context: 129 > 128 tokens. Shorten it"),
])  # fmt: skip
def test_embeddings_refuse_too(server, body, param, message):
    status, _, answer = server.request("POST", "/v1/embeddings", body)
    assert status == (404 if param == "model" else 400)
    assert (answer["error"]["param"], answer["error"]["message"]) == (param, message)


def test_paths_methods_and_kinds(server):
    for method, path, status in (
        ("GET", "/nothing", 404), ("GET", "/v1/models/../../etc/passwd", 404),
        ("GET", "/v1/models/other", 404), ("GET", "/v1/completions", 405), ("POST", "/livez", 405),
        ("DELETE", "/v1/models/tiny", 405),
    ):  # fmt: skip
        got, _, answer = server.request(method, path)
        assert got == status
        assert answer["error"]["type"] == "invalid_request_error"
    assert server.request("GET", "/v1/completions")[2]["error"]["message"] == (
        "GET: expected POST. See /docs"
    )
    assert server.request("POST", "/v1/chat/completions", {})[2]["error"]["message"] == (
        "no such path: GPT-2 is not a chat model. Use /v1/completions"
    )
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    got, _, answer = server.request("POST", "/v1/completions", b"prompt=a", form)
    assert (got, answer["error"]["param"]) == (415, "Content-Type")
    assert answer["error"]["message"] == (
        "Content-Type: got 'application/x-www-form-urlencoded', expected application/json"
    )


def test_the_client_gets_its_own_exceptions(client):
    with pytest.raises(openai.BadRequestError) as error:
        client.completions.create(model="tiny", prompt="a", n=0)
    assert error.value.param == "n"
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="gpt-5", prompt="a")


# ── load ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_full_queue_says_so_at_once_and_those_inside_finish():
    """At once: those inside are held meanwhile."""
    with served(*SLOW, "--queue", "2", before="held") as running:
        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            asked = {"max_tokens": 25, "seed": 5}
            inside = [pool.submit(running.complete, "KING", **asked) for _ in range(3)]
            until(lambda: running.metric("npgpt2_texts_held") == 3)
            for _ in range(10):
                status, headers, answer = running.request(
                    "POST", "/v1/completions", {"prompt": "KING"}
                )
                assert (status, answer["error"]["code"]) == (429, "queue_full")
                assert answer["error"]["type"] == "rate_limit_error"
                assert answer["error"]["message"] == "the queue is full (2 texts). Try again"
                assert 1 <= int(headers["Retry-After"]) <= 60
            assert running.request("GET", "/livez")[0] == 200
            running.go_on()
            assert len({job.result()["choices"][0]["text"] for job in inside}) == 1
        assert running.metric("npgpt2_refused_total") == 10
        running.complete("KING", max_tokens=1)  # and there is room again


def test_while_it_loads():
    with served("--model", TINY, before="loading") as running:
        assert running.request("GET", "/livez")[0] == 200
        for method, path, body in (
            ("GET", "/readyz", None), ("GET", "/v1/models", None),
            ("POST", "/v1/completions", {"prompt": "a"}),
            ("POST", "/v1/embeddings", {"input": "a"}),
        ):  # fmt: skip
            status, headers, answer = running.request(method, path, body)
            assert (status, answer["error"]["code"]) == (503, "loading")
            assert answer["error"]["message"] == "the server is loading. Try again"
            assert headers["Retry-After"] == "1"
        running.go_on()
        until(lambda: running.request("GET", "/readyz")[0] == 200)
        running.complete("KING")


@pytest.mark.parametrize("where", ["writing", "reading", "waiting"])
def test_a_client_that_goes_away_frees_its_place(where):
    """Its slot within a step, by `test_batcher.py`; here, that the server hears of it."""
    with served(*SLOW, "--queue", "8", before="slow") as running:
        first = running.stream("KING", max_tokens=120)
        if where == "writing":
            assert running.metric("npgpt2_slots_taken") == 1
            first.close()
        else:
            body = {"prompt": list(range(1, 121)), "max_tokens": 100, "stream": where == "waiting"}
            second = running.socket(post(json.dumps(body).encode()))
            until(lambda: running.metric("npgpt2_texts_held") == 2)
            if where == "reading":
                first.close()
                until(lambda: running.metric("npgpt2_texts_held") == 1)
            second.close()
            first.close()
        until(lambda: running.metric("npgpt2_texts_held") == 0)
        until(lambda: running.metric("npgpt2_slots_taken") == 0)
        # A step takes half a second; left alone the first text would have taken a minute.
        assert running.metric("npgpt2_completion_tokens_total") < 120
        running.complete("a", max_tokens=1)


def test_an_embedding_keeps_its_place_until_it_is_done():
    """A client that asks and goes away, again and again, does not get past the queue."""
    with served(*SLOW, "--queue", "0", before="held embeddings") as running:
        connection = running.socket(post(b'{"input": "KING"}', "/v1/embeddings"))
        running.begun()
        running.leave(connection)
        assert running.metric("npgpt2_texts_held") == 1
        status, _, _ = running.request("POST", "/v1/embeddings", {"input": "KING"})
        assert status == 429
        running.go_on()
        until(lambda: running.metric("npgpt2_texts_held") == 0)
        assert running.request("POST", "/v1/embeddings", {"input": "KING"})[0] == 200


def test_an_upload_that_is_broken_off_is_no_error_of_ours(server):
    before = server.log
    connection = server.socket(post(b'{"prompt": "KING"}')[:-5])
    port = connection.getsockname()[1]
    until(lambda: server.ends()[port][1] == 0)  # it is read, as far as it came
    server.leave(connection)
    assert server.complete("KING", max_tokens=1)
    assert server.log == before


def test_clients_without_patience_or_manners_are_bounded_and_the_others_do_not_notice(truth):
    """All at once, beside somebody who is served as if he were alone."""
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
    json_ = b"Content-Type: application/json\r\n"
    many = b"".join(b"X-%d: 1\r\n" % n for n in range(200))
    long = b"X: " + b"a" * 20_000 + b"\r\n"
    chunked = b"Transfer-Encoding: chunked\r\n\r\n"
    # (what is sent first; what then, again and again; what comes back)
    rude = {
        "200 headers": (b"GET /livez HTTP/1.1\r\nHost: localhost\r\n" + many + b"\r\n", b"", 431),
        "a header of 20 kB": (b"GET / HTTP/1.1\r\nHost: localhost\r\n" + long + b"\r\n", b"", 431),
        "a head without end": (head, b"X: 1\r\n", 408),
        "a byte at a time": (b"P", b"O", 408),
        "nothing": (b"", b"", None),
        "no HTTP": (b"\x16\x03\x01\x02\x00" * 20 + b"\r\n\r\n", b"", 400),
        "a body that does not come": (head + json_ + b"Content-Length: 90\r\n\r\n", b"", 408),
        "a body a byte at a time": (head + json_ + b"Content-Length: 90\r\n\r\n{", b" ", 408),
        "a body without end": (head + json_ + chunked, b"10000\r\n" + b" " * 65536 + b"\r\n", 413),
        "Content-Length -1": (head + json_ + b"Content-Length: -1\r\n\r\n{}", b"", 400),
        "Content-Length 1e12": (
            head + json_ + b"Content-Length: 1000000000000\r\n\r\n", b" " * 1024, 413
        ),
        "a Content-Length of 5,000 digits": (
            head + json_ + b"Content-Length: " + b"1" * 5000 + b"\r\n\r\n", b"", 400
        ),
        "Content-Length of letters": (head + json_ + b"Content-Length: two\r\n\r\n{}", b"", 400),
        "Content-Length twice": (
            head + json_ + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", b"", 400
        ),
        "no length": (head + json_ + b"\r\n", b"", 411),
        "a body for a GET": (
            b"GET /livez HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\n", b" " * 1024, 200
        ),
    }  # fmt: skip

    def behave(running, name):
        first, then, want = rude[name]
        connection, begun, data = running.socket(first), time.monotonic(), b""
        with contextlib.closing(connection):
            connection.settimeout(0.02)
            while time.monotonic() - begun < PATIENCE:
                with contextlib.suppress(TimeoutError):
                    try:
                        if then:
                            connection.sendall(then)
                            time.sleep(0.001 if len(then) > 500 else 0.05)
                        more = connection.recv(1 << 16)
                    except ConnectionError:
                        break
                    if not more:
                        break
                    data += more
            else:
                pytest.fail(f"{name}: still open after {PATIENCE:g} s")
        status = re.match(rb"HTTP/1.1 (\d+)", data)
        return name, want, status and int(status[1]), data

    with served("--model", TINY, before="impatient") as running:
        want = str(truth.generate("KING", temperature=0, max_new_tokens=30)[0])
        with concurrent.futures.ThreadPoolExecutor(len(rude) + 1) as pool:
            unread = [running.socket(post(json.dumps({
                "prompt": "KING", "stream": True, "n": 8, "max_tokens": 120, "logprobs": 5,
            }).encode())) for _ in range(2)]  # fmt: skip
            asked = [pool.submit(behave, running, name) for name in rude]
            for _ in range(20):
                answer = running.complete("KING", temperature=0, max_tokens=30)
                assert answer["choices"][0]["text"] == want
            results = [job.result() for job in asked]
        for name, wanted, status, data in results:
            # Who is told while he sends may lose the answer to the closing of the connection.
            assert status == wanted or (status is None and rude[name][1]), (name, status, data)
            if status not in (None, 200):
                assert json.loads(data.partition(b"\r\n\r\n")[2])["error"]["message"]
        told = {status for _, _, status, _ in results}
        assert {408, 411, 413, 431, 400} <= told
        for connection in unread:
            connection.close()
        until(lambda: running.metric("npgpt2_texts_held") == 0)
        assert "error" not in running.log


def test_an_answer_that_is_never_read_is_cut_off():
    """The kernel's buffers are made small, so that it stands in the server's own."""
    with served("--model", TINY, "--slots", "8", before="impatient") as running:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.connect(("127.0.0.1", running.port))
        body = {"prompt": ["KING"] * 8, "n": 8, "max_tokens": 120, "logprobs": 5, "stream": True}
        connection.sendall(post(json.dumps(body).encode()))
        until(lambda: running.metric("npgpt2_texts_held") == 64)
        until(lambda: running.metric("npgpt2_texts_held") == 0)
        until(lambda: running.connections() == 0)
        assert running.complete("KING")
        connection.close()


def test_too_many_connections_are_closed():
    """For no other reason: the server has all patience with those that say nothing."""
    with served("--model", TINY, before="patient") as running:
        held = [running.socket() for _ in range(600)]
        try:
            until(lambda: running.connections() <= 512)
            held[0].sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert held[0].recv(100).startswith(b"HTTP/1.1 200")
        finally:
            for connection in held:
                connection.close()
        until(lambda: running.connections() == 0)
        assert running.complete("KING")


# ── who may come in ──────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def locked(tmp_path_factory):
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text("# whose\nsk-first\nsk-second\n")
    with served("--model", TINY, "--api-key-file", str(file)) as running:
        yield running


@pytest.mark.parametrize("authorization", [
    None, "", "Bearer", "Bearer ", "Bearer sk-firs", "Bearer sk-first2", "sk-first", "Basic !!",
    "Basic c2stZmlyc3Q6", "Digest sk-first\xe9",
])  # fmt: skip
def test_every_path_but_livez_wants_a_key(locked, authorization):
    sent = {} if authorization is None else {"Authorization": authorization}
    for method, path, body in (
        ("POST", "/v1/completions", {"prompt": "a"}), ("POST", "/v1/embeddings", {"input": "a"}),
        ("GET", "/v1/models", None), ("GET", "/v1/models/tiny", None), ("GET", "/readyz", None),
        ("GET", "/metrics", None), ("GET", "/docs", None), ("GET", "/", None), ("GET", "/x", None),
    ):  # fmt: skip
        status, headers, answer = locked.request(method, path, body, sent)
        assert status == 401
        assert answer["error"]["type"] == "authentication_error"
        assert answer["error"]["message"] == (
            "Authorization: expected 'Bearer KEY' with a valid key of this server"
        )
        assert headers["WWW-Authenticate"] == 'Basic realm="npgpt2"'
    assert locked.request("GET", "/livez", None, sent)[0] == 200


@pytest.mark.parametrize("authorization", [
    "Bearer sk-first", "bearer sk-second", "Basic OnNrLWZpcnN0", "Basic eW91OnNrLXNlY29uZA==",
])  # fmt: skip
def test_a_key_opens(locked, authorization):
    sent = {"Authorization": authorization}
    assert locked.request("GET", "/v1/models", None, sent)[0] == 200
    assert locked.request("GET", "/", None, sent)[0] == 200
    with openai.OpenAI(base_url=f"{locked.url}/v1", api_key="sk-first") as client:
        assert client.completions.create(model="tiny", prompt="KING").choices


def test_keys_are_compared_in_constant_time(monkeypatch):
    """Every key is compared whole, by `hmac.compare_digest` of digests, right or wrong."""
    from npgpt2.serve import guard
    from npgpt2.serve.metrics import Metrics

    compared = []
    monkeypatch.setattr(
        guard.hmac, "compare_digest", lambda a, b: compared.append((len(a), len(b))) or a == b
    )
    for given, good in (("one", True), ("three", True), ("", False), ("o" * 9000, False)):
        compared.clear()
        checked = guard.Guard(None, Metrics(), keys=["one", "two", "three"])
        assert checked._has_key(f"Bearer {given}") is good
        assert compared == [(32, 32)] * 3


HOSTS = {
    "localhost": 200, "LOCALHOST:8000": 200, "127.0.0.1": 200, "127.0.0.1:80": 200, "[::1]": 200,
    "[::1]:8000": 200, "localhost.": 200, "evil.example": 403, "127.0.0.1.evil.example": 403,
    "localhost.evil.example:80": 403, "192.168.0.7": 403, "": 403, "0x7f000001": 403,
}  # fmt: skip


@pytest.mark.parametrize("host", HOSTS)
def test_a_host_that_is_not_ours(server, host):
    status, _, answer = server.request("GET", "/v1/models", headers={"Host": host})
    assert status == HOSTS[host]
    if status == 403:
        assert answer["error"]["param"] == "Host"
        assert answer["error"]["message"] == (
            "Host: is not a name of this server. Allow it with --allow-host NAME"
        )
    assert server.request("GET", "/livez", headers={"Host": host})[0] == 200


def test_names_that_were_allowed():
    with served("--model", TINY, "--allow-host", "gpt2.example.org") as running:
        for host, status in (("gpt2.example.org", 200), ("GPT2.example.org:80", 200),
                             ("other.example.org", 403)):  # fmt: skip
            assert running.request("GET", "/v1/models", headers={"Host": host})[0] == status


def test_it_listens_to_this_machine_alone_and_says_so(server):
    assert re.fullmatch(
        rf"npgpt2: tiny at {server.url}, for this machine only\. Ctrl-C ends it\n", server.log
    )
    lines = Path("/proc/net/tcp").read_text().splitlines()
    listening = [
        line.split()[1] for line in lines if f":{server.port:04X} 00000000:0000 0A" in line
    ]
    assert listening == [f"0100007F:{server.port:04X}"]


def test_it_warns_when_others_reach_it():
    with served("--model", TINY, "--host", "0.0.0.0") as running:
        assert running.log.splitlines()[0] == (
            "npgpt2: warning: other machines can connect to 0.0.0.0 without a key. "
            "Require one with --api-key-file"
        )
        for host, status in (("192.168.0.7:8000", 200), ("evil.example", 403)):
            assert running.request("GET", "/v1/models", headers={"Host": host})[0] == status


# ── the end ──────────────────────────────────────────────────────────────────────────────────────


def test_sigterm_finishes_what_runs_and_takes_nothing_new(truth):
    want = str(truth.generate("KING", temperature=0, max_new_tokens=40)[0])
    with served(*SLOW, "--queue", "4", "--drain-seconds", "600", before="held") as running:
        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            asked = {"temperature": 0, "max_tokens": 40}
            inside = [pool.submit(running.complete, "KING", **asked) for _ in range(2)]
            until(lambda: running.metric("npgpt2_texts_held") == 2)
            running.process.send_signal(signal.SIGTERM)
            until(lambda: running.request("GET", "/readyz")[0] == 503)
            status, headers, answer = running.request("POST", "/v1/completions", {"prompt": "a"})
            assert (status, answer["error"]["code"]) == (503, "draining")
            assert headers["Retry-After"] == "1"
            assert running.request("GET", "/livez")[0] == 200
            running.go_on()
            assert [job.result()["choices"][0]["text"] for job in inside] == [want, want]
        assert running.process.wait(PATIENCE) == 0
    assert running.log.splitlines()[1:] == [
        "npgpt2: shutting down: 2 texts may finish within 600 s. A second signal ends it at once",
        "npgpt2: the server has stopped",
    ]
    with pytest.raises(ConnectionRefusedError):
        running.socket()


@pytest.mark.parametrize("streaming", [True, False])
def test_what_is_not_done_by_then_is_told_so(streaming):
    with served(*SLOW, "--drain-seconds", "0.5", before="slow") as running:
        body = json.dumps({"prompt": "KING", "max_tokens": 120, "stream": streaming}).encode()
        connection = running.socket(post(body))
        until(lambda: running.metric("npgpt2_texts_held") == 1)
        begun = time.monotonic()
        running.process.send_signal(signal.SIGTERM)
        with contextlib.closing(connection):
            data = answered(connection)
        assert b"the server shut down before the end" in data
        assert b"[DONE]" not in data
        assert data.startswith(b"HTTP/1.1 200" if streaming else b"HTTP/1.1 503")
        assert running.process.wait(PATIENCE) == 0
        until(lambda: "has stopped" in running.log)
        assert (
            "npgpt2: warning: 1 of them did not finish, their clients got an error\n" in running.log
        )
        assert time.monotonic() - begun > 0.4  # left alone it would have taken a minute


def test_control_c_and_a_second_time():
    with served(*SLOW, before="slow") as running:
        assert running.process.poll() is None
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(PATIENCE) == 130
    with served(*SLOW, before="slow") as running:
        connection = running.stream("KING", max_tokens=120)
        running.process.send_signal(signal.SIGINT)
        until(lambda: running.request("GET", "/readyz")[0] == 503)
        running.process.send_signal(signal.SIGINT)
        with contextlib.closing(connection):
            data = answered(connection)
        assert running.process.wait(PATIENCE) == 130
        assert b"[DONE]" not in data  # it was not waited for


# ── what is wrong from the beginning ─────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("arguments", "code", "said"), [
    (["--port", "-1"], 2, "--port: got -1, expected 0 to 65,535"),
    (["--port", "70000"], 2, "--port: got 70000, expected 0 to 65,535"),
    (["--port", "x"], 2, "--port: got 'x', expected an integer. See 'npgpt2 serve --help'"),
    (["--slots", "0"], 2, "--slots: got 0, expected 1 to 256"),
    (["--slots", "257"], 2, "--slots: got 257, expected 1 to 256"),
    (["--queue", "-1"], 2, "--queue: got -1, expected 0 to 100,000"),
    (["--drain-seconds", "nan"], 2, "--drain-seconds: got nan, expected 0 to 86,400"),
    (["--drain-seconds", "-1"], 2, "--drain-seconds: got -1.0, expected 0 to 86,400"),
    (["--api-key-file", "EMPTY"], 4, "EMPTY: has no key, expected one per line"),
    (["--api-key-file", "BAD"], 4,
     "BAD: key 2 is not valid, expected ASCII letters, digits and punctuation"),
    (["--api-key-file", "nowhere"], 4, None),
    (["--model", "nowhere"], 4, None),
    (["--host", "256.1.1.1"], 4, None),
    (["--host", "203.0.113.5", "--port", "8000"], 4, None),
])  # fmt: skip
def test_a_wrong_command(tmp_path, arguments, code, said):
    (tmp_path / "EMPTY").write_text("# none\n\n")
    (tmp_path / "BAD").write_text("sk-good\nsk bad secret\n")
    full = [str(tmp_path / a) if a in ("EMPTY", "BAD") else a for a in arguments]
    if "--port" not in full:
        full += ["--port", "0"]
    done = subprocess.run(
        [sys.executable, "-m", "npgpt2", "serve", *full],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == code, done.stderr
    last = done.stderr.splitlines()[-1].replace(f"{tmp_path}/", "")
    assert last.startswith("npgpt2: error: ")
    assert "secret" not in done.stderr
    if said is not None:
        assert last == f"npgpt2: error: {said}"


def test_a_port_that_is_taken(server):
    done = subprocess.run(
        [sys.executable, "-m", "npgpt2", "serve", "--port", str(server.port)],
        capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 4
    assert done.stderr.splitlines()[-1] == (
        f"npgpt2: error: 127.0.0.1:{server.port}: Address already in use. "
        "Choose another address with --host or --port"
    )


def test_options_of_the_application_for_ray():
    from npgpt2.base.errors import OptionError
    from npgpt2.serve import app

    with pytest.raises(
        OptionError, match="colour: is not an option, expected one of model, revision"
    ):
        app({"colour": 1})
    with pytest.raises(OptionError, match="replicas: got 'two', expected an integer"):
        app({"replicas": "two"})
    with pytest.raises(OptionError, match="slots: got 0, expected 1 to 256"):
        app({"slots": 0})


def test_without_the_extra(monkeypatch):
    from npgpt2.cli import build_parser

    monkeypatch.setitem(sys.modules, "npgpt2.serve.api", None)
    args = build_parser().parse_args(["serve"])
    with pytest.raises(
        MissingPackage, match=r"serve: needs .*\. Run: pip install 'npgpt2\[serve\]'"
    ):
        args.run(args)


# ── nothing private, nothing lost ────────────────────────────────────────────────────────────────


def test_prompts_and_keys_are_never_logged(tmp_path):
    """Not even where the model fails over them: then its kind and its place are."""
    file = tmp_path / "keys"
    file.write_text("sk-secret\n")
    with served("--model", TINY, "--api-key-file", str(file), before="broken") as running:
        key = {"Authorization": "Bearer sk-secret"}
        for body in (
            {"prompt": "a secret prompt", "logit_bias": {"77": -100}},  # that fails over no chance
            {"prompt": "a secret prompt", "n": 0}, b'{"a secret',
            {"prompt": "x", "a secret": 1},
            {"prompt": [77], "max_tokens": 5, "logit_bias": {"77": 100}},
            {"prompt": [77], "max_tokens": 5, "stream": True, "logit_bias": {"77": 100}},
        ):  # fmt: skip
            running.request("POST", "/v1/completions", body, key)
            running.request("POST", "/v1/completions", body, {"Authorization": "Bearer a secret"})
        status, _, answer = running.request(
            "POST", "/v1/completions", {"prompt": [77], "logit_bias": {"77": 100}}, key
        )
        assert status == 500
        assert answer["error"] == {
            "message": "the model failed: ZeroDivisionError", "type": "server_error", "param": None,
            "code": "internal",
        }  # fmt: skip
        running.socket(b"GARBAGE a secret\r\n\r\n").close()
        # It goes on, and nobody else has noticed.
        fine = {"prompt": "KING", "temperature": 0}
        assert running.request("POST", "/v1/completions", fine, key)[0] == 200
    assert "secret" not in running.log
    assert running.log.count("npgpt2: error: ZeroDivisionError at fails, line ") == 3


def resident(process):
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) / 1024


@pytest.mark.slow
def test_soak(truth):
    """A mixed load of ten clients, `SOAK_REQUESTS` of each (60): no error, every text as if it were
    alone, memory flat."""
    most, chosen = int(os.environ.get("SOAK_REQUESTS", "60")), random.Random(0)
    requests = []
    for n in range(24):
        options = {"max_tokens": chosen.randrange(1, 40), "seed": n}
        options |= chosen.choice([{}, {"temperature": 0}, {"top_p": 0.8}, {"stop": ["e"]}])
        prompt = chosen.choice(["a", "KING", MERCY, MERCY * 2])
        ours = {"temperature": 1.0, "top_p": 1.0} | options
        ours["max_new_tokens"] = ours.pop("max_tokens")
        requests.append((prompt, options, str(truth.generate(prompt, **ours)[0])))
    done = {"whole": 0, "streamed": 0, "gone": 0, "full": 0}

    def work(seed):
        chosen = random.Random(seed)
        for _ in range(most // 4):
            prompt, options, want = chosen.choice(requests)
            how = chosen.choice(["whole", "streamed", "gone"])
            body = {"prompt": prompt, **options, "stream": how != "whole"}
            if how == "gone":
                connection = running.socket(post(json.dumps(body).encode()))
                time.sleep(chosen.random() * 0.05)
                connection.close()
                done["gone"] += 1
                continue
            status, _, answer = running.request("POST", "/v1/completions", body)
            if status == 429:
                done["full"] += 1
                continue
            assert status == 200, answer
            if how == "whole":
                text = answer["choices"][0]["text"]
            else:
                events = [json.loads(e[6:]) for e in answer.strip().split("\n\n")[:-1]]
                text = "".join(c["text"] for e in events for c in e["choices"])
            assert text == want
            done[how] += 1

    with served("--model", TINY, "--slots", "4", "--queue", "3") as running:
        for prompt, options, want in requests:
            assert running.complete(prompt, **options)["choices"][0]["text"] == want
        sizes = []
        for quarter in range(4):
            with concurrent.futures.ThreadPoolExecutor(10) as pool:
                for job in [pool.submit(work, 10 * quarter + n) for n in range(10)]:
                    job.result()
            sizes.append(resident(running.process))
        until(lambda: running.metric("npgpt2_texts_held") == 0)
        assert all(done.values()), done
        assert sizes[-1] < sizes[0] + 8, sizes
        assert "error" not in running.log
