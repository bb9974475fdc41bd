"""Text files in, windows of tokens out.

    files ──Texts──▶ pieces of text ──encode──▶ ids on the disk ──Windows──▶ batches

A corpus may be larger than the memory: text is read in pieces, and ids are memory-mapped.

Axes: B windows of a batch, T tokens of a window.
"""

import codecs
import hashlib
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from npgpt2.base.errors import CheckpointError, FileError, InputError, OptionError
from npgpt2.base.files import is_same, named_errors, replaced, require_regular
from npgpt2.tokenizer.byte_pair import SPACE, BytePairTokenizer
from npgpt2.tokenizer.files import FILES
from npgpt2.tokenizer.interface import END, Tokenizer, end_id

PIECE = 2**16  # bytes read at a time; with 2**20 the `tokenizers` library needs 300 MB more
IGNORED = -100  # a target without loss, as in PyTorch

Part = Literal["train", "val"]
Ids = NDArray[Any]
Progress = Callable[[Iterable[str], str, int], Iterable[str]]

# A text may be cut where white space begins: no match of GPT2_PATTERN has white space after another
# character, nothing in the pattern looks behind, and only white space looks ahead. So both parts,
# encoded alone, give the same tokens as the whole. (It must not be cut where white space ends: a
# space before a word belongs to the word.) The match is greedy: it finds the last such place.
CUT = re.compile(f".*[^{SPACE}](?=[{SPACE}])", re.DOTALL)


# ── text ─────────────────────────────────────────────────────────────────────────────────────────


class Texts(NamedTuple):
    """The text files of a corpus, split into a training and a validation part.

    Attributes:
        files: in the order given.
        characters: number of characters of all files.
        bytes: number of bytes of the same text as UTF-8.
        sha256: checksum of the text with <|endoftext|> between two files. For a single file
            without a byte-order mark it is the output of sha256sum.
        cut: number of characters of the training part, which comes first.

    >>> texts = Texts.open(["tests/data/tiny/merges.txt"], val_fraction=0.1)
    >>> texts.characters, texts.bytes, texts.cut
    (1248, 1356, 1123)
    >>> "".join(texts.pieces("val"))[:10]
    'a u\\nĠw as\\n'
    """

    files: tuple[Path, ...]
    characters: int
    bytes: int
    sha256: str
    cut: int

    @classmethod
    def open(
        cls,
        paths: Sequence[str | Path],
        val_fraction: float,
        progress: Progress = lambda loop, what, total: loop,
        outside: Path | None = None,
    ) -> "Texts":
        """Read all files once to count them and to check that they are text.

        Args:
            paths: files or folders; a folder means the *.txt files in it and below, sorted,
                without the files of a vocabulary.
            val_fraction: share of the characters, at the end, that is used for validation. The cut
                may fall inside a document.
            progress: wraps the loop over pieces of text.
            outside: a folder whose files are left out: the run's own.

        Raises:
            OptionError: val_fraction is outside 0 ≤ F < 1.
            FileError: a path is missing, cannot be read or is not a regular file; or a folder has
                no *.txt file.
            InputError: a file is not UTF-8, or the corpus contains only white space.
        """
        number = isinstance(val_fraction, int | float) and not isinstance(val_fraction, bool)
        if not number or not 0 <= val_fraction < 1:
            raise OptionError(
                "val_fraction", f"got {val_fraction!r}, expected a number from 0 to below 1"
            )
        files = tuple(file for path in paths for file in _files_of(Path(path), outside))
        reads = sum(1 + _size(file) // PIECE for file in files)
        characters, size, blank, digest = 0, 0, True, hashlib.sha256()
        for text in progress(_read(files), "reading", reads):
            if not text and characters:
                digest.update(END.encode())
            data = text.encode()
            digest.update(data)
            characters, size = characters + len(text), size + len(data)
            blank = blank and not text.strip()
        if blank:
            raise InputError("the corpus has no text, expected some. Give other files")
        # An exact decimal fraction, since (1 - 0.9) * 10 is 0.9999999999999998.
        train = math.floor((1 - Fraction(str(float(val_fraction)))) * characters)
        return cls(files, characters, size, digest.hexdigest(), train)

    def pieces(
        self, part: Part, whole: bool = False, progress: Progress = lambda loop, what, total: loop
    ) -> Iterator[str]:
        """The text of a part as a stream, with <|endoftext|> as a separate piece.

        <|endoftext|> comes before every document, so a part begins with it unless the cut is inside
        a document. Each file is a document; <|endoftext|> in the text also ends one. Empty
        documents are left out.

        Args:
            part: "train" or "val".
            whole: yield each document in one piece. Otherwise in pieces of about `PIECE` bytes, cut
                where byte-level BPE cuts; pieces are longer where there is no white space.
            progress: wraps the loop over the pieces that are read.

        Raises:
            FileError, InputError: a file has become shorter, or is no longer text.
        """
        start, stop = (0, self.cut) if part == "train" else (self.cut, self.characters)
        reads = len(self.files) + self.bytes * stop // (self.characters * PIECE)
        stream = _apart(progress(_read(self.files), f"encoding ({part})", reads))
        return _bounded(self._between(stream, start, stop), whole)

    def _between(self, stream: Iterable[str], start: int, stop: int) -> Iterator[str]:
        """The characters start … stop of `_apart`'s stream, with END before each document."""
        at, begins = 0, False
        for text in stream:
            if text in ("", END):
                begins = True
            else:
                if inside := text[max(start - at, 0) : max(stop - at, 0)]:
                    if begins and at >= start:
                        yield END
                    yield inside
                begins = False
            at += len(text)
            if at >= stop:
                return
        raise FileError(
            f"{self.files[-1]}: the corpus ends after {at:,} characters, expected "
            f"{self.characters:,} as before. Do not change the files while they are read"
        )


def _files_of(path: Path, outside: Path | None) -> list[Path]:
    """The file, or the *.txt files of the folder."""
    if not os.path.isdir(path):
        return [path]

    def fail(error: OSError) -> None:
        raise FileError(f"{error.filename}: {error.strerror}")

    walk = os.walk(path, onerror=fail)
    names = [Path(folder, name) for folder, _, names in walk for name in names]
    # merges.txt of a vocabulary, perhaps of another run, is not part of the text.
    files = sorted(name for name in names if name.suffix == ".txt" and name.name not in FILES)
    if outside is not None and outside.exists():
        within = cache(lambda folder: any(is_same(outside, p) for p in (folder, *folder.parents)))
        files = [name for name in files if not within(name.resolve().parent)]
    if not files:
        raise FileError(f"{path}: has no *.txt file, expected at least one. Name the files")
    return files


def _size(path: Path) -> int:
    with named_errors(path):
        return require_regular(path)


def _read(files: Iterable[Path]) -> Iterator[str]:
    """The text of the files in pieces, with "" before each file and nowhere else."""
    for path in files:
        yield ""
        yield from _decoded(path)


def _decoded(path: Path) -> Iterator[str]:
    """One file's text in pieces, without a byte-order mark at its start."""
    _size(path)  # the path may lead to another file by now
    decoder, begin = codecs.getincrementaldecoder("utf-8")(), 0  # begin: first byte not yet decoded
    try:
        with path.open("rb") as file:
            more = True
            while more:
                data = file.read(PIECE)
                more, held = bool(data), len(decoder.getstate()[0])
                text = decoder.decode(data, final=not more)
                if begin == 0:
                    text = text.removeprefix("\ufeff")
                begin += held + len(data) - len(decoder.getstate()[0])
                if text:
                    yield text
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: not UTF-8 at byte {begin + error.start}, expected text. "
            "Convert it first (iconv)"
        ) from None
    except OSError as error:
        raise FileError(f"{path}: {error.strerror or error}") from None


def _apart(texts: Iterable[str]) -> Iterator[str]:
    """`_read`'s pieces with each END as a separate piece, even if two pieces shared it.

    There is still a "" before each file.
    """
    held, keep = "", len(END) - 1
    for text in texts:
        if not text:
            yield from (held, "")
            held = ""
            continue
        *ended, held = (held + text).split(END)
        for document in ended:
            yield from (document, END)
        if len(held) > keep:
            yield held[:-keep]
            held = held[-keep:]
    yield held


def _bounded(stream: Iterable[str], whole: bool) -> Iterator[str]:
    """Join the pieces between two ENDs into one, or cut them where BPE cuts."""
    held = ""
    for text in stream:
        if text == END:
            if held:
                yield held
            yield END
            held = ""
            continue
        held += text
        # Earlier text has no such place: start at the last character before the new text.
        place = None if whole else CUT.match(held, max(0, len(held) - len(text) - 1))
        if place:
            yield held[: place.end()]
            held = held[place.end() :]
    if held:
        yield held


# ── ids ──────────────────────────────────────────────────────────────────────────────────────────


class Tokens(NamedTuple):
    """The ids of a part, memory-mapped, and the size of their text.

    Attributes:
        ids: (n,) uint16, or uint32 if the vocabulary has more than 65,536 tokens.
        text_bytes: bytes of the text as UTF-8, without <|endoftext|>.
    """

    ids: Ids
    text_bytes: int


def encode(
    texts: Texts,
    part: Part,
    tokenizer: Tokenizer,
    path: str | Path,
    progress: Progress = lambda loop, what, total: loop,
) -> Tokens:
    """Write the ids of a part into a .npy file, and memory-map it.

    A part has no <|endoftext|> at its end, since training reads it as a ring. A vocabulary without
    <|endoftext|> allows only one document.

    Raises:
        InputError: there are more documents, or a file of the corpus has changed.
        FileError: the file cannot be written; nothing of it remains.
    """
    path = Path(path)
    dtype = np.dtype("<u2" if tokenizer.size <= 2**16 else "<u4")
    pieces = texts.pieces(part, not _cuts_keep_tokens(tokenizer), progress)
    count = text_bytes = 0
    with replaced(path) as work, work.open("wb") as file:
        _write_header(file, dtype, 0)
        for piece, ids in _encoded(pieces, tokenizer):
            file.write(np.array(ids, dtype).tobytes())
            count += len(ids)
            text_bytes += 0 if piece == END else len(piece.encode())
        file.seek(0)
        _write_header(file, dtype, count)
    return Tokens(load_ids(path), text_bytes)


def load_ids(path: Path) -> Ids:
    """Memory-map the ids that `encode` wrote.

    Raises:
        FileError: the file cannot be read.
        CheckpointError: the file is damaged.
    """
    try:
        ids: Ids = np.load(path, mmap_mode="r")
    except OSError as error:
        raise FileError(f"{path}: {error.strerror or error}") from None
    except (ValueError, EOFError) as error:
        raise CheckpointError(f"{path}: is damaged ({error}). Start again") from None
    return ids


def _write_header(file: Any, dtype: np.dtype[Any], count: int) -> None:
    """Write a .npy header. NumPy pads it, so that its length does not depend on the count."""
    header = {"descr": dtype.str, "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(file, header)


def _encoded(pieces: Iterable[str], tokenizer: Tokenizer) -> Iterator[tuple[str, list[int]]]:
    """Each piece and its ids."""
    end = end_id(tokenizer)
    for number, piece in enumerate(pieces):
        if piece != END:
            yield piece, tokenizer.encode(piece)
        elif end is not None:
            yield piece, [end]
        elif number:
            raise InputError(
                f"the corpus has several documents, and the vocabulary has no {END} to separate "
                "them. Join them into one file, or use another vocabulary"
            )


def _cuts_keep_tokens(tokenizer: Tokenizer) -> bool:
    """Whether the pieces of a text, encoded separately, give the tokens of the whole text.

    They do not if the tokenizer adds a space before each text, or a token contains white space.
    """
    return (
        isinstance(tokenizer, BytePairTokenizer)
        and tokenizer.decode(tokenizer.encode("a")) == "a"
        and not any(re.search(r"\s", tokenizer.piece(i)) for i in range(tokenizer.size))
    )


# ── batches ──────────────────────────────────────────────────────────────────────────────────────


class Batch(NamedTuple):
    """Windows of tokens, and the next token of each position.

    Attributes:
        ids: (B, T) int64.
        targets: (B, T) int64; `IGNORED` where there is nothing to predict.
    """

    ids: NDArray[np.int64]
    targets: NDArray[np.int64]


class Windows:
    """The training part as a ring of n ids, read in epochs of ⌈n / T⌉ windows.

    Each epoch begins at another place of the ring and has its windows in another order. So every id
    is a target in every epoch, each time after a different context. The windows depend only on
    their number and the seed: a resumed run needs no state.

    Args:
        ids: (n,) integers.
        length: T.
        seed: 0 or more; the key of the generator, whose counter is the epoch.

    Raises:
        InputError: fewer than T + 1 ids.

    >>> windows = Windows(np.arange(10), length=4, seed=0)
    >>> windows.per_epoch
    3
    >>> windows.batch(first=0, rows=3).ids.tolist()
    [[3, 4, 5, 6], [9, 0, 1, 2], [7, 8, 9, 0]]
    """

    def __init__(self, ids: Ids, length: int, seed: int) -> None:
        if len(ids) < length + 1:
            raise InputError(
                f"the corpus has {len(ids)} tokens, expected at least {length + 1}, one window and "
                "the next token. Give more text, or a smaller --window"
            )
        self._ids, self._length, self._seed = np.asarray(ids), length, seed
        self.per_epoch = -(-len(ids) // length)
        self._epoch, self._starts = -1, np.empty(0, np.int64)  # the current epoch

    def batch(self, first: int, rows: int) -> Batch:
        """The windows first … first + rows − 1, numbered from 0 over all epochs."""
        starts = np.array([self._start(number) for number in range(first, first + rows)])
        places = (starts[:, None] + np.arange(self._length + 1)) % len(self._ids)
        window = self._ids[places].astype(np.int64)
        return Batch(window[:, :-1], window[:, 1:])

    def _start(self, number: int) -> int:
        epoch, at = divmod(number, self.per_epoch)
        if epoch != self._epoch:
            # Raw words: NumPy guarantees that they never change, unlike its distributions.
            source = np.random.Philox(key=self._seed, counter=[0, 0, 0, epoch])
            offset = int(source.random_raw()) % len(self._ids)
            order = np.argsort(source.random_raw(self.per_epoch), kind="stable")
            self._epoch, self._starts = epoch, offset + order * self._length
        return int(self._starts[at])


def validation_batches(ids: Ids, length: int, rows: int) -> Iterator[Batch]:
    """Windows that do not overlap: every id but the first is a target once.

    The last window is padded on the right: ids with 0, targets with `IGNORED`.

    Args:
        ids: (n,) integers.
        length: T.
        rows: B; the last batch may have fewer.

    Raises:
        InputError: fewer than two ids.

    >>> [batch.targets.tolist() for batch in validation_batches(np.arange(6), length=3, rows=4)]
    [[[1, 2, 3], [4, 5, -100]]]
    """
    if len(ids) < 2:
        raise InputError(
            f"the validation part has {len(ids)} tokens, expected at least two. "
            "Give more text, or a larger --val-fraction"
        )
    return _validation_batches(np.asarray(ids), length, rows)


def _validation_batches(ids: Ids, length: int, rows: int) -> Iterator[Batch]:
    for first in range(0, len(ids) - 1, rows * length):
        targets = ids[first + 1 : first + 1 + rows * length]
        shape = (-(-len(targets) // length), length)
        batch = Batch(np.zeros(shape, np.int64), np.full(shape, IGNORED, np.int64))
        batch.ids.flat[: len(targets)] = ids[first : first + len(targets)]
        batch.targets.flat[: len(targets)] = targets
        yield batch
