"""What the rest of the package needs of a vocabulary, of whichever kind it is."""

from collections.abc import Sequence
from typing import Protocol

from npgpt2.base.errors import TokenizerError

END = "<|endoftext|>"  # stands before every document GPT-2 was trained on


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


def end_id(tokenizer: Tokenizer) -> int | None:
    """The id of <|endoftext|>; None in a vocabulary without it.

    >>> from npgpt2 import load_tokenizer
    >>> end_id(load_tokenizer("tests/data/tiny"))
    0
    """
    ids = tokenizer.encode(END)
    return ids[0] if len(ids) == 1 and tokenizer.piece(ids[0]) == END else None


def require_unicode(text: str) -> None:
    """Raises TokenizerError where a string cannot be UTF-8, and says where.

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
