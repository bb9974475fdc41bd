"""Text ↔ ids: id for id what the `tokenizers` library says."""

import json
import random
import shutil
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from npgpt2 import load_tokenizer
from npgpt2.errors import MissingPackage, TokenizerError
from npgpt2.tokenizer import BytePairTokenizer, byte_alphabet

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


def test_another_kind_without_the_extra_names_it(tmp_path, monkeypatch):
    (tmp_path / "vocab.txt").write_text("[UNK]\nthe")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingPackage, match=r"pip install 'npgpt2\[tokenizers\]'"):
        load_tokenizer(tmp_path)


def test_one_megabyte_of_one_letter(tiny):
    tokenizer = load_tokenizer(tiny)
    for char in "a ":
        assert tokenizer.decode(tokenizer.encode(char * 1_000_000)) == char * 1_000_000
