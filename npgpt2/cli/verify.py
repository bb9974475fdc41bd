"""Verify an exported folder: compare its graphs with NumPy.

Every graph and the NumPy model with the same weights run the same inputs: prompts, decode steps,
an empty KV cache, chunks and padded batches. The table shows the largest difference of each case,
relative to the largest value. It checks the graphs, not their precision. --against also compares
the weights with the checkpoint's. --text measures each precision on a text, compared with float32:
perplexity, KL divergence and top-1 agreement.
The exit code is 1 if a difference exceeds its bound.
"""

import argparse
import math
from pathlib import Path
from typing import Any

from npgpt2.base.errors import FileError, InputError, OptionError
from npgpt2.cli.inputs import given_file
from npgpt2.cli.options import add_options, whole
from npgpt2.cli.output import note, progress, say, table
from npgpt2.engines import ModelSpec

HELP = "compare an exported ONNX folder with NumPy"
EXAMPLES = """examples:
  npgpt2 verify DIR
  npgpt2 verify DIR --against gpt2 --text book.txt"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="a folder that 'npgpt2 export' wrote")
    parser.add_argument(
        "--against", metavar="MODEL",
        help="compare the weights with this checkpoint, a folder or a name on the hub",
    )  # fmt: skip
    add_options(parser, ModelSpec, "revision")
    parser.add_argument(
        "--text", metavar="FILE",
        help="measure the precisions on this text (- reads standard input), compared with "
        "--against or the fp32 graph's weights",
    )  # fmt: skip
    parser.add_argument(
        "--window", type=whole, metavar="N",
        help="length of a window of the text, in tokens (default: the model's context)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    from npgpt2 import GPT2, GPT2WithHead
    from npgpt2_onnx.run.exported import Exported
    from npgpt2_onnx.run.session import require_graphs
    from npgpt2_onnx.write.verify import check_weights, verify

    if not args.folder:
        raise FileError("'': no such folder, expected one that 'npgpt2 export' wrote")
    folder = Path(args.folder)
    graphs = {key: Exported.open(path) for key, path in require_graphs(folder).items()}
    config = next(iter(graphs.values())).config
    if args.text is not None and config.head != "lm_head":
        raise OptionError("text", f"got a {config.architectures[0]}, expected a language model")
    if args.text is not None and not args.against and not _exact(graphs):
        raise FileError(
            f"{folder}: has no fp32 graph to compare with. Give the checkpoint: --against MODEL"
        )
    ids = _text(args, folder, config.n_positions)
    model: GPT2 | GPT2WithHead | None = None
    if args.against:
        kind = GPT2 if config.head == "lm_head" else GPT2WithHead
        model = kind.from_pretrained(args.against, revision=args.revision, progress=progress)
    good = True
    if model is not None:
        for graph in graphs.values():
            found = check_weights(graph, model)
            wrong = [row for row in found if not row.good]
            worst = max(wrong or found, key=lambda row: row.error)
            good &= not wrong
            say([
                f"{graph.path.name}: {len(found) - len(wrong)} of {len(found)} parameters match "
                f"the checkpoint up to rounding; the largest difference is in {worst.parameter}: "
                f"{_apart(worst.error)}{_mark(worst.good)}"
            ])  # fmt: skip
    rows = verify({key: graph.path for key, graph in graphs.items()}, progress)
    good &= all(row.good for row in rows)
    writes = config.head == "lm_head"
    hint = "; --text FILE measures that" if writes and ids is None else ""
    say([f"difference from NumPy with the same rounded weights: checks the graph, not the precision"
         f"{hint}"])  # fmt: skip
    head = ("graph", "case", "logits", "keys, values" if writes else "", "bound", "")
    say(table([head, *(
        (r.graph, r.case, f"{r.logits:.1e}", f"{r.presents:.1e}" if writes else "",
         f"{r.bound:.2g}", _mark(r.good)) for r in rows
    )], "llrrrl"))  # fmt: skip
    if ids is not None:
        good &= _quality(ids, args.window, graphs, model)
    note("all within bounds" if good else "NOT all within bounds")
    return 0 if good else 1


def _text(args: argparse.Namespace, folder: Path, n_positions: int) -> list[int] | None:
    """Return the ids of --text. Called before the slow work, so that errors come early."""
    from npgpt2.tokenizer.load import load_tokenizer

    if args.text is None:
        if args.window is not None:
            raise OptionError("window", "is used only with --text. Add --text FILE")
        return None
    if args.window is not None and not 2 <= args.window <= n_positions:
        raise OptionError(
            "window", f"got {args.window}, expected an integer from 2 to {n_positions}"
        )
    ids = load_tokenizer(folder).encode(given_file(args.text))
    if len(ids) < 2:
        name = "standard input" if args.text == "-" else args.text
        raise InputError(f"{name}: has {len(ids)} tokens, expected at least two")
    return ids


def _quality(ids: list[int], window: int | None, graphs: dict[Any, Any], model: Any) -> bool:
    from npgpt2_onnx.run.session import Session
    from npgpt2_onnx.write.verify import QUALITY, quality, reference

    if model is None:
        model = reference(_exact(graphs)[0], "float32")
    sessions = [Session(graph.path) for graph in graphs.values()]
    found = quality(ids, sessions, model, window, progress)
    say(["difference from NumPy in float32: measures the precision"])
    head = ("graph", "perplexity", "change", "KL, nats", "top-1 agreement", "")
    say(table([head, *(
        (q.graph, f"{q.perplexity:.4f}", f"{q.change:+.4%}", f"{q.kl:.1e}", f"{q.top1:.2%}",
         _mark(q.good)) for q in found
    )], "lrrrrl"))  # fmt: skip
    size = min(window or model.config.n_positions, len(ids))
    score = "; 'npgpt2 score' uses overlapping windows, so its perplexity differs"
    note(f"perplexity in windows of {size:,} tokens without overlap"
         f"{score if size < len(ids) else ''}")  # fmt: skip
    over = dict.fromkeys(key[0] for key, q in zip(graphs, found, strict=True) if not q.good)
    for precision in over:
        change, kl, top1 = QUALITY[precision]
        note(f"bounds of {precision}: perplexity {change:+.2%}, KL {kl:.0e} nats, "
             f"top-1 {top1:.1%}. A longer text gives steadier figures")  # fmt: skip
    return all(q.good for q in found)


def _exact(graphs: dict[Any, Any]) -> list[Any]:
    return [graph for (precision, _), graph in graphs.items() if precision == "fp32"]


def _apart(error: float) -> str:
    return "another shape, or not finite" if math.isinf(error) else f"{error:.2g}"


def _mark(good: bool) -> str:
    return "" if good else "  OVER THE BOUND"
