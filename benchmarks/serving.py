"""Measure the server (compared with llama.cpp's) and bulk scoring (compared with prefill).

    pip install -e '.[serve,batch,ray]' gguf
    python -m benchmarks.serving [--llama-server BUILD/bin/llama-server] [--json FILE]

A random checkpoint of the 124M shape, one thread per core, 8 slots; requests with 128 random prompt
tokens and 64 generated tokens, greedy, streamed, over the loopback interface. Each round measures
everything once, in turn. Compare ratios within a round, and their medians. Build llama.cpp's server
from source (llama-cpp-python's source has it under vendor/llama.cpp):

    cmake -B BUILD -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON
    cmake --build BUILD --target llama-server llama-quantize

Throughput: 1 client, then 8; each sends its next request as soon as it has an answer. Time to first
token: with one client; under half load, which is 4 such clients; and with requests that arrive at
random times at half the request rate of 8 clients. `batch --task score` is measured from the start
of the first worker to the last row, on rows of 64 to 255 tokens.
"""

import argparse
import contextlib
import http.client
import json
import random
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.engines import WIDTH, cores, once, write_gguf
from benchmarks.peers import make_checkpoint, progress, say

SLOTS, PROMPT, TOKENS = 8, 128, 64
END = 50_256  # never generated, so that all answers have the same length
KINDS = {"fp32": "f32", "int8": "q8_0", "int4": "q4_0"}  # our precisions → llama.cpp's


class Answer(NamedTuple):
    begun: float
    first: float
    end: float
    tokens: int


class Server(NamedTuple):
    """A running server: its port, and the path and body of a request."""

    name: str
    port: int
    path: str
    body: dict[str, Any]

    def ask(self, prompt: list[int]) -> Answer:
        body = json.dumps({**self.body, "prompt": prompt, "stream": True})
        begun, first, tokens = time.perf_counter(), 0.0, 0
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        with contextlib.closing(connection):
            connection.request("POST", self.path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            if response.status != 200:
                raise RuntimeError(f"{self.name}: {response.status} {response.read()[:200]!r}")
            for line in response:
                if line.startswith(b"data: {"):
                    first = first or time.perf_counter()
                    tokens += 1
        return Answer(begun, first, time.perf_counter(), tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=4, help="requests per client (default: 4)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=[*KINDS])
    parser.add_argument("--llama-server", type=Path, metavar="FILE", help="llama.cpp's server")
    parser.add_argument("--work", type=Path, help="keep converted checkpoints in this folder")
    parser.add_argument("--skip-batch", action="store_true", help="measure the server only")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.work or Path(temporary)
        make_models(folder, args.llama_server)
        runs: list[dict[str, float]] = []
        for n in range(args.rounds):
            found: dict[str, float] = {}
            for kind in args.kinds:
                progress(f"round {n + 1} of {args.rounds}: serving {kind}")
                found |= serving(folder, kind, args.requests, args.llama_server)
            if not args.skip_batch:
                progress(f"round {n + 1} of {args.rounds}: scoring")
                found |= scoring(folder)
            runs.append(found)
        progress("")
    medians = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    if args.json:
        args.json.write_text(json.dumps({"medians": medians, "runs": runs}, indent=1) + "\n")
    for name, value in medians.items():
        say(f"{name:58} {value:10.3f}")
    if not args.skip_batch:
        say(on_paper(medians))


def make_models(folder: Path, llama: Path | None) -> None:
    from npgpt2_onnx import export

    make_checkpoint(folder)
    export(folder / "checkpoint", folder / "onnx", precisions=[*KINDS], proof=False, force=True)
    if llama is None:
        return
    whole = folder / "llama-f32.gguf"
    once(whole, lambda at: write_gguf(folder / "checkpoint", at))
    for kind in [*KINDS.values()][1:]:
        command = [llama.with_name("llama-quantize"), whole]
        once(
            folder / f"llama-{kind}.gguf",
            lambda at, c=command, k=kind: subprocess.run(
                [*c, at, k], check=True, capture_output=True
            ),
        )


# ── the server ───────────────────────────────────────────────────────────────────────────────────


def serving(folder: Path, kind: str, requests: int, llama: Path | None) -> dict[str, float]:
    found: dict[str, float] = {}
    with ours(folder, kind) as server:
        found |= loaded(server, f"{kind} npgpt2", requests)
    one, eight = (found[f"{kind} npgpt2 tokens/s, {n} clients"] for n in (1, SLOTS))
    found[f"{kind}: 8 clients / 1 client (aim 3)"] = eight / one
    alone, half = (
        found[f"{kind} npgpt2 first token, {how}"] for how in ("alone", "4 clients, p95")
    )
    found[f"{kind}: first token, half load p95 / alone (aim 2)"] = half / alone
    if llama is not None:
        with theirs(folder, kind, llama) as server:
            found |= loaded(server, f"{kind} llama.cpp", requests)
        other = found[f"{kind} llama.cpp tokens/s, {SLOTS} clients"]
        found[f"{kind}: 8 clients, npgpt2 / llama.cpp (aim 1.2)"] = eight / other
    return found


def loaded(server: Server, name: str, requests: int) -> dict[str, float]:
    chosen = random.Random(0)

    def prompt() -> list[int]:
        return [chosen.randrange(WIDTH - 1) for _ in range(PROMPT)]

    server.ask(prompt())  # warmup
    found = {}
    alone: list[Answer] = []
    for clients in (1, SLOTS):
        answers = closed(server, [[prompt() for _ in range(requests)] for _ in range(clients)])
        seconds = max(a.end for a in answers) - min(a.begun for a in answers)
        found[f"{name} tokens/s, {clients} clients"] = TOKENS * len(answers) / seconds
        rate = len(answers) / seconds
        alone = alone or answers
    half = closed(server, [[prompt() for _ in range(3 * requests)] for _ in range(SLOTS // 2)])
    random_ = arriving(server, [prompt() for _ in range(10 * requests)], rate / 2)
    found[f"{name} first token, alone"] = first(alone, 0.5)
    for how, answers in (("4 clients", half), ("at random", random_)):
        found[f"{name} first token, {how}, median"] = first(answers, 0.5)
        found[f"{name} first token, {how}, p95"] = first(answers, 0.95)
    return found


def first(answers: list[Answer], share: float) -> float:
    """The quantile `share` of the seconds to the first token."""
    return sorted(a.first - a.begun for a in answers)[int(share * len(answers))]


def closed(server: Server, prompts: list[list[list[int]]]) -> list[Answer]:
    """Clients that send their next request as soon as they have an answer."""
    answers: list[Answer] = []
    clients = [
        threading.Thread(target=lambda mine=mine: answers.extend(map(server.ask, mine)))
        for mine in prompts
    ]
    for client in clients:
        client.start()
        time.sleep(0.3)  # keeps the clients from sending all their requests at the same time
    for client in clients:
        client.join()
    return answers


def arriving(server: Server, prompts: list[list[int]], rate: float) -> list[Answer]:
    """Requests at random times (Poisson), independent of the answers."""
    chosen, answers, clients = random.Random(1), [], []
    for prompt in prompts:
        client = threading.Thread(target=lambda p=prompt: answers.append(server.ask(p)))
        client.start()
        clients.append(client)
        time.sleep(chosen.expovariate(rate))
    for client in clients:
        client.join()
    return answers


@contextlib.contextmanager
def ours(folder: Path, kind: str) -> Iterator[Server]:
    command = [
        sys.executable, "-m", "npgpt2", "serve", "--engine", "onnx", "--model",
        str(folder / "onnx"), "--precision", kind, "--threads", str(cores()), "--slots", str(SLOTS),
        "--port", "0",
    ]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        line = ""
        while not (found := re.search(r" at http://127\.0\.0\.1:(\d+)", line)):
            line = process.stderr.readline()
            if not line:
                raise RuntimeError("npgpt2 serve: ended")
        body = {"max_tokens": TOKENS, "temperature": 0, "logit_bias": {str(END): -100}}
        yield Server("npgpt2", int(found[1]), "/v1/completions", body)
    finally:
        process.terminate()
        process.wait()
        process.stderr.close()


@contextlib.contextmanager
def theirs(folder: Path, kind: str, llama: Path) -> Iterator[Server]:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    model = str(folder / f"llama-{KINDS[kind]}.gguf")
    n = str(cores())
    command = [
        str(llama), "-m", model, "--host", "127.0.0.1", "--port", str(port), "-np", str(SLOTS),
        "-c", str(1024 * SLOTS), "-t", n, "-tb", n, "--no-webui",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    body = {
        "n_predict": TOKENS, "temperature": 0, "cache_prompt": False, "ignore_eos": True,
        "samplers": ["temperature"],
    }  # fmt: skip
    server = Server("llama.cpp", port, "/completion", body)
    try:
        for _ in range(600):
            time.sleep(0.1)
            if process.poll() is not None:
                raise RuntimeError("llama-server: ended")
            with contextlib.suppress(OSError, RuntimeError):
                server.ask([1, 2, 3])
                break
        yield server
    finally:
        process.terminate()
        process.wait()


# ── bulk work ────────────────────────────────────────────────────────────────────────────────────


def scoring(folder: Path, rows: int = 384) -> dict[str, float]:
    """Tokens per second of `npgpt2 batch --task score`, and of plain prefill of the same rows."""
    chosen = random.Random(0)
    source = folder / "rows.jsonl"
    lengths = [chosen.randrange(64, 256) for _ in range(rows)]
    texts = [[chosen.randrange(WIDTH - 1) for _ in range(n)] for n in lengths]
    source.write_text("".join(f"{json.dumps(text)}\n" for text in texts))
    found = prefill(folder, texts)
    for workers in sorted({1, cores()}):
        found[f"score, {workers} processes, tokens/s"] = batch(folder, source, workers, [])
    with contextlib.suppress(ImportError):
        import ray  # noqa: F401

        for workers in range(1, min(4, cores()) + 1):
            rate = batch(folder, source, workers, ["--ray", "local"])
            found[f"score, {workers} Ray workers, tokens/s"] = rate
    best = found[f"score, {cores()} processes, tokens/s"]
    for how in ("last logits", "all logits"):
        found[f"score / prefill, {how} (aim 0.9)"] = best / found[f"prefill, {how}, tokens/s"]
    found["counting rows, MB/s"] = counting(folder)
    return found


def prefill(folder: Path, texts: list[list[int]]) -> dict[str, float]:
    """Prefill in one process on all cores, one text after another."""
    code = (
        "import json, sys, time\nimport numpy as np\nfrom npgpt2_onnx import OnnxModel\n"
        f"model = OnnxModel.from_pretrained({str(folder / 'onnx')!r}, 'fp32')\n"
        "texts = [np.array([t]) for t in json.load(sys.stdin)]\n"
        "for name, f in (('last', lambda x: model.stepper()(x)), ('all', model.logits)):\n"
        "    f(texts[0])\n    begun = time.perf_counter()\n    for x in texts: f(x)\n"
        "    seconds = time.perf_counter() - begun\n"
        "    print(sum(x.size for x in texts) / seconds)\n"
    )
    some = json.dumps(texts[: len(texts) // 4])
    done = subprocess.run(
        [sys.executable, "-c", code], input=some, capture_output=True, text=True, check=True
    )
    last, whole = map(float, done.stdout.split())
    return {"prefill, last logits, tokens/s": last, "prefill, all logits, tokens/s": whole}


def batch(folder: Path, source: Path, workers: int, more: list[str]) -> float:
    """Tokens per second, as `npgpt2 batch` reports it."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        command = [
            sys.executable, "-m", "npgpt2", "batch", str(source), "-o", out, "--task", "score",
            "--engine", "onnx", "--precision", "fp32", "--model", str(folder / "onnx"),
            "--workers", str(workers), "--threads", "1", *more,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    rate = re.search(r"([\d,]+) tokens/s", done.stderr)
    assert rate is not None, done.stderr
    return float(rate[1].replace(",", ""))


def counting(folder: Path, size: int = 200 << 20) -> float:
    """The speed in MB/s at which one process splits a file with rows of 1 kB into parts."""
    from npgpt2.bulk.parts import parts_of

    path = folder / "long.jsonl"
    path.write_bytes((json.dumps("a" * 1021).encode() + b"\n") * (size >> 10))
    begun = time.perf_counter()
    count = sum(part.rows for part in parts_of([path], 256))
    seconds = time.perf_counter() - begun
    path.unlink()
    assert count == size >> 10
    return size / 1e6 / seconds


def on_paper(medians: dict[str, float]) -> str:
    """An estimate of the throughput and the limits of a hundred nodes like this one, computed from
    this one's results. It is not measured."""
    rate = medians[f"score, {cores()} processes, tokens/s"]
    part = 64 * 160 / (rate / cores())
    counted = medians["counting rows, MB/s"]
    eaten = 100 * rate * 4 / 1e6  # about four bytes of text a token
    return (
        f"\nEstimate: 100 nodes of {cores()} cores would score {100 * rate:,.0f} tokens/s: nodes "
        "share only files.\n"
        f"A worker needs {part:.0f} s for a part of 64 rows of 160 tokens; all workers report "
        f"{100 * cores() / part:.0f} parts per second to Ray's driver;\n"
        f"at the end, workers wait {part / 2:.0f} s on average for the last part. The input is "
        f"read at {eaten:.1f} MB/s in total, and counted at {counted:,.0f} MB/s.\n"
        "The first limit is a shared disk that creates so many small files, then Ray's driver, "
        "which handles a few hundred tasks per second."
    )


if __name__ == "__main__":
    main()
