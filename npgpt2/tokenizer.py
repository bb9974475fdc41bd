"""Text ↔ ids, from the folder's own vocabulary and without network.

Byte-level BPE (GPT-2's kind) runs on `tiktoken`. tiktoken merges by rank and takes the rank for
the id; in a vocabulary trained elsewhere ids need not follow the order of the merges, so here the
rank is the order of the merges, and a table maps ranks to ids. Other kinds of vocabulary (BERT's,
SentencePiece) run on the libraries that made them, from the extra `tokenizers`.

No tokens are added around a text: what is encoded is what was given.
"""

import codecs
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, Protocol

from npgpt2.errors import FileError, MissingPackage, NpGPT2Error, TokenizerError
from npgpt2.files import read_file, read_json
from npgpt2.formats.impostors import refuse_impostor

# Every file that a vocabulary may consist of.
FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)

# Of these, any one says that there is a vocabulary; the others tell more of one.
WHOLE = ("tokenizer.json", "vocab.json", "merges.txt", "encoder.json", "vocab.bpe", "vocab.txt",
         "spiece.model", "sentencepiece.bpe.model")  # fmt: skip
OPENAI = {"encoder.json": "vocab.json", "vocab.bpe": "merges.txt"}  # their names → ours

END = "<|endoftext|>"  # stands before every document GPT-2 was trained on

# What a token may be there for, as tokenizer_config.json and special_tokens_map.json say it.
ROLES = tuple(f"{role}_token" for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
MORE_ROLES = ("additional_special_tokens", "extra_special_tokens")

# How GPT-2 cuts text before it merges bytes: contractions, letters, numbers, other signs, spaces.
# OpenAI's pattern (https://github.com/openai/gpt-2, encoder.py) with possessive quantifiers, which
# match the same and cannot backtrack.
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"

# All of that but `\s+(?!\S)` is matched without a stack; there a million spaces before a word end
# in a panic of tiktoken. Where the pattern cuts such a run, before its last space, is known.
SPACE = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"  # Rust's \s
LONG_SPACE = re.compile(f"(?=[{SPACE}][^{SPACE}])(?<=[{SPACE}]{{100000}})")

# Tokenizers of transformers that have the files of others, and give other ids.
CUTTERS = {"BertJapaneseTokenizer": "MeCab", "CpmTokenizer": "jieba", "CpmTokenizerFast": "jieba"}


class TextDecoder(Protocol):
    """Ids in, text out as soon as it is whole."""

    def push(self, token: int) -> str: ...
    def finish(self) -> str: ...


class Tokenizer(Protocol):
    """What the rest of the package needs of a vocabulary."""

    @property
    def size(self) -> int:
        """One more than the largest id."""

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Text → ids. `special`: text that spells an added token, such as <|endoftext|>, is it.

        Raises:
            TokenizerError: the text holds a lone surrogate, so it is not Unicode text.
        """

    def piece(self, token: int) -> str:
        """One id as the vocabulary spells it: 'Ġmeaning'. Raises TokenizerError: no such id."""

    def token_bytes(self, token: int) -> bytes:
        """The bytes that one id stands for. Raises TokenizerError: no such id."""

    def decode(self, ids: Sequence[int]) -> str:
        """Ids → text; bytes that are not UTF-8 become U+FFFD."""

    def decoder(self) -> TextDecoder:
        """A decoder for ids that come one by one."""


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The vocabulary of a checkpoint folder, of whichever kind it is.

    tokenizer.json comes first, then vocab.json with merges.txt (or OpenAI's names of these), then
    vocab.txt (BERT), then a SentencePiece model.

    Raises:
        FileError: the folder has none of these, or one cannot be read.
        TokenizerError: it is damaged.
        MissingPackage: it is of a kind that needs the extra `tokenizers`.

    >>> load_tokenizer("tests/data/tiny").encode("the king<|endoftext|>")
    [84, 258, 346, 299, 0]
    """
    try:
        return _load(Path(folder))
    # JSON of another shape than expected
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, NpGPT2Error):
            raise
        raise TokenizerError(
            f"{folder}: the tokenizer's files have an unknown form "
            f"({type(error).__name__}: {error}). Download again"
        ) from None


def end_id(tokenizer: Tokenizer) -> int | None:
    """The id of <|endoftext|>; None in a vocabulary without it.

    >>> end_id(load_tokenizer("tests/data/tiny"))
    0
    """
    ids = tokenizer.encode(END)
    return ids[0] if len(ids) == 1 and tokenizer.piece(ids[0]) == END else None


def vocabulary_files(folder: Path) -> dict[str, Path]:
    """The files of a vocabulary, whichever there are; OpenAI's by our names."""
    names = {name: name for name in FILES}
    found = {}
    for theirs, ours in (OPENAI | names).items():
        if (folder / theirs).is_file():
            found[ours] = folder / theirs
    return found


def copy_vocabulary(source: Path, target: Path) -> None:
    for name, path in vocabulary_files(source).items():
        shutil.copyfile(path, target / name)


def _load(folder: Path) -> Tokenizer:
    if (folder / "tokenizer.json").exists():
        return _from_tokenizer_json(folder / "tokenizer.json")
    _require_no_cutter(folder)
    for ids, merges in (("vocab.json", "merges.txt"), tuple(OPENAI)):
        if (folder / ids).exists() or (folder / merges).exists():
            vocab = read_json(folder / ids, TokenizerError)
            settings = tokenizer_settings(folder)
            return BytePairTokenizer(
                vocab,
                read_merges(folder / merges),
                added_tokens(folder, vocab, settings),
                prefix_space=bool(settings.get("add_prefix_space")),
                source=str(folder / ids),
            )
    if (folder / "vocab.txt").exists():
        return LibraryTokenizer.from_wordpiece(folder / "vocab.txt")
    for name in ("spiece.model", "sentencepiece.bpe.model"):
        if (folder / name).exists():
            return SentencePieceTokenizer(folder / name)
    raise FileError(
        f"{folder}: has no vocabulary, expected tokenizer.json, or vocab.json and "
        "merges.txt, beside the weights"
    )


def _require_no_cutter(folder: Path) -> None:
    """These files may belong to a tokenizer that first cuts words by a dictionary of its own."""
    for name in ("tokenizer_config.json", "config.json"):
        values = read_json(folder / name, TokenizerError) if (folder / name).exists() else {}
        if (kind := values.get("tokenizer_class")) in CUTTERS:
            raise TokenizerError(
                f"{folder / name}: tokenizer_class is {kind!r}, which cuts text into words with "
                f"{CUTTERS[kind]}: not implemented here. Give ids, not text"
            )


# ── byte-level BPE ───────────────────────────────────────────────────────────────────────────────


@cache
def byte_alphabet() -> dict[str, int]:
    """The 256 characters by which vocab.json spells bytes: printable ones stand for themselves.

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
        added: text → id of the tokens that stand whole in a text, such as <|endoftext|>.
        prefix_space: put a space before text that does not begin with one.
        source: stands at the head of every error.

    Raises:
        TokenizerError: an id twice, a hole in the ids, a byte without a token, a merge of or into
            what is no token.

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
        self._split = _splitter(added)
        spelled = [*byte_alphabet(), *_merged(vocab, merges, source)]
        ranks = {piece: rank for rank, piece in enumerate(_spelled_bytes(spelled, source))}
        if len(ranks) < len(spelled):
            raise TokenizerError(f"{source}: two merges make the same token, expected one")
        self._id_of_rank = [vocab[piece] for piece in spelled]
        self._bpe = tiktoken.Encoding(
            "npgpt2", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={}
        )

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
    """Holds back the bytes of a character until it is whole."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._bytes_of, self._size = tokenizer.token_bytes, tokenizer.size
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        # A vocabulary may be padded beyond its tokens: those ids are no text.
        return self._utf8.decode(self._bytes_of(token) if token < self._size else b"")

    def finish(self) -> str:
        return self._utf8.decode(b"", final=True)


def require_unicode(text: str) -> None:
    """Raises TokenizerError where a string cannot be UTF-8, and says where.

    >>> require_unicode("half a pair: \\ud83d")
    Traceback (most recent call last):
    npgpt2.errors.TokenizerError: text: a lone surrogate (U+D83D) at character 13, expected Unicode
    """
    if not isinstance(text, str):
        raise TokenizerError(f"text: got a {type(text).__name__}, expected text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"text: a lone surrogate (U+{ord(text[error.start]):04X}) at "
            f"character {error.start}, expected Unicode"
        ) from None


def _splitter(added: Iterable[str]) -> Callable[[str], list[str]]:
    """A function that cuts a text at these tokens; they themselves come at the odd places.

    >>> _splitter(["<s>", "<s>>"])("a<s>>b")
    ['a', '<s>>', 'b']
    """
    # Where two tokens could start, the longer one does.
    longest_first = sorted(added, key=len, reverse=True)
    if not longest_first:
        return lambda text: [text]
    return re.compile(f"({'|'.join(map(re.escape, longest_first))})").split


def _by_id(vocab: dict[str, int], added: dict[str, int], source: str) -> list[str]:
    """Token by id; every id from 0 up exactly once."""
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
    """Why these ids are not every number from 0 up, once."""
    pieces: dict[int, str] = {}
    for piece, token in ids.items():
        if fault := _fault_of_id(piece, token):
            return fault
        if token in pieces:
            return f"id {token} is both {pieces[token]!r} and {piece!r}"
        pieces[token] = piece
    hole = min(set(range(len(pieces) + 1)) - pieces.keys())
    return f"no token has id {hole}, expected ids without holes"


def _require_tokens(added: dict[str, Any], source: Path) -> None:
    """Tokens that stand whole in a text have to have one, and an id."""
    for text, token in added.items():
        if not text:
            raise TokenizerError(f"{source}: id {token} is an added token without text")
        if fault := _fault_of_id(text, token):
            raise TokenizerError(f"{source}: {fault}")


def _fault_of_id(piece: str, token: Any) -> str:
    number = isinstance(token, int) and not isinstance(token, bool) and token >= 0
    return "" if number else f"{piece!r} has id {token!r}, expected a whole number"


def _merged(vocab: dict[str, int], merges: Sequence[tuple[str, str]], source: str) -> list[str]:
    """What the merges make, in their order. All of it has to be in the vocabulary."""
    for piece in {*byte_alphabet(), *chain.from_iterable(merges)}:
        if piece not in vocab:
            raise TokenizerError(
                f"{source}: {piece!r} is not in the vocabulary, but it is a byte or part of a merge"
            )
    made = [left + right for left, right in merges]
    for piece in made:
        if piece not in vocab:
            raise TokenizerError(f"{source}: a merge makes {piece!r}, not in the vocabulary")
    return made


def _spelled_bytes(pieces: list[str], source: str) -> list[bytes]:
    """The bytes behind many spelled tokens: translated as one string, then cut; 50,000 in 10 ms."""
    alphabet, text = byte_alphabet(), "".join(pieces)
    if foreign := set(text) - set(alphabet):
        raise TokenizerError(f"{source}: {min(foreign)!r} spells no byte, expected byte-level BPE")
    data = text.translate({ord(char): byte for char, byte in alphabet.items()}).encode("latin-1")
    ends = list(accumulate(map(len, pieces)))
    return [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]


# ── files ────────────────────────────────────────────────────────────────────────────────────────


def _read_lines(path: Path, what: str) -> list[str]:
    data = read_file(path)
    if not data:  # merges without a merge have their version line
        raise TokenizerError(f"{path}: has 0 bytes, expected {what}. Download again")
    refuse_impostor(path, data, what, TokenizerError)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TokenizerError(
            f"{path}: not UTF-8 at byte {error.start}, expected {what}. Download again"
        ) from None
    if text.startswith("\ufeff"):
        raise TokenizerError(f"{path}: starts with a byte-order mark. Save it as plain UTF-8")
    return text.replace("\r\n", "\n").removesuffix("\n").split("\n")


def read_merges(path: Path) -> list[tuple[str, str]]:
    """merges.txt: a version line, then a pair a line."""
    lines = _read_lines(path, "merges")
    start = 1 if lines[0].startswith("#version") else 0
    merges = []
    for number, line in enumerate(lines[start:], start + 1):
        pair = line.split(" ")
        if len(pair) != 2 or not all(pair):
            if not line:
                continue
            raise TokenizerError(
                f"{path}: line {number}: got {line[:40]!r}, "
                "expected two tokens with a space between"
            )
        merges.append((pair[0], pair[1]))
    return merges


def tokenizer_settings(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, where there is one."""
    path = folder / "tokenizer_config.json"
    return read_json(path, TokenizerError) if path.exists() else {}


def special_tokens(folder: Path, settings: dict[str, Any]) -> dict[str, str]:
    """What the small files name by its role: {"unk_token": "[UNK]"}."""
    path = folder / "special_tokens_map.json"
    table = read_json(path, TokenizerError) if path.exists() else {}
    table |= {key: value for key, value in settings.items() if value is not None}
    named = {role: table.get(role) for role in ROLES}
    for role in MORE_ROLES:
        more = table.get(role) or []
        more = more.values() if isinstance(more, dict) else more
        named |= {f"{role}.{number}": token for number, token in enumerate(more)}
    texts = {role: t["content"] if isinstance(t, dict) else t for role, t in named.items()}
    return {role: str(text) for role, text in texts.items() if text}


def added_tokens(folder: Path, vocab: dict[str, int], settings: dict[str, Any]) -> dict[str, int]:
    """The tokens that stand whole in a text, from the small files beside the vocabulary."""
    named = [END, *special_tokens(folder, settings).values()]
    added = {token: vocab[token] for token in named if token in vocab}
    if (folder / "added_tokens.json").exists():
        added |= read_json(folder / "added_tokens.json", TokenizerError)
    for token, entry in (settings.get("added_tokens_decoder") or {}).items():
        added[entry["content"]] = int(token)
    return added


def _from_tokenizer_json(path: Path) -> Tokenizer:
    """The byte-level kind is read here; for any other the library that wrote the file reads it."""
    spec = read_json(path, TokenizerError)
    model, cutter = spec.get("model") or {}, spec.get("pre_tokenizer") or {}
    added = spec.get("added_tokens") or []
    plain = (
        model.get("type") == "BPE"
        and cutter.get("type") == "ByteLevel"
        and cutter.get("use_regex", True)
        and not spec.get("normalizer")
        and not any(
            model.get(key)
            for key in (
                "dropout",
                "byte_fallback",
                "ignore_merges",
                "continuing_subword_prefix",
                "end_of_word_suffix",
            )
        )
        and not any(
            token.get(flag) for token in added for flag in ("lstrip", "rstrip", "single_word")
        )
    )
    if not plain:
        return LibraryTokenizer.from_file(path)
    merges = []
    for number, merge in enumerate(model.get("merges") or []):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if len(pair) != 2 or not all(isinstance(side, str) and side for side in pair):
            raise TokenizerError(f"{path}: merge {number}: got {merge!r}, expected two tokens")
        merges.append((pair[0], pair[1]))
    return BytePairTokenizer(
        model.get("vocab") or {},
        merges,
        {token["content"]: token["id"] for token in added},
        prefix_space=bool(cutter.get("add_prefix_space")),
        source=str(path),
    )


# ── other kinds, by the libraries that made them ─────────────────────────────────────────────────


# What BertTokenizer takes for whole tokens where no file says otherwise.
BERT_TOKENS = ("[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]")
SPACE_SIGN = "\u2581"  # how SentencePiece writes a space


class _WholeTextDecoder:
    """For vocabularies whose tokens change with their neighbours: decode all, send what is new."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._ids, self._sent = tokenizer, list[int](), 0

    def push(self, token: int) -> str:
        if token >= self._tokenizer.size:  # a padded vocabulary: see _ByteDecoder
            return ""
        self._ids.append(token)
        text = self._tokenizer.decode(self._ids)
        return "" if text.endswith("\ufffd") else self._send(text)

    def finish(self) -> str:
        return self._send(self._tokenizer.decode(self._ids))

    def _send(self, text: str) -> str:
        new, self._sent = text[self._sent :], len(text)
        return new


class LibraryTokenizer:
    """Any tokenizer.json, and BERT's vocab.txt, through the library `tokenizers`."""

    def __init__(self, library: Any) -> None:
        # A file may say to cut texts or to fill them up, as its last user did. That is a setting
        # for batches, not part of the vocabulary.
        library.no_truncation()
        library.no_padding()
        self._library = library
        self._size = 1 + max(library.get_vocab().values(), default=-1)  # there may be holes

    @classmethod
    def from_file(cls, path: Path) -> "LibraryTokenizer":
        tokenizers = _require("tokenizers", path, "this kind of vocabulary")
        try:
            return cls(tokenizers.Tokenizer.from_file(str(path)))
        except Exception as error:  # the library raises nothing narrower
            raise TokenizerError(f"{path}: {error}") from None

    @classmethod
    def from_wordpiece(cls, path: Path) -> "LibraryTokenizer":
        """BERT's, with the switches of tokenizer_config.json and the defaults of BertTokenizer."""
        tokenizers = _require("tokenizers", path, "BERT's vocabulary")
        settings = tokenizer_settings(path.parent)
        vocab = {piece: token for token, piece in enumerate(_read_lines(path, "a vocabulary"))}
        unknown = special_tokens(path.parent, settings).get("unk_token", "[UNK]")
        if unknown not in vocab:
            raise TokenizerError(f"{path}: has no {unknown}, expected a token for what is unknown")
        added = {token: vocab[token] for token in BERT_TOKENS if token in vocab}
        added |= added_tokens(path.parent, vocab, settings)
        _require_tokens(added, path.parent)
        try:
            library = tokenizers.Tokenizer(
                tokenizers.models.WordPiece(vocab=vocab, unk_token=unknown)
            )
            library.normalizer = tokenizers.normalizers.BertNormalizer(
                lowercase=bool(settings.get("do_lower_case", True)),
                strip_accents=settings.get("strip_accents"),  # null: where it is lower-cased
                handle_chinese_chars=bool(settings.get("tokenize_chinese_chars", True)),
            )
            library.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
            library.decoder = tokenizers.decoders.WordPiece()
            # New ones get the next ids, one after the other.
            library.add_special_tokens(sorted(added, key=added.__getitem__))
        except Exception as error:  # the library raises nothing narrower
            raise TokenizerError(f"{path}: {error}") from None
        for token, wanted in added.items():
            if (got := library.token_to_id(token)) != wanted:
                raise TokenizerError(f"{path.parent}: {token!r} has id {wanted}, expected {got}")
        return cls(library)

    @property
    def size(self) -> int:
        return self._size

    def encode(self, text: str, special: bool = True) -> list[int]:
        require_unicode(text)
        self._library.encode_special_tokens = not special
        try:
            ids: list[int] = self._library.encode(text, add_special_tokens=False).ids
        except Exception as error:  # the library raises nothing narrower
            raise TokenizerError(f"text: the vocabulary cannot encode it ({error})") from None
        return ids

    def piece(self, token: int) -> str:
        piece: str | None = None
        if 0 <= token < self.size:  # the library counts in 32 bits
            piece = self._library.id_to_token(token)
        if piece is None:
            raise TokenizerError(
                f"id {token}: not in the vocabulary, expected 0 to {self.size - 1}"
            )
        return piece

    def token_bytes(self, token: int) -> bytes:
        self.piece(token)
        return self.decode([token]).encode()

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._library.decode(list(ids), skip_special_tokens=False))

    def decoder(self) -> TextDecoder:
        return _WholeTextDecoder(self)


class SentencePieceTokenizer:
    """A SentencePiece model, through the library `sentencepiece`.

    The library knows neither the tokens that stand whole in a text nor lower case: both are in the
    small files beside it, and are minded here. The 100 <extra_id_N> that T5Tokenizer adds without
    being asked are not there: no GPT-2 has weights for them.
    """

    def __init__(self, path: Path) -> None:
        sentencepiece = _require("sentencepiece", path, "a SentencePiece vocabulary")
        try:
            self._library: Any = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (OSError, RuntimeError) as error:
            raise TokenizerError(f"{path}: not a SentencePiece model ({error})") from None
        settings = tokenizer_settings(path.parent)
        self._lowercase = bool(settings.get("do_lower_case"))
        self._count = int(self._library.vocab_size())
        vocab = {str(self._library.id_to_piece(token)): token for token in range(self._count)}
        own = (self._library.is_control, self._library.is_unknown)
        added = {piece: token for piece, token in vocab.items() if any(is_(token) for is_ in own)}
        self._added = added | added_tokens(path.parent, vocab, settings)
        _require_tokens(self._added, path.parent)
        self._split = _splitter(self._added)
        self._texts = {token: text for text, token in self._added.items()}
        # Most models put a space before every text.
        self._prefixed = self.piece(self._library.encode("a")[0]).startswith(SPACE_SIGN)

    @property
    def size(self) -> int:
        return max(self._count - 1, *self._texts) + 1

    def encode(self, text: str, special: bool = True) -> list[int]:
        require_unicode(text)
        ids: list[int] = []
        for i, part in enumerate(self._split(text) if special else [text]):
            if i % 2:
                ids.append(self._added[part])
            else:
                ids += self._library.encode(part.lower() if self._lowercase else part)
        return ids

    def piece(self, token: int) -> str:
        if token in self._texts:
            return self._texts[token]
        if not 0 <= token < self._count:
            raise TokenizerError(f"id {token}: expected 0 to {self.size - 1}")
        return str(self._library.id_to_piece(token))

    def token_bytes(self, token: int) -> bytes:
        piece = self.piece(token)
        if token in self._texts:
            return piece.encode()
        if self._library.is_byte(token):
            return bytes.fromhex(piece[3:5])  # <0xE3>
        return piece.replace(SPACE_SIGN, " ").encode()

    def decode(self, ids: Sequence[int]) -> str:
        text = b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")
        before = self._prefixed and bool(text) and self.piece(ids[0]).startswith(SPACE_SIGN)
        return text[1:] if before else text

    def decoder(self) -> TextDecoder:
        return _WholeTextDecoder(self)


def _require(package: str, path: Path, what: str) -> Any:
    try:
        return __import__(package)
    except ImportError:
        raise MissingPackage(
            f"{path}: {what} needs the package {package}. Run: pip install 'npgpt2[tokenizers]'"
        ) from None
