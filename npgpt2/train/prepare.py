"""Prepare a run's folder: text → vocabulary → tokens → a first checkpoint."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from npgpt2.base.errors import CheckpointError, OptionError, TrainingError
from npgpt2.base.files import read_json, write_text
from npgpt2.checkpoints.hub import resolve
from npgpt2.gpt2 import GPT2
from npgpt2.model.config import GPT2Config
from npgpt2.tokenizer.files import copy_vocabulary
from npgpt2.tokenizer.interface import Tokenizer, end_id
from npgpt2.tokenizer.load import load_tokenizer
from npgpt2.train.callback import Callback
from npgpt2.train.corpus import Texts, Windows, encode, validation_batches
from npgpt2.train.settings import Settings
from npgpt2.train.state import Arrays, State, save_state
from npgpt2.train.vocabulary import train_vocabulary

SETTINGS = "training.json"
TOKENS = {"train": "train.npy", "val": "val.npy"}
VOCABULARY = 2048  # default size of the vocabulary
CONFIGS = ("config.json", "generation_config.json")


class Begun(NamedTuple):
    """The contents of a run's training.json."""

    settings: Settings
    sha256: str  # checksum of the corpus
    bytes: dict[str, int]  # size of the text of each part

    @classmethod
    def read(cls, folder: Path) -> "Begun":
        """Raises FileError, CheckpointError: training.json is missing or damaged."""
        values = read_json(folder / SETTINGS, CheckpointError)
        try:
            return cls(Settings(**values["settings"]), values["sha256"], values["bytes"])
        except (KeyError, TypeError, OptionError) as error:
            raise CheckpointError(f"{folder / SETTINGS}: damaged ({error}). Start again") from None


def prepare(
    corpus: Sequence[str | Path], out: Path, work: Path, settings: Settings, callback: Callback
) -> None:
    """Fill `work`, which becomes the run's folder `out`; see `npgpt2.train.loop` for its files."""
    if not corpus:
        raise OptionError("CORPUS", "got no file, expected text files or folders of text files")
    texts = Texts.open(corpus, settings.val_fraction, callback.progress, out)
    source = settings.tokenizer if settings.init is None else settings.init
    folder = None if source is None else resolve(source, weights=settings.init is not None)
    if folder is None:
        size = VOCABULARY if settings.vocab_size is None else settings.vocab_size
        train_vocabulary(texts, size, work)
    else:
        copy_vocabulary(folder, work)
    tokenizer = load_tokenizer(folder or work)
    if folder is not None and settings.init is not None:
        model = GPT2.from_pretrained(folder, strict=True, progress=callback.progress)
        model.config = _dropping(model.config, settings)
        _require_fits(tokenizer, model.config, settings)
    else:
        model = GPT2.from_random(_config(tokenizer, settings), settings.seed)
    if settings.window and settings.window > model.config.n_positions:
        raise OptionError(
            "window",
            f"got {settings.window}, expected at most {model.config.n_positions} tokens",
        )
    tokens = {"train": encode(texts, "train", tokenizer, work / TOKENS["train"], callback.progress)}
    Windows(tokens["train"].ids, settings.window or model.config.n_positions, settings.seed)
    if settings.val_fraction:
        tokens["val"] = encode(texts, "val", tokenizer, work / TOKENS["val"], callback.progress)
        validation_batches(tokens["val"].ids, 1, 1)
    first = save_state(work, model.config, Arrays.of(model.params, settings), State())
    for name in CONFIGS:
        shutil.copyfile(first / name, work / name)
    values = {
        "settings": settings.to_dict(),
        "sha256": texts.sha256,
        "bytes": {part: found.text_bytes for part, found in tokens.items()},
    }
    write_text(work / SETTINGS, json.dumps(values, indent=2) + "\n")
    counts = ", ".join(f"{len(found.ids):,} ({part})" for part, found in tokens.items())
    callback.note(f"{model.num_parameters:,} parameters; tokens: {counts}")


def require_same(
    corpus: Sequence[str | Path], out: Path, given: Mapping[str, Any], callback: Callback
) -> None:
    """Check that a run is resumed with the settings and the corpus that it was started with.

    Raises:
        TrainingError: something differs; the message names all differences.
    """
    begun = Begun.read(out)
    if unknown := given.keys() - {f.name for f in fields(Settings)}:
        raise TypeError(f"unexpected settings: {', '.join(sorted(unknown))}")
    other = [
        f"{name} was {getattr(begun.settings, name)!r} and is {value!r}"
        for name, value in given.items()
        if getattr(begun.settings, name) != value
    ]
    if corpus:
        texts = Texts.open(corpus, begun.settings.val_fraction, callback.progress, out)
        if texts.sha256 != begun.sha256:
            other.append("the corpus is another text")
    if other:
        raise TrainingError(
            f"{out}: resumed with other settings than it was started with: {'; '.join(other)}. "
            "Leave them out, or start a new run with --init"
        )


def _config(tokenizer: Tokenizer, settings: Settings) -> GPT2Config:
    """The config of a model from scratch."""
    end = end_id(tokenizer)
    config = GPT2Config(
        vocab_size=tokenizer.size, bos_token_id=end, eos_token_id=end, **settings.shape
    )
    return _dropping(config, settings)


def _dropping(config: GPT2Config, settings: Settings) -> GPT2Config:
    if settings.dropout is None:
        return config
    p = settings.dropout
    return replace(config, embd_pdrop=p, attn_pdrop=p, resid_pdrop=p)


def _require_fits(tokenizer: Tokenizer, config: GPT2Config, settings: Settings) -> None:
    if tokenizer.size > config.vocab_size:
        raise CheckpointError(
            f"{settings.init}: the vocabulary has {tokenizer.size:,} tokens, expected at most "
            f"{config.vocab_size:,}, the vocab_size of the model"
        )
    if config.add_cross_attention:
        raise CheckpointError(
            f"{settings.init}: has cross-attention, which needs an encoder. Expected a plain GPT-2"
        )
