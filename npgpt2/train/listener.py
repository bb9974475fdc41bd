"""Who watches a run: the command line draws a bar, a notebook may do something else."""

from typing import Any


class Listener:
    """Told what happens. Each method may be overridden; none has to be."""

    def note(self, text: str) -> None:
        """A line for a person."""

    def begins(self, done: int, steps: int, tokens: int) -> None:
        """Before the first step: how many are done, how many there are, tokens in each."""

    def step(self, line: dict[str, Any]) -> None:
        """After each step: its line of the log."""

    def validated(self, line: dict[str, Any]) -> None:
        """After each validation: its line of the log."""

    def stopped(self) -> bool:
        """Asked after each step. True: save, and end here."""
        return False

    def progress(self, loop: Any, what: str, total: int | None = None) -> Any:
        """Wraps loops over files and tensors."""
        return loop
