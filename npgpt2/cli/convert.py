"""Convert a GPT-2 checkpoint to a safetensors folder that transformers loads.

Input formats: PyTorch's pytorch_model.bin (one file or shards, old or new), OpenAI's TensorFlow
checkpoints, nanoGPT's ckpt.pt, llm.c's gpt2_124M.bin. PyTorch and TensorFlow are not needed. Code
in a file is never executed. Checksums are verified if the format has them.
"""

import argparse
import re
from pathlib import Path

from npgpt2.cli.inputs import named
from npgpt2.cli.output import note, progress

HELP = "convert a GPT-2 checkpoint of any format to safetensors"
EXAMPLES = """examples:
  npgpt2 convert DIR -o OUT
  npgpt2 convert 124M -o gpt2 --dtype float16
  npgpt2 convert out/ckpt.pt -o mine
  npgpt2 convert DIR -o OUT --max-shard-size 500MB"""

UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", metavar="SOURCE", help="a checkpoint's folder or file, or a model name"
    )
    parser.add_argument("-o", "--out", metavar="DIR", required=True, help="the folder to create")
    parser.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16"),
        help="dtype of the weights (default: that of each tensor)",
    )  # fmt: skip
    parser.add_argument(
        "--max-shard-size", type=size, default=2 * 10**9, metavar="SIZE",
        help="split the weights into files of at most this size (default: 2GB)",
    )  # fmt: skip
    parser.add_argument("--force", action="store_true", help="replace an existing folder")


def size(text: str) -> int:
    """Parse a size with or without a unit → bytes.

    >>> size("2GB"), size("0.5GiB"), size("1000")
    (2000000000, 536870912, 1000)
    """
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)\s*([kmg]i?b)?", text.strip(), re.IGNORECASE)
    if match:
        return int(float(match[1]) * UNITS[(match[2] or "").lower()])
    raise argparse.ArgumentTypeError(f"got {text!r}, expected a size such as 2GB or 500MB")


def run(args: argparse.Namespace) -> int:
    from npgpt2.checkpoints.convert import convert
    from npgpt2.tokenizer.files import WHOLE

    checkpoint = convert(
        named(args.source), args.out, args.dtype, args.max_shard_size, args.force, progress
    )
    out = Path(args.out)
    if not any((out / name).exists() for name in WHOLE):
        note(f"{out}: has no vocabulary. Add GPT-2's vocab.json and merges.txt, or the model's own")
    written = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    tensors = len(checkpoint.tensors)
    print(f"{out}: {checkpoint.kind} → safetensors, {tensors} tensors, {written:,} bytes")
    return 0
