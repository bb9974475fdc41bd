"""A folder's own vocabulary, without network: text ↔ ids.

No tokens are added around a text: what is encoded is what was given.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from npgpt2.base.errors import FileError, NpGPT2Error, TokenizerError
from npgpt2.base.files import read_json
from npgpt2.tokenizer.byte_pair import BytePairTokenizer
from npgpt2.tokenizer.files import OPENAI, added_tokens, read_merges, tokenizer_settings
from npgpt2.tokenizer.interface import Tokenizer
from npgpt2.tokenizer.library import LibraryTokenizer
from npgpt2.tokenizer.sentence_piece import SentencePieceTokenizer

# Tokenizers of transformers that have the files of others, and give other ids.
CUTTERS = {"BertJapaneseTokenizer": "MeCab", "CpmTokenizer": "jieba", "CpmTokenizerFast": "jieba"}


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The vocabulary of a checkpoint folder, of whichever kind it is.

    tokenizer.json comes first, then vocab.json with merges.txt (or OpenAI's names of these), then
    vocab.txt (BERT), then a SentencePiece model.

    Raises:
        FileError: the folder has none of these, or one cannot be read.
        TokenizerError: it is damaged.
        MissingPackage: it is of a kind that needs the extra `tokenizers`.

    >>> load_tokenizer("tests/data/tiny").encode("the king<|endoftext|>")
    [84, 258, 346, 299, 0]
    """
    try:
        return _load(Path(folder))
    # JSON of another shape than expected
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, NpGPT2Error):
            raise
        raise TokenizerError(
            f"{folder}: the tokenizer's files have an unknown form "
            f"({type(error).__name__}: {error}). Download again"
        ) from None


def vocabulary_of(folder: Path | None) -> Callable[[], Tokenizer] | None:
    """How to read a folder's vocabulary, for who may not need it; None of no folder."""
    return None if folder is None else partial(load_tokenizer, folder)


def _load(folder: Path) -> Tokenizer:
    if (folder / "tokenizer.json").exists():
        return _from_tokenizer_json(folder / "tokenizer.json")
    _require_no_cutter(folder)
    for ids, merges in (("vocab.json", "merges.txt"), tuple(OPENAI)):
        if (folder / ids).exists() or (folder / merges).exists():
            vocab = read_json(folder / ids, TokenizerError)
            settings = tokenizer_settings(folder)
            return BytePairTokenizer(
                vocab,
                read_merges(folder / merges),
                added_tokens(folder, vocab, settings),
                prefix_space=bool(settings.get("add_prefix_space")),
                source=str(folder / ids),
            )
    if (folder / "vocab.txt").exists():
        return LibraryTokenizer.from_wordpiece(folder / "vocab.txt")
    for name in ("spiece.model", "sentencepiece.bpe.model"):
        if (folder / name).exists():
            return SentencePieceTokenizer(folder / name)
    raise FileError(
        f"{folder}: has no vocabulary, expected tokenizer.json, or vocab.json and "
        "merges.txt, beside the weights"
    )


def _require_no_cutter(folder: Path) -> None:
    """These files may belong to a tokenizer that first cuts words by a dictionary of its own."""
    for name in ("tokenizer_config.json", "config.json"):
        values = read_json(folder / name, TokenizerError) if (folder / name).exists() else {}
        if (kind := values.get("tokenizer_class")) in CUTTERS:
            raise TokenizerError(
                f"{folder / name}: tokenizer_class is {kind!r}, which cuts text into words with "
                f"{CUTTERS[kind]}: not implemented here. Give ids, not text"
            )


def _from_tokenizer_json(path: Path) -> Tokenizer:
    """The byte-level kind is read here; for any other the library that wrote the file reads it."""
    spec = read_json(path, TokenizerError)
    model, cutter = spec.get("model") or {}, spec.get("pre_tokenizer") or {}
    added = spec.get("added_tokens") or []
    plain = (
        model.get("type") == "BPE"
        and cutter.get("type") == "ByteLevel"
        and cutter.get("use_regex", True)
        and not spec.get("normalizer")
        and not any(
            model.get(key)
            for key in (
                "dropout",
                "byte_fallback",
                "ignore_merges",
                "continuing_subword_prefix",
                "end_of_word_suffix",
            )
        )
        and not any(
            token.get(flag) for token in added for flag in ("lstrip", "rstrip", "single_word")
        )
    )
    if not plain:
        return LibraryTokenizer.from_file(path)
    merges = []
    for number, merge in enumerate(model.get("merges") or []):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if len(pair) != 2 or not all(isinstance(side, str) and side for side in pair):
            raise TokenizerError(f"{path}: merge {number}: got {merge!r}, expected two tokens")
        merges.append((pair[0], pair[1]))
    return BytePairTokenizer(
        model.get("vocab") or {},
        merges,
        {token["content"]: token["id"] for token in added},
        prefix_space=bool(cutter.get("add_prefix_space")),
        source=str(path),
    )
