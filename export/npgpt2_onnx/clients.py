"""The small files beside the graphs, each as its client wants it.

optimum and transformers.js read config.json, generation_config.json, tokenizer.json and
tokenizer_config.json; onnxruntime-genai also genai_config.json; Triton config.pbtxt.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from npgpt2.config import GPT2Config
from npgpt2.errors import ConfigError, TokenizerError
from npgpt2.files import read_file, read_json
from npgpt2.tokenizer import read_merges
from npgpt2_onnx import names
from npgpt2_onnx.builder import FLOAT16
from npgpt2_onnx.precision import Precision

COPIED = ("vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json")
END = "<|endoftext|>"


def to_json(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()


def small_files(folder: Path, config: GPT2Config, data: Sequence[str]) -> dict[str, bytes]:
    """config.json, generation_config.json and the tokenizer's files, by name.

    Args:
        folder: the checkpoint's.
        data: the names of the files of weights, each beside the graph whose name it continues.
    """
    values = read_json(folder / "config.json", ConfigError)
    values["tie_word_embeddings"] = config.tie_word_embeddings  # as the weights have it
    values["transformers.js_config"] = {
        # In a browser it has to be told of a graph's second file, and what keys and values are.
        "use_external_data_format": {name.removesuffix("_data"): 1 for name in data},
        "kv_cache_dtype": {"fp16": "float16"},
    }
    found = {"config.json": to_json(values)}
    generation = folder / "generation_config.json"
    if generation.exists():
        found["generation_config.json"] = read_file(generation)
    else:
        ids = {"bos_token_id": config.bos_token_id, "eos_token_id": _eos(config)}
        found["generation_config.json"] = to_json({k: v for k, v in ids.items() if v is not None})
    for name in COPIED:
        if (folder / name).exists():
            found[name] = read_file(folder / name)
    return found | _tokenizer_files(folder)


def _eos(config: GPT2Config) -> int | list[int] | None:
    eos = config.eos_token_id
    return list(eos) if isinstance(eos, tuple) else eos


def _tokenizer_files(folder: Path) -> dict[str, bytes]:
    """tokenizer.json and tokenizer_config.json: the checkpoint's, or made from its vocabulary."""
    found = {}
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (folder / name).exists():
            found[name] = read_file(folder / name)
    if "tokenizer.json" not in found and (folder / "vocab.json").exists():
        spec = tokenizer_json(folder)
        found["tokenizer.json"] = json.dumps(spec, ensure_ascii=False).encode()  # large: no indent
    if "tokenizer.json" in found and "tokenizer_config.json" not in found:
        found["tokenizer_config.json"] = to_json({
            "add_prefix_space": False,
            "bos_token": END,
            "eos_token": END,
            "model_max_length": 1024,
            "tokenizer_class": "GPT2Tokenizer",
            "unk_token": END,
        })  # fmt: skip
    return found


def tokenizer_json(folder: Path) -> dict[str, Any]:
    """vocab.json and merges.txt in the form of the library `tokenizers`, byte-level BPE."""
    vocab = read_json(folder / "vocab.json", TokenizerError)
    bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
              "use_regex": True}  # fmt: skip
    added = [] if END not in vocab else [{
        "id": vocab[END], "content": END, "single_word": False, "lstrip": False, "rstrip": False,
        "normalized": False, "special": True,
    }]  # fmt: skip
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": None, "pre_tokenizer": bytes_,
        "post_processor": {**bytes_, "trim_offsets": False}, "decoder": bytes_,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
            "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False,
            "ignore_merges": False, "vocab": vocab,
            "merges": [list(pair) for pair in read_merges(folder / "merges.txt")],
        },
    }  # fmt: skip


def genai_config(config: GPT2Config, filename: str, shared_buffer: bool) -> dict[str, Any]:
    """What onnxruntime-genai asks for.

    Its type "gpt2" means another layout of the cache, so the type is "decoder". Were the padding
    id the end-of-text id, it would read the wrong logits for a prompt that ends in that: −1.
    """
    key, value = "past_key_values.%d.key", "past_key_values.%d.value"
    return {
        "model": {
            "type": "decoder",
            "bos_token_id": config.bos_token_id,
            "eos_token_id": _eos(config),
            "pad_token_id": -1,
            "context_length": config.n_positions,
            "vocab_size": config.vocab_size,
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": filename,
                "head_size": config.head_dim,
                "hidden_size": config.n_embd,
                "num_attention_heads": config.n_head,
                "num_hidden_layers": config.n_layer,
                "num_key_value_heads": config.n_head,
                "inputs": {
                    "input_ids": names.INPUT_IDS,
                    "attention_mask": names.ATTENTION_MASK,
                    "position_ids": names.POSITION_IDS,
                    "past_key_names": key,
                    "past_value_names": value,
                },
                "outputs": {
                    "logits": names.LOGITS,
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {
            "do_sample": False,
            "early_stopping": True,
            "length_penalty": 1.0,
            "max_length": config.n_positions,
            "min_length": 0,
            "no_repeat_ngram_size": 0,
            "num_beams": 1,
            "num_return_sequences": 1,
            "past_present_share_buffer": shared_buffer,
            "repetition_penalty": 1.0,
            "temperature": 1.0,
            "top_k": 50,
            "top_p": 1.0,
        },
    }


def triton_config(name: str, config: GPT2Config, precision: Precision) -> bytes:
    """config.pbtxt of a Triton Inference Server model.

    max_batch_size 0, the batch's axis written out: the server must not put requests of different
    past lengths into one batch.
    """
    floats = "TYPE_FP16" if precision.float == FLOAT16 else "TYPE_FP32"

    def entry(tensor: str, kind: str, dims: list[int]) -> str:
        return f'  {{ name: "{tensor}" data_type: {kind} dims: {dims} }}'

    inputs = [
        entry(tensor, "TYPE_INT64", [-1, -1])
        for tensor in (names.INPUT_IDS, names.ATTENTION_MASK, names.POSITION_IDS)
    ]
    outputs = [entry(names.LOGITS, "TYPE_FP32", [-1, -1, config.vocab_size])]
    for i in range(config.n_layer):
        shape = [-1, config.heads_left(i), -1, config.head_dim]
        inputs += [entry(tensor, floats, shape) for tensor in names.past(i)]
        outputs += [entry(tensor, floats, shape) for tensor in names.present(i)]
    lines = [
        f'name: "{name}"',
        'backend: "onnxruntime"',
        "max_batch_size: 0",
        "input [",
        ",\n".join(inputs),
        "]",
        "output [",
        ",\n".join(outputs),
        "]",
    ]
    return ("\n".join(lines) + "\n").encode()
