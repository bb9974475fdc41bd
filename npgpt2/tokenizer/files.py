"""The files of a vocabulary: find them, and read the small ones.

Up to four of them list the added tokens, which are never split, and the roles of special tokens.
"""

import shutil
from pathlib import Path
from typing import Any

from npgpt2.base.errors import TokenizerError
from npgpt2.base.files import read_file, read_json
from npgpt2.base.impostors import refuse_impostor
from npgpt2.tokenizer.interface import END

# All files that can belong to a vocabulary.
FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)

# Each of these shows that a folder has a vocabulary; the other files only add to one.
WHOLE = ("tokenizer.json", "vocab.json", "merges.txt", "encoder.json", "vocab.bpe", "vocab.txt",
         "spiece.model", "sentencepiece.bpe.model")  # fmt: skip

OPENAI = {"encoder.json": "vocab.json", "vocab.bpe": "merges.txt"}  # their names → ours

# The roles of special tokens in tokenizer_config.json and special_tokens_map.json.
ROLES = tuple(f"{role}_token" for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))

MORE_ROLES = ("additional_special_tokens", "extra_special_tokens")


def vocabulary_files(folder: Path) -> dict[str, Path]:
    """The vocabulary files in a folder, by name; OpenAI's files by the names of `FILES`."""
    names = {name: name for name in FILES}
    found = {}
    for theirs, ours in (OPENAI | names).items():
        if (folder / theirs).is_file():
            found[ours] = folder / theirs
    return found


def copy_vocabulary(source: Path, target: Path) -> None:
    for name, path in vocabulary_files(source).items():
        shutil.copyfile(path, target / name)


def read_lines(path: Path, what: str) -> list[str]:
    data = read_file(path)
    if not data:  # a file without merges still has its version line
        raise TokenizerError(f"{path}: has 0 bytes, expected {what}. Download again")
    refuse_impostor(path, data, what, TokenizerError)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TokenizerError(
            f"{path}: not UTF-8 at byte {error.start}, expected {what}. Download again"
        ) from None
    if text.startswith("\ufeff"):
        raise TokenizerError(f"{path}: starts with a byte-order mark. Save it as plain UTF-8")
    return text.replace("\r\n", "\n").removesuffix("\n").split("\n")


def read_merges(path: Path) -> list[tuple[str, str]]:
    """Read merges.txt: a version line, then one pair per line."""
    lines = read_lines(path, "merges")
    start = 1 if lines[0].startswith("#version") else 0
    merges = []
    for number, line in enumerate(lines[start:], start + 1):
        pair = line.split(" ")
        if len(pair) != 2 or not all(pair):
            if not line:
                continue
            raise TokenizerError(
                f"{path}: line {number}: got {line[:40]!r}, "
                "expected two tokens with a space between"
            )
        merges.append((pair[0], pair[1]))
    return merges


def tokenizer_settings(folder: Path) -> dict[str, Any]:
    """The contents of tokenizer_config.json; empty if there is none."""
    path = folder / "tokenizer_config.json"
    return read_json(path, TokenizerError) if path.exists() else {}


def special_tokens(folder: Path, settings: dict[str, Any]) -> dict[str, str]:
    """Special tokens by role, from the small files: {"unk_token": "[UNK]"}."""
    path = folder / "special_tokens_map.json"
    table = read_json(path, TokenizerError) if path.exists() else {}
    table |= {key: value for key, value in settings.items() if value is not None}
    named = {role: table.get(role) for role in ROLES}
    for role in MORE_ROLES:
        more = table.get(role) or []
        more = more.values() if isinstance(more, dict) else more
        named |= {f"{role}.{number}": token for number, token in enumerate(more)}
    texts = {role: t["content"] if isinstance(t, dict) else t for role, t in named.items()}
    return {role: str(text) for role, text in texts.items() if text}


def added_tokens(folder: Path, vocab: dict[str, int], settings: dict[str, Any]) -> dict[str, int]:
    """Text → id of the added tokens, which are never split, from the small files."""
    named = [END, *special_tokens(folder, settings).values()]
    added = {token: vocab[token] for token in named if token in vocab}
    if (folder / "added_tokens.json").exists():
        added |= read_json(folder / "added_tokens.json", TokenizerError)
    for token, entry in (settings.get("added_tokens_decoder") or {}).items():
        added[entry["content"]] = int(token)
    return added


def require_tokens(added: dict[str, Any], source: Path) -> None:
    """Raises TokenizerError if an added token has no text or no valid id."""
    for text, token in added.items():
        if not text:
            raise TokenizerError(f"{source}: id {token} is an added token without text")
        if fault := fault_of_id(text, token):
            raise TokenizerError(f"{source}: {fault}")


def fault_of_id(piece: str, token: Any) -> str:
    number = isinstance(token, int) and not isinstance(token, bool) and token >= 0
    return "" if number else f"{piece!r} has id {token!r}, expected an integer"
