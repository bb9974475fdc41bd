"""The page of a prompt: its numbers are the model's, its texts are no markup, nothing leaves it."""

import base64
import hashlib
import html.parser
import json
import re
import zlib

import numpy as np
import pytest
from command_line import runner

from npgpt2 import GPT2, GenerationOptions, GPT2Config
from npgpt2.base.errors import CheckpointError, InputError
from npgpt2.model.forward import lm_head
from npgpt2.model.ops import layer_norm, softmax
from npgpt2.pictures.explain import WEB, explain_page, live_page
from npgpt2.pictures.record import Kept, certain, kept, likeliest, record

PROMPT = "O Romeo, Romeo! wherefore"
GREEDY = GenerationOptions(temperature=0, max_new_tokens=3)


@pytest.fixture
def run(capsys):
    return runner(capsys)


class Page(html.parser.HTMLParser):
    """What a browser would find in a file: its elements, and the text in each kind of them."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self._open = [], {}, None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._open = f"{tag}:{dict(attrs).get('type', '')}"

    def handle_endtag(self, tag):
        self._open = None

    def handle_data(self, data):
        if self._open:
            self.texts.setdefault(self._open, []).append(data)

    @property
    def policy(self):
        return next(attrs["content"] for tag, attrs in self.elements if "http-equiv" in attrs)

    @property
    def data(self):
        return json.loads("".join(self.texts["script:application/json"]))


def opened(page):
    """The page's data, read from the file by another hand than the one that wrote it."""
    data = Page(page).data
    packed = zlib.decompress(base64.b64decode(data["packed"]))
    arrays, start = {}, 0
    for name, shape, width, decimals in data["about"]["arrays"]:
        size = int(np.prod(shape))
        raw = packed[start : start + size * (width or 4)]
        start += len(raw)
        if width == 0:
            arrays[name] = np.frombuffer(raw, "<f4").reshape(shape), 0.0
            continue
        folded = np.zeros(size, np.int64)
        for plane in range(width):
            bytes_ = np.frombuffer(raw, np.uint8, size, plane * size)
            folded |= bytes_.astype(np.int64) << (8 * plane)
        numbers = np.where(folded % 2, -(folded // 2) - 1, folded // 2)
        arrays[name] = (numbers / 10**decimals).reshape(shape), 0.5 / 10**decimals
    assert start == len(packed)
    return data["about"], arrays


def holds(shown, wanted):
    """Equal to the digits shown: half of the last one off at most."""
    numbers, half = shown
    assert numbers.shape == wanted.shape
    assert np.abs(numbers - wanted).max() <= half * (1 + 1e-6)


SWITCHES = {
    "as it is": {},
    "scaled by layer": {"scale_attn_by_inverse_layer_idx": True},
    "not scaled": {"scale_attn_weights": False},
    "heads pruned": {"pruned_heads": {0: [1], 1: [0]}},
    "its own head": {"tie_word_embeddings": False},
    "wide MLP": {"n_inner": 40, "activation_function": "relu"},
}


class Letters:
    """A vocabulary without files: an id is a letter."""

    size = 256

    def encode(self, text, special=True):
        return [ord(letter) % 11 for letter in text]

    def token_bytes(self, token):
        return bytes([token + 97])

    def piece(self, token):
        return chr(token + 97)


@pytest.mark.parametrize("switches", SWITCHES.values(), ids=SWITCHES)
def test_every_array_is_the_models(small, switches):
    model = small("float32", **switches)
    model.__dict__ |= {"tokenizer": Letters(), "has_vocabulary": True}
    about, arrays = opened(explain_page(record(model, "romeo", GREEDY, "small")))
    taps = {}
    ids = about["ids"]
    out = model([ids], tap=lambda name, array: taps.__setitem__(name, array[0].copy()))
    config = model.config
    for name, shown in arrays.items():
        if name in taps and not name.endswith(("mlp.c_fc", "mlp.act")):
            holds(shown, taps[name])
    streams = [taps["embed"]]
    for i in range(config.n_layer):
        at = f"h.{i}."
        heads, d = config.heads_left(i), config.head_dim
        q, k, _ = taps[at + "attn.c_attn"].reshape(len(ids), 3, heads, d).transpose(1, 2, 0, 3)
        scores = q @ k.swapaxes(1, 2)
        holds(arrays[at + "attn.scores"], scores)
        holds(arrays[at + "attn.mean"], taps[at + "attn.probs"].mean(0))
        holds(arrays[at + "attn.scaled"], scores * config.attention_scale(i))
        neurons = arrays[at + "mlp.neurons"][0].astype(int)
        act = taps[at + "mlp.act"]
        holds(arrays[at + "mlp.act"], np.take_along_axis(act, neurons, -1))
        holds(arrays[at + "mlp.c_fc"], np.take_along_axis(taps[at + "mlp.c_fc"], neurons, -1))
        assert np.abs(np.sort(-np.abs(act))[:, : neurons.shape[1]]).sum() == pytest.approx(
            np.abs(np.take_along_axis(act, neurons, -1)).sum()
        )
        parts = [taps[at + part] for part in ("attn.c_proj", "resid_attn", "mlp.c_proj")]
        streams += [*parts, taps[at + "resid_mlp"]]
    holds(arrays["sizes"], np.stack([np.sqrt((x.astype("f8") ** 2).sum(-1)) for x in streams]))
    probs = softmax(out.logits[0].astype("f8"))
    holds(arrays["given"], probs[np.arange(len(ids) - 1), ids[1:]])
    assert (arrays["last"][0] == model.stepper()(np.array([ids]))[0]).all()
    # every tap of a block is there, in one form or another
    assert {name for name in taps if name != "logits"} <= arrays.keys()


def test_what_each_block_would_say(model):
    about, arrays = opened(explain_page(record(model, PROMPT, GREEDY)))
    out = model([about["ids"]], output_hidden_states=True)
    stops = [layer_norm(x, *model.params.ln_f, 1e-5) for x in out.hidden_states[:-1]]
    for stop, x in enumerate([*stops, out.hidden_states[-1]]):
        probs = softmax(lm_head(x, model.params)[0].astype("f8"))
        ids = arrays["lens.ids"][0][stop].astype(int)
        holds((arrays["lens.probs"][0][stop], 0.5e-4), -np.sort(-probs)[:, :5])
        np.testing.assert_allclose(
            np.take_along_axis(probs, ids, -1), -np.sort(-probs)[:, :5], rtol=1e-6
        )


def test_what_it_wrote_is_what_generate_writes(model):
    options = GenerationOptions(seed=7, max_new_tokens=9, temperature=1.1, top_k=40)
    found = record(model, PROMPT, options)
    [same] = model.generate(PROMPT, seed=7, max_new_tokens=9, temperature=1.1, top_k=40)
    written = found.about["written"]
    assert (written["ids"], written["finish"]) == (same.ids, "length")
    assert [round(u, 6) for u in written["uniforms"][:2]] == [0.872073, 0.295365]
    ids = [*found.about["ids"], *same.ids]
    probs = softmax(model([ids]).logits[0].astype("f8"))[len(found.about["ids"]) - 1 : -1]
    shown = found.arrays["written.chosen"]
    assert np.abs(shown.numbers / 1e4 - probs[np.arange(9), same.ids]).max() < 0.51e-4
    assert found.arrays["written.ids"].numbers.shape == (9, 20)
    assert (found.arrays["written.ids"].numbers[:, 0] == probs.argmax(-1)).all()


def test_where_the_text_ends(small, model):
    ended = small("float32", eos_token_id=[*range(23)])  # whatever it says ends the text
    ended.__dict__ |= {"tokenizer": Letters(), "has_vocabulary": True}
    written = record(ended, "romeo", GREEDY)
    assert written.about["written"] == {"ids": [], "finish": "eos", "uniforms": None}
    assert written.arrays["written.ids"].numbers.shape == (1, 20)
    full = record(model, PROMPT, GenerationOptions(temperature=0, max_new_tokens=1000))
    assert full.about["written"]["finish"] == "context"
    assert len(full.about["ids"]) + len(full.about["written"]["ids"]) == 128


def test_numbers_as_they_are_shown():
    assert kept(np.zeros(3), 2) == (pytest.approx(np.zeros(3)), 2)
    assert kept(np.array([1e9, 1.0, 1.0]), 2).decimals == 0  # it has to fit into 32 bits
    assert kept(np.array([1e12, 1e12]), 2).decimals == -3
    assert certain(np.array([0.00004, 0.00006, 1.0])).numbers.tolist() == [0, 1, 10000]
    ids, probs = likeliest(np.log([0.3, 0.1, 0.3, 0.3]), 3)  # of equal ones the first ids
    assert ids.tolist() == [0, 2, 3]
    assert probs.tolist() == pytest.approx([0.3, 0.3, 0.3])


def test_bytes_are_folded_and_unfolded():
    numbers = np.array([[0, -1, 1, 127, -128, 128], [300, -70000, 2**31 - 1, -(2**31), 5, 6]])
    some = record.__globals__["Record"](
        {"model": {"name": "x"}, "arrays": [["a", numbers.shape, 4, 0], ["b", [2], 2, 1]]},
        {"a": Kept(numbers), "b": Kept(np.array([130, -131], np.int32), 1)},
    )
    _, arrays = opened(explain_page(some))
    assert (arrays["a"][0] == numbers).all()
    assert arrays["b"][0].tolist() == [13.0, -13.1]


EVIL = "</script><script>alert(1)</script><!-- \x00 \u202e שלום 很久以前 👩‍👩‍👧 ]]> & \u2028"


def test_a_prompt_is_data(model):
    page = explain_page(record(model, EVIL, GREEDY, "<b>&"))
    found = Page(page)
    assert [tag for tag, _ in found.elements].count("script") == 2
    assert found.data["about"]["prompt"] == EVIL
    assert found.data["about"]["model"]["name"] == "<b>&"
    assert not any(
        name.startswith("on") or name == "style" for _, a in found.elements for name in a
    )
    pieces = found.data["about"]["pieces"]
    whole = b"".join(
        piece.encode() if isinstance(piece := pieces[str(i)], str) else bytes(piece)
        for i in found.data["about"]["ids"]
    )
    assert whole.decode() == EVIL


def test_its_policy_names_its_own_script_and_style(model):
    page = explain_page(record(model, PROMPT, GREEDY))
    found = Page(page)

    def digest(kind):
        [text] = re.findall(rf"<{kind}(?: type=\"module\")?>(.*?)</{kind}>", page, re.DOTALL)
        return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"

    assert found.policy.split("; ") == [
        "default-src 'none'", f"style-src {digest('style')}", "base-uri 'none'",
        "form-action 'none'", f"script-src {digest('script')}",
        "require-trusted-types-for 'script'",
    ]  # fmt: skip


def test_nothing_in_its_scripts_makes_markup_or_asks_for_anything():
    forbidden = re.compile(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function"
        r"|XMLHttpRequest|WebSocket|sendBeacon|https?://(?!www\.w3\.org/2000/svg|localhost)"
    )
    for path in WEB.glob("*.*js"):
        assert not forbidden.search(path.read_text("utf-8")), path.name
        assert "fetch(" not in path.read_text("utf-8") or path.name == "worker.mjs"


def test_a_live_page_may_start_its_worker_and_no_more():
    found = Page(live_page(GPT2Config(), "gpt2", "</script>", GREEDY))
    assert "worker-src 'self'" in found.policy
    assert found.data["prompt"] == "</script>"
    assert found.data["about"]["model"]["eos"] == [50256]


@pytest.mark.slow
def test_a_page_of_the_124m_shape_has_at_most_3_megabytes():
    """24 tokens. Random weights: what is read of trained ones is not longer."""
    model = GPT2.from_random(GPT2Config())

    class Words:
        def encode(self, text, special=True):
            return np.random.default_rng(0).integers(0, 50257, 24).tolist()

        def token_bytes(self, token):
            return f" w{token}".encode()

    model.__dict__ |= {"tokenizer": Words(), "has_vocabulary": True}
    page = explain_page(record(model, "words", GenerationOptions(seed=0, max_new_tokens=20)))
    assert len(page.encode()) <= 3_000_000


def test_the_same_words_the_same_page(run, tmp_path):
    for name in ("a", "b"):
        code, out, _ = run("explain", PROMPT, "-o", tmp_path / name, "--model", "tests/data/tiny")
        assert code == 0
        assert out == f"{tmp_path / name}: {(tmp_path / name).stat().st_size:,} bytes\n"
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    about = Page((tmp_path / "a").read_text("utf-8")).data["about"]
    assert about["model"]["name"] == "tiny"
    assert about["options"] == {"temperature": 0.8, "top_k": None, "top_p": 0.95, "min_p": None}
    assert len(about["written"]["ids"]) == 20


def test_options_reach_it(run, tmp_path):
    code, *_ = run(
        "explain", PROMPT, "-o", tmp_path / "p", "--model", "tests/data/tiny", "--top-k", 3,
        "--temperature", 1.5, "--top-p", 1, "--min-p", 0.1, "--seed", 3, "--max-new-tokens", 2,
        "--dtype", "float64",
    )  # fmt: skip
    assert code == 0
    about = Page((tmp_path / "p").read_text("utf-8")).data["about"]
    assert about["options"] == {"temperature": 1.5, "top_k": 3, "top_p": 1.0, "min_p": 0.1}
    [text] = GPT2.from_pretrained("tests/data/tiny", dtype="float64").generate(
        PROMPT, top_k=3, temperature=1.5, top_p=1.0, min_p=0.1, seed=3, max_new_tokens=2
    )
    assert about["written"]["ids"] == text.ids


WRONG = {
    (): (2, "PROMPT: got none, expected a text. Write it in quotes"),
    ("",): (3, "prompt: is empty, expected at least one token. For a text without a prompt give "
               "'<|endoftext|>'"),
    ("a" * 60, "--max-new-tokens", 0): (
        2, "--max-new-tokens: got 0, expected an integer from 1"),
    ("a", "-o", ""): (2, "--out: got '', expected the name of a file to write"),
    ("a", "-o", "none/such.html"): (
        4, "none/such.html: its folder does not exist, expected one to write to"),
    ("a", "--force"): (2, "--force: applies only to a live page. Add --live, or leave it out"),
    ("a", "--node-modules", "x"): (
        2, "--node-modules: applies only to a live page. Add --live, or leave it out"),
    ("a", "--top-p", 2): (2, "--top-p: got 2.0, expected a number above 0 and up to 1"),
    ("--live",): (2, "--out: got none, expected a folder to create. Add -o DIR"),
    ("--live", "-o", "x", "--dtype", "float64"): (
        2, "--dtype: does not apply to a live page. Leave it out"),
}  # fmt: skip


@pytest.mark.parametrize(("argv", "answer"), WRONG.items(), ids=map(str, WRONG))
def test_one_clear_line(run, monkeypatch, tmp_path, tiny, argv, answer):
    monkeypatch.setenv("NPGPT2_MODEL", str(tiny))
    monkeypatch.chdir(tmp_path)
    code, out, err = run("explain", *argv)
    assert (code, out) == (answer[0], "")
    assert err == f"npgpt2: error: {answer[1]}\n"
    assert list(tmp_path.iterdir()) == []


def test_a_prompt_that_is_too_long(model, monkeypatch):
    monkeypatch.setattr("npgpt2.pictures.record.MOST", 5)
    words = "prompt: got 6 tokens, expected 5 at most on a page. Shorten it"
    with pytest.raises(InputError, match=re.escape(words)):
        record(model, "aaaaaa", GREEDY)


def test_weights_that_are_not_numbers(model):
    wte = model.params.wte.weight.copy()
    wte[5] = np.nan
    model.set_input_embeddings(wte)
    with pytest.raises(CheckpointError, match="logits: NaN or infinity"):
        record(model, PROMPT, GREEDY)


def test_open_shows_the_page(run, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr("webbrowser.open", shown.append)
    code, *_ = run("explain", "king", "--model", "tests/data/tiny", "-o", tmp_path / "p", "--open")
    assert code == 0
    assert shown == [(tmp_path / "p").as_uri()]
