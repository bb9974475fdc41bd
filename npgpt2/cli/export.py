"""Turn a checkpoint into an ONNX folder that clients load as it is.

ONNX Runtime, optimum, onnxruntime-genai and transformers.js read the same folder. The weights are
copied, never traced: no PyTorch is imported. Every graph is run against NumPy before the folder
appears; one that is there is replaced only with --force, and only by a good one.
"""

import argparse
import time
from pathlib import Path
from typing import Any

from npgpt2.cli.options import whole
from npgpt2.cli.output import note, one_line, progress, table

HELP = "turn a checkpoint into an ONNX folder"
EXAMPLES = """examples:
  npgpt2 export shakespeare -o shakespeare-onnx
  npgpt2 export gpt2 -o gpt2-onnx
  npgpt2 export DIR -o OUT --precision fp32 --precision int8 --precision int4
  npgpt2 export DIR --share-weights"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a checkpoint folder or a name on the hub")
    parser.add_argument("--revision", help="branch, tag or commit of a model on the hub")
    parser.add_argument("-o", "--out", metavar="DIR", help="the folder to make")
    parser.add_argument(
        "--precision", action="append", choices=("fp32", "fp16", "int8", "int4"),
        help="of the weights; may be given several times (default: fp32)",
    )  # fmt: skip
    parser.add_argument(
        "--graph", action="append", choices=("portable", "gqa", "mha", "all"),
        help="portable: operators of ai.onnx; gqa: ONNX Runtime's GroupQueryAttention over a "
        "shared cache, the fastest; mha: its MultiHeadAttention, for float32 on CUDA; may be given "
        "several times (default: portable and, where its head size allows, gqa)",
    )  # fmt: skip
    parser.add_argument(
        "--share-weights", action="store_true",
        help="write no weights: the graphs lie beside the checkpoint's model.safetensors and point "
        "into it (float32)",
    )  # fmt: skip
    parser.add_argument(
        "--attentions", action="store_true",
        help="hidden states and the portable graph's attention maps as outputs",
    )  # fmt: skip
    parser.add_argument(
        "--taps", action="store_true",
        help="every intermediate of the portable graph as an output, named as in NumPy",
    )  # fmt: skip
    parser.add_argument(
        "--opset", type=whole, metavar="N",
        help="of ai.onnx, from 17; from 23 on the portable graph uses its Attention, which no "
        "browser has on WebGPU (default: 17)",
    )  # fmt: skip
    parser.add_argument(
        "--triton", metavar="DIR", help="also lay out a Triton Inference Server repository there"
    )
    parser.add_argument(
        "--force", action="store_true", help="replace an export that is there, by a good one"
    )
    parser.add_argument(
        "--no-verify", action="store_true", help="do not run the graphs against NumPy"
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
    proved = "not verified" if args.no_verify else "verified against NumPy"
    if not any((folder / name).exists() for name in WHOLE):
        note(f"{folder}: has no vocabulary: ids go in and come out, no text")
    note(f"{proved}, {time.perf_counter() - started:.1f} s")
    return 0


def _written(folder: Path, shared: bool) -> list[Path]:
    """The files of an export; of one that shares weights, those that it put beside them."""
    if shared:
        return sorted([*folder.glob("model*.onnx"), *folder.glob("genai_config.json")])
    return sorted(path for path in folder.rglob("*") if path.is_file())
