"""Check a checkpoint folder and report every fault, not only the first."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np

from npgpt2.base.errors import ConfigError, FileError, NpGPT2Error
from npgpt2.base.files import Progress, read_json
from npgpt2.checkpoints.checkpoint import Checkpoint, nonfinite, read_config
from npgpt2.checkpoints.formats.find import find
from npgpt2.checkpoints.formats.tensors import Files
from npgpt2.model.config import GPT2Config
from npgpt2.tokenizer.files import WHOLE
from npgpt2.tokenizer.load import load_tokenizer

TOGETHER = {"n_embd", "n_head", "n_layer", "pruned_heads"}  # only valid in combination


@dataclass
class Report:
    """The result of a check.

    Attributes:
        facts: (part, description) of each part that could be read.
        faults: error messages; each names its file, what was got and what was expected.
    """

    facts: list[tuple[str, str]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @contextmanager
    def trying(self) -> Iterator[None]:
        """Record an NpGPT2Error as a fault and go on."""
        try:
            yield
        except NpGPT2Error as error:
            self.faults.append(str(error))


def check(folder: str | Path, progress: Progress = lambda names, what: names) -> Report:
    """Check everything in a checkpoint folder: config, place and values of every tensor,
    checksums, vocabulary.

    Raises:
        FileError: the folder does not exist.

    >>> check("tests/data/tiny").faults
    []
    """
    folder = Path(folder)
    if not folder.exists():
        raise FileError(f"{folder}: no such folder, expected a checkpoint folder")
    report = Report()
    config = _config(folder, report)
    _weights(folder, config, report, progress)
    _vocabulary(folder, config, report)
    return report


def _config(folder: Path, report: Report) -> GPT2Config | None:
    """Check each field alone, so that one wrong field does not hide another."""
    path = folder / "config.json"
    if not path.exists():
        return None  # the weights may contain the config, see `_weights`
    config = None
    before = len(report.faults)
    with report.trying():
        values = read_json(path, ConfigError)
        alone = {f.name for f in fields(GPT2Config)} - TOGETHER
        for name in alone & set(values):
            with report.trying():
                GPT2Config.from_dict({name: values[name]}, str(path))
    if len(report.faults) == before:
        with report.trying():
            config = read_config(folder)
            report.facts.append(("config", in_words(config)))
    return config


def in_words(config: GPT2Config) -> str:
    """
    >>> in_words(GPT2Config())
    '12 layers, 12 heads, n_embd 768, context 1,024, vocabulary 50,257'
    """
    labels = f", labels {', '.join(config.labels)}" if config.labels else ""
    what = "" if config.head == "lm_head" else f"{config.architectures[0]}{labels}; "
    return (
        f"{what}{config.n_layer} layers, {config.n_head} heads, n_embd {config.n_embd:,}, "
        f"context {config.n_positions:,}, vocabulary {config.vocab_size:,}"
    )


def _weights(folder: Path, config: GPT2Config | None, report: Report, progress: Progress) -> None:
    with report.trying():
        found = find(folder)
        kind, tensors = found.kind, found.tensors
        # Not if config.json exists but is invalid: that fault is reported already.
        if config or found.config or not (folder / "config.json").exists():
            with report.trying():
                checkpoint = Checkpoint.of(folder, found)
                tensors = checkpoint.tensors
                if config is None:
                    report.facts.append(("config", in_words(checkpoint.config)))
        files, values = Files(mmap=True), 0
        for name in progress(tensors, "reading"):
            with report.trying():
                array = files.array(tensors[name], np.dtype(np.float32))
                values += array.size
                if text := nonfinite(array, tensors[name]):
                    report.faults.append(f"{text}, expected finite weights")
        dtypes = ", ".join(Counter(info.dtype for info in tensors.values()))
        bytes_ = sum(info.nbytes for info in tensors.values())
        report.facts.append(
            ("weights", f"{kind}, {len(tensors)} tensors, {values:,} values, {dtypes}, "
             f"{bytes_:,} bytes")
        )  # fmt: skip


def _vocabulary(folder: Path, config: GPT2Config | None, report: Report) -> None:
    if not any((folder / name).exists() for name in WHOLE):
        report.facts.append(("vocabulary", "none: the model takes ids, not text"))
        return
    with report.trying():
        tokenizer = load_tokenizer(folder)
        report.facts.append(("vocabulary", f"{tokenizer.size:,} entries"))
        if config is not None and tokenizer.size > config.vocab_size:
            report.faults.append(
                f"{folder}: the vocabulary has {tokenizer.size:,} entries, expected at most the "
                f"{config.vocab_size:,} rows of wte"
            )
