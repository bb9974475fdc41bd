"""Text ↔ ids: id for id what the `tokenizers` library says."""

import json
import random
import shutil
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from npgpt2 import load_tokenizer
from npgpt2.base.errors import MissingPackage, TokenizerError
from npgpt2.tokenizer.byte_pair import BytePairTokenizer, byte_alphabet

HARD = [
    "", " ", "\n", "  \n\n  x", "a  b   c    ", "\t\ttabs\t", "\r\n", "it's we'll I'VE 'tis don't'",
    "naïve café ﬁ Ⅷ ½ x² ٣٤", "汉字かなカナ한글", "مرحبا שלום", "👩‍👩‍👧‍👦 🇨🇭 👍🏽",
    "\u200d\ufeff\u00a0\u3000\u2028x",
    "\x00\x01\x7f\x85", "e\u0301 \u0600", "1234567890 3.14 1,000", "<|endoftext|>a<|endoftext|>",
    "<|endoftext", "Ġ Ċ ġ", "def f(x):\n    return x  # comment\n", "a" * 300,
    " " * 300, "ab" * 200,
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈 \U0010ffff",
]  # fmt: skip
PARTS = [
    *HARD[1:-6], " the", "'s", "'ll", "  ", "\n", "\u00a0", "\u1680", "\u200b", "7", "٣", "é", "ß",
    "Δ", "ж", "字", "🙂", "\u0301", "_", "--", "<|endoftext|>",
]  # fmt: skip


def strings(count, seed=0):
    """Strings of all kinds: pieces of hard ones, and characters from all of Unicode."""
    r = random.Random(seed)
    yield from HARD
    for _ in range(count - len(HARD)):
        if r.random() < 0.5:
            yield "".join(r.choices(PARTS, k=r.randint(1, 12)))
        else:
            high = r.choice([0x80, 0x250, 0x3000, 0x10000, 0x110000])
            points = (r.randrange(high) for _ in range(r.randint(1, 30)))
            yield "".join(chr(p) for p in points if not 0xD800 <= p < 0xE000)


def library(vocab, merges, tokens=("<|endoftext|>",)):
    """The same vocabulary in the `tokenizers` library."""
    tokenizers = pytest.importorskip("tokenizers", reason="the extra 'tokenizers' is not installed")
    peer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=merges))
    peer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    peer.decoder = tokenizers.decoders.ByteLevel()
    peer.add_special_tokens(list(tokens))
    return peer


def read(folder):
    vocab = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")[1:]
    return vocab, [tuple(line.split(" ")) for line in lines if line]


def shuffled(vocab, seed=1):
    ids = list(vocab.values())
    random.Random(seed).shuffle(ids)
    return dict(zip(vocab, ids, strict=True))


def compare(ours, peer, texts):
    for text in texts:
        ids = peer.encode(text).ids
        assert ours.encode(text) == ids, text
        assert ours.decode(ids) == peer.decode(ids, skip_special_tokens=False), text


def test_the_published_example(shared):
    tokenizer = load_tokenizer(shared("gpt2-vocabulary"))
    ids = tokenizer.encode("The meaning of life is")
    assert ids == [464, 3616, 286, 1204, 318]
    assert [tokenizer.piece(i) for i in ids] == ["The", "Ġmeaning", "Ġof", "Ġlife", "Ġis"]
    assert tokenizer.decode(ids) == "The meaning of life is"
    assert tokenizer.encode("<|endoftext|>") == [50256]
    assert tokenizer.size == 50257


def test_5000_strings_with_gpt2s_vocabulary(shared):
    vocab, merges = read(shared("gpt2-vocabulary"))
    compare(load_tokenizer(shared("gpt2-vocabulary")), library(vocab, merges), strings(5000))


def test_5000_strings_with_gpt2s_merges_and_shuffled_ids(shared):
    vocab, merges = read(shared("gpt2-vocabulary"))
    vocab = shuffled(vocab)
    special = {"<|endoftext|>": vocab["<|endoftext|>"]}
    compare(BytePairTokenizer(vocab, merges, special), library(vocab, merges), strings(5000, 1))


@pytest.mark.parametrize("ids", ["own", "shuffled"])
def test_5000_strings_with_a_vocabulary_of_512(tiny, ids):
    vocab, merges = read(tiny)
    vocab = vocab if ids == "own" else shuffled(vocab)
    special = {"<|endoftext|>": vocab["<|endoftext|>"]}
    compare(BytePairTokenizer(vocab, merges, special), library(vocab, merges), strings(5000, 2))


@pytest.mark.slow
def test_every_character_of_unicode(tiny):
    """Each alone, behind a letter and before one: where the kinds of characters are told apart."""
    vocab, merges = read(tiny)
    ours, peer = load_tokenizer(tiny), library(vocab, merges)
    for start in range(0, 0x110000, 0x400):
        points = [chr(p) for p in range(start, start + 0x400) if not 0xD800 <= p < 0xE000]
        text = "a" + "a".join(points) + " " + " ".join(points) + "1" + "1".join(points)
        if ours.encode(text) != peer.encode(text).ids:
            for char in points:
                for sample in (f"a{char}a", f" {char}", f"1{char}1", f"{char}{char} {char}!"):
                    assert ours.encode(sample) == peer.encode(sample).ids, hex(ord(char))
            pytest.fail(f"U+{start:04X} and on, together")


@given(st.text())
def test_decode_is_the_inverse_of_encode(text):
    tokenizer = load_tokenizer("tests/data/tiny")
    ids = tokenizer.encode(text, special=False)
    assert tokenizer.decode(ids) == text
    assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()


@given(st.lists(st.integers(0, 511), max_size=40))
def test_text_that_comes_token_by_token_is_the_text(ids):
    tokenizer = load_tokenizer("tests/data/tiny")
    decoder = tokenizer.decoder()
    pieces = [decoder.push(i) for i in ids]
    assert "".join([*pieces, decoder.finish()]) == tokenizer.decode(ids)


def test_only_whole_characters_come(tiny):
    tokenizer = load_tokenizer(tiny)
    ids = tokenizer.encode("a👍字")
    decoder = tokenizer.decoder()
    pieces = [decoder.push(i) for i in ids]
    assert [p for p in pieces if p] == ["a", "👍", "字"]
    assert len(pieces) > 3
    broken = tokenizer.decoder()
    assert broken.push(ids[1]) + broken.finish() == "\ufffd"


def test_special_tokens_as_text(tiny):
    tokenizer = load_tokenizer(tiny)
    assert tokenizer.encode("a<|endoftext|>b") == [*tokenizer.encode("a"), 0,
                                                   *tokenizer.encode("b")]  # fmt: skip
    plain = tokenizer.encode("<|endoftext|>", special=False)
    assert 0 not in plain
    assert tokenizer.decode(plain) == "<|endoftext|>" == tokenizer.decode([0])


def test_the_longer_added_token_wins():
    vocab = {char: i for i, char in enumerate(byte_alphabet())}
    added = {"<a>": 256, "<a>b": 257, "<a": 258}
    tokenizer = BytePairTokenizer(vocab, [], added)
    peer = library(vocab, [], added)
    compare(tokenizer, peer, ["<a>b", "<a>c", "x<<a>b<a>", "<a", "<<a"])


def test_tokenizer_json_of_every_form(tiny, tmp_path):
    """Merges as text and as pairs, with a prefix space and without: as `tokenizers` reads it."""
    tokenizers = pytest.importorskip("tokenizers")
    spec = json.loads((tiny / "tokenizer.json").read_text())
    pairs = [m.split(" ") if isinstance(m, str) else m for m in spec["model"]["merges"]]
    path = tmp_path / "tokenizer.json"
    for merges in (pairs, [" ".join(pair) for pair in pairs]):
        for prefix in (False, True):
            spec["model"]["merges"] = merges
            spec["pre_tokenizer"]["add_prefix_space"] = prefix
            path.write_text(json.dumps(spec))
            ours = load_tokenizer(tmp_path)
            assert isinstance(ours, BytePairTokenizer)
            peer = tokenizers.Tokenizer.from_file(str(path))
            for text in strings(300, 3):
                assert ours.encode(text) == peer.encode(text, add_special_tokens=False).ids, text


def test_added_tokens_beside_vocab_json(tiny, tmp_path):
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(tiny / name, tmp_path)
    (tmp_path / "added_tokens.json").write_text('{"<user>": 512}')
    settings = {"added_tokens_decoder": {"513": {"content": "<bot>"}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("<user><bot><|endoftext|>") == [512, 513, 0]
    assert tokenizer.size == 514
    (tmp_path / "tokenizer_config.json").write_text('{"add_prefix_space": true}')
    (tmp_path / "added_tokens.json").unlink()
    plain = load_tokenizer(tiny)
    assert load_tokenizer(tmp_path).encode("the") == plain.encode(" the")


def test_bert_and_unigram_vocabularies(tmp_path):
    tokenizers = pytest.importorskip("tokenizers", reason="the extra 'tokenizers' is not installed")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "king", "##s", "王", "了"]
    (tmp_path / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    bert = load_tokenizer(tmp_path)
    ids = bert.encode("The kings 王了")
    assert ids == [5, 6, 7, 8, 9]
    decoder = bert.decoder()
    text = "".join([*(decoder.push(i) for i in ids), decoder.finish()])
    assert text == bert.decode(ids) == "the kings 王 了"
    assert (bert.piece(7), bert.size, bert.token_bytes(8)) == ("##s", 10, "王".encode())
    with pytest.raises(TokenizerError, match="id 99"):
        bert.piece(99)

    unigram = tokenizers.SentencePieceUnigramTokenizer()
    unigram.train_from_iterator(["the king is dead, long live the king"] * 20, vocab_size=40,
                                show_progress=False)  # fmt: skip
    unigram.save(str(tmp_path / "tokenizer.json"))
    other = load_tokenizer(tmp_path)
    ids = other.encode("the king")
    assert ids == unigram.encode("the king").ids
    assert other.decode(ids) == "the king"


def test_a_sentencepiece_model(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece", reason="sentencepiece is not installed")
    (tmp_path / "text").write_text("the king is dead, long live the king\n" * 50)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"), model_prefix=str(tmp_path / "spiece"), vocab_size=21,
        minloglevel=2,
    )  # fmt: skip
    tokenizer = load_tokenizer(tmp_path)
    ids = tokenizer.encode("the king")
    decoder = tokenizer.decoder()
    assert "".join([*(decoder.push(i) for i in ids), decoder.finish()]) == "the king"
    assert b"".join(map(tokenizer.token_bytes, ids)) == b" the king"
    with pytest.raises(TokenizerError, match="id 4000"):
        tokenizer.piece(4000)


def test_tokens_that_the_small_files_name_stand_whole(tmp_path):
    """A vocabulary with <s> and </s> of its own, as many that are not English have."""
    vocab = {char: i for i, char in enumerate([*byte_alphabet(), "<s>", "</s>", "<pad>"])}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    assert len(load_tokenizer(tmp_path).encode("<s>")) == 3
    named = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "mask_token": "<mask>"}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(named))
    (tmp_path / "tokenizer_config.json").write_text('{"pad_token": "<pad>", "bos_token": null}')
    tokenizer = load_tokenizer(tmp_path)
    ids = tokenizer.encode("<s>a</s><pad><mask>")
    assert ids[:4] == [256, vocab["a"], 257, 258]
    assert len(ids) == 4 + len("<mask>")
    assert tokenizer.decode(ids) == "<s>a</s><pad><mask>"


@pytest.fixture
def bert(tmp_path):
    """A function: tokenizer_config.json's values → the tokenizer of a small vocab.txt."""
    pytest.importorskip("tokenizers", reason="the extra 'tokenizers' is not installed")

    def load(**settings):
        words = ["[PAD]", "[UNK]", "[SEP]", "cafe", "café", "Café", "王", "王了", "[BOS]"]
        (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
        return load_tokenizer(tmp_path)

    return load


@pytest.mark.parametrize(
    ("settings", "pieces"),
    [
        ({}, ["cafe", "王", "[UNK]"]),
        ({"strip_accents": False}, ["café", "王", "[UNK]"]),
        ({"do_lower_case": False}, ["Café", "王", "[UNK]"]),
        ({"do_lower_case": False, "strip_accents": True}, ["[UNK]", "王", "[UNK]"]),
        ({"tokenize_chinese_chars": False}, ["cafe", "王了"]),
    ],
)
def test_berts_switches(bert, settings, pieces):
    tokenizer = bert(**settings)
    assert [tokenizer.piece(token) for token in tokenizer.encode("Café 王了")] == pieces


def test_berts_added_tokens(bert, tmp_path):
    (tmp_path / "added_tokens.json").write_text('{"[HL]": 10, "[EOS]": 9}')
    tokenizer = bert(bos_token="[BOS]")
    text = "[BOS] café [HL] 王 [EOS]"
    ids = tokenizer.encode("[BOS] Café[HL]王[EOS]")
    assert ids == [8, 3, 10, 6, 9]
    assert tokenizer.decode(ids) == text.replace("é", "e")
    assert tokenizer.size == 11
    assert not {8, 9, 10} & set(tokenizer.encode(text, special=False))


def test_lengths_that_a_tokenizer_json_asks_for_are_settings_for_batches(tmp_path):
    tokenizers = pytest.importorskip("tokenizers", reason="the extra 'tokenizers' is not installed")
    peer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "a": 1}, "[UNK]"))
    peer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    peer.enable_truncation(5)
    peer.enable_padding(length=8)
    peer.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("a " * 20) == [1] * 20
    assert tokenizer.encode("a b") == [1, 0]


def test_ids_beyond_the_vocabulary_are_no_text(bert):
    """Many a model has more rows than its vocabulary has tokens."""
    decoder = bert().decoder()
    assert (
        "".join([decoder.push(3), decoder.push(9), decoder.push(6), decoder.finish()]) == "cafe 王"
    )


@pytest.fixture
def pieces(tmp_path):
    """A function: tokenizer_config.json's values → the tokenizer of a small spiece.model."""
    sentencepiece = pytest.importorskip("sentencepiece", reason="sentencepiece is not installed")
    (tmp_path / "text").write_text("the king is dead, long live the king\n" * 50)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"), model_prefix=str(tmp_path / "spiece"), vocab_size=285,
        minloglevel=2, byte_fallback=True, user_defined_symbols=["[PAD]"], hard_vocab_limit=False,
    )  # fmt: skip

    def load(**settings):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
        return load_tokenizer(tmp_path)

    return load


def test_sentencepiece_that_puts_no_space_before_a_text(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece", reason="sentencepiece is not installed")
    (tmp_path / "text").write_text("the king is dead, long live the king\n" * 50)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"), model_prefix=str(tmp_path / "spiece"), vocab_size=21,
        minloglevel=2, add_dummy_prefix=False, remove_extra_whitespaces=False,
    )  # fmt: skip
    tokenizer = load_tokenizer(tmp_path)
    for text in ("the king", " the king", "  the  king "):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_sentencepiece_with_whole_tokens(pieces, tmp_path):
    tokenizer = pieces(pad_token="[PAD]")
    the = tokenizer.encode("the")
    assert tokenizer.encode("<s>the</s>[PAD]the<unk>") == [1, *the, 2, 3, *the, 0]
    assert tokenizer.decode([1, *the, 2, *the, 0]) == "<s> the</s> the<unk>"
    assert tokenizer.decode(the) == "the"
    assert {0, 1, 2}.isdisjoint(tokenizer.encode("<s></s>", special=False))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<user>": tokenizer.size + 4}))
    more = pieces()
    assert more.size == tokenizer.size + 5
    ids = more.encode("<user>the")
    assert ids == [more.size - 1, *the]
    assert (more.piece(ids[0]), more.token_bytes(ids[0])) == ("<user>", b"<user>")
    with pytest.raises(TokenizerError, match="expected 0 to"):
        more.piece(tokenizer.size + 1)


def test_sentencepiece_in_lower_case(pieces):
    assert pieces(do_lower_case=True).encode("The KING<s>") == pieces().encode("the king<s>")
    assert pieces().encode("The KING") != pieces().encode("the king")


def test_sentencepiece_with_bytes(pieces):
    tokenizer = pieces()
    ids = tokenizer.encode("king 王👍")
    assert b"".join(map(tokenizer.token_bytes, ids)) == " king 王👍".encode()
    decoder = tokenizer.decoder()
    parts = [decoder.push(token) for token in ids]
    assert [part for part in parts if part][-2:] == ["王", "👍"]
    assert "".join(parts) + decoder.finish() == tokenizer.decode(ids) == "king 王👍"
    assert tokenizer.decode(ids[:-1]).endswith("\ufffd")
    assert decoder.push(tokenizer.size + 5) == ""


def test_another_kind_without_the_extra_names_it(tmp_path, monkeypatch):
    (tmp_path / "vocab.txt").write_text("[UNK]\nthe")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingPackage, match=r"pip install 'npgpt2\[tokenizers\]'"):
        load_tokenizer(tmp_path)


def test_one_megabyte_of_one_letter(tiny):
    tokenizer = load_tokenizer(tiny)
    for char in "a ":
        assert tokenizer.decode(tokenizer.encode(char * 1_000_000)) == char * 1_000_000
