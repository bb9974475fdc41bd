"""Texts as pages: what the model said of each token, and nothing that a text brings along."""

import json
import math
import re
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest
from command_line import runner

from npgpt2.base import document as documents
from npgpt2.generation.scoring import Score
from npgpt2.golden.page import _shades
from npgpt2.pictures.text import (
    DARK,
    DEEP,
    LIGHT,
    LISTED,
    PALE,
    PARAGRAPH,
    groups,
    ramp,
    surprise_page,
    tokens_page,
)
from npgpt2.tokenizer.library import LibraryTokenizer
from npgpt2.tokenizer.load import load_tokenizer
from npgpt2.tokenizer.sentence_piece import SentencePieceTokenizer

ENGLISH = "KING:\n\nTo be, or not to be.\n"
CHINESE = "很久以前，有一个国王。"
MIXED = f"{ENGLISH}{CHINESE}\n\tملك 👑👩‍👧 é \r\n\a<script>alert(1)</script> \"a\" & 'b'\n"


def shown(text):
    """As a page has it: control characters are signs."""
    return text.replace("\a", "␇")


class Page(HTMLParser):
    """What a browser makes of a page: the text's elements, the table's rows, every attribute."""

    def __init__(self, page):
        super().__init__()
        self.tokens, self.rows, self.attributes, self.tags, self.words = [], [], [], set(), ""
        self._place = None
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes += [(tag, *pair) for pair in attributes]
        attributes = dict(attributes)
        if tag == "i" and "title" in attributes:
            self.tokens.append([attributes, ""])
            self._place = "token"
        elif tag == "tr":
            self.rows.append([])
        elif tag == "td":
            self.rows[-1].append("")
            self._place = "cell"

    def handle_endtag(self, tag):
        if (tag, self._place) in (("i", "token"), ("td", "cell")):
            self._place = None

    def handle_data(self, data):
        self.words += data
        if self._place == "token":
            self.tokens[-1][1] += data
        elif self._place == "cell":
            self.rows[-1][-1] += data

    @property
    def text(self):
        return "".join(text for _, text in self.tokens)


@pytest.fixture
def npgpt2(capsys):
    return runner(capsys)


@pytest.fixture
def tokenizer(tiny):
    return load_tokenizer(tiny)


# ── groups ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("text", [ENGLISH, CHINESE, MIXED, "", "\ufffd\ufffd", "a<|endoftext|>b"])
def test_groups_are_the_text_and_every_token_once(tokenizer, text):
    ids = tokenizer.encode(text)
    found = list(groups(ids, tokenizer))
    assert "".join(part.text for part in found) == text
    assert [token for part in found for token in part.ids] == ids
    assert [part.start for part in found] == [
        sum(len(p.ids) for p in found[:n]) for n in range(len(found))
    ]


def test_a_group_is_the_fewest_tokens_that_are_whole_characters(tokenizer):
    for part in groups(tokenizer.encode(MIXED), tokenizer):
        data = [tokenizer.token_bytes(token) for token in part.ids]
        assert b"".join(data) == part.text.encode()
        for end in range(1, len(data)):
            with pytest.raises(UnicodeDecodeError):
                b"".join(data[:end]).decode()


def test_ids_that_end_within_a_character(tokenizer):
    ids = tokenizer.encode("a字")
    assert [part.text for part in groups(ids[:-1], tokenizer)] == ["a", "\ufffd"]


def test_a_library_gives_the_same_groups(tiny, tokenizer):
    """Its decoder decodes all that it has: it begins again and again."""
    library = LibraryTokenizer.from_file(tiny / "tokenizer.json")
    text = MIXED * 3
    ids = tokenizer.encode(text)
    assert list(groups(ids, library)) == list(groups(ids, tokenizer))


def test_words_of_other_vocabularies_have_their_spaces(tmp_path):
    words = ["[UNK]", "the", "king", "##s", "of", "字"]
    (tmp_path / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    known = load_tokenizer(tmp_path)
    text = " ".join(["the kings of 字"] * 9)
    found = list(groups(known.encode(text), known))
    assert "".join(part.text for part in found) == text
    assert [part.text for part in found[:6]] == ["the", " king", "s", " of", " 字", " the"]


def test_sentencepiece_with_bytes(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the king of the kings"] * 50), vocab_size=290,
        model_prefix=str(tmp_path / "spiece"), byte_fallback=True, hard_vocab_limit=False,
        minloglevel=2,
    )  # fmt: skip
    known = SentencePieceTokenizer(tmp_path / "spiece.model")
    text = "the king 字 of kings " * 8
    found = list(groups(known.encode(text), known))
    assert "".join(part.text for part in found) == known.decode(known.encode(text))
    assert [part.text for part in found if len(part.ids) == 3] == ["字"] * 8


# ── surprise ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("text", [ENGLISH, CHINESE, MIXED])
def test_the_numbers_are_the_models(model, text):
    score = model.score(text)
    page = Page(surprise_page(score, model.tokenizer, "tiny"))
    assert page.text == shown(text)
    said = [re.search(r": (\S+) nats, (\S+) %, (\S+) bits$", line)
            for attributes, _ in page.tokens for line in attributes["title"].split("\n")
            if not line.startswith("together")]  # fmt: skip
    assert len(said) == len(score.ids)
    assert said[0] is None
    for found, logprob in zip(said[1:], score.logprobs[1:].tolist(), strict=True):
        expected = (f"{logprob:.4f}", f"{100 * math.exp(logprob):.3g}",
                    f"{-logprob / math.log(2):.2f}")  # fmt: skip
        assert found.groups() == expected
    assert f"perplexity {score.perplexity:.4f}, {score.bits_per_byte:.4f} bits" in page.words
    assert f"{score.tokens} of {len(score.ids)} tokens scored" in page.words


def test_the_colour_is_by_the_sum_of_surprise(model):
    score = model.score("a字b")
    page = Page(surprise_page(score, model.tokenizer, "tiny"))
    (a, _), (character, text), (b, _) = page.tokens
    assert text == "字"
    bits = -score.logprobs / math.log(2)
    assert a["class"] == "u"
    assert character["class"] == f"s{min(12, int(bits[1:4].sum()))}"
    assert b["class"] == f"s{min(12, int(bits[4]))}"
    lines = character["title"].split("\n")
    assert [re.search(r"id (\d+)", line)[1] for line in lines[:3]] == ["162", "256", "246"]
    assert lines[3] == f"together {bits[1:4].sum():.2f} bits"


def test_a_token_that_was_not_scored_says_why(model):
    score = model.score([84] * 200, stride=model.config.n_positions)
    page = Page(surprise_page(score, model.tokenizer, "tiny"))
    unscored = [n for n, (attributes, _) in enumerate(page.tokens) if attributes["class"] == "u"]
    assert unscored == [0, 128]
    said = [page.tokens[n][0]["title"] for n in unscored]
    assert said == [
        "t, id 84: not scored, no token before it",
        "t, id 84: not scored, no token before it in its window",
    ]


def test_a_character_of_which_the_first_token_was_not_scored(model):
    score = model.score("字")
    ((attributes, _),) = Page(surprise_page(score, model.tokenizer, "tiny")).tokens
    bits = float(np.nansum(-score.logprobs)) / math.log(2)
    assert attributes["class"] == f"s{min(12, int(bits))}"
    assert attributes["title"].endswith(f"together {bits:.2f} bits")


def test_the_most_surprising_stand_below_in_their_lines(model):
    score = model.score(MIXED * 2)
    page = Page(surprise_page(score, model.tokenizer, "tiny"))
    rows = [row for row in page.rows if row]
    assert len(rows) == LISTED
    bits = [float(row[0]) for row in rows]
    assert bits == sorted(bits, reverse=True)
    parts = groups(score.ids.tolist(), model.tokenizer)
    sums = [-np.nansum(part.of(score.logprobs.tolist())) / math.log(2) for part in parts]
    assert bits == [float(f"{b:.2f}") for b in sorted(sums, reverse=True)[:LISTED]]
    for bit, percent, _ in rows:
        assert float(percent.removesuffix(" %")) == pytest.approx(
            100 * 2.0 ** -float(bit), rel=0.01
        )
    assert any("国王" in row[2] for row in rows)
    assert not any("\n" in row[2] for row in rows)


def test_what_has_no_width_is_named_in_the_table(model):
    page = Page(surprise_page(model.score("👩‍👧"), model.tokenizer, "tiny"))
    assert any("U+200D" in row[2] for row in page.rows if row)
    assert "U+200D" not in page.text


def test_a_surprise_beyond_all_numbers_is_the_last_step(tokenizer):
    ids = np.array(tokenizer.encode("abc"))
    score = Score(ids, np.array([np.nan, -1e4, 1e-9]), 2)
    classes = [a["class"] for a, _ in Page(surprise_page(score, tokenizer, "tiny")).tokens]
    assert classes == ["u", "s12", "s0"]


# ── borders ──────────────────────────────────────────────────────────────────────────────────────


def test_the_tokens_with_their_bytes(tokenizer):
    ids = tokenizer.encode(MIXED)
    page = Page(tokens_page(MIXED, ids, tokenizer, "tiny"))
    assert page.text == shown(MIXED)
    said = [re.search(r"id (\d+): ([0-9a-f ]+)$", line)
            for attributes, _ in page.tokens
            for line in attributes["title"].split("\n")]  # fmt: skip
    assert [int(found[1]) for found in said] == ids
    assert b"".join(bytes.fromhex(found[2]) for found in said) == MIXED.encode()
    size = len(MIXED.encode())
    assert (
        f"{len(ids)} tokens, {len(MIXED)} characters, {size} bytes; "
        f"{size / len(ids):.2f} bytes per token"
    ) in page.words


def test_neighbours_have_other_tints(tokenizer):
    page = Page(tokens_page(MIXED, tokenizer.encode(MIXED), tokenizer, "tiny"))
    tints = [attributes["class"].split()[0] for attributes, _ in page.tokens]
    assert set(tints) == {"t0", "t1", "t2", "t3"}
    assert all(a != b for a, b in pairwise(tints))


def test_a_character_says_how_many_tokens_it_is(tokenizer):
    page = Page(tokens_page("a字", tokenizer.encode("a字"), tokenizer, "tiny"))
    assert [attributes.get("data-n") for attributes, _ in page.tokens] == [None, "3"]


def test_special_tokens_are_marked(tokenizer):
    text = "a<|endoftext|>"
    for special, marked in ((True, [False, True]), (False, [False] * 13)):
        ids = tokenizer.encode(text, special=special)
        page = Page(tokens_page(text, ids, tokenizer, "tiny"))
        assert page.text == text
        marks = ["x" in attributes["class"].split() for attributes, _ in page.tokens]
        assert marks[:2] == marked[:2]
        assert sum(marks) == sum(marked)
        said = page.tokens[1][0]["title"].endswith("(special)")
        assert said is special


def test_no_token(tokenizer):
    page = Page(tokens_page("", [], tokenizer, "tiny"))
    assert page.tokens == []
    assert "0 tokens, 0 characters, 0 bytes" in page.words
    assert "per token" not in page.words


# ── the pages ────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(params=["score", "tokenize"])
def made(request, model):
    def make(text, name="tiny"):
        if request.param == "score":
            return surprise_page(model.score(text), model.tokenizer, name)
        return tokens_page(text, model.encode(text), model.tokenizer, name)

    return make


def test_a_text_is_never_markup(made):
    for text in (MIXED, "</div></body><script src=x></script><style>*{}</style><!-- -->", "&lt;b"):
        page = made(text, "<script>'\"")
        found = Page(page)
        assert found.text == shown(text)
        assert found.tags <= {"html", "meta", "title", "style", "body", "h1", "h2", "p", "i", "div",
                              "table", "thead", "tbody", "tr", "th", "td", "bdi"}  # fmt: skip
        assert "<script" not in page


def test_nothing_from_elsewhere_and_nothing_that_the_policy_refuses(made):
    page = made(MIXED)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "script" not in policy
    names = {(tag, name) for tag, name, _ in Page(page).attributes}
    assert names <= {("html", "lang"), ("meta", "charset"), ("meta", "http-equiv"),
                     ("meta", "content"), ("meta", "name"), ("p", "class"), ("i", "class"),
                     ("i", "title"), ("i", "data-n"), ("div", "class"),
                     ("div", "dir")}  # fmt: skip
    assert not re.search(r"https?:|url\(|@import", page)


def test_right_to_left(made):
    page = made("ab ملك 123\n")
    assert '<div class="text" dir="auto"><div>' in page
    assert "unicode-bidi: plaintext" in page


def test_a_piece_from_right_to_left_does_not_move_its_numbers(tmp_path):
    (tmp_path / "vocab.txt").write_text("[UNK]\nملك\nking", encoding="utf-8")
    known = load_tokenizer(tmp_path)
    page = Page(tokens_page("ملك king", known.encode("ملك king"), known, "words"))
    said = [attributes["title"] for attributes, _ in page.tokens]
    assert said == ["\u2068ملك\u2069, id 1: d9 85 d9 84 d9 83", "king, id 2: 6b 69 6e 67"]


def test_long_texts_are_cut_into_blocks_at_newlines(model):
    line = "To be, or not to be, that is the question.\n"
    text = line * 100
    ids = model.tokenizer.encode(text)
    page = tokens_page(text, ids, model.tokenizer, "tiny")
    blocks = re.search(r'dir="auto">(.*)</div>\n', page, re.DOTALL)[1].split("</div><div>")
    each = len(ids) // 100
    assert len(blocks) == math.ceil(len(ids) / (math.ceil(PARAGRAPH / each) * each))
    assert all(re.search(r"\n</i>(</div>)?$", block) for block in blocks)
    assert Page(page).text == text
    assert len(page) < 90 * len(ids) + 6000


def luminance(colour):
    """Relative, as WCAG reckons it."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def inks():
    """The colours of text, in light and in dark."""
    return re.search(r"--ink: light-dark\((#\w+), (#\w+)\)", documents.STYLE).groups()


@pytest.mark.parametrize(("colours", "theme"), [
    (ramp(LIGHT), 0), (ramp(DARK), 1), (PALE, 0), (DEEP, 1),
])  # fmt: skip
def test_text_is_legible_on_every_colour(colours, theme):
    ink = luminance(inks()[theme])
    for colour in colours:
        low, high = sorted((ink, luminance(colour)))
        assert (high + 0.05) / (low + 0.05) >= 4.5


def test_the_ramp_goes_one_way():
    light, dark = ([luminance(c) for c in ramp(ends)] for ends in (LIGHT, DARK))
    assert light == sorted(light, reverse=True)
    assert dark == sorted(dark)
    assert len(set(light)) == len(set(dark)) == 13


def test_every_class_of_a_page_has_its_rule(made):
    page = made(MIXED)
    style = re.search(r"<style>(.*)</style>", page, re.DOTALL)[1]
    used = {name for _, attribute, value in Page(page).attributes if attribute == "class"
            for name in value.split()}  # fmt: skip
    assert all(re.search(rf"\.{name}\b", style) for name in used), used
    assert all(f".{name} " in _shades() for name in ("g0", "g4", "r0", "r8"))


# ── the commands ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("command", ["score", "tokenize"])
@pytest.mark.parametrize("more", [(), ("--json",)])
def test_the_usual_output_and_a_page(npgpt2, tiny, tmp_path, command, more):
    usual = npgpt2(command, "To be 字", "--model", tiny, *more)
    code, out, err = npgpt2(
        command, "To be 字", "--model", tiny, "--html", tmp_path / "p.html", *more
    )
    assert (code, out) == usual[:2]
    assert code == 0
    words = {"score": "the text coloured by surprise",
             "tokenize": "token boundaries"}[command]  # fmt: skip
    assert err == f"npgpt2: {words}: {tmp_path / 'p.html'}\n"
    page = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert Page(page).text == "To be 字"
    assert "tiny</h1>" in page
    assert [path.name for path in tmp_path.iterdir()] == ["p.html"]


def test_the_page_has_what_json_says(npgpt2, tiny, tmp_path):
    out = npgpt2("score", "To be", "--model", tiny, "--json", "--html", tmp_path / "p.html")[1]
    data = json.loads(out)
    page = Page((tmp_path / "p.html").read_text(encoding="utf-8"))
    for (attributes, _), logprob in zip(page.tokens[1:], data["logprobs"][1:], strict=True):
        assert f": {logprob:.4f} nats" in attributes["title"]


def test_a_vocabulary_without_weights(npgpt2, tiny, tmp_path):
    (tmp_path / "v").mkdir()
    for name in ("tokenizer.json", "config.json"):
        (tmp_path / "v" / name).write_bytes((tiny / name).read_bytes())
    code, _, err = npgpt2(
        "tokenize", "To be", "--model", tmp_path / "v", "--html", tmp_path / "p.html"
    )
    assert code == 0, err
    assert Page((tmp_path / "p.html").read_text(encoding="utf-8")).text == "To be"


@pytest.mark.parametrize("command", ["score", "tokenize"])
@pytest.mark.parametrize(("file", "code", "text"), [
    ("", 2, "--html: got '', expected the name of a file to write"),
    ("no/p.html", 4, "no/p.html: its folder does not exist, expected one to write to"),
    (".", 4, ".: is a folder, expected the name of a file to write"),
])  # fmt: skip
def test_a_page_that_cannot_be_written(
    npgpt2, tiny, tmp_path, monkeypatch, command, file, code, text
):
    monkeypatch.chdir(tmp_path)
    got = npgpt2(command, "To be", "--model", tiny, "--html", file)
    assert got == (code, "", f"npgpt2: error: {text}\n")
    assert list(tmp_path.iterdir()) == []


def test_what_was_there_stays_when_writing_fails(npgpt2, tiny, tmp_path, monkeypatch):
    (tmp_path / "p.html").write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("npgpt2.base.files.fsync", full)
    code, out, err = npgpt2("tokenize", "To be", "--model", tiny, "--html", tmp_path / "p.html")
    assert (code, out) == (4, "")
    assert err == f"npgpt2: error: {tmp_path / 'p.html'}: No space left on device\n"
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("p.html", "old")]
