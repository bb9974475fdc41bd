"""Train a GPT-2 vocabulary (byte-level BPE) on a corpus with the library `tokenizers`."""

import json
from pathlib import Path

from npgpt2.base.errors import MissingPackage, OptionError
from npgpt2.tokenizer.byte_pair import byte_alphabet
from npgpt2.tokenizer.interface import END
from npgpt2.train.corpus import Texts

SMALLEST, LARGEST = 256 + 1, 2**20  # every byte, and <|endoftext|>
TWICE = 2  # smallest count of a pair that becomes a token

# Read by AutoTokenizer of transformers.
SETTINGS = {
    "tokenizer_class": "GPT2Tokenizer",
    "add_prefix_space": False,
    "bos_token": END,
    "eos_token": END,
    "unk_token": END,
}


def train_vocabulary(texts: Texts, size: int, folder: str | Path) -> None:
    """Train byte-level BPE on the training part, and write its files into a folder.

    vocab.json and merges.txt are in OpenAI's format; tokenizer.json and tokenizer_config.json are
    for transformers. <|endoftext|> is id 0, then come the bytes, then the merges in order. The same
    text gives the same files.

    Args:
        size: largest size of the vocabulary. It is smaller if no more pair of tokens occurs twice
            in the text.
        folder: an existing folder.

    Raises:
        OptionError: `vocab_size` is outside 257 … 1,048,576.
        MissingPackage: `tokenizers` is not installed.
        FileError, InputError: a file of the corpus has changed since it was opened.
        OSError: the folder cannot be written.
    """
    if not isinstance(size, int) or not SMALLEST <= size <= LARGEST:
        raise OptionError(
            "vocab_size", f"got {size!r}, expected an integer from {SMALLEST} to {LARGEST}"
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
