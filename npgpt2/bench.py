"""Measure a model's tokens per second, and the limits that memory and arithmetic set.

Every engine runs in a separate process, the engines in turn, for several rounds; results are the
medians over the rounds. The limits of the machine are measured in the same rounds. Do not compare
the seconds of different runs: machine, memory pages and other processes differ.

Axes: B batch, T tokens, S = past + T, L layers, C n_embd.
"""

import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from npgpt2.base.errors import FileError, OptionError
from npgpt2.engines import ModelSpec, open_model

if TYPE_CHECKING:
    from npgpt2.generation.language_model import LanguageModel
    from npgpt2.model.config import GPT2Config

NEW = 16  # tokens that are decoded after each context
FIRST = 32  # tokens of the prompt for the time to first token
SQUARE = 2048  # size of the square matrices that are multiplied to measure arithmetic
READ = 1 << 27  # float32 values, 0.5 GB, that are read to measure memory bandwidth


def bench(
    variants: Sequence[ModelSpec],
    *,
    batches: Sequence[int] = (1,),
    contexts: Sequence[int] | None = None,
    threads: int | None = None,
    rounds: int = 3,
    progress: Callable[[Sequence[Any], str], Iterable[Any]] = lambda loop, what: loop,
) -> dict[str, Any]:
    """Measure load time, memory, and prefill and decode throughput of several engines.

    Args:
        variants: the models and engines, each with a model folder.
        batches: batch sizes B.
        contexts: prompt lengths in tokens; None: 32, a quarter of the model's context length, and
            all of it but 16 tokens.
        threads: threads of BLAS and ONNX Runtime; None: one per core.
        rounds: processes per engine.
        progress: wraps the loop over processes.

    Returns:
        limits: "bandwidth" in bytes/s, "arithmetic" in float32 operations/s.
        engines: one for each variant: "load" and "first_token" in seconds, the latter from the
            start of the process; "memory", the peak resident size, in bytes; "prefill" and
            "decode", for each batch and context, with "tokens_per_second" and "of_limit", its share
            of the limit: one read of weights and cache, or all float32 operations, the longer one.

    Raises:
        OptionError: a batch, context, number of threads or of rounds is out of range.
        FileError: a process failed; the message has its last line.
    """
    fp32 = {"numpy": None, "onnx": "fp32"}
    variants = [replace(v, precision=v.precision or fp32[v.engine]) for v in variants]
    folder = variants[0].folder(weights=False)
    contexts = contexts_of(folder, batches, contexts, threads, rounds)
    work = {"batches": list(batches), "contexts": contexts, "threads": threads}
    # None stands for the machine's limits.
    found: dict[ModelSpec | None, list[dict[str, Any]]] = {v: [] for v in (None, *variants)}
    for variant in progress([*found] * rounds, "measuring"):
        found[variant].append(_process(work | {"variant": variant and asdict(variant)}))
    limits = {key: _median(found[None], key) for key in found[None][0]}
    return {"limits": limits, "engines": [_engine(v, found[v], limits) for v in variants]}


def contexts_of(
    folder: Path,
    batches: Sequence[int],
    contexts: Sequence[int] | None,
    threads: int | None,
    rounds: int,
) -> list[int]:
    """The prompt lengths to measure. Raises OptionError like `bench`."""
    from npgpt2.checkpoints.checkpoint import read_config

    n_positions = read_config(folder).n_positions
    most = n_positions - NEW
    _require("batch", batches, 1, 4096)
    _require("rounds", [rounds], 1, 1000)
    if threads is not None:
        _require("threads", [threads], 1, 1024)
    if contexts is None:
        contexts = sorted({max(1, min(x, most)) for x in (FIRST, n_positions // 4, most)})
    _require("context", contexts, 1, most)
    return list(contexts)


def _require(option: str, values: Sequence[int], least: int, most: int) -> None:
    for value in values:
        if not least <= value <= most:
            raise OptionError(option, f"got {value}, expected {least} to {most}")


def _process(work: dict[str, Any]) -> dict[str, Any]:
    """One measurement in a separate process."""
    done = subprocess.run(
        [sys.executable, "-m", "npgpt2.bench", json.dumps(work | {"started": time.time()})],
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        name = work["variant"] and work["variant"]["engine"]
        last = (done.stderr.strip().splitlines() or ["it was killed, perhaps out of memory"])[-1]
        raise FileError(f"{name or 'the machine'}: could not be measured ({last})")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _median(rounds: Sequence[dict[str, Any]], key: str) -> float:
    return statistics.median(float(r[key]) for r in rounds)


def _engine(
    variant: ModelSpec, rounds: Sequence[dict[str, Any]], limits: dict[str, float]
) -> dict[str, Any]:
    """The medians of one engine's rounds, compared with the limits."""
    engine: dict[str, Any] = {"engine": variant.engine, "precision": variant.precision or "fp32"}
    engine |= {key: _median(rounds, key) for key in ("load", "first_token", "memory")}
    for kind in ("prefill", "decode"):
        engine[kind] = []
        for cells in zip(*(r[kind] for r in rounds), strict=True):
            seconds = statistics.median(cell["seconds"] for cell in cells)
            cell = {key: cells[0][key] for key in ("batch", "context")}
            tokens = cell["batch"] * (cell["context"] if kind == "prefill" else 1)
            least = max(
                cells[0]["operations"] / limits["arithmetic"],
                cells[0]["bytes"] / limits["bandwidth"],
            )
            cell |= {"tokens_per_second": tokens / seconds, "of_limit": least / seconds}
            engine[kind].append(cell)
    return engine


# ── the measuring process ────────────────────────────────────────────────────────────────────────


def measure(work: dict[str, Any]) -> dict[str, Any]:
    """Measure one engine; without a variant, the limits of the machine."""
    if work["variant"] is None:
        return _limits()
    spec = ModelSpec(**work["variant"])
    if spec.engine == "onnx":
        spec = replace(spec, threads=work["threads"])
    import numpy as np

    begun = time.perf_counter()
    model = open_model(spec)
    load = time.perf_counter() - begun
    first = np.arange(min(FIRST, model.config.n_positions))[None] % model.config.vocab_size
    model.stepper()(first)
    found = {"load": load, "first_token": time.time() - work["started"]}
    itemsize = 2 if spec.precision == "fp16" else 4
    points = product(work["batches"], work["contexts"])
    prefill, decode = zip(*(_point(model, *point, itemsize) for point in points), strict=True)
    return found | {"prefill": prefill, "decode": decode, "memory": _resident()}


def _point(
    model: "LanguageModel", batch: int, context: int, itemsize: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Prefill and decode of a batch after a context: seconds, operations, and bytes read."""
    import numpy as np

    config = model.config
    prompt = np.arange(batch * context).reshape(batch, context) % config.vocab_size
    where = {"batch": batch, "context": context}
    prefill = where | {
        "seconds": _typical(lambda: model.stepper()(prompt), 3),
        "operations": operations(config, batch, context, 0),
        "bytes": bytes_read(model),
    }
    step = model.stepper(room=context + NEW)
    step(prompt)
    decode = where | {
        "seconds": _typical(lambda: step(prompt[:, :1]), NEW),
        "operations": operations(config, batch, 1, context),
        "bytes": bytes_read(model, batch * context, itemsize),
    }
    return prefill, decode


def operations(config: "GPT2Config", batch: int, tokens: int, past: int) -> int:
    """Multiplications and additions needed for the logits of the last token.

    The last block computes keys and values of all tokens, and the rest for the last token only.

    >>> from npgpt2 import GPT2Config
    >>> f"{operations(GPT2Config(), 1, 1024, 0):.4g}"
    '1.797e+11'
    """
    c, f, before = config.n_embd, config.mlp_width, config.n_layer - 1
    rest = 2 * c * c + 2 * c * f  # queries, c_proj and the MLP: multiplications per token
    seen = tokens * past + tokens * (tokens + 1) // 2  # pairs of a query and a key it attends to
    every = tokens * (config.n_layer * 2 * c * c + before * rest) + before * 2 * c * seen
    last = rest + 2 * c * (past + tokens) + c * config.vocab_size
    return 2 * batch * (every + last)


def bytes_read(model: Any, cached: int = 0, itemsize: int = 4) -> int:
    """Bytes read by a step: all weights except embedding rows, and the cache of `cached` tokens."""
    config = model.config
    cache: int = 2 * cached * config.n_layer * config.n_embd * itemsize
    return cache + _weights_read(model)


def _weights_read(model: Any) -> int:
    apart = ("wpe",) if model.config.tie_word_embeddings else ("wpe", "wte")
    if hasattr(model, "session"):
        tensors = model.session.graph.tensors.items()
        return sum(t.nbytes for name, t in tensors if not name.startswith(apart))
    from npgpt2.model.params import named_parameters

    named = named_parameters(model.params)
    return sum(array.nbytes for name, array in named if not name.startswith(apart))


def _limits() -> dict[str, Any]:
    """Bytes and float32 operations per second, measured with BLAS on all threads."""
    import numpy as np

    x, a = np.ones(READ, np.float32), np.ones((SQUARE, SQUARE), np.float32)
    return {
        "bandwidth": x.nbytes / _typical(lambda: np.dot(x, x), 7),
        "arithmetic": 2 * SQUARE**3 / _typical(lambda: np.dot(a, a), 7),
    }


def _typical(work: Callable[[], Any], repeats: int) -> float:
    """Median seconds; the first repetition is a warmup and does not count."""
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return statistics.median(times[1:])


def _resident() -> int:
    """The peak resident size so far, in bytes; 0 if the system does not report it."""
    with suppress(OSError, StopIteration):  # on Linux getrusage counts the parent's memory as well
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def draw(report: dict[str, Any], path: Path) -> None:
    """Plot prefill and decode by context, one line per engine; memory's limit is dashed."""
    from matplotlib.figure import Figure

    from npgpt2.base.files import output

    figure = Figure(figsize=(10, 4.5), layout="constrained")
    for axes, kind in zip(figure.subplots(1, 2), ("prefill", "decode"), strict=True):
        for n, engine in enumerate(report["engines"]):
            for batch in sorted({cell["batch"] for cell in engine[kind]}):
                cells = [cell for cell in engine[kind] if cell["batch"] == batch]
                x, y = [c["context"] for c in cells], [c["tokens_per_second"] for c in cells]
                rows = f", batch {batch}" if batch > 1 else ""
                style = {"color": f"C{n}", "alpha": 1.0 / (1.0 + math.log10(batch))}
                label = f"{engine['engine']} {engine['precision']}{rows}"
                axes.plot(x, y, marker="o", label=label, **style)
                limit = [c["tokens_per_second"] / c["of_limit"] for c in cells]
                if kind == "decode":
                    axes.plot(x, limit, linestyle="--", linewidth=0.8, **style)
        axes.set_title(f"{kind}: tokens per second")
        axes.set_xlabel("prompt length, tokens")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    axes.plot([], [], linestyle="--", color="gray", label="limit of the memory bandwidth")
    axes.legend(fontsize="small")
    with output(path) as work:
        figure.savefig(work, format="png", dpi=120)


if __name__ == "__main__":
    from npgpt2.base.blas import choose_kernel
    from npgpt2.base.errors import NpGPT2Error

    asked = json.loads(sys.argv[1])
    if asked["threads"]:
        import os

        os.environ["OPENBLAS_NUM_THREADS"] = str(asked["threads"])
    choose_kernel()  # as in the command line
    try:
        print(json.dumps(measure(asked)))
    except (NpGPT2Error, MemoryError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
