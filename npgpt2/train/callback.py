"""The callback of a run: the command line draws a progress bar, a notebook may plot."""

from typing import Any


class Callback:
    """Receives the events of a run. Override the methods that you need."""

    def note(self, text: str) -> None:
        """A message for the user."""

    def begins(self, done: int, steps: int, tokens: int) -> None:
        """Called before the first step: steps done so far, steps in total, tokens per step."""

    def step(self, line: dict[str, Any]) -> None:
        """Called after each step with its line of the log."""

    def validated(self, line: dict[str, Any]) -> None:
        """Called after each validation with its line of the log."""

    def stopped(self) -> bool:
        """Called after each step. Return True to save and stop."""
        return False

    def progress(self, loop: Any, what: str, total: int | None = None) -> Any:
        """Wraps loops over files and tensors; returns the loop."""
        return loop
