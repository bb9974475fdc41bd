"""The small files that ONNX clients read from an exported folder, besides the graphs.

optimum and transformers.js read config.json, generation_config.json, tokenizer.json and
tokenizer_config.json; onnxruntime-genai also genai_config.json; Triton config.pbtxt.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import onnx

from npgpt2.base.errors import TokenizerError
from npgpt2.base.files import parse_json, read_file, read_json
from npgpt2.checkpoints.checkpoint import Checkpoint
from npgpt2.model.config import GPT2Config
from npgpt2.tokenizer.files import (
    FILES,
    added_tokens,
    read_merges,
    special_tokens,
    tokenizer_settings,
    vocabulary_files,
)
from npgpt2_onnx.graph import names
from npgpt2_onnx.graph.builder import FLOAT, FLOAT16, INT64
from npgpt2_onnx.graph.precision import Precision

NAMES = ("config.json", "generation_config.json", *FILES)
END = "<|endoftext|>"
TRITON_TYPES = {FLOAT: "TYPE_FP32", FLOAT16: "TYPE_FP16", INT64: "TYPE_INT64"}


def to_json(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()


def small_files(checkpoint: Checkpoint, precisions: Sequence[Precision]) -> dict[str, bytes]:
    """Return config.json, generation_config.json and the tokenizer's files, by name.

    Args:
        precisions: of the export; clients use the first by default.
    """
    folder, config = checkpoint.folder, checkpoint.config
    values = checkpoint.config_json()
    values["transformers.js_config"] = {
        # Browsers need to know about the separate weights file and the dtype of keys and values.
        # Without "dtype", transformers.js takes q8, which the export may not have.
        "dtype": precisions[0].dtype,
        "use_external_data_format": {f"model{p.suffix}.onnx": 1 for p in precisions},
        "kv_cache_dtype": {"fp16": "float16"},
        **(values.get("transformers.js_config") or {}),
    }
    found = {"config.json": to_json(values)}
    generation = folder / "generation_config.json"
    if generation.exists():
        found["generation_config.json"] = read_file(generation)
    else:
        ids = {"bos_token_id": config.bos_token_id, "eos_token_id": _eos(config)}
        found["generation_config.json"] = to_json({k: v for k, v in ids.items() if v is not None})
    return found | _tokenizer_files(folder, config)


def _eos(config: GPT2Config) -> int | list[int] | None:
    eos = config.eos_token_id
    return list(eos) if isinstance(eos, tuple) else eos


def _tokenizer_files(folder: Path, config: GPT2Config) -> dict[str, bytes]:
    """Return the checkpoint's own files, and the tokenizer*.json files that it lacks."""
    found = {name: read_file(path) for name, path in vocabulary_files(folder).items()}
    if "tokenizer.json" not in found and "vocab.json" in found:
        spec = tokenizer_json(folder)
        found["tokenizer.json"] = json.dumps(spec, ensure_ascii=False).encode()  # large: no indent
    if "tokenizer.json" in found and "tokenizer_config.json" not in found:
        settings = {
            "add_prefix_space": False,
            "model_max_length": config.n_positions,
            "tokenizer_class": "GPT2Tokenizer",
        }
        known = parse_json(found["tokenizer.json"], "tokenizer.json", TokenizerError)
        if any(token.get("content") == END for token in known.get("added_tokens") or ()):
            settings |= {"bos_token": END, "eos_token": END, "unk_token": END}
        found["tokenizer_config.json"] = to_json(settings)
    return found


def tokenizer_json(folder: Path) -> dict[str, Any]:
    """Convert vocab.json and merges.txt to tokenizer.json (byte-level BPE of `tokenizers`)."""
    files = vocabulary_files(folder)
    vocab = read_json(files["vocab.json"], TokenizerError)
    merges = read_merges(files.get("merges.txt", folder / "merges.txt"))
    settings = tokenizer_settings(folder)
    bytes_ = {"type": "ByteLevel", "add_prefix_space": bool(settings.get("add_prefix_space")),
              "trim_offsets": True, "use_regex": True}  # fmt: skip
    special = {END, *special_tokens(folder, settings).values()}
    added = [
        {"id": token, "content": text, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": text in special}
        for text, token in sorted(added_tokens(folder, vocab, settings).items(), key=lambda t: t[1])
    ]  # fmt: skip
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": None, "pre_tokenizer": bytes_,
        "post_processor": {**bytes_, "trim_offsets": False}, "decoder": bytes_,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
            "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False,
            "ignore_merges": False, "vocab": vocab,
            "merges": [list(pair) for pair in merges],
        },
    }  # fmt: skip


def genai_config(config: GPT2Config, filename: str, shared_buffer: bool) -> dict[str, Any]:
    """Return the values of genai_config.json for onnxruntime-genai.

    Its type "gpt2" means another layout of the KV cache, so the type is "decoder". The padding id
    is −1: with the end-of-text id, a prompt that ends in this id would get the wrong logits.
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


def triton_config(name: str, graph: Path) -> bytes:
    """Return config.pbtxt of a Triton Inference Server model, from the graph's inputs and outputs.

    max_batch_size is 0 and the dims include the batch axis: the server must not put requests with
    different past lengths into one batch.
    """
    proto = onnx.load(graph, load_external_data=False).graph
    defaults = {initializer.name for initializer in proto.initializer}

    def entries(values: Iterable[onnx.ValueInfoProto]) -> str:
        lines = []
        for value in values:
            kind = TRITON_TYPES[value.type.tensor_type.elem_type]
            dims = [d.dim_value or -1 for d in value.type.tensor_type.shape.dim]
            lines.append(f'  {{ name: "{value.name}" data_type: {kind} dims: {dims} }}')
        return ",\n".join(lines)

    lines = [
        f'name: "{name}"',
        'backend: "onnxruntime"',
        "max_batch_size: 0",
        "input [",
        entries(value for value in proto.input if value.name not in defaults),
        "]",
        "output [",
        entries(proto.output),
        "]",
    ]
    return ("\n".join(lines) + "\n").encode()
