"""Byte-level BPE, GPT-2's own kind of vocabulary, on `tiktoken`.

tiktoken uses one number as merge rank and as id. In other vocabularies the ids may not follow the
order of the merges, so here the rank is the order of the merges, and a table maps ranks to ids.
"""

import codecs
import re
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import accumulate, chain
from typing import Any

from npgpt2.base.errors import TokenizerError
from npgpt2.tokenizer.files import fault_of_id
from npgpt2.tokenizer.interface import TextDecoder, Tokenizer, require_unicode

# How GPT-2 splits text before it merges bytes: contractions, letters, numbers, other signs, spaces.
# OpenAI's pattern (https://github.com/openai/gpt-2, encoder.py) with possessive quantifiers, which
# match the same and cannot backtrack.
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"

# tiktoken needs a stack for `\s+(?!\S)` only: with a million spaces before a word, it panics. The
# pattern splits such a run before its last space, so we split long runs there ourselves.
SPACE = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"  # Rust's \s

LONG_SPACE = re.compile(f"(?=[{SPACE}][^{SPACE}])(?<=[{SPACE}]{{100000}})")


@cache
def byte_alphabet() -> dict[str, int]:
    """The 256 characters that spell bytes in vocab.json; printable bytes spell themselves.

    >>> alphabet = byte_alphabet()
    >>> alphabet["A"], alphabet["Ġ"], alphabet["Ċ"]
    (65, 32, 10)
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(256)) - set(printable))
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}


class BytePairTokenizer:
    """GPT-2's byte-level BPE.

    Args:
        vocab: spelled token → id.
        merges: pairs of spelled tokens, best first.
        added: text → id of added tokens, which are never split, such as <|endoftext|>.
        prefix_space: put a space before text that does not begin with one.
        source: prefix of every error message.

    Raises:
        TokenizerError: a duplicate id, a gap in the ids, a byte without a token, or a merge whose
            parts or result are not tokens.

    >>> from npgpt2 import load_tokenizer
    >>> tokenizer = load_tokenizer("tests/data/tiny")
    >>> ids = tokenizer.encode("O Romeo, ")
    >>> [tokenizer.piece(i) for i in ids], tokenizer.decode(ids)
    (['O', 'ĠR', 'ome', 'o', ',', 'Ġ'], 'O Romeo, ')
    """

    def __init__(
        self,
        vocab: dict[str, int],
        merges: Sequence[tuple[str, str]],
        added: dict[str, int],
        prefix_space: bool = False,
        source: str = "vocabulary",
    ) -> None:
        import tiktoken  # here, so that `import npgpt2` stays light

        self._pieces = _by_id(vocab, added, source)
        self._added, self._prefix_space = added, prefix_space
        self._added_bytes = {token: text.encode() for text, token in added.items()}
        self._split = splitter(added)
        spelled = [*byte_alphabet(), *_merged(vocab, merges, source)]
        ranks = {piece: rank for rank, piece in enumerate(_spelled_bytes(spelled, source))}
        if len(ranks) < len(spelled):
            raise TokenizerError(f"{source}: two merges make the same token, expected one")
        self._id_of_rank = [vocab[piece] for piece in spelled]
        self._bpe = tiktoken.Encoding(
            "npgpt2", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={}
        )

    def __repr__(self) -> str:
        return f"BytePairTokenizer({self.size:,} tokens, {len(self._added)} of them added)"

    @property
    def size(self) -> int:
        return len(self._pieces)

    def encode(self, text: str, special: bool = True) -> list[int]:
        require_unicode(text)
        ids: list[int] = []
        for i, part in enumerate(self._split(text) if special else [text]):
            if i % 2:
                ids.append(self._added[part])
            elif part:
                if self._prefix_space and not part.startswith(" "):
                    part = " " + part
                for run in LONG_SPACE.split(part):
                    ids += map(self._id_of_rank.__getitem__, self._bpe.encode_ordinary(run))
        return ids

    def piece(self, token: int) -> str:
        if not 0 <= token < self.size:
            raise TokenizerError(f"id {token}: expected 0 to {self.size - 1}")
        return self._pieces[token]

    def token_bytes(self, token: int) -> bytes:
        piece, alphabet = self.piece(token), byte_alphabet()
        if token in self._added_bytes or not all(char in alphabet for char in piece):
            return piece.encode()
        return bytes(alphabet[char] for char in piece)

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")

    def decoder(self) -> TextDecoder:
        return _ByteDecoder(self)


class _ByteDecoder:
    """Holds back the bytes of a character until it is complete."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._bytes_of, self._size = tokenizer.token_bytes, tokenizer.size
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        # The embedding may have more rows than the vocabulary has tokens: those ids have no text.
        return self._utf8.decode(self._bytes_of(token) if token < self._size else b"")

    def finish(self) -> str:
        return self._utf8.decode(b"", final=True)


def splitter(added: Iterable[str]) -> Callable[[str], list[str]]:
    """A function that splits a text at these tokens. The tokens are at the odd indices.

    >>> splitter(["<s>", "<s>>"])("a<s>>b")
    ['a', '<s>>', 'b']
    """
    # If two tokens match at one place, the longer one wins.
    longest_first = sorted(added, key=len, reverse=True)
    if not longest_first:
        return lambda text: [text]
    return re.compile(f"({'|'.join(map(re.escape, longest_first))})").split


def _by_id(vocab: dict[str, int], added: dict[str, int], source: str) -> list[str]:
    """The tokens in the order of their ids. Each id from 0 up must occur exactly once."""
    ids = vocab | added
    if "" in added:
        raise TokenizerError(f"{source}: id {added['']} is an added token without text")
    try:
        "".join(ids).encode()
    except UnicodeEncodeError as error:
        raise TokenizerError(f"{source}: not Unicode text ({error.reason})") from None
    pieces: dict[int, str] = {}
    if set(map(type, ids.values())) == {int}:
        pieces = {token: piece for piece, token in ids.items()}
    if pieces.keys() != set(range(len(ids))):
        raise TokenizerError(f"{source}: {_fault_of_ids(ids)}")
    return [pieces[i] for i in range(len(pieces))]


def _fault_of_ids(ids: dict[str, Any]) -> str:
    """Why the ids are not 0, 1, 2 …, each once."""
    pieces: dict[int, str] = {}
    for piece, token in ids.items():
        if fault := fault_of_id(piece, token):
            return fault
        if token in pieces:
            return f"id {token} is both {pieces[token]!r} and {piece!r}"
        pieces[token] = piece
    hole = min(set(range(len(pieces) + 1)) - pieces.keys())
    return f"no token has id {hole}, expected ids without gaps"


def _merged(vocab: dict[str, int], merges: Sequence[tuple[str, str]], source: str) -> list[str]:
    """The results of the merges, in order. All parts and results must be in the vocabulary."""
    for piece in {*byte_alphabet(), *chain.from_iterable(merges)}:
        if piece not in vocab:
            raise TokenizerError(
                f"{source}: {piece!r} is not in the vocabulary, but it is a byte or part of a merge"
            )
    made = [left + right for left, right in merges]
    for piece in made:
        if piece not in vocab:
            raise TokenizerError(f"{source}: merge result {piece!r} is not in the vocabulary")
    return made


def _spelled_bytes(pieces: list[str], source: str) -> list[bytes]:
    """The bytes of spelled tokens. Translates them as one string: 50,000 tokens take 10 ms."""
    alphabet, text = byte_alphabet(), "".join(pieces)
    if foreign := set(text) - set(alphabet):
        raise TokenizerError(f"{source}: {min(foreign)!r} spells no byte, expected byte-level BPE")
    data = text.translate({ord(char): byte for char, byte in alphabet.items()}).encode("latin-1")
    ends = list(accumulate(map(len, pieces)))
    return [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]
