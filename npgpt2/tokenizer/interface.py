"""The interface of every kind of vocabulary to the rest of the package."""

from collections.abc import Sequence
from typing import Protocol

from npgpt2.base.errors import TokenizerError

END = "<|endoftext|>"  # precedes every document that GPT-2 was trained on


class TextDecoder(Protocol):
    """Decodes ids one by one; returns text as soon as its characters are complete."""

    def push(self, token: int) -> str: ...
    def finish(self) -> str: ...


class Tokenizer(Protocol):
    """Text ↔ token ids."""

    @property
    def size(self) -> int:
        """One more than the largest id."""

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Text → ids. `special`: encode text such as <|endoftext|> as the added token.

        Raises:
            TokenizerError: the text contains a lone surrogate, so it is not valid Unicode.
        """

    def piece(self, token: int) -> str:
        """An id as the vocabulary spells it: 'Ġmeaning'. Raises TokenizerError: no such id."""

    def token_bytes(self, token: int) -> bytes:
        """The bytes of an id. Raises TokenizerError: no such id."""

    def decode(self, ids: Sequence[int]) -> str:
        """Ids → text; bytes that are not UTF-8 become U+FFFD."""

    def decoder(self) -> TextDecoder:
        """A new decoder for ids that arrive one by one."""


def end_id(tokenizer: Tokenizer) -> int | None:
    """The id of <|endoftext|>; None if the vocabulary has no such token.

    >>> from npgpt2 import load_tokenizer
    >>> end_id(load_tokenizer("tests/data/tiny"))
    0
    """
    ids = tokenizer.encode(END)
    return ids[0] if len(ids) == 1 and tokenizer.piece(ids[0]) == END else None


def require_unicode(text: str) -> None:
    """Raises TokenizerError if a string cannot be encoded as UTF-8.

    >>> require_unicode("half a pair: \\ud83d")
    Traceback (most recent call last):
    npgpt2.base.errors.TokenizerError: text: a lone surrogate (U+D83D) at character 13, ...
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
