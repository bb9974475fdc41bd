"""What is fuzzed: each reader, its seeds, and what must hold for any input."""

import io
import json
import re
import struct
import zipfile
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np
from foreign_files import llmc, openai_names, state, tensorflow, torch_stream, torch_zip
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from npgpt2.base.errors import NpGPT2Error
from npgpt2.checkpoints.checkpoint import Checkpoint, read_config
from npgpt2.checkpoints.formats.safetensors_file import read_header
from npgpt2.checkpoints.formats.tensors import Files
from npgpt2.model.config import ALIASES, REFUSED, GPT2Config
from npgpt2.model.params import named_parameters, param_shapes
from npgpt2.tokenizer.byte_pair import byte_alphabet
from npgpt2.tokenizer.interface import end_id
from npgpt2.tokenizer.load import load_tokenizer

CONFIG = GPT2Config(
    vocab_size=3, n_positions=2, n_embd=4, n_layer=2, n_head=2, n_inner=5, eos_token_id=None
)
CONFIG_JSON = json.dumps(CONFIG.to_dict()).encode()
LINEAR = CONFIG.to_dict() | {"n_inner": None}  # nanoGPT, llm.c and OpenAI know no other width


class Target(NamedTuple):
    """A reader.

    Attributes:
        seeds: returns the first inputs.
        check: opens an input; raises NpGPT2Error to refuse it. Anything else is a fault.
        words: texts with a meaning for the reader.
    """

    seeds: Callable[[], list[dict[str, bytes]]]
    check: Callable
    words: tuple[str, ...] = ()


# ── weights ──────────────────────────────────────────────────────────────────────────────────────


def arrays(config=CONFIG, dtype="f4"):
    """A tree's tensors by name; no two values are equal."""
    at, table = 0, {}
    for name, shape in param_shapes(config).items():
        size = int(np.prod(shape))
        table[name] = np.arange(at, at + size, dtype=dtype).reshape(shape)
        at += size
    return table


def weights(path):
    """Every value of a checkpoint, mapped and copied: the same."""
    checkpoint = Checkpoint.open(path)
    copied = dict(named_parameters(checkpoint.read(mmap=False)))
    for name, mapped in named_parameters(checkpoint.read(mmap=True)):
        assert np.array_equal(mapped, copied[name], equal_nan=True), name
        assert mapped.dtype == np.float32


def safetensors_seeds():
    shards = list(arrays().items())
    names = {"a.safetensors": dict(shards[:9]), "b.safetensors": dict(shards[9:])}
    where = {name: file for file, part in names.items() for name in part}
    old = arrays(dtype="f2") | {"h.0.attn.bias": np.ones((1, 1, 2, 2), "u1")}
    single = [
        save(arrays(), {"format": "pt"}),
        save({f"transformer.{name}": array for name, array in old.items()}),
        save(arrays(dtype="f8") | {"lm_head.weight": np.ones((3, 4))}),
    ]
    return [
        *({"config.json": CONFIG_JSON, "model.safetensors": data} for data in single),
        {
            "config.json": CONFIG_JSON,
            "model.safetensors.index.json": json.dumps({"weight_map": where}).encode(),
            **{file: save(part) for file, part in names.items()},
        },
    ]


# What we refuse and the library takes, each because the format's description forbids it
# (https://github.com/huggingface/safetensors, "Format"), or no tensor of it could be a weight.
FORBIDDEN = re.compile(r"occurs twice|is not an object of texts|has (dtype|shape|data_offsets) ")


def safetensors(path):
    """Compare each file with the library's own reading, then read the whole checkpoint."""
    for file in sorted(path.glob("*.safetensors")):
        ours = theirs = problem = None
        try:
            ours = read_header(file)
        except NpGPT2Error as error:
            problem = error
        try:
            theirs = safe_open(file, framework="numpy")
        except (SafetensorError, OSError):
            assert ours is None, "the library refuses it"
        if theirs is None:
            continue
        assert ours is not None or FORBIDDEN.search(str(problem)), f"refused: {problem}"
        if ours is not None:
            _same_tensors(ours, theirs)
    weights(path)


def _same_tensors(ours, theirs):
    assert sorted(ours) == sorted(theirs.keys())
    for name, info in ours.items():
        view = theirs.get_slice(name)
        assert (info.dtype, list(info.shape)) == (view.get_dtype(), view.get_shape())
        if info.dtype in ("F64", "F32", "F16", "I64", "U8"):
            assert Files(mmap=False).raw(info).tobytes() == theirs.get_tensor(name).tobytes()


def pickles(path):
    """Every value of a checkpoint, and each tensor of an archive inside one of its entries."""
    weights(path)
    for info in Checkpoint.open(path).tensors.values():
        if info.path.is_file() and info.path.read_bytes().startswith(b"PK"):
            end = info.start + info.nbytes
            assert any(a <= info.start and end <= b for a, b in entries(info.path)), info


def entries(path):
    """The start and end of each storage of an archive."""
    data = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            head = entry.header_offset + 30  # with the lengths of a name and of what is extra
            start = head + sum(struct.unpack("<HH", data[head - 4 : head]))
            if "/data/" in entry.filename:
                yield start, start + entry.file_size


def pickle_seeds():
    config = {"config.json": CONFIG_JSON}
    old = arrays() | {"h.0.attn.masked_bias": np.array(-1e4, "f4")}
    shards = list(arrays(dtype="f2").items())
    parts = {"a.bin": dict(shards[:9]), "b.bin": dict(shards[9:])}
    where = {name: file for file, part in parts.items() for name in part}
    return [
        config | {"pytorch_model.bin": torch_zip(*state(arrays()))},
        config | {"pytorch_model.bin": torch_stream(*state(old))},
        config
        | {"pytorch_model.bin.index.json": json.dumps({"weight_map": where}).encode()}
        | {file: torch_zip(*state(part)) for file, part in parts.items()},
        {"ckpt.pt": nanogpt(True)},
        {"ckpt.pt": nanogpt(False, torch_stream)},
    ]


def nanogpt(bias, write=torch_zip):
    config = GPT2Config.from_dict(LINEAR)
    named = {
        f"_orig_mod.transformer.{name}": array.T.copy() if ".c_" in name else array
        for name, array in arrays(config).items()
        if bias or not name.endswith("bias")
    }
    table, storages = state(named)
    arguments = {"n_layer": 2, "n_head": 2, "n_embd": 4, "block_size": 2, "vocab_size": 3,
                 "bias": bias, "dropout": 0.5}  # fmt: skip
    return write({"model": table, "model_args": arguments, "iter_num": 7}, storages)


def tensorflow_seeds():
    config = GPT2Config.from_dict(LINEAR)
    hparams = {"n_vocab": 3, "n_ctx": 2, "n_embd": 4, "n_head": 2, "n_layer": 2}
    inputs = []
    for extra, per_block in (({}, 20), ({"global_step": np.array(7, "i8")}, 3)):
        index, data = tensorflow(openai_names(arrays(config)) | extra, per_block)
        inputs.append({
            "hparams.json": json.dumps(hparams).encode(),
            "model.ckpt.index": index,
            "model.ckpt.data-00000-of-00001": data,
        })  # fmt: skip
    return inputs


def llmc_seeds():
    config = GPT2Config.from_dict(LINEAR)
    return [{"model.bin": llmc(arrays(config), config)}]


def llmc_file(path):
    weights(path / "model.bin")


# ── config, vocabulary ───────────────────────────────────────────────────────────────────────────


def config_seeds():
    plain = {"n_layer": 3, "n_head": 4, "hidden_size": 64, "pruned_heads": {"1": [0, 2]}}
    full = CONFIG.to_dict() | {"eos_token_id": [1, 2], "n_inner": None}
    return [
        {"config.json": json.dumps(full).encode()},
        {
            "config.json": json.dumps(plain).encode(),
            "generation_config.json": b'{"eos_token_id":5}',
        },
    ]


def config(path):
    found = read_config(path)
    assert GPT2Config.from_dict(found.to_dict()) == found
    assert all(found.heads_left(layer) > 0 for layer in found.pruned_heads)
    assert isinstance(hash(found), int)
    assert found.attention_scale(0) > 0


END, TEXT = "<|endoftext|>", "O Romeo, Romeo<|endoftext|> \n é 1.5 [UNK]"


def vocabulary_seeds():
    pairs = [("R", "o"), ("m", "e"), ("Ġ", "Ro"), ("ĠRo", "me")]
    pieces = [END, *byte_alphabet(), *(a + b for a, b in pairs)]
    ids = {piece: n for n, piece in enumerate(pieces)}
    vocab = json.dumps(ids).encode()
    merges = "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in pairs)
    added = {"id": 0, "content": END, "lstrip": False, "special": True}
    bpe = {"type": "BPE", "vocab": ids, "merges": [list(pair) for pair in pairs]}
    settings = {"add_prefix_space": True, "added_tokens_decoder": {"262": {"content": "<pad>"}}}
    words = {word: n for n, word in enumerate(("[UNK]", "o", "ro", "##meo", ",", "e"))}
    piece = {"type": "WordPiece", "vocab": words, "unk_token": "[UNK]",
             "continuing_subword_prefix": "##", "max_input_chars_per_word": 100}  # fmt: skip
    unigram = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["▁", -1.5], ["o", -2]]}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    kinds = [
        {"added_tokens": [added], "pre_tokenizer": level, "model": bpe},
        {"model": piece, "pre_tokenizer": {"type": "Whitespace"}, "normalizer": None},
        {"model": unigram, "pre_tokenizer": {"type": "Metaspace", "replacement": "▁"}},
    ]
    split = {"vocab.json": vocab, "merges.txt": merges.encode()}
    small = {"added_tokens.json": b'{"<a>": 261}'}
    lower = {"tokenizer_config.json": b'{"do_lower_case": true}'}
    return [
        split,
        split | small | {"tokenizer_config.json": json.dumps(settings).encode()},
        *({"tokenizer.json": json.dumps({"version": "1.0"} | kind).encode()} for kind in kinds),
        {"vocab.txt": "\n".join(words).encode()} | lower,
        *([{"spiece.model": sentencepiece_model()}] if find_spec("sentencepiece") else []),
    ]


def sentencepiece_model():
    from sentencepiece import SentencePieceTrainer

    file = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(["O Romeo, Romeo"]), model_writer=file, model_type="char",
        vocab_size=12, minloglevel=2, hard_vocab_limit=False,
    )  # fmt: skip
    return file.getvalue()


def vocabulary(path):
    tokenizer = load_tokenizer(path)
    for special in (True, False):
        ids = tokenizer.encode(TEXT, special)
        assert all(0 <= token < tokenizer.size for token in ids)
        tokenizer.decode(ids)
        decoder = tokenizer.decoder()
        "".join([*map(decoder.push, ids), decoder.finish()])
    for token in {*range(-1, 3), *range(tokenizer.size - 2, tokenizer.size + 1)}:
        with suppress(NpGPT2Error):  # the libraries' vocabularies may have holes
            tokenizer.piece(token)
            tokenizer.token_bytes(token)
    end_id(tokenizer)


CONFIG_WORDS = (*CONFIG.to_dict(), *ALIASES, *REFUSED, "auto_map", "gelu_new", "GPT2Model", "gpt2")
TARGETS = {
    "safetensors": Target(
        safetensors_seeds,
        safetensors,
        ("__metadata__", "dtype", "shape", "data_offsets", "F32", "BF16", "F8_E4M3", "F4", "BOOL",
         "C64", "transformer.wte.weight", "weight_map", "../a", "model.safetensors"),
    ),
    "pickle": Target(pickle_seeds, pickles, ("weight_map", "../a", "a.bin")),
    "tensorflow": Target(tensorflow_seeds, weights, ("n_vocab", "n_inner", *CONFIG_WORDS)),
    "vocabulary": Target(
        vocabulary_seeds,
        vocabulary,
        ("type", "BPE", "WordPiece", "WordLevel", "Unigram", "normalizer", "added_tokens", "vocab",
         "merges", "use_regex", "dropout", "byte_fallback", "ignore_merges", "NFC", "Sequence",
         "decoder", "post_processor", "truncation", "padding", "unk_token", "unk_id", "Replace",
         "pattern", "Regex", "(a+)+$", "Split", "behavior", "Precompiled", "precompiled_charsmap"),
    ),
    "config": Target(config_seeds, config, CONFIG_WORDS),
    "llmc": Target(llmc_seeds, llmc_file),
}  # fmt: skip
