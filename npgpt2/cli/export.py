"""Export a checkpoint to a folder of ONNX graphs.

ONNX Runtime, optimum, onnxruntime-genai and transformers.js load this folder as it is. The export
traces nothing and needs no PyTorch. It compares every graph with NumPy before the folder appears.
It replaces an existing export only with --force, and only after the new one has passed this check.
"""

import argparse
import time
from pathlib import Path
from typing import Any

from npgpt2.cli.options import add_options, add_several, whole
from npgpt2.cli.output import note, one_line, progress, table
from npgpt2.engines import ModelSpec

HELP = "export a checkpoint to ONNX"
EXAMPLES = """examples:
  npgpt2 export shakespeare -o shakespeare-onnx
  npgpt2 export gpt2 -o gpt2-onnx
  npgpt2 export DIR -o OUT --precision fp32 int8 int4
  npgpt2 export DIR --share-weights"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a checkpoint folder or a name on the hub")
    add_options(parser, ModelSpec, "revision")
    parser.add_argument(
        "-o", "--out", metavar="DIR", help="folder to write; required unless --share-weights"
    )
    add_several(
        parser, "--precision", choices=("fp32", "fp16", "int8", "int4"),
        help="precision of the weights, one or several; transformers.js calls int8 q8 and int4 q4 "
        "(default: fp32)",
    )  # fmt: skip
    add_several(
        parser, "--graph", choices=("portable", "gqa", "mha", "all"),
        help="portable: only standard operators (ai.onnx); gqa: ONNX Runtime's GroupQueryAttention "
        "on a shared KV cache, the fastest; mha: its MultiHeadAttention, for float32 on CUDA; one "
        "or several (default: portable, and gqa if the head size is a multiple of 8)",
    )  # fmt: skip
    parser.add_argument(
        "--share-weights", action="store_true",
        help="write no weights: put the graphs into the checkpoint's folder and let them read its "
        "model.safetensors (float32)",
    )  # fmt: skip
    parser.add_argument(
        "--attentions", action="store_true",
        help="add hidden states as outputs, and attention maps to the portable graph",
    )  # fmt: skip
    parser.add_argument(
        "--taps", action="store_true",
        help="add every intermediate value of the portable graph as an output, named as in NumPy",
    )  # fmt: skip
    parser.add_argument(
        "--opset", type=whole, metavar="N",
        help="opset of ai.onnx, 17 or later; from 23 the portable graph uses the Attention "
        "operator, which browsers cannot run on WebGPU (default: 17)",
    )  # fmt: skip
    parser.add_argument(
        "--triton", metavar="DIR", help="also write a model repository for Triton Inference Server"
    )
    parser.add_argument(
        "--force", action="store_true", help="replace an existing export once the new one is good"
    )
    parser.add_argument(
        "--no-verify", action="store_true", help="do not compare the graphs with NumPy"
    )


def run(args: argparse.Namespace) -> int:
    from npgpt2.tokenizer.files import WHOLE
    from npgpt2_onnx import export

    every = args.graph and "all" in args.graph
    optional: dict[str, Any] = {} if args.opset is None else {"opset": args.opset}
    started = time.perf_counter()
    folder = export(
        args.model,
        args.out,
        precisions=args.precision or ["fp32"],
        graphs=["portable", "gqa", "mha"] if every else args.graph,
        share_weights=args.share_weights,
        attentions=args.attentions,
        taps=args.taps,
        force=args.force,
        proof=not args.no_verify,
        triton=args.triton,
        revision=args.revision,
        progress=progress,
        **optional,
    )
    rows = [
        (path.relative_to(folder), f"{path.stat().st_size:,}")
        for path in _written(folder, args.share_weights)
    ]
    print("\n".join(table([(one_line(f"in {folder}"), "bytes"), *rows], "lr")))
    verified = "not verified" if args.no_verify else "verified against NumPy"
    if not any((folder / name).exists() for name in WHOLE):
        note(f"{folder}: has no vocabulary, so it takes and returns token ids, not text")
    note(f"{verified}, {time.perf_counter() - started:.1f} s")
    return 0


def _written(folder: Path, shared: bool) -> list[Path]:
    """Return the files of an export; with shared weights, only those that the export added."""
    if shared:
        return sorted([*folder.glob("model*.onnx"), *folder.glob("genai_config.json")])
    return sorted(path for path in folder.rglob("*") if path.is_file())
