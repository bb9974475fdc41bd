"""A vocabulary of GPT-2's kind, trained on a corpus by the library `tokenizers`."""

import json
from pathlib import Path

from npgpt2.base.errors import MissingPackage, OptionError
from npgpt2.tokenizer.byte_pair import byte_alphabet
from npgpt2.tokenizer.interface import END
from npgpt2.train.corpus import Texts

SMALLEST, LARGEST = 256 + 1, 2**20  # every byte, and <|endoftext|>
TWICE = 2  # a pair seen once would make a token that is trained once

# What transformers' AutoTokenizer reads.
SETTINGS = {
    "tokenizer_class": "GPT2Tokenizer",
    "add_prefix_space": False,
    "bos_token": END,
    "eos_token": END,
    "unk_token": END,
}


def train_vocabulary(texts: Texts, size: int, folder: str | Path) -> None:
    """Train byte-level BPE on the training part, and write its files into a folder.

    vocab.json and merges.txt are OpenAI's form; tokenizer.json and tokenizer_config.json are for
    transformers. <|endoftext|> is id 0, the bytes follow, then the merges in their order. The same
    text gives the same bytes.

    Args:
        size: of the vocabulary at most. It is smaller where no pair of tokens stands in the text
            twice.
        folder: is there already.

    Raises:
        OptionError: a size outside 257 … 1,048,576, as `vocab_size`.
        MissingPackage: `tokenizers` is not installed.
        FileError, InputError: a file of the corpus has changed since it was opened.
        OSError: the folder cannot be written.
    """
    if not isinstance(size, int) or not SMALLEST <= size <= LARGEST:
        raise OptionError(
            "vocab_size", f"got {size!r}, expected a whole number from {SMALLEST} to {LARGEST}"
        )
    try:
        import tokenizers
    except ImportError:
        raise MissingPackage(
            "vocabulary: training one needs the package tokenizers. "
            "Run: pip install 'npgpt2[train]'"
        ) from None
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=TWICE,
        special_tokens=[END],
        initial_alphabet=list(byte_alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator((text for text in texts.pieces("train") if text != END), trainer)
    _save(bpe.to_str(pretty=True), Path(folder))


def _save(spec: str, folder: Path) -> None:
    model = json.loads(spec)["model"]
    merges = ["#version: 0.2", *map(" ".join, model["merges"])]
    for name, text in {
        "vocab.json": json.dumps(model["vocab"], ensure_ascii=False),
        "merges.txt": "\n".join(merges),
        "tokenizer.json": spec,
        "tokenizer_config.json": json.dumps(SETTINGS, indent=2),
    }.items():
        (folder / name).write_bytes(f"{text}\n".encode())
