"""The same work in every other GPT-2 on a CPU that is installed, each in its own process, in turn.

    pip install torch==2.13.0 transformers==5.23.0 ctranslate2 llama-cpp-python gguf
    python -m benchmarks.peers [--rounds 5] [--only NAME …] [--python PATH …] [--json FILE]

A random checkpoint of the 124M shape, batch 1, greedy, one thread a core:

    prefill   1,024 tokens, the last position's logits wanted
    decode    128 tokens after a prompt of 32

A peer that this Python does not have is looked for in those named with --python; one that none has
is named, with what to install. Converted checkpoints are kept in --work, if that is given. What
counts is the ratio of the medians within one run.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

PREFILL, PROMPT, DECODE = 1024, 32, 128
TASKS = ("prefill", "decode")
WIDTH = 50_257  # of the vocabulary
Engine = tuple[Callable[[list[int]], Any], Callable[[], float]]  # what prefills; decode's seconds


class Peer(NamedTuple):
    """Who it is, what it is compared with, what has to be installed, and what runs it."""

    name: str
    kind: str  # float32, or another precision: ours of the same kind is what it is compared with
    packages: tuple[str, ...]
    make: Callable[[Path], None]
    open: Callable[[Path], Engine]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="processes of each kind (default: 5)")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="ours, and these")
    parser.add_argument("--python", nargs="+", default=[], help="other interpreters to look in")
    parser.add_argument("--work", type=Path, help="keep converted checkpoints in this folder")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        name, task, folder = args.worker
        print(json.dumps(work(PEERS[name], task, Path(folder))))
        return
    if unknown := set(args.only) - set(PEERS):
        parser.error(f"--only: got {', '.join(sorted(unknown))}, expected {', '.join(PEERS)}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.work or Path(temporary)
        make_checkpoint(folder)
        found = interpreters(args.only, [sys.executable, *args.python])
        figures = measure(folder, found, args.rounds)
    report(figures, args.rounds)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


def make_checkpoint(folder: Path) -> None:
    from benchmarks.numpy_vs_torch import make_checkpoint as make

    path = folder / "checkpoint"
    if not (path / "tokenizer_config.json").exists():  # what is written last
        path.mkdir(parents=True, exist_ok=True)
        make(path)


def interpreters(only: list[str], pythons: list[str]) -> dict[str, str]:
    """For each peer the first interpreter that can import what it needs."""
    found = {}
    for name, peer in PEERS.items():
        if only and name not in only and not peer.name.startswith("npgpt2"):
            continue
        code = "; ".join(f"import {package.replace('-', '_')}" for package in peer.packages)
        for python in pythons:
            if not subprocess.run([python, "-c", code], capture_output=True).returncode:
                found[name] = python
                break
        else:
            say(f"{name}: is not here. pip install {' '.join(peer.packages)}")
    return found


def measure(folder: Path, found: dict[str, str], rounds: int) -> dict[str, dict[str, list[float]]]:
    """{task: {peer: tokens per second, one a round}}."""
    figures: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for name, python in list(found.items()):
        progress(f"converting: {name}")
        if run(python, name, "make", folder) is None:
            del found[name]
    for n in range(rounds):
        for task in TASKS:
            for name, python in found.items():
                progress(f"round {n + 1} of {rounds}: {task}, {name}")
                value = run(python, name, task, folder)
                if value is not None:
                    figures[task][name].append(value)
    progress("")
    return {task: dict(peers) for task, peers in figures.items()}


def run(python: str, name: str, task: str, folder: Path) -> float | None:
    """One process; None where it failed, and its last line on standard error."""
    quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [python, "-m", "benchmarks.peers", "--worker", name, task, str(folder)],
        capture_output=True, text=True, env=os.environ | quiet,
    )  # fmt: skip
    if done.returncode:
        say(f"\n{name}, {task}: failed: {(done.stderr.strip().splitlines() or ['killed'])[-1]}")
        return None
    return float(json.loads(done.stdout.splitlines()[-1]))


def work(peer: Peer, task: str, folder: Path) -> float:
    if task == "make":
        peer.make(folder)
        return 0.0
    prefill, decode = peer.open(folder)
    if task == "decode":
        return DECODE / typical(4, decode)
    ids = [n * 7919 % WIDTH for n in range(PREFILL)]
    return PREFILL / typical(5, lambda: seconds(lambda: prefill(ids)))


def seconds(f: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    f()
    return time.perf_counter() - begun


def typical(repeats: int, f: Callable[[], float]) -> float:
    """The median of what f says; the first time warms up and does not count."""
    return statistics.median([f() for _ in range(repeats)][1:])


def stepwise(first: Callable[[list[int]], int], step: Callable[[int], int]) -> float:
    """Seconds of `DECODE` greedy tokens, where each is a call."""
    token = first([n * 7919 % WIDTH for n in range(PROMPT)])

    def decode() -> None:
        nonlocal token
        for _ in range(DECODE):
            token = step(token)

    return seconds(decode)


# ── who there is ─────────────────────────────────────────────────────────────────────────────────


def nothing(folder: Path) -> None:
    """The checkpoint as it is."""


def open_numpy(folder: Path) -> Engine:
    from npgpt2.blas import choose_kernel

    choose_kernel()  # as the command line does
    from npgpt2 import GPT2

    return ours(GPT2.from_pretrained(folder / "checkpoint"))


def ours(model: Any) -> Engine:
    import numpy as np

    def decode() -> float:
        step = model.stepper(room=PROMPT + DECODE)
        return stepwise(
            lambda ids: int(step(np.array([ids])).argmax()),
            lambda token: int(step(np.array([[token]])).argmax()),
        )

    return lambda ids: model.stepper()(np.array([ids])), decode


def make_onnx(folder: Path) -> None:
    from npgpt2_onnx import export

    if not (folder / "onnx").exists():
        precisions = ("fp32", "int8", "int4")
        export(folder / "checkpoint", folder / "onnx", precisions=precisions, proof=False)


def open_onnx(precision: str) -> Callable[[Path], Engine]:
    def opened(folder: Path) -> Engine:
        from npgpt2_onnx import OnnxModel

        return ours(OnnxModel.from_pretrained(folder / "onnx", precision))

    return opened


def open_transformers(dtype: str) -> Callable[[Path], Engine]:
    def opened(folder: Path) -> Engine:
        import torch
        from transformers import GPT2LMHeadModel

        torch.set_grad_enabled(False)
        path = str(folder / "checkpoint")
        model = GPT2LMHeadModel.from_pretrained(path, dtype=getattr(torch, dtype)).eval()

        def decode() -> float:
            past: Any = None

            def step(ids: list[int]) -> int:
                nonlocal past
                out = model(
                    torch.tensor([ids]), past_key_values=past, use_cache=True, logits_to_keep=1
                )
                past = out.past_key_values
                return int(out.logits.argmax())

            return stepwise(step, lambda token: step([token]))

        return lambda ids: model(torch.tensor([ids]), logits_to_keep=1), decode

    return opened


def make_ctranslate2(kind: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        from ctranslate2.converters import TransformersConverter

        if not (folder / f"ctranslate2-{kind}").exists():
            converter = TransformersConverter(str(folder / "checkpoint"))
            converter.convert(str(folder / f"ctranslate2-{kind}"), quantization=kind)

    return make


def open_ctranslate2(kind: str) -> Callable[[Path], Engine]:
    def opened(folder: Path) -> Engine:
        import ctranslate2

        generator = ctranslate2.Generator(
            str(folder / f"ctranslate2-{kind}"), device="cpu", compute_type=kind,
            inter_threads=1, intra_threads=cores(),
        )  # fmt: skip
        vocabulary = json.loads((folder / "checkpoint" / "vocab.json").read_text())
        pieces = {i: piece for piece, i in vocabulary.items()}

        def write(ids: list[int], tokens: int) -> None:
            generator.generate_batch(
                [[pieces[i] for i in ids]], max_length=tokens, min_length=tokens, sampling_topk=1,
                include_prompt_in_result=False, end_token=[],
            )  # fmt: skip

        def decode() -> float:
            ids = [n * 7919 % WIDTH for n in range(PROMPT)]
            return seconds(lambda: write(ids, DECODE + 1)) - seconds(lambda: write(ids, 1))

        return lambda ids: write(ids, 1), decode

    return opened


def make_llama(kind: str) -> Callable[[Path], None]:
    """As GGUF, written with gguf's own writer; quantized by llama.cpp itself."""

    def make(folder: Path) -> None:
        import llama_cpp

        whole, path = folder / "llama-f32.gguf", folder / f"llama-{kind}.gguf"
        if not whole.exists():
            write_gguf(folder / "checkpoint", whole)
        if not path.exists():
            options = llama_cpp.llama_model_quantize_default_params()
            options.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind.upper()}")
            llama_cpp.llama_model_quantize(str(whole).encode(), str(path).encode(), options)

    return make


def write_gguf(checkpoint: Path, path: Path) -> None:
    import gguf
    from safetensors.numpy import load_file

    config = json.loads((checkpoint / "config.json").read_text())
    vocabulary = json.loads((checkpoint / "vocab.json").read_text())
    merges = (checkpoint / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    tensors = {n.removeprefix("transformer."): a
               for n, a in load_file(checkpoint / "model.safetensors").items()}  # fmt: skip
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_block_count(config["n_layer"])
    writer.add_context_length(config["n_positions"])
    writer.add_embedding_length(config["n_embd"])
    writer.add_feed_forward_length(4 * config["n_embd"])
    writer.add_head_count(config["n_head"])
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    writer.add_file_type(0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(sorted(vocabulary, key=vocabulary.__getitem__))
    writer.add_token_types([gguf.TokenType.NORMAL] * len(vocabulary))
    writer.add_token_merges(merges)
    names = {
        "wte.weight": "token_embd.weight", "wpe.weight": "position_embd.weight",
        "ln_f.weight": "output_norm.weight", "ln_f.bias": "output_norm.bias",
    }  # fmt: skip
    parts = {"ln_1": "attn_norm", "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output",
             "ln_2": "ffn_norm", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down"}  # fmt: skip
    for i in range(config["n_layer"]):
        for part, theirs in parts.items():
            for leaf in ("weight", "bias"):
                names[f"h.{i}.{part}.{leaf}"] = f"blk.{i}.{theirs}.{leaf}"
    for name, theirs in names.items():
        array = tensors[name]
        linear = ".c_" in name and array.ndim == 2
        writer.add_tensor(theirs, array.T.copy() if linear else array)
    writer.add_tensor("output.weight", tensors["wte.weight"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def open_llama(kind: str) -> Callable[[Path], Engine]:
    def opened(folder: Path) -> Engine:
        import llama_cpp
        import numpy as np

        llama = llama_cpp.Llama(
            str(folder / f"llama-{kind}.gguf"), n_ctx=PREFILL, n_batch=PREFILL, n_ubatch=PREFILL,
            n_threads=cores(), n_threads_batch=cores(), verbose=False,
        )  # fmt: skip

        def step(ids: list[int]) -> int:
            llama.eval(ids)
            logits = llama_cpp.llama_get_logits(llama.ctx)
            return int(np.ctypeslib.as_array(logits, (WIDTH,)).argmax())

        def prefill(ids: list[int]) -> None:
            llama.reset()
            step(ids)

        def decode() -> float:
            llama.reset()
            return stepwise(step, lambda token: step([token]))

        return prefill, decode

    return opened


def open_pico(folder: Path) -> Engine:
    """No cache, the whole text again for every token, as picoGPT does: 8 tokens stand for all."""
    from npgpt2 import GPT2

    model = GPT2.from_pretrained(folder / "checkpoint")
    prefill, _ = ours(model)

    def decode() -> float:
        ids = [n * 7919 % WIDTH for n in range(PROMPT + DECODE // 2)]
        return DECODE * statistics.median(seconds(lambda: model.logits([ids])) for _ in range(8))

    return prefill, decode


def cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


TORCH = ("torch", "transformers")
PEERS = {
    peer.name: peer
    for peer in (
        Peer("npgpt2 numpy", "float32", ("npgpt2",), nothing, open_numpy),
        Peer("npgpt2 onnx fp32", "float32", ("npgpt2_onnx",), make_onnx, open_onnx("fp32")),
        Peer("npgpt2 onnx int8", "int8", ("npgpt2_onnx",), make_onnx, open_onnx("int8")),
        Peer("npgpt2 onnx int4", "int4", ("npgpt2_onnx",), make_onnx, open_onnx("int4")),
        Peer("recomputation", "float32", ("npgpt2",), nothing, open_pico),
        Peer("transformers", "float32", TORCH, nothing, open_transformers("float32")),
        Peer("transformers bf16", "int8", TORCH, nothing, open_transformers("bfloat16")),
        *(
            Peer(f"ctranslate2 {kind}", kind, ("ctranslate2", *TORCH), make_ctranslate2(kind),
                 open_ctranslate2(kind))
            for kind in ("float32", "int8")
        ),
        *(
            Peer(f"llama.cpp {kind}", like, ("llama_cpp", "gguf", "safetensors"), make_llama(kind),
                 open_llama(kind))
            for kind, like in (("f32", "float32"), ("q8_0", "int8"), ("q4_0", "int4"))
        ),
    )
}  # fmt: skip


# ── what is said ─────────────────────────────────────────────────────────────────────────────────


def report(figures: dict[str, dict[str, list[float]]], rounds: int) -> None:
    say(f"tokens/s, medians of {rounds} processes each, in turn; ours of the same kind over theirs")
    row = "{:<20}{:<9}{:>9}{:>9}{:>9}{:>9}{:>9}{:>9}"
    say(row.format("", "kind", "prefill", "onnx/it", "numpy/it", "decode", "onnx/it", "numpy/it"))
    medians = {
        task: {name: statistics.median(values) for name, values in peers.items()}
        for task, peers in figures.items()
    }
    for name, peer in PEERS.items():
        if not any(name in peers for peers in medians.values()):
            continue
        cells = []
        for task in TASKS:
            theirs = medians[task].get(name)
            mine = {
                "onnx": next((medians[task].get(n) for n, p in PEERS.items()
                              if n.startswith("npgpt2 onnx") and p.kind == peer.kind), None),
                "numpy": medians[task].get("npgpt2 numpy") if peer.kind == "float32" else None,
            }  # fmt: skip
            cells.append(f"{theirs:,.0f}" if theirs else "")
            for value in mine.values():
                cells.append(f"{value / theirs:.2f}" if value and theirs else "")
        say(row.format(name, peer.kind, *cells))


def progress(text: str) -> None:
    print(f"\r{text:<60}", end="" if text else "\r", file=sys.stderr, flush=True)


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    main()
