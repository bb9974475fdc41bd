"""The engines that `benchmarks.peers` compares: their packages, conversion, loading, generation.

Each engine is imported inside its functions, since only one of several interpreters may have it. A
`Write` function takes prompts, ids (B, T), and the number of tokens per row after the first one. It
returns the seconds to the first token, the seconds for the others, and the first row's tokens.
Generation is greedy, with one thread per core.
"""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

Array = Any  # np.ndarray; NumPy is imported late
Write = Callable[[Array, int], tuple[float, float, list[int]]]
Step = Callable[[Array], Array]  # new ids (B, T) → the most probable next ones (B,)

WIDTH, CONTEXT = 50_257, 1024  # of the 124M shape


class Engine(NamedTuple):
    """An engine: its name, the precision that it is compared in, its packages, its functions."""

    name: str
    kind: str
    packages: tuple[str, ...]
    make: Callable[[Path], None]  # converts folder/checkpoint, once
    open: Callable[[Path], Write]
    tasks: tuple[str, ...] = ()  # the tasks that it runs; (): all


def by_steps(fresh: Callable[[int, int], Step]) -> Write:
    """A `Write` for an engine with one call per step; `fresh` gets rows and the total length."""

    def write(prompts: Array, tokens: int) -> tuple[float, float, list[int]]:
        rows, length = prompts.shape
        step = fresh(rows, length + tokens)
        begun = time.perf_counter()
        written = [step(prompts)]
        first = time.perf_counter()
        for _ in range(tokens):
            written.append(step(written[-1][:, None]))
        end = time.perf_counter()
        return first - begun, end - first, [int(ids[0]) for ids in written]

    return write


def cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def nothing(folder: Path) -> None:
    """Convert nothing: the engine reads the checkpoint itself."""


def once(made: Path, make: Callable[[Path], Any]) -> None:
    """Call `make` unless `made` exists; remove an incomplete result of an earlier call first."""
    if not made.exists():
        part = made.with_name(f"part of {made.name}")
        shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)
        make(part)
        part.rename(made)


# ── ours ─────────────────────────────────────────────────────────────────────────────────────────


def open_numpy(folder: Path) -> Write:
    from npgpt2.base.blas import choose_kernel

    choose_kernel()  # as in the command line
    from npgpt2 import GPT2

    return ours(GPT2.from_pretrained(folder / "checkpoint"))


def ours(model: Any) -> Write:
    def fresh(rows: int, total: int) -> Step:
        step = model.stepper(room=total)
        return lambda ids: step(ids).argmax(-1)

    return by_steps(fresh)


def make_onnx(folder: Path) -> None:
    from npgpt2_onnx import export

    precisions = ("fp32", "int8", "int4")  # exported each time, since the exporter may have changed
    export(folder / "checkpoint", folder / "onnx", precisions=precisions, proof=False, force=True)


def open_onnx(precision: str) -> Callable[[Path], Write]:
    def opened(folder: Path) -> Write:
        from npgpt2_onnx import OnnxModel

        return ours(OnnxModel.from_pretrained(folder / "onnx", precision))

    return opened


def open_pico(folder: Path) -> Write:
    """Without a KV cache, as picoGPT: each token recomputes the whole text. 8 tokens are timed."""
    from npgpt2.base.blas import choose_kernel

    choose_kernel()
    import numpy as np

    from npgpt2 import GPT2

    model = GPT2.from_pretrained(folder / "checkpoint")

    def again(prompts: Array, tokens: int) -> tuple[float, float, list[int]]:
        begun = time.perf_counter()
        token = int(model.logits(prompts)[0, -1].argmax())
        first = time.perf_counter()
        texts = np.tile(prompts, (1, 1 + tokens))[:, : prompts.shape[1] + tokens // 2]
        for _ in range(min(8, tokens)):
            model.logits(texts)
        return first - begun, (time.perf_counter() - first) * max(1, tokens / 8), [token]

    return again


# ── PyTorch ──────────────────────────────────────────────────────────────────────────────────────


def open_transformers(dtype: str) -> Callable[[Path], Write]:
    def opened(folder: Path) -> Write:
        import torch
        from transformers import GPT2LMHeadModel

        torch.set_grad_enabled(False)
        path = str(folder / "checkpoint")
        model = GPT2LMHeadModel.from_pretrained(path, dtype=getattr(torch, dtype)).eval()

        def fresh(rows: int, total: int) -> Step:
            past: Any = None

            def step(ids: Array) -> Array:
                nonlocal past
                out = model(
                    torch.from_numpy(ids), past_key_values=past, use_cache=True, logits_to_keep=1
                )
                past = out.past_key_values
                return out.logits[:, -1].argmax(-1).numpy()

            return step

        return by_steps(fresh)

    return opened


# ── CTranslate2 ──────────────────────────────────────────────────────────────────────────────────


def make_ctranslate2(kind: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        from ctranslate2.converters import TransformersConverter

        out, source = folder / f"ctranslate2-{kind}", str(folder / "checkpoint")
        once(out, lambda at: TransformersConverter(source).convert(str(at), quantization=kind))

    return make


def open_ctranslate2(kind: str) -> Callable[[Path], Write]:
    """CTranslate2 generates whole texts, and calls back for each token."""

    def opened(folder: Path) -> Write:
        import ctranslate2

        generator = ctranslate2.Generator(
            str(folder / f"ctranslate2-{kind}"), device="cpu", compute_type=kind,
            inter_threads=1, intra_threads=cores(),
        )  # fmt: skip
        vocabulary = json.loads((folder / "checkpoint" / "vocab.json").read_text())
        pieces = {i: piece for piece, i in vocabulary.items()}

        def write(prompts: Array, tokens: int) -> tuple[float, float, list[int]]:
            texts = [[pieces[i] for i in row] for row in prompts.tolist()]
            times = []
            begun = time.perf_counter()
            written = generator.generate_batch(
                texts, max_length=1 + tokens, min_length=1 + tokens, sampling_topk=1,
                include_prompt_in_result=False, end_token=[],
                callback=lambda step: times.append(time.perf_counter()),
            )  # fmt: skip
            first = times[len(texts) - 1]  # there is one call per row and step
            return first - begun, time.perf_counter() - first, written[0].sequences_ids[0]

        return write

    return opened


# ── llama.cpp ────────────────────────────────────────────────────────────────────────────────────


def make_llama(kind: str) -> Callable[[Path], None]:
    """Convert to GGUF with gguf's own writer; llama.cpp itself quantizes."""

    def make(folder: Path) -> None:
        import llama_cpp

        whole, path = folder / "llama-f32.gguf", folder / f"llama-{kind}.gguf"
        once(whole, lambda at: write_gguf(folder / "checkpoint", at))
        options = llama_cpp.llama_model_quantize_default_params()
        options.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind.upper()}", 0)
        source = str(whole).encode()
        once(path, lambda at: llama_cpp.llama_model_quantize(source, str(at).encode(), options))

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


def open_llama(kind: str) -> Callable[[Path], Write]:
    """Through llama.cpp's C functions: rows are sequences of one batch that share a cache."""

    def opened(folder: Path) -> Write:
        import llama_cpp as llama
        import numpy as np

        llama.llama_log_set(_quiet(llama), None)
        path = str(folder / f"llama-{kind}.gguf").encode()
        model = llama.llama_model_load_from_file(path, llama.llama_model_default_params())
        contexts: dict[int, Any] = {}

        def context(rows: int) -> Any:
            if rows not in contexts:
                options = llama.llama_context_default_params()
                options.n_ctx = options.n_batch = options.n_ubatch = max(CONTEXT, 128 * rows)
                options.n_seq_max = rows
                options.n_threads = options.n_threads_batch = cores()
                contexts[rows] = llama.llama_init_from_model(model, options)
            llama.llama_memory_clear(llama.llama_get_memory(contexts[rows]), False)
            return contexts[rows]

        def fresh(rows: int, total: int) -> Step:
            state, seen = context(rows), 0
            batch = llama.llama_batch_init(max(CONTEXT, 128 * rows), 0, 1)

            def step(ids: Array) -> Array:
                nonlocal seen
                length = ids.shape[1]
                batch.n_tokens = ids.size
                for i, token in enumerate(ids.ravel().tolist()):
                    row, column = divmod(i, length)
                    batch.token[i], batch.pos[i] = token, seen + column
                    batch.n_seq_id[i], batch.seq_id[i][0] = 1, row
                    batch.logits[i] = column == length - 1
                seen += length
                if llama.llama_decode(state, batch):
                    raise RuntimeError("llama_decode failed")
                ends = range(length - 1, ids.size, length)
                rows_of = [llama.llama_get_logits_ith(state, i) for i in ends]
                return np.array([np.ctypeslib.as_array(r, (WIDTH,)).argmax() for r in rows_of])

            return step

        return by_steps(fresh)

    return opened


_kept: list[Any] = []  # keeps the C callback alive


def _quiet(llama: Any) -> Any:
    _kept.append(llama.llama_log_callback(lambda *_: None))
    return _kept[-1]


# ── graphs of other exporters and runtimes ───────────────────────────────────────────────────────


def make_optimum(folder: Path) -> None:
    from optimum.exporters.onnx import main_export

    source, task = str(folder / "checkpoint"), "text-generation-with-past"
    once(folder / "optimum", lambda at: main_export(source, at, task=task))


def open_optimum(folder: Path) -> Write:
    """In ONNX Runtime, with presents bound as the next past. It computes all logits."""
    import numpy as np
    import onnxruntime as ort

    session = ort.InferenceSession(
        str(folder / "optimum" / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    pasts = [i.name for i in session.get_inputs() if i.name.startswith("past")]
    outputs = [o.name for o in session.get_outputs()]

    def fresh(rows: int, total: int) -> Step:
        empty = ort.OrtValue.ortvalue_from_numpy(np.zeros((rows, 12, 0, 64), np.float32))
        past, seen = [empty] * len(pasts), 0

        def step(ids: Array) -> Array:
            nonlocal past, seen
            begun, seen = seen, seen + ids.shape[1]
            positions = np.arange(begun, seen)[None].repeat(rows, 0)
            binding = session.io_binding()
            binding.bind_cpu_input("input_ids", np.ascontiguousarray(ids))
            binding.bind_cpu_input("attention_mask", np.ones((rows, seen), np.int64))
            binding.bind_cpu_input("position_ids", positions)
            for name, value in zip(pasts, past, strict=True):
                binding.bind_ortvalue_input(name, value)
            for name in outputs:
                binding.bind_output(name, "cpu")
            session.run_with_iobinding(binding)
            logits, *past = binding.get_outputs()
            return logits.numpy()[:, -1].argmax(-1)

        return step

    return by_steps(fresh)


def make_openvino(kind: str) -> Callable[[Path], None]:
    """Convert our portable graph: the head reads the last position only, the past is a state."""

    def make(folder: Path) -> None:
        once(folder / f"openvino-{kind}", lambda at: convert_openvino(folder, at, kind))

    return make


def convert_openvino(folder: Path, out: Path, kind: str) -> None:
    import onnx
    import openvino
    from onnx import helper, numpy_helper
    from openvino._offline_transformations import apply_make_stateful_transformation

    source = folder / "onnx" / "onnx"
    graph = onnx.load(source / "model.onnx", load_external_data=False)
    for node in graph.graph.node:
        node.input[:] = ["ln_f.last" if name == "ln_f" else name for name in node.input]
    made = next(i for i, node in enumerate(graph.graph.node) if "ln_f" in node.output)
    bounds = {"last.from": -1, "last.to": 2**62, "last.axis": 1}
    graph.graph.initializer.extend(
        numpy_helper.from_array(_int64(value), name) for name, value in bounds.items()
    )
    graph.graph.node.insert(made + 1, helper.make_node("Slice", ["ln_f", *bounds], ["ln_f.last"]))
    onnx.save(graph, source / "last.onnx")  # in the folder of its weights
    model = openvino.Core().read_model(source / "last.onnx")
    parts = [f"{i}.{part}" for i in range(12) for part in ("key", "value")]
    pairs = {f"past_key_values.{part}": f"present.{part}" for part in parts}
    apply_make_stateful_transformation(model, pairs)
    if kind == "int8":
        import nncf

        model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)
    openvino.save_model(model, out / "model.xml", compress_to_fp16=False)
    (source / "last.onnx").unlink()


def _int64(value: int) -> Array:
    import numpy as np

    return np.array([value], np.int64)


def open_openvino(kind: str) -> Callable[[Path], Write]:
    def opened(folder: Path) -> Write:
        import numpy as np
        import openvino

        hints = {
            "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": cores(),
            "INFERENCE_PRECISION_HINT": "bf16" if kind == "bfloat16" else "f32",
        }  # fmt: skip
        stem = "int8" if kind == "int8" else "float32"
        path = folder / f"openvino-{stem}" / "model.xml"
        request = openvino.Core().compile_model(path, "CPU", hints).create_infer_request()

        def fresh(rows: int, total: int) -> Step:
            seen = 0
            for state in request.query_state():
                state.state = openvino.Tensor(np.zeros((rows, 12, 0, 64), np.float32))

            def step(ids: Array) -> Array:
                nonlocal seen
                begun, seen = seen, seen + ids.shape[1]
                request.infer({
                    "input_ids": ids,
                    "attention_mask": np.ones((rows, seen), np.int64),
                    "position_ids": np.arange(begun, seen)[None].repeat(rows, 0),
                })  # fmt: skip
                return request.get_tensor("logits").data[:, -1].argmax(-1)

            return step

        return by_steps(fresh)

    return opened


# ── all engines ──────────────────────────────────────────────────────────────────────────────────

TORCH = ("torch", "transformers")
CTRANSLATE2 = ("ctranslate2", *TORCH)
LLAMA = ("llama-cpp-python", "gguf", "safetensors")
OPENVINO = ("openvino", "nncf", "onnx")
OPTIMUM = ("optimum", "optimum-onnx", "onnxruntime")
MODULES = {"llama-cpp-python": "llama_cpp", "optimum-onnx": "optimum.exporters.onnx"}

PACKAGES = ("npgpt2", "onnx", "onnxruntime")

ENGINES = {
    engine.name: engine
    for engine in (
        Engine("npgpt2 numpy", "float32", ("npgpt2", "numpy"), nothing, open_numpy),
        Engine("npgpt2 onnx fp32", "float32", PACKAGES, make_onnx, open_onnx("fp32")),
        Engine("npgpt2 onnx int8", "int8", PACKAGES, make_onnx, open_onnx("int8")),
        Engine("npgpt2 onnx int4", "int4", PACKAGES, make_onnx, open_onnx("int4")),
        Engine("recomputation", "float32", ("npgpt2",), nothing, open_pico, ("decode", "prefill")),
        *(
            Engine(f"transformers {kind}", kind, TORCH, nothing, open_transformers(kind))
            for kind in ("float32", "bfloat16")
        ),
        *(
            Engine(
                f"ctranslate2 {kind}", kind, CTRANSLATE2, make_ctranslate2(kind),
                open_ctranslate2(kind),
            )
            for kind in ("float32", "int8")
        ),
        *(
            Engine(f"llama.cpp {kind}", like, LLAMA, make_llama(kind), open_llama(kind))
            for kind, like in (("f32", "float32"), ("q8_0", "int8"), ("q4_0", "int4"))
        ),
        *(
            Engine(
                f"openvino {kind}", kind, OPENVINO,
                make_openvino("int8" if kind == "int8" else "float32"), open_openvino(kind),
            )
            for kind in ("float32", "bfloat16", "int8")
        ),
        Engine("optimum", "float32", OPTIMUM, make_optimum, open_optimum),
    )
}  # fmt: skip
