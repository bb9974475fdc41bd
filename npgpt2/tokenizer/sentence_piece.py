"""SentencePiece models, on the library `sentencepiece`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from npgpt2.base.errors import TokenizerError
from npgpt2.tokenizer.byte_pair import splitter
from npgpt2.tokenizer.files import added_tokens, require_tokens, tokenizer_settings
from npgpt2.tokenizer.interface import TextDecoder, require_unicode
from npgpt2.tokenizer.library import WholeTextDecoder, require_package

SPACE_SIGN = "\u2581"  # how SentencePiece writes a space


class SentencePieceTokenizer:
    """A SentencePiece model, through the library `sentencepiece`.

    The library handles neither added tokens nor lower case. Both settings are in the small files
    next to the model and are applied here. The 100 <extra_id_N> that T5Tokenizer adds by default
    are left out: no GPT-2 has weights for them.
    """

    def __init__(self, path: Path) -> None:
        sentencepiece = require_package("sentencepiece", path, "a SentencePiece vocabulary")
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
        require_tokens(self._added, path.parent)
        self._split = splitter(self._added)
        self._texts = {token: text for text, token in self._added.items()}
        # Most models put a space before every text.
        self._prefixed = self.piece(self._library.encode("a")[0]).startswith(SPACE_SIGN)

    def __repr__(self) -> str:
        return f"SentencePieceTokenizer({self.size:,} tokens, {len(self._added)} of them added)"

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
        return WholeTextDecoder(self)
