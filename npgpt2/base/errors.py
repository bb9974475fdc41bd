"""The exceptions that npgpt2 raises.

All derive from `NpGPT2Error`, so a caller can catch all of them; each is also the built-in
exception that a caller would expect. Messages have one form: the place (file, tensor, field or
option), what it got, what it expected, what to do.
"""


def printable(text: str) -> str:
    """Escape control characters in a text, so that it stays on one line of a terminal.

    >>> printable("wte\\n\\x1b[2J: missing")
    'wte\\\\n\\\\x1b[2J: missing'
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class NpGPT2Error(Exception):
    """Base class of all errors. Not raised itself."""

    def __str__(self) -> str:  # KeyError would print the repr of its argument
        return printable(str(self.args[0])) if self.args else ""


class ConfigError(NpGPT2Error, ValueError):
    """A config.json is damaged, or asks for behaviour that is not implemented."""


class CheckpointError(NpGPT2Error, ValueError):
    """A weights file, or a set of tensors, is not a valid GPT-2."""


class TensorNotFound(CheckpointError, KeyError):
    """The checkpoint has no tensor of the requested name."""


class TokenizerError(NpGPT2Error, ValueError):
    """A vocabulary cannot be read, or a text cannot be encoded."""


class InputError(NpGPT2Error, ValueError):
    """The model cannot process these ids, masks or prompts."""


class OptionError(NpGPT2Error, ValueError):
    """An option is outside its range. `option` is its name, as a Python parameter."""

    def __init__(self, option: str, text: str) -> None:
        super().__init__(f"{option}: {text}")
        self.option, self.text = option, text

    def __reduce__(self) -> tuple[type["OptionError"], tuple[str, str]]:  # for pickle
        return type(self), (self.option, self.text)


class FileError(NpGPT2Error, OSError):
    """A file or folder cannot be found, read, written or downloaded."""


class CheckFailed(NpGPT2Error):
    """A result does not match its reference."""


class FileBusy(FileError):
    """Another process is writing to this file or folder."""


class TrainingError(NpGPT2Error, ValueError):
    """A training run cannot continue: the loss is not finite, or the options have changed."""


class GoldenError(NpGPT2Error, ValueError):
    """Golden references were changed or cannot be created, or a dump cannot be read."""


class MissingPackage(NpGPT2Error, ImportError):
    """An optional package is missing. The message names the extra that installs it."""


class WeightsWarning(UserWarning):
    """A checkpoint loads, but contains NaN or infinity."""
