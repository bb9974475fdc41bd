"""Everything npgpt2 raises on purpose.

One family, `NpGPT2Error`, so that a caller can catch all of it; each member is also the built-in
exception that a caller would expect. The text has one form: where it is (file, tensor, field or
option), what was got, what was expected, what to do.
"""


def printable(text: str) -> str:
    """Text with words from files in it: they begin no line, and do not move a terminal's cursor.

    >>> printable("wte\\n\\x1b[2J: missing")
    'wte\\\\n\\\\x1b[2J: missing'
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class NpGPT2Error(Exception):
    """The family. Never raised itself."""

    def __str__(self) -> str:  # KeyError would print the repr of its argument
        return printable(str(self.args[0])) if self.args else ""


class ConfigError(NpGPT2Error, ValueError):
    """A config.json that is damaged, or asks for behaviour that is not implemented."""


class CheckpointError(NpGPT2Error, ValueError):
    """A weights file, or a set of tensors, that is not a sound GPT-2."""


class TensorNotFound(CheckpointError, KeyError):
    """A tensor was asked for by a name that the checkpoint does not have."""


class TokenizerError(NpGPT2Error, ValueError):
    """A vocabulary that cannot be read, or text that cannot be encoded."""


class InputError(NpGPT2Error, ValueError):
    """Ids, masks or prompts that the model cannot take."""


class OptionError(NpGPT2Error, ValueError):
    """An option outside its range. `option` is its name, as a Python parameter."""

    def __init__(self, option: str, text: str) -> None:
        super().__init__(f"{option}: {text}")
        self.option, self.text = option, text

    def __reduce__(self) -> tuple[type["OptionError"], tuple[str, str]]:  # from process to process
        return type(self), (self.option, self.text)


class FileError(NpGPT2Error, OSError):
    """A file or folder that cannot be found, read or fetched."""


class CheckFailed(NpGPT2Error):
    """What was made, or is there, does not hold against its reference."""


class FileBusy(FileError):
    """Another process is writing there."""


class TrainingError(NpGPT2Error, ValueError):
    """A training run that cannot go on: its loss is not a number, or it is told something else."""


class GoldenError(NpGPT2Error, ValueError):
    """Golden references that were changed or cannot be made, or a dump that cannot be read."""


class MissingPackage(NpGPT2Error, ImportError):
    """An optional package is needed. The text names the extra that brings it."""


class WeightsWarning(UserWarning):
    """A checkpoint loads, but holds NaN or infinity."""
