"""Load the vocabulary of a folder, without network: text ↔ ids.

Encoding adds no tokens before or after a text.
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

# transformers' tokenizers that use the files of another tokenizer, but give other ids.
CUTTERS = {"BertJapaneseTokenizer": "MeCab", "CpmTokenizer": "jieba", "CpmTokenizerFast": "jieba"}


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Load the vocabulary of a checkpoint folder.

    Uses the first that exists: tokenizer.json, vocab.json with merges.txt (or OpenAI's names for
    them), vocab.txt (BERT), a SentencePiece model.

    Raises:
        FileError: the folder has none of these, or a file cannot be read.
        TokenizerError: a file is damaged.
        MissingPackage: this kind of vocabulary needs the extra `tokenizers`.

    >>> load_tokenizer("tests/data/tiny").encode("the king<|endoftext|>")
    [84, 258, 346, 299, 0]
    """
    try:
        return _load(Path(folder))
    # JSON of an unexpected form
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, NpGPT2Error):
            raise
        raise TokenizerError(
            f"{folder}: the tokenizer files have an unknown form "
            f"({type(error).__name__}: {error}). Download again"
        ) from None


def vocabulary_of(folder: Path | None) -> Callable[[], Tokenizer] | None:
    """A function that loads a folder's vocabulary when it is needed; None without a folder."""
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
    """Raises TokenizerError if the files belong to a tokenizer that uses a word segmenter."""
    for name in ("tokenizer_config.json", "config.json"):
        values = read_json(folder / name, TokenizerError) if (folder / name).exists() else {}
        if (kind := values.get("tokenizer_class")) in CUTTERS:
            raise TokenizerError(
                f"{folder / name}: tokenizer_class is {kind!r}, which splits text into words with "
                f"{CUTTERS[kind]}: not implemented here. Give ids, not text"
            )


def _from_tokenizer_json(path: Path) -> Tokenizer:
    """Byte-level BPE is read here, any other kind by the library `tokenizers`."""
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
