"""The settings of a server, for the command line and for Ray Serve."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from npgpt2.base.errors import FileError
from npgpt2.base.options import described, option, require


@described
@dataclass(frozen=True)
class Settings:
    """The limits of a server, and who may use it.

    Raises:
        OptionError: a value out of range.
    """

    slots: int = option(
        8, "generate up to N texts at the same time (default: {default})", "N",
        least=1, most=256, expected="{least} to {most}",
    )  # fmt: skip
    queue: int = option(
        64, "texts that may wait for a slot; more are refused with 429 (default: {default})", "N",
        least=0, most=100_000, expected="{least} to {most:,}",
    )  # fmt: skip
    api_key_file: str | None = option(
        None, "file of API keys, one per line; every path but /livez needs one of them (default: "
        "no key needed)", "FILE",
    )  # fmt: skip
    allow_host: Sequence[str] | None = option(
        None, "allow NAME in the Host header; may be repeated (localhost and the server's address "
        "are always allowed)", "NAME",
    )  # fmt: skip
    drain_seconds: float = option(
        30, "at shutdown, running texts have S seconds to finish (default: {default})", "S",
        least=0, most=86_400, expected="{least} to {most:,}",
    )  # fmt: skip

    def __post_init__(self) -> None:
        require(self)

    def keys(self) -> list[str]:
        """The keys in `api_key_file`, one per line; lines that begin with # are comments.

        Raises:
            FileError: it cannot be read, has no key, or has a key that no client can send.
            InputError: it is not UTF-8.
        """
        from npgpt2.base.files import read_text  # every command imports this file

        if self.api_key_file is None:
            return []
        lines = [line.strip() for line in read_text(Path(self.api_key_file)).splitlines()]
        keys = [line for line in lines if line and not line.startswith("#")]
        if not keys:
            raise FileError(f"{self.api_key_file}: has no key, expected one per line")
        for n, key in enumerate(keys, 1):
            if not key.isascii() or not key.isprintable() or " " in key:
                raise FileError(
                    f"{self.api_key_file}: key {n} is not valid, expected ASCII letters, digits "
                    "and punctuation"
                )
        return keys
