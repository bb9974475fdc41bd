"""From text files to batches: nothing lost, nothing doubled, the same every time."""

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from command_line import uncovered
from hypothesis import given
from hypothesis import strategies as st
from patience import PATIENCE

from npgpt2 import load_tokenizer
from npgpt2.base.errors import FileError, InputError, MissingPackage, OptionError
from npgpt2.tokenizer.byte_pair import BytePairTokenizer, byte_alphabet
from npgpt2.tokenizer.interface import END
from npgpt2.train import corpus
from npgpt2.train.corpus import Batch, Texts, Windows, encode, validation_batches
from npgpt2.train.vocabulary import train_vocabulary

# Where pieces could go wrong: white space of all kinds, signs that join, halves of <|endoftext|>.
PARTS = [
    " ", " ", "\n", "\r\n", "\t", "\u00a0", "\u3000", "\u2028", "\x85", "\x1c", "\u200b", "a",
    "the", "'s", "'", "ll", "7", "٣", "é", "e\u0301", "字", "👩‍👩", "--", "!", "\ufeff", "\x00",
    END, END, "<|endof", "text|>", "<", "|>",
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(PARTS), max_size=30).map(
    lambda parts: "".join(parts).lstrip("\ufeff")  # at a file's start one is dropped
)
FRACTIONS = st.sampled_from([0, 0.1, 0.25, 0.5, 0.9])
PIECES = st.sampled_from([1, 2, 3, 5, 8, 13, 40])


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("tests/data/tiny")


@pytest.fixture
def write(tmp_path):
    """A function: texts or bytes → files a.txt, b.txt, … in an empty folder."""

    def make(*texts):
        files = [tmp_path / "in" / f"{chr(97 + i)}.txt" for i in range(len(texts))]
        (tmp_path / "in").mkdir(exist_ok=True)
        for file, text in zip(files, texts, strict=True):
            file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return files

    return make


def python(code, *args, **env):
    argv = [sys.executable, "-W", "error", "-c", code, *map(str, args)]
    return subprocess.run(
        argv, capture_output=True, text=True, env=uncovered() | env, timeout=PATIENCE, check=False
    )


def stream(texts, part, whole=False):
    """The pieces of a part, joined between the ENDs."""
    parts = re.split(f"({re.escape(END)})", "".join(texts.pieces(part, whole)))
    return [part for part in parts if part]


def expected_stream(files, start, stop):
    """The same, from the texts of the files in memory."""
    found, at = [], 0
    for text in files:
        for number, document in enumerate(text.split(END)):
            at += len(END) * (number > 0)
            if inside := document[max(start - at, 0) : max(stop - at, 0)]:
                found += [END, inside] if at >= start else [inside]
            at += len(document)
    return found


# ── files ────────────────────────────────────────────────────────────────────────────────────────


def test_the_merges_of_another_run_are_no_text(write, tmp_path):
    [a] = write("text")
    for name in ("merges.txt", "vocab.txt"):
        (tmp_path / "in" / name).write_text("a b")
    assert Texts.open([tmp_path / "in"], 0).files == (a,)
    assert Texts.open([tmp_path / "in" / "merges.txt"], 0).characters == 3  # named, it is


def test_counts(write):
    files = write("Öl\r\n", "", "字 👍")
    texts = Texts.open(files, 0.5)
    assert texts.files == tuple(files)
    assert (texts.characters, texts.bytes, texts.cut) == (7, 5 + 8, 3)
    joined = f"Öl\r\n{END}{END}字 👍".encode()
    assert texts.sha256 == hashlib.sha256(joined).hexdigest()


def test_the_hash_of_one_file_is_the_files(write):
    (file,) = write("the king\n" * 20_000)
    assert Texts.open([file], 0).sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


def test_the_hash_tells_documents_apart(write):
    corpora = [["the king"], ["the ", "king"], ["the", " king"], ["the", "", " king"]]
    assert len({Texts.open(write(*texts), 0).sha256 for texts in corpora}) == 4


def test_a_folder_stands_for_its_txt_files(tmp_path):
    folder = tmp_path / "texts"
    for name in ("b.txt", "a/z.txt", "a.txt", "c.md", "a/deep/y.txt", "txt", "d.txt/e.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    last = tmp_path / "0.md"
    last.write_text("x")
    names = ["a/deep/y.txt", "a/z.txt", "a.txt", "b.txt", "d.txt/e.txt"]
    assert Texts.open([folder, last], 0).files == (*(folder / name for name in names), last)
    assert Texts.open([str(last), str(folder)], 0).files[0] == last


@pytest.mark.parametrize("piece", [1, 2, 3, 4, 2**16])
def test_a_byte_order_mark_is_dropped_at_the_start_of_a_file_only(write, monkeypatch, piece):
    monkeypatch.setattr(corpus, "PIECE", piece)
    texts = Texts.open(write("\ufeffÖ\ufeff", "\ufeff\ufeffb"), 0)
    assert stream(texts, "train") == [END, "Ö\ufeff", END, "\ufeffb"]
    assert (texts.characters, texts.bytes) == (4, 2 + 3 + 3 + 1)


@pytest.mark.parametrize(
    ("characters", "fraction", "cut"),
    [
        (1_115_394, 0.1, 1_003_854),  # tiny-shakespeare, as nanoGPT cuts it
        (10, 0.9, 1),  # (1 - 0.9) * 10 is 0.9999999999999998
        (1000, 0.3, 700),
        (100, 0.07, 93),  # int(100 * (1 - 0.07)) is 92
        (7, 0, 7),
        (7, 0.0, 7),
        (3, 0.5, 1),
        (5, 0.999, 0),
        (10**6, 1e-05, 999_990),
    ],
)
def test_the_cut(write, characters, fraction, cut):
    assert Texts.open(write("a" * characters), fraction).cut == cut


@given(st.integers(1, 3000), st.integers(0, 999))
def test_the_cut_of_every_decimal_fraction(characters, thousandths):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "a.txt")
        file.write_text("a" * characters)
        cut = Texts.open([file], thousandths / 1000).cut
    assert cut == int(characters * (1 - Fraction(thousandths, 1000)))


@given(st.lists(TEXTS, min_size=1, max_size=3), FRACTIONS, PIECES)
def test_both_parts_are_the_text_whatever_the_pieces(files, fraction, piece):
    files = ["x", *files]  # not blank
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "PIECE", piece)
        paths = [Path(folder, f"{i}.txt") for i in range(len(files))]
        for path, text in zip(paths, files, strict=True):
            path.write_bytes(text.encode())
        texts = Texts.open(paths, fraction)
        assert texts.characters == sum(map(len, files))
        for whole in (False, True):
            train = expected_stream(files, 0, texts.cut)
            assert stream(texts, "train", whole) == train
            val = expected_stream(files, texts.cut, texts.characters)
            assert stream(texts, "val", whole) == val
        # Whole documents are one piece each.
        assert list(texts.pieces("train", whole=True)) == train


def test_where_validation_begins(write):
    files = write("ab", f"cd{END}efgh")  # 2 + 2 + 13 + 4 characters
    inside = Texts.open(files, 3 / 21)
    assert inside.cut == 18
    assert list(inside.pieces("val")) == ["fgh"]
    between = Texts.open(files, 4 / 21)
    assert between.cut == 17
    assert list(between.pieces("val")) == [END, "efgh"]
    at_a_file = Texts.open(files, 0.9)
    assert at_a_file.cut == 2
    assert list(at_a_file.pieces("val")) == [END, "cd", END, "efgh"]
    within_the_separator = Texts.open(files, 10 / 21)
    assert within_the_separator.cut == 11
    assert list(within_the_separator.pieces("train")) == [END, "ab", END, "cd"]
    assert list(within_the_separator.pieces("val")) == [END, "efgh"]
    nothing = Texts.open(files, 0)
    assert list(nothing.pieces("val")) == []
    all_of_it = Texts.open(files, 0.99)
    assert list(all_of_it.pieces("train")) == []


@pytest.mark.parametrize("piece", [1, 100])
@pytest.mark.parametrize("text", ["the king ", "the\r\n", "the\n\n  ", "字字\u3000", "a\n"])
def test_pieces_are_small_where_there_is_white_space(write, monkeypatch, text, piece):
    monkeypatch.setattr(corpus, "PIECE", piece)
    texts = Texts.open(write(text * 200), 0)
    assert max(map(len, texts.pieces("train"))) < piece + 2 * len(text) + len(END)


def test_a_piece_grows_until_there_is_white_space(write, monkeypatch):
    monkeypatch.setattr(corpus, "PIECE", 100)
    texts = Texts.open(write("a" * 1000 + " " + "b" * 500), 0)
    assert list(texts.pieces("train")) == [END, "a" * 1000, " " + "b" * 500]


# ── bad files ────────────────────────────────────────────────────────────────────────────────────


def fails(error, *args):
    with pytest.raises(error) as caught:
        Texts.open(*args)
    assert type(caught.value) is error
    return str(caught.value)


@pytest.mark.parametrize(
    "fraction", [-0.1, 1, 1.0, 2, float("nan"), float("inf"), "0.1", None, True]
)
def test_a_fraction_outside_its_range(write, fraction):
    said = fails(OptionError, write("text"), fraction)
    assert said == f"val_fraction: got {fraction!r}, expected a number from 0 to below 1"


def test_files_that_are_none(tmp_path, write):
    (good,) = write("text")
    missing = tmp_path / "none.txt"
    assert fails(FileError, [good, missing], 0.1) == f"{missing}: No such file or directory"
    fifo = tmp_path / "fifo.txt"
    os.mkfifo(fifo)
    said = f"{fifo}: is not a regular file, expected a file"
    assert fails(FileError, [fifo], 0.1) == said
    assert fails(FileError, [tmp_path], 0.1) == said  # it is not passed over in a folder either
    device = "/dev/zero: is not a regular file, expected a file"
    assert fails(FileError, ["/dev/zero"], 0.1) == device
    fifo.unlink()
    (tmp_path / "in" / "link.txt").symlink_to(missing)
    said = f"{tmp_path}/in/link.txt: is a link to {missing}, which is not there. Download again"
    assert fails(FileError, [tmp_path], 0.1) == said
    below = good / "below.txt"
    assert fails(FileError, [below], 0.1) == f"{below}: Not a directory"


def test_a_folder_without_text_files(tmp_path):
    (tmp_path / "note.md").write_text("text")
    said = f"{tmp_path}: has no *.txt file, expected at least one. Name the files"
    assert fails(FileError, [tmp_path], 0.1) == said


def test_what_may_not_be_read(tmp_path, write, monkeypatch):
    (good,) = write("text")
    scandir = os.scandir

    def refuse(path):
        if Path(path) == good.parent:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert fails(FileError, [tmp_path], 0.1) == f"{good.parent}: Permission denied"

    def refused(*args):
        raise PermissionError(13, "Permission denied", str(good))

    monkeypatch.setattr(Path, "open", refused)
    assert fails(FileError, [good], 0.1) == f"{good}: Permission denied"


@pytest.mark.parametrize("texts", [[], [""], ["", ""], [" \n", "\t\u3000"], ["\ufeff"]])
def test_a_corpus_without_text(write, texts):
    said = "the corpus has no text, expected some. Give other files"
    assert fails(InputError, write(*texts), 0.1) == said


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 2**16])
@pytest.mark.parametrize(
    ("data", "at"),
    [
        (b"\xff", 0),
        (b"text\xff", 4),
        ("Ö字".encode() + b"\x80...", 5),
        ("text".encode("utf-16"), 0),
        (b"0123456\xe5\xad", 7),  # the last character is cut off
        (b"0123456\xe5\xad.", 7),
        (b"\xed\xa0\x80", 0),  # a surrogate
        (b"\xef\xbb\xbfab\xc3\x28", 5),  # counted with the byte-order mark
    ],
)
def test_what_is_not_utf_8(write, monkeypatch, piece, data, at):
    monkeypatch.setattr(corpus, "PIECE", piece)
    files = write("Ö" * 20, data)
    said = f"{files[1]}: not UTF-8 at byte {at}, expected text. Convert it first (iconv)"
    assert fails(InputError, files, 0.1) == said


def test_files_that_change_meanwhile(write, tmp_path, tokenizer):
    files = write("the king", "the queen")
    texts = Texts.open(files, 0)
    files[1].write_text("the")
    said = (
        f"{files[1]}: the corpus ends after 11 characters, expected 17 as before. "
        "Do not change the files while they are read"
    )
    with pytest.raises(FileError) as caught:
        encode(texts, "train", tokenizer, tmp_path / "ids.npy")
    assert str(caught.value) == said
    with pytest.raises(FileError) as caught:
        train_vocabulary(texts, 300, tmp_path)
    assert str(caught.value) == said
    files[1].write_bytes(b"\xff")
    with pytest.raises(InputError, match=r"b\.txt: not UTF-8 at byte 0"):
        encode(texts, "train", tokenizer, tmp_path / "ids.npy")
    files[1].unlink()
    with pytest.raises(FileError, match=r"b\.txt: No such file"):
        encode(texts, "train", tokenizer, tmp_path / "ids.npy")
    os.mkfifo(files[1])
    with pytest.raises(FileError, match=r"b\.txt: is not a regular file"):
        encode(texts, "train", tokenizer, tmp_path / "ids.npy")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


# ── ids ──────────────────────────────────────────────────────────────────────────────────────────


def ids_of(texts, part, tokenizer, folder):
    return encode(texts, part, tokenizer, Path(folder, f"{part}.npy")).ids.tolist()


def test_the_streams(write, tmp_path, tokenizer):
    files = write(f"{END}the king{END}{END}", "", f"{END} \n", "O Romeo, Romeo")
    texts = Texts.open(files, 0.1)
    assert texts.characters - texts.cut == 8
    king, space, romeo = map(tokenizer.encode, ("the king", " \n", "O Rome"))
    assert tokenizer.encode(END) == [0]
    tokens = encode(texts, "train", tokenizer, tmp_path / "train.npy")
    assert tokens.ids.tolist() == [0, *king, 0, *space, 0, *romeo]
    assert tokens.text_bytes == 8 + 2 + 6
    tokens = encode(texts, "val", tokenizer, tmp_path / "val.npy")
    assert tokens.ids.tolist() == tokenizer.encode("o, Romeo")
    assert tokens.text_bytes == 8


@pytest.fixture(scope="module")
def eager():
    """A vocabulary that merges any two bytes of PARTS, unless the text is cut between them."""
    used = {byte for part in PARTS for byte in part.encode()}
    chars = [char for char, byte in byte_alphabet().items() if byte in used]
    pairs = [(a, b) for a in chars for b in chars]
    pieces = [*byte_alphabet(), *(a + b for a, b in pairs), END]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    return BytePairTokenizer(vocab, pairs, {END: vocab[END]})


@given(st.lists(TEXTS, min_size=1, max_size=2), FRACTIONS, PIECES)
def test_ids_of_pieces_are_ids_of_the_whole(eager, files, fraction, piece):
    (end,) = eager.encode(END)
    files = ["x", *files]
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "PIECE", piece)
        paths = [Path(folder, f"{i}.txt") for i in range(len(files))]
        for path, text in zip(paths, files, strict=True):
            path.write_bytes(text.encode())
        texts = Texts.open(paths, fraction)
        for part, start, stop in (("train", 0, texts.cut), ("val", texts.cut, texts.characters)):
            parts = expected_stream(files, start, stop)
            tokens = encode(texts, part, eager, Path(folder, "ids.npy"))
            assert tokens.ids.tolist() == eager.encode("".join(parts))
            assert tokens.text_bytes == sum(len(p.encode()) for p in parts if p != END)
            if part == "train":
                ring = [*tokens.ids.tolist()]
                assert (end, end) not in pairwise(ring)
                assert ring[:1] == [end] * (len(ring) > 0)
                assert ring[-1:] != [end]


@pytest.mark.parametrize("text", ["!\x1c", "-\u200b", "\x1f'", " \u2028 a", "a\r\n\r\n", "'s\x85"])
def test_white_space_is_what_the_pattern_says(write, tmp_path, monkeypatch, eager, text):
    """Python calls more characters so: U+001C is one of a token's signs."""
    monkeypatch.setattr(corpus, "PIECE", 1)
    ids = ids_of(Texts.open(write(text * 20), 0), "train", eager, tmp_path)
    assert ids == eager.encode(END + text * 20)


def test_pieces_of_shakespeare_with_gpt2s_vocabulary(shared, tmp_path, monkeypatch):
    file = shared("tiny-shakespeare/input.txt")
    tokenizer = load_tokenizer(shared("gpt2-vocabulary"))
    monkeypatch.setattr(corpus, "PIECE", 1000)
    texts = Texts.open([file], 0.1)
    assert (texts.characters, texts.cut) == (1_115_394, 1_003_854)
    text = file.read_text(encoding="utf-8")
    assert ids_of(texts, "train", tokenizer, tmp_path) == [
        50256, *tokenizer.encode(text[:1_003_854])
    ]  # fmt: skip
    assert ids_of(texts, "val", tokenizer, tmp_path) == tokenizer.encode(text[1_003_854:])


class Letters:
    """A vocabulary of another kind: an id a character, and what it was given is kept."""

    def __init__(self, size, end=True):
        self.size, self.end, self.given = size, end, []

    def encode(self, text, special=True):
        self.given.append(text)
        return [self.size - 1] if text == END and self.end else list(map(ord, text))

    def piece(self, token):
        return END if token == self.size - 1 else chr(token)


@pytest.mark.parametrize(("size", "dtype"), [(2**16, "<u2"), (2**16 + 1, "<u4")])
def test_the_file_is_as_wide_as_its_ids(write, tmp_path, size, dtype):
    tokens = encode(Texts.open(write("ab"), 0), "train", Letters(size), str(tmp_path / "ids.npy"))
    assert isinstance(tokens.ids, np.memmap)
    assert tokens.ids.tolist() == [size - 1, 97, 98]
    assert tokens.ids.dtype == np.dtype(dtype)
    assert np.array_equal(np.load(tmp_path / "ids.npy"), tokens.ids)
    assert (tmp_path / "ids.npy").stat().st_size == 128 + 3 * np.dtype(dtype).itemsize
    with pytest.raises(ValueError, match="read-only"):
        tokens.ids[0] = 1


def test_a_part_without_text(write, tmp_path, tokenizer):
    tokens = encode(Texts.open(write("ab"), 0), "val", tokenizer, tmp_path / "ids.npy")
    assert tokens.ids.shape == (0,)
    assert tokens.text_bytes == 0


def bytes_only(added, prefix_space=False):
    vocab = {char: i for i, char in enumerate(byte_alphabet())}
    return BytePairTokenizer(vocab, [], added, prefix_space)


@pytest.mark.parametrize(
    "other",
    [
        lambda: Letters(2**16),
        lambda: bytes_only({END: 256}, prefix_space=True),
        lambda: bytes_only({END: 256, "a a": 257}),
    ],
)
def test_where_cuts_could_show_documents_stay_whole(write, tmp_path, monkeypatch, other):
    monkeypatch.setattr(corpus, "PIECE", 10)
    text, tokenizer = "a a\n" * 50, other()
    texts = Texts.open(write(text, "b " * 40), 0)
    assert ids_of(texts, "train", tokenizer, tmp_path) == [
        *tokenizer.encode(END), *tokenizer.encode(text),
        *tokenizer.encode(END), *tokenizer.encode("b " * 40),
    ]  # fmt: skip


def test_byte_level_bpe_gets_pieces(write, tmp_path, monkeypatch, tokenizer):
    """Or a corpus would have to fit the memory."""
    monkeypatch.setattr(corpus, "PIECE", 10)
    given, plain = [], tokenizer.encode
    monkeypatch.setattr(tokenizer, "encode", lambda text: given.append(text) or plain(text))
    ids_of(Texts.open(write("a a\n" * 50), 0), "train", tokenizer, tmp_path)
    assert len(given) > 10


@pytest.mark.parametrize("tokenizer", [Letters(2**16, end=False), bytes_only({})])
def test_without_an_end_of_text_there_can_be_one_document(write, tmp_path, tokenizer):
    one = Texts.open(write(f"{END}ab cd{END}"), 0.1)
    assert ids_of(one, "train", tokenizer, tmp_path) == tokenizer.encode("ab cd")
    for several in ([f"ab{END}cd"], ["ab", "cd"]):
        texts = Texts.open(write(*several), 0)
        with pytest.raises(InputError) as caught:
            ids_of(texts, "train", tokenizer, tmp_path)
        assert str(caught.value) == (
            "the corpus has several documents, and the vocabulary has no <|endoftext|> to separate "
            "them. Join them into one file, or use another vocabulary"
        )


def test_progress(write, tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(corpus, "PIECE", 100)
    seen = []

    def progress(loop, what, total):
        count = 0
        for item in loop:
            count += 1
            yield item
        seen.append((what, total, count))

    texts = Texts.open(write("a " * 500, "b " * 500), 0.5, progress)
    assert seen == [("reading", 22, 22)]
    encode(
        texts, "val", tokenizer, tmp_path / "ids.npy", lambda *args: seen.append(args) or args[0]
    )
    assert seen[1][1:] == ("encoding (val)", 22)
    encode(texts, "train", tokenizer, tmp_path / "ids.npy", lambda *a: seen.append(a) or a[0])
    assert seen[2][1:] == ("encoding (train)", 12)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_of_a_file_half_written_nothing_remains(write, tmp_path, tokenizer, error):
    texts = Texts.open(write("a " * 50_000), 0)
    target = tmp_path / "out" / "ids.npy"
    target.parent.mkdir()

    def fail(loop, what, total):
        yield from loop
        assert [path.name for path in target.parent.iterdir()] == [".ids.npy.new"]
        raise error

    with pytest.raises(error):
        encode(texts, "train", tokenizer, target, fail)
    assert list(target.parent.iterdir()) == []
    first = encode(texts, "train", tokenizer, target).ids
    with pytest.raises(AssertionError):  # the file that was there stays
        encode(texts, "train", tokenizer, target, fail)
    assert list(target.parent.iterdir()) == [target]
    assert np.array_equal(np.load(target), first)


def test_a_target_that_cannot_be(write, tmp_path, tokenizer):
    files = write("ab")
    texts = Texts.open(files, 0)
    for target, why in [
        (tmp_path / "none" / "ids.npy", "No such file or directory"),
        (files[0] / "ids.npy", "Not a directory"),
        (tmp_path / "in", "Is a directory"),
    ]:
        with pytest.raises(FileError) as caught:
            encode(texts, "train", tokenizer, target)
        assert str(caught.value) == f"{target}: {why}"
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    assert list((tmp_path / "in").iterdir()) == files


FULL = """
import resource, signal, sys
from npgpt2 import load_tokenizer
from npgpt2.base.errors import FileError
from npgpt2.train.corpus import Texts, encode
texts = Texts.open([sys.argv[1]], 0)
tokenizer = load_tokenizer("tests/data/tiny")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)
try:
    encode(texts, "train", tokenizer, sys.argv[2])
except FileError as error:
    print(error, end="")
"""


@pytest.mark.parametrize("size", [0, 5000, 100_000])
def test_a_disk_that_is_full(write, tmp_path, size):
    """As a limit on the size of files."""
    (file,) = write("the king of " * 20_000)
    target = tmp_path / "out" / "ids.npy"
    target.parent.mkdir()
    done = python(FULL, file, target, size)
    assert (done.stdout, done.stderr) == (f"{target}: File too large", "")
    assert list(target.parent.iterdir()) == []


LARGE = """
import resource, sys
from npgpt2 import load_tokenizer
from npgpt2.train.corpus import Texts, encode
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
tokenizer = load_tokenizer("tests/data/tiny")
tokenizer.encode("the king")
before = peak()
texts = Texts.open([sys.argv[1]], 0.1)
print(peak() - before)
tokens = encode(texts, "train", tokenizer, sys.argv[2])
print(peak() - before, tokens.text_bytes)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in other units")
@pytest.mark.parametrize("line", ["the king of France \n", "字字字\n"])
def test_a_large_corpus_is_never_in_memory(tmp_path, line):
    file = tmp_path / "large.txt"
    with file.open("wb") as out:
        for _ in range(16):
            out.write(line.encode() * (2**20 // len(line.encode())))
    done = python(LARGE, file, tmp_path / "ids.npy")
    assert done.stderr == ""
    opened, encoded, size = map(int, done.stdout.split())
    assert size > 14_000_000
    assert opened < 8  # MB; measured: 0 to 1
    assert encoded < 16  # measured: 6 to 8


# ── windows ──────────────────────────────────────────────────────────────────────────────────────

RINGS = st.integers(1, 20).flatmap(
    lambda length: st.tuples(st.integers(length + 1, 120), st.just(length))
)
SEEDS = st.integers(0, 2**64)


@given(RINGS, SEEDS, st.integers(0, 3))
def test_in_every_epoch_every_id_is_a_target(ring, seed, epoch):
    count, length = ring
    windows = Windows(np.arange(count, dtype=np.uint16), length, seed)
    assert windows.per_epoch == -(-count // length)
    batch = windows.batch(epoch * windows.per_epoch, windows.per_epoch)
    assert batch.ids.shape == batch.targets.shape == (windows.per_epoch, length)
    assert batch.ids.dtype == batch.targets.dtype == np.int64
    assert np.array_equal((batch.ids + 1) % count, batch.targets)
    assert np.array_equal(batch.ids[:, 1:], batch.targets[:, :-1])
    times = np.bincount(batch.targets.ravel(), minlength=count)
    assert times.min() == 1
    assert times.max() <= 2
    assert (times == 2).sum() == windows.per_epoch * length - count
    # All but one window begin where another ends.
    assert len(set(batch.ids[:, 0]) & set(batch.targets[:, -1])) >= windows.per_epoch - 1


@given(RINGS, SEEDS, st.lists(st.tuples(st.integers(0, 200), st.integers(1, 40)), max_size=6))
def test_a_batch_depends_on_nothing_that_was_asked_before(ring, seed, asked):
    ids = np.arange(ring[0])
    windows = Windows(ids, ring[1], seed)
    for first, rows in asked:
        batch = windows.batch(first, rows)
        singly = [Windows(ids, ring[1], seed).batch(first + i, 1) for i in range(rows)]
        for ours, theirs in zip(batch, zip(*singly, strict=True), strict=True):
            assert np.array_equal(ours, np.concatenate(theirs))


def test_epochs_differ_in_order_and_in_place():
    windows = Windows(np.arange(100), 10, seed=3)
    epochs = [windows.batch(10 * i, 10).ids[:, 0] for i in range(300)]
    assert {start % 10 for starts in epochs for start in starts} == set(range(10))
    assert len({tuple(starts) for starts in epochs}) == 300
    first = np.bincount([starts[0] for starts in epochs], minlength=100)
    assert first.max() < 15  # 3 on average
    steps = [(b - a) % 100 for starts in epochs for a, b in pairwise(starts)]
    assert 0.05 < np.mean(np.array(steps) == 10) < 0.15  # a tenth, not all, go on from the last
    offsets = Windows(np.arange(5), 4, seed=0)
    places = np.array([sorted(offsets.batch(2 * i, 2).ids[:, 0]) for i in range(500)])
    assert len({tuple(place) for place in places}) == 5


def test_seeds_differ():
    first = {tuple(Windows(np.arange(1000), 10, seed).batch(0, 5).ids[:, 0]) for seed in range(50)}
    assert len(first) == 50


def test_the_windows_of_a_seed_are_for_ever():
    """A run that goes on after years, with another NumPy, reads what it would have read."""
    windows = Windows(np.arange(1000), 100, seed=1)
    assert windows.batch(0, 12).ids[:, 0].tolist() == [
        87, 287, 987, 687, 487, 787, 587, 387, 887, 187, 983, 83,
    ]  # fmt: skip


def test_the_ring_closes():
    ids = np.array([5, 6, 7])
    windows = Windows(ids, 2, seed=0)
    pairs = {
        tuple(pair)
        for number in range(20)
        for pair in zip(*(row.ravel().tolist() for row in windows.batch(number, 1)), strict=True)
    }
    assert pairs == {(5, 6), (6, 7), (7, 5)}


def test_a_corpus_shorter_than_a_window():
    Windows(np.arange(65), 64, 0).batch(0, 3)
    for count in (57, 64):
        with pytest.raises(InputError) as caught:
            Windows(np.arange(count), 64, 0)
        assert str(caught.value) == (
            f"the corpus has {count} tokens, expected at least 65, one window and the next token. "
            "Give more text, or a smaller --window"
        )


@given(st.integers(2, 200), st.integers(1, 20), st.integers(1, 6))
def test_validation_predicts_every_id_but_the_first_once(count, length, rows):
    ids = np.arange(1000, 1000 + count, dtype=np.uint16)
    batches = list(validation_batches(ids, length, rows))
    assert all(len(batch.ids) == rows for batch in batches[:-1])
    assert 1 <= len(batches[-1].ids) <= rows
    batch = Batch(*map(np.concatenate, zip(*batches, strict=True)))
    assert batch.ids.shape == batch.targets.shape == (-(-(count - 1) // length), length)
    assert batch.ids.dtype == batch.targets.dtype == np.int64
    real = batch.targets != -100
    assert batch.targets[real].tolist() == list(range(1001, 1000 + count))
    assert batch.ids[real].tolist() == list(range(1000, 999 + count))
    assert not batch.ids[~real].any()
    assert real[:-1].all()  # only the last window is filled up,
    assert not (~real[-1, :-1] & real[-1, 1:]).any()  # and on the right
    assert real[-1, 0]


@pytest.mark.parametrize("count", [0, 1])
def test_too_little_to_validate(count):
    with pytest.raises(InputError) as caught:
        validation_batches(np.arange(count), 8, 4)  # at once, not with the first batch
    assert str(caught.value) == (
        f"the validation part has {count} tokens, expected at least two. "
        "Give more text, or a larger --val-fraction"
    )


# ── vocabulary ───────────────────────────────────────────────────────────────────────────────────

FILES = ["merges.txt", "tokenizer.json", "tokenizer_config.json", "vocab.json"]
WORDS = "the king is dead, long live the king; it's naïve 字字 x\n\n  y\r\n" * 20


@pytest.fixture
def library():
    return pytest.importorskip("tokenizers", reason="the extra 'train' is not installed")


@pytest.fixture
def trained(library, write, tmp_path, capfd):
    """A function: texts, size, val_fraction → the folder of a vocabulary trained on them."""

    def train(*texts, size=300, val_fraction=0):
        folder = tmp_path / f"vocabulary {len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        train_vocabulary(Texts.open(write(*texts), val_fraction), size, folder)
        assert capfd.readouterr() == ("", "")
        return folder

    return train


def test_the_vocabulary_of_the_tiny_checkpoint(shared, tiny, library, tmp_path):
    """Trained by `tokenizers`' own ByteLevelBPETokenizer, see make_tiny.py."""
    train_vocabulary(Texts.open([shared("tiny-shakespeare/input.txt")], 0), 512, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES
    for name in ("vocab.json", "merges.txt"):
        ours, theirs = ((folder / name).read_text(encoding="utf-8") for folder in (tmp_path, tiny))
        if name == "vocab.json":
            ours, theirs = json.loads(ours), json.loads(theirs)
        assert ours == theirs


def test_ids_are_those_of_the_library(trained, library, write, tmp_path, monkeypatch):
    folder = trained(WORDS, size=330)
    peer = library.Tokenizer.from_file(str(folder / "tokenizer.json"))
    monkeypatch.setattr(corpus, "PIECE", 20)
    texts = Texts.open(write(WORDS + "  \n\n x", "the dead"), 0)
    plain = tmp_path / "plain"
    plain.mkdir()
    for name in ("vocab.json", "merges.txt"):
        (plain / name).write_bytes((folder / name).read_bytes())
    whole = f"{END}{WORDS}  \n\n x{END}the dead"
    for where in (folder, plain):
        tokenizer = load_tokenizer(where)
        assert isinstance(tokenizer, BytePairTokenizer)
        assert ids_of(texts, "train", tokenizer, tmp_path) == peer.encode(whole).ids
        assert tokenizer.decode(peer.encode(whole).ids) == whole
        assert peer.decode(peer.encode(whole).ids, skip_special_tokens=False) == whole


def test_the_ids_of_a_vocabulary(trained):
    folder = trained(WORDS, size=270)
    vocab = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    assert list(vocab.values()) == list(range(270))
    assert vocab[END] == 0
    assert set(list(vocab)[1:257]) == set(byte_alphabet())
    assert lines[0] == "#version: 0.2"
    assert [line.replace(" ", "") for line in lines[1:]] == list(vocab)[257:]
    tokenizer = load_tokenizer(folder)
    everything = "".join(map(chr, range(256))) + "👍"
    assert tokenizer.decode(tokenizer.encode(everything)) == everything


def test_transformers_reads_the_folder(trained):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    folder = trained(WORDS)
    text = f"{WORDS}{END} the king  "
    assert json.loads((folder / "tokenizer_config.json").read_text()) == {
        "tokenizer_class": "GPT2Tokenizer",
        "add_prefix_space": False,
        "bos_token": END,
        "eos_token": END,
        "unk_token": END,
    }
    for kind in (transformers.AutoTokenizer, transformers.GPT2TokenizerFast):
        peer = kind.from_pretrained(folder)
        assert peer(text).input_ids == load_tokenizer(folder).encode(text)
        assert peer.decode(peer(text).input_ids) == text
        assert (peer.bos_token_id, peer.eos_token_id, len(peer)) == (0, 0, 291)


def test_only_the_training_part_is_learned(trained):
    texts = ["the the the the ", "zebra zebra zebra "]
    part = trained(*texts, val_fraction=0.5)
    assert load_tokenizer(part).encode("zebra") == [ord(c) - 32 for c in "zebra"]
    all_of_it = trained(*texts)
    assert len(load_tokenizer(all_of_it).encode(" zebra")) == 1


def test_no_merge_goes_over_the_end_of_a_document_or_takes_it_apart(trained):
    folder = trained(f"ab{END}" * 10 + "x", "endoftext", size=400)
    merges = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    assert merges == ["a b"]


def test_a_small_text_gives_a_small_vocabulary(trained):
    assert load_tokenizer(trained("ab", size=1000)).size == 257
    assert load_tokenizer(trained("ab ab", size=1000)).size == 258
    assert load_tokenizer(trained("ab", size=257)).size == 257
    assert load_tokenizer(trained("a", size=2**20, val_fraction=0.9)).size == 257  # nothing at all


TRAIN = """
import sys
from npgpt2.train.corpus import Texts
from npgpt2.train.vocabulary import train_vocabulary
train_vocabulary(Texts.open([sys.argv[1]], 0), 400, sys.argv[2])
"""


def test_the_same_text_gives_the_same_bytes(library, tmp_path, write):
    words = [f"{a}{b}{c}" for a in "abcdef" for b in "ghijk" for c in "lmnop"]
    (file,) = write(" ".join(words * 2))  # many pairs are equally frequent
    found = set()
    for number, seed in enumerate(["0", "1", "2"]):
        folder = tmp_path / str(number)
        folder.mkdir()
        env = {"PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": str(number + 1)}
        done = python(TRAIN, file, folder, **env)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        found.add(tuple((folder / name).read_bytes() for name in FILES))
    assert len(found) == 1


@pytest.mark.parametrize("size", [256, 0, -1, 2**20 + 1, 300.0, True, "300", None])
def test_a_size_that_no_vocabulary_has(write, tmp_path, size):
    with pytest.raises(OptionError) as caught:
        train_vocabulary(Texts.open(write("ab"), 0), size, tmp_path)
    assert str(caught.value) == (
        f"vocab_size: got {size!r}, expected an integer from 257 to 1048576"
    )


def test_without_the_extra_it_is_named(write, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingPackage) as caught:
        train_vocabulary(Texts.open(write("ab"), 0), 300, tmp_path)
    assert str(caught.value) == (
        "vocabulary: training one needs the package tokenizers. Run: pip install 'npgpt2[train]'"
    )
