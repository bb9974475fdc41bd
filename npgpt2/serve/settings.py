"""What a server is told, by the command line or as a Ray Serve application."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from npgpt2.base.errors import FileError
from npgpt2.base.options import described, option, require


@described
@dataclass(frozen=True)
class Settings:
    """What it takes upon itself, and from whom.

    Raises:
        OptionError: a number out of range.
    """

    slots: int = option(
        8, "texts written at the same time (default: {default})", "N",
        least=1, most=256, expected="{least} to {most}",
    )  # fmt: skip
    queue: int = option(
        64, "texts that may wait for a slot; more are refused (default: {default})", "N",
        least=0, most=100_000, expected="{least} to {most:,}",
    )  # fmt: skip
    api_key_file: str | None = option(
        None, "keys, one a line: every request but /livez needs one (default: none does)", "FILE"
    )
    allow_host: Sequence[str] | None = option(
        None,
        "a name that this server goes by; may be given several times (addresses and localhost are "
        "known)",
        "NAME",
    )
    drain_seconds: float = option(
        30, "what runs may take so long to finish when the server is told to end (default: "
        "{default})", "S", least=0, most=86_400, expected="{least} to {most:,}",
    )  # fmt: skip

    def __post_init__(self) -> None:
        require(self)

    def keys(self) -> list[str]:
        """Those of `api_key_file`, one a line; what begins with # is none.

        Raises:
            FileError: it cannot be read, holds none, or one that no client can send.
            InputError: it is not UTF-8.
        """
        from npgpt2.base.files import read_text  # every command imports this file

        if self.api_key_file is None:
            return []
        lines = [line.strip() for line in read_text(Path(self.api_key_file)).splitlines()]
        keys = [line for line in lines if line and not line.startswith("#")]
        if not keys:
            raise FileError(f"{self.api_key_file}: holds no key, expected one a line")
        for n, key in enumerate(keys, 1):
            if not key.isascii() or not key.isprintable() or " " in key:
                raise FileError(
                    f"{self.api_key_file}: key {n} is no key, expected ASCII letters, digits and "
                    "signs"
                )
        return keys
