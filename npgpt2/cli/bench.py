"""Measure a model's speed on this machine, compared with the machine's limits.

Reports load time, time from process start to first token, and memory; and prefill and decode
throughput in tokens per second, by batch size and context length. Memory bandwidth limits decode,
since each step reads all weights; arithmetic limits prefill. Both limits are measured in the same
run, and results are also given as a share of them. Do not run other programs meanwhile.
"""

import argparse
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from npgpt2.base.errors import OptionError
from npgpt2.cli.inputs import add_model
from npgpt2.cli.options import add_several, whole
from npgpt2.cli.output import (
    note,
    progress,
    require_matplotlib,
    require_place,
    say,
    table,
)
from npgpt2.engines import ModelSpec

HELP = "measure tokens per second on this machine, compared with its limits"
EXAMPLES = """examples:
  npgpt2 bench
  npgpt2 bench --model gpt2 --engine numpy --batch 1 8
  npgpt2 bench --model gpt2 --engine onnx --precision fp32 int8 int4 --plot bench.png"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument(
        "--engine", choices=("numpy", "onnx", "all"), default="all",
        help="the engines to measure (default: %(default)s)",
    )  # fmt: skip
    add_several(
        parser, "--precision", choices=("fp32", "fp16", "int8", "int4"),
        help="precision of the onnx engine, one or several (default: all that the folder has, else "
        "fp32); missing ones are exported to a temporary folder",
    )  # fmt: skip
    parser.add_argument(
        "--threads", type=whole, metavar="N", help="threads (default: one per core)"
    )
    add_several(
        parser, "--batch", type=whole, metavar="B", help="batch size, one or several (default: 1)"
    )
    add_several(
        parser, "--context", type=whole, metavar="T",
        help="prompt length in tokens, one or several (default: 32, a quarter of the model's "
        "context length, and all of it but 16 tokens)",
    )  # fmt: skip
    parser.add_argument(
        "--rounds", type=whole, default=3, metavar="N",
        help="processes per engine; results are their medians (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--plot", metavar="FILE.png", help="plot the results (needs matplotlib)")


def run(args: argparse.Namespace) -> int:
    from npgpt2.bench import bench, draw

    args.batch = args.batch or [1]
    if args.plot is not None:
        require_matplotlib()
        require_place("plot", args.plot)
    with ExitStack() as stack:
        variants = _variants(args, stack)
        report = bench(
            variants, batches=args.batch, contexts=args.context, threads=args.threads,
            rounds=args.rounds, progress=progress,
        )  # fmt: skip
    report = {"machine": _machine(), "threads": args.threads, "rounds": args.rounds} | report
    if args.plot is not None:
        draw(report, Path(args.plot))
    say([json.dumps(report)] if args.json else _in_words(report))
    return 0


def _variants(args: argparse.Namespace, stack: ExitStack) -> list[ModelSpec]:
    """The engines to measure. Missing graphs are exported to a temporary folder, which the stack
    removes."""
    from npgpt2.bench import contexts_of
    from npgpt2_onnx.run.session import graphs_in

    if args.engine == "numpy" and args.precision:
        raise OptionError("precision", "belongs to the onnx engine. Leave it out or --engine onnx")
    named = ModelSpec(args.model, revision=args.revision)
    folder = named.folder(args.engine != "onnx", note)
    contexts_of(folder, args.batch, args.context, args.threads, args.rounds)  # before it exports
    checkpoint = any(folder.glob("*.safetensors*"))
    variants = []
    if args.engine == "numpy" or (args.engine == "all" and checkpoint):
        variants.append(ModelSpec(str(folder), "numpy"))
    if args.engine == "numpy":
        return variants
    there = list(dict.fromkeys(precision for precision, _ in graphs_in(folder)))
    wanted = list(dict.fromkeys(args.precision or there or ["fp32"]))
    absent = [precision for precision in wanted if precision not in there]
    made = ""
    if absent:
        import tempfile

        from npgpt2.base.files import unfinished
        from npgpt2_onnx import export

        note(f"{folder} has no graph in {', '.join(absent)}: exporting to a temporary folder")
        stack.enter_context(unfinished())
        made = str(Path(stack.enter_context(tempfile.TemporaryDirectory())) / "onnx")
        export(
            args.model or folder, made, precisions=absent, proof=False, revision=args.revision,
            progress=progress,
        )  # fmt: skip
    variants += [
        ModelSpec(made if p in absent else str(folder), "onnx", precision=p) for p in wanted
    ]
    return variants


def _machine() -> dict[str, Any]:
    import platform
    from importlib.metadata import version

    from npgpt2.base.blas import describe
    from npgpt2.cli.info import machine

    names = ("npgpt2", "numpy", "onnxruntime")
    return {
        "machine": machine(),
        "python": platform.python_version(),
        **{name: version(name) for name in names},
        "blas": describe(),
    }


def _in_words(report: dict[str, Any]) -> list[str]:
    limits, engines = report["limits"], report["engines"]
    about = report["machine"]
    lines = [
        about["machine"],
        f"NumPy {about['numpy']} ({about['blas']}), onnxruntime {about['onnxruntime']}",
        f"limits: memory reads {limits['bandwidth'] / 1e9:.1f} GB/s, float32 matrix products "
        f"{limits['arithmetic'] / 1e9:.0f} GFLOP/s",
        "",
    ]
    rows = [
        (_name(e), f"{e['load']:.2f} s", f"{e['first_token']:.2f} s",
         f"{e['memory'] / 1e6:,.0f} MB") for e in engines
    ]  # fmt: skip
    lines += table([("engine", "load", "start to first token", "peak memory"), *rows], "lrrr")
    for kind, limit in (("prefill", "arithmetic"), ("decode", "memory")):
        cells = [
            (_name(e), c["batch"], f"{c['context']:,}", f"{c['tokens_per_second']:,.0f}",
             f"{c['of_limit']:.0%}")
            for e in engines for c in e[kind]
        ]  # fmt: skip
        lines += ["", kind]
        head = ("engine", "batch", "context", "tokens/s", f"of {limit} limit")
        lines += table([head, *cells], "lrrrr")
    return lines


def _name(engine: dict[str, Any]) -> str:
    return f"{engine['engine']} {engine['precision']}"
