"""All other tokenizer.json files, and BERT's vocab.txt, on the library `tokenizers`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from npgpt2.base.errors import MissingPackage, TokenizerError
from npgpt2.tokenizer.files import (
    added_tokens,
    read_lines,
    require_tokens,
    special_tokens,
    tokenizer_settings,
)
from npgpt2.tokenizer.interface import TextDecoder, Tokenizer, require_unicode

# The special tokens of BertTokenizer if no file lists others.
BERT_TOKENS = ("[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]")


class WholeTextDecoder:
    """For tokens whose text depends on neighbours: decodes all ids, returns what is new."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._ids, self._sent = tokenizer, list[int](), 0

    def push(self, token: int) -> str:
        if token >= self._tokenizer.size:  # a padded vocabulary: see `byte_pair`
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
    """Any tokenizer.json, or BERT's vocab.txt, through the library `tokenizers`."""

    def __init__(self, library: Any) -> None:
        # A file may contain truncation and padding settings of its last user. They are for batches,
        # not part of the vocabulary.
        library.no_truncation()
        library.no_padding()
        self._library = library
        self._size = 1 + max(library.get_vocab().values(), default=-1)  # ids may have gaps

    @classmethod
    def from_file(cls, path: Path) -> "LibraryTokenizer":
        tokenizers = require_package("tokenizers", path, "this kind of vocabulary")
        try:
            return cls(tokenizers.Tokenizer.from_file(str(path)))
        except Exception as error:  # the library raises nothing narrower
            raise TokenizerError(f"{path}: {error}") from None

    @classmethod
    def from_wordpiece(cls, path: Path) -> "LibraryTokenizer":
        """BERT's vocab.txt, with tokenizer_config.json and the defaults of BertTokenizer."""
        tokenizers = require_package("tokenizers", path, "BERT's vocabulary")
        settings = tokenizer_settings(path.parent)
        vocab = {piece: token for token, piece in enumerate(read_lines(path, "a vocabulary"))}
        unknown = special_tokens(path.parent, settings).get("unk_token", "[UNK]")
        if unknown not in vocab:
            raise TokenizerError(f"{path}: has no {unknown}, expected a token for unknown words")
        added = {token: vocab[token] for token in BERT_TOKENS if token in vocab}
        added |= added_tokens(path.parent, vocab, settings)
        require_tokens(added, path.parent)
        try:
            library = tokenizers.Tokenizer(
                tokenizers.models.WordPiece(vocab=vocab, unk_token=unknown)
            )
            library.normalizer = tokenizers.normalizers.BertNormalizer(
                lowercase=bool(settings.get("do_lower_case", True)),
                strip_accents=settings.get("strip_accents"),  # null: if lower-cased
                handle_chinese_chars=bool(settings.get("tokenize_chinese_chars", True)),
            )
            library.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
            library.decoder = tokenizers.decoders.WordPiece()
            # New tokens get the next free ids, in this order.
            library.add_special_tokens(sorted(added, key=added.__getitem__))
        except Exception as error:  # the library raises nothing narrower
            raise TokenizerError(f"{path}: {error}") from None
        for token, wanted in added.items():
            if (got := library.token_to_id(token)) != wanted:
                raise TokenizerError(f"{path.parent}: {token!r} has id {wanted}, expected {got}")
        return cls(library)

    def __repr__(self) -> str:
        return f"LibraryTokenizer({self.size:,} tokens, {type(self._library.model).__name__})"

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
        if 0 <= token < self.size:  # the library's ids have 32 bits
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
        return WholeTextDecoder(self)


def require_package(package: str, path: Path, what: str) -> Any:
    try:
        return __import__(package)
    except ImportError:
        raise MissingPackage(
            f"{path}: {what} needs the package {package}. Run: pip install 'npgpt2[tokenizers]'"
        ) from None
