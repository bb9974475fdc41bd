"""Generate, score or embed every row of a file, on all cores or on several machines.

IN is a JSON Lines file, a Parquet file, or a folder of these. A row has a field "prompt" or "text"
(a text or ids) and optionally "id"; a JSON line may also be just a text. DIR gets one file for at
most 64 rows, in their order, with the fields "row", "id" and the results. A row that fails gets
"error" instead, and the exit code is 1. After a run was killed, --resume processes the missing
parts.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from npgpt2.base.errors import CheckFailed, FileError, OptionError
from npgpt2.base.threads import cores
from npgpt2.cli.inputs import add_engine, add_model, spec_of, standard_input
from npgpt2.cli.options import FILTERS, add_options, options_of, whole
from npgpt2.cli.output import note, progress
from npgpt2.engines import ModelSpec
from npgpt2.generation.options import GenerationOptions

if TYPE_CHECKING:
    from npgpt2.model.config import GPT2Config

HELP = "generate, score or embed every row of a file, on all cores or several machines"
EXAMPLES = """examples:
  npgpt2 batch prompts.jsonl -o OUT --task generate --max-new-tokens 40
  npgpt2 batch texts.parquet -o OUT --task score --model EXPORTED
  npgpt2 batch texts.parquet -o OUT --task score --model EXPORTED --resume
  npgpt2 batch FOLDER -o OUT --task embed --ray 10.0.0.1:6379"""

Work = Callable[[list[Any], str], Iterator[Any]]  # (missing parts, folder) → finished parts

Model = tuple[Path, "GPT2Config", list[Path]]  # folder, config, weights files


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", metavar="IN",
        help="a .jsonl or .parquet file, or a folder; - reads JSON lines from standard input",
    )  # fmt: skip
    parser.add_argument("-o", "--out", metavar="DIR", required=True, help="folder to create")
    parser.add_argument(
        "--task", choices=("generate", "score", "embed"), required=True,
        help="generate texts, log-probabilities, or the mean of the last hidden states",
    )  # fmt: skip
    parser.add_argument("--resume", action="store_true", help="resume a run that did not finish")
    parser.add_argument(
        "--format", choices=("jsonl", "parquet"), help="format of the results (default: as IN)"
    )
    who = parser.add_argument_group("workers")
    who.add_argument(
        "--workers", type=whole, metavar="N",
        help="number of processes (on Ray: actors), each with the model in memory (default: one "
        "per core, fewer if memory is short)",
    )  # fmt: skip
    who.add_argument(
        "--ray", metavar="ADDRESS",
        help="use a Ray cluster: HOST:PORT, auto or local; IN and DIR must be the same files on "
        "all of its nodes",
    )  # fmt: skip
    options = parser.add_argument_group("generation (--task generate; filters in this order)")
    filters = ("repetition_penalty", *FILTERS)
    add_options(options, GenerationOptions, *filters)
    same = "seed of the random numbers: the same seed gives the same texts (default: random)"
    add_options(options, GenerationOptions, "seed", help=same)
    add_options(options, GenerationOptions, "max_new_tokens", "stop")
    add_model(parser)
    add_engine(parser)
    add_options(parser, ModelSpec, "dtype", "strict")


def run(args: argparse.Namespace) -> int:
    from npgpt2.base.files import held, named_errors
    from npgpt2.bulk.folder import begin, errors_in, parts_there, require_same, told
    from npgpt2.bulk.parts import ROWS, files_of, parts_of

    if args.out == "":
        raise OptionError("out", "got '', expected a folder")
    if args.workers is not None and not 1 <= args.workers <= 4096:
        raise OptionError("workers", f"got {args.workers}, expected 1 to 4,096")
    out = Path(args.out)
    before = told(out)
    if before is not None and not args.resume:
        raise FileError(f"{out}: exists. Resume it with --resume, or name another folder")
    options, spec = _options(args, before), spec_of(args)
    model = _model(spec)
    files = files_of(_source(args.source, out, begun=before is not None))
    settings = _settings(args, files, options, spec, model)
    if before is not None:
        require_same(out, before, settings)
    most = ROWS if before is None else int(before.get("most", ROWS))
    parts = list(parts_of(files, most, progress))
    rows = sum(part.rows for part in parts)
    if before is not None and (before["parts"], before["rows"]) != (len(parts), rows):
        raise FileError(
            f"{out}: got {len(parts):,} parts, expected {before['parts']:,} as at the start of the "
            "run, by another version. Use another folder"
        )
    work = _ready(args, settings, model, len(parts))
    with named_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    with held(out):
        if told(out) != before:
            raise FileError(f"{out}: another run has started there meanwhile. Look at it first")
        if before is None:
            begin(out, settings, most, len(parts), rows)
        there = parts_there(out, settings.format)
        errors = sum(errors_in(out, number, settings.format) for number in there)
        left = [part for part in parts if part.number not in there]
        if there:
            note(f"{len(there):,} of {len(parts):,} parts are done already")
        begun, done, tokens = time.monotonic(), 0, 0
        if left:
            loop = work(left, str(out.absolute()))
            waiting = sum(part.rows for part in left)
            try:
                for part in progress(loop, args.task, waiting, lambda part: part.rows, " rows"):
                    done, errors = done + part.rows, errors + part.errors
                    tokens += part.tokens
            except KeyboardInterrupt:
                count = len(parts_there(out, settings.format))
                note(f"{count:,} of {len(parts):,} parts are done. Resume with --resume")
                raise
    seconds = max(time.monotonic() - begun, 1e-9)
    rate = f", {done / seconds:,.1f} rows/s, {tokens / seconds:,.0f} tokens/s" if done else ""
    note(f"{_count(rows, 'row')} in {_count(len(parts), 'part')} in {out}{rate}")
    if errors:
        raise CheckFailed(
            f"{out}: {errors:,} of {_count(rows, 'row')} failed: see their field 'error'. "
            "The others are done"
        )
    return 0


def _source(source: str, out: Path, begun: bool) -> Path:
    """The input's path; that of standard input is a copy in `out`."""
    from npgpt2.bulk.folder import INPUT, keep_input

    if source != "-":
        return Path(source)
    return out / INPUT if begun else keep_input(out, standard_input())


def _options(args: argparse.Namespace, before: dict[str, Any] | None) -> dict[str, Any]:
    """The generation options of the run, with a seed; none for other tasks."""
    from npgpt2.generation.language_model import fresh_seed

    given = options_of(args, GenerationOptions)
    if args.task != "generate" and given:
        raise OptionError(next(iter(given)), "works with --task generate only. Leave it out")
    if "seed" not in given:
        known = before["options"].get("seed") if before is not None else None
        given["seed"] = fresh_seed() if known is None else known
    return asdict(GenerationOptions(**given)) if args.task == "generate" else {}


def _settings(
    args: argparse.Namespace, files: list[Path], options: dict[str, Any], spec: ModelSpec,
    model: Model,
) -> Any:  # fmt: skip
    """The settings of the run."""
    from npgpt2.bulk.folder import Settings, inputs_of
    from npgpt2.bulk.parts import has_whole_ids, parquet

    tables = all(file.suffix == ".parquet" for file in files)
    kind = args.format or ("parquet" if tables else "jsonl")
    if kind == "parquet":
        parquet()
    whole_ids = tables and all(map(has_whole_ids, files))
    engine = asdict(spec)
    del engine["model"]
    return Settings(
        task=args.task,
        format=kind,
        whole_ids=whole_ids,
        model=str(model[0]),
        engine=engine,
        options=options,
        inputs=inputs_of(files),
    )


def _model(spec: ModelSpec) -> Model:
    """Check the model that the workers will open, so that errors appear before they start."""
    folder = spec.folder(spec.engine == "numpy", note).absolute()
    if spec.engine == "numpy":
        from npgpt2.checkpoints.checkpoint import Checkpoint

        config = Checkpoint.open(folder).config.language_model(str(folder))
        weights = [path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin")]
        return folder, config, weights
    from npgpt2_onnx.run.exported import Exported
    from npgpt2_onnx.run.session import choose

    graph = Exported.open(choose(folder, spec.device or "cpu", spec.precision)[2])
    return folder, graph.config, [graph.path.parent / name for name in graph.locations]


def _ready(args: argparse.Namespace, settings: Any, model: Model, parts: int) -> Work:
    """The function that processes parts: in processes, or in actors of a Ray cluster."""
    if args.ray is None:
        from npgpt2.bulk.pool import on_pool

        workers = max(1, min(args.workers or _fitting(args.task, model), parts))
        threads = args.threads or max(1, cores() // workers)
        return lambda left, out: on_pool(settings, left, out, workers, threads)
    from npgpt2.bulk.on_ray import connect, on_ray

    # This command prints nothing to standard output, but Ray does, whenever it retries a call.
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    threads = args.threads or 1
    processors = connect(args.ray)
    workers = max(1, min(args.workers or processors // threads, parts))
    return lambda left, out: on_ray(settings, left, out, workers, threads)


def _count(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _fitting(task: str, model: Model) -> int:
    """One worker per core, or as many as fit into the free memory."""
    from npgpt2.bulk.tasks import SLOTS
    from npgpt2.generation.batcher import PREFIX_BYTES

    _, config, weights = model
    needed = 2 * sum(path.stat().st_size for path in weights) + (1 << 29)
    if task == "generate":
        needed += PREFIX_BYTES + SLOTS * config.n_positions * config.n_layer * config.n_embd * 8
    return max(1, min(cores(), free_memory() // needed))


def free_memory() -> int:
    """Free memory in bytes, by the kernel and by the limit of the process's cgroup."""
    found = [1 << 62]
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        line = next(line for line in lines if line.startswith("MemAvailable"))
        found.append(int(line.split()[1]) << 10)
    with suppress(OSError, ValueError):  # "max" is not a number
        group = Path("/sys/fs/cgroup")
        most = int((group / "memory.max").read_text())
        found.append(max(0, most - int((group / "memory.current").read_text())))
    return min(found)
