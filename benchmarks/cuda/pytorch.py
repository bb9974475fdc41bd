"""The same cells in PyTorch: transformers' GPT2LMHeadModel, eager and compiled.

Greedy: the most probable token is chosen on the device, and fetched with every step. In float32
products are TF32, as they are in ONNX Runtime.
"""

from functools import cache, partial
from itertools import product
from typing import Any

from benchmarks.cuda.models import SHAPES, Options, Steps
from benchmarks.numpy_vs_torch import typical

NEEDED = ("torch", "transformers")
DTYPES = ("float32", "float16")


def steps(options: Options) -> Steps:
    """All that is eager first; compiled there is decode alone, and compiling takes its time."""
    ways = {"eager": eager, "compiled": compiled} if options.device == "cuda" else {"eager": eager}
    models = {dtype: cache(partial(make, options, dtype)) for dtype in DTYPES}
    for way, batch, context, dtype in product(ways, options.batches, options.contexts, DTYPES):
        measure = partial(cell, ways[way], models[dtype], options, dtype, batch, context)
        yield f"{way} {dtype}, {batch} rows, {context} tokens", measure


def make(options: Options, dtype: str) -> Any:
    """Random weights: their values change nothing about the time."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.set_grad_enabled(False)
    torch.set_float32_matmul_precision("high")
    with torch.device(options.device):
        model = GPT2LMHeadModel(GPT2Config(**SHAPES[options.shape]))
    return model.to(getattr(torch, dtype)).eval()


def cell(
    measure: Any, opened: Any, options: Options, dtype: str, batch: int, context: int
) -> dict[str, Any]:
    """Tokens per second, and the bytes that a step of decode reads at least."""
    import torch

    model = opened()
    config = model.config
    prompt = torch.arange(batch * context, device=options.device).reshape(batch, context)
    prompt = prompt * 7919 % config.vocab_size
    itemsize = getattr(torch, dtype).itemsize
    looked_up = model.transformer.wpe.weight
    numbers = sum(p.numel() for p in model.parameters()) - looked_up.numel()
    numbers += 2 * batch * context * config.n_layer * config.n_embd
    about = {"dtype": dtype, "batch": batch, "context": context, "bytes": itemsize * numbers}
    return {"way": measure.__name__} | about | measure(model, prompt, options.new)


def eager(model: Any, prompt: Any, new: int) -> dict[str, Any]:
    def step(ids: Any, past: Any = None) -> Any:
        nonlocal token
        out = model(ids, past_key_values=past, use_cache=True, logits_to_keep=1)
        token = out.logits[:, -1].argmax(-1)[:, None]
        token.cpu()
        return out.past_key_values

    token = None
    prefill = typical(4, lambda: step(prompt))
    past = step(prompt)
    decode = typical(new, lambda: step(token, past))
    return {"prefill": prompt.numel() / prefill, "decode": len(prompt) / decode}


def compiled(model: Any, prompt: Any, new: int) -> dict[str, Any]:
    """Decode over a cache of a fixed size, as one CUDA graph."""
    import torch
    from transformers import StaticCache

    torch.compiler.reset()  # what was compiled for other shapes counts towards a limit
    context = prompt.shape[1]
    cache_ = StaticCache(config=model.config, max_cache_len=context + new)
    model(prompt, past_key_values=cache_, use_cache=True, logits_to_keep=1)
    run = torch.compile(model, mode="reduce-overhead", fullgraph=True, dynamic=False)
    # Its strides have to be those of later ones: they are compiled for, too.
    token, seen = torch.zeros((len(prompt), 1), dtype=prompt.dtype, device=prompt.device), context

    def step() -> None:
        nonlocal token, seen
        where = torch.arange(seen, seen + 1, device=prompt.device)
        torch.compiler.cudagraph_mark_step_begin()
        out = run(token, past_key_values=cache_, position_ids=where[None], cache_position=where,
                  use_cache=True)  # fmt: skip
        token, seen = out.logits[:, -1].argmax(-1)[:, None].clone(), seen + 1
        token.cpu()

    for _ in range(2):  # compiling, and recording
        step()
    return {"decode": len(prompt) / typical(new - 2, step)}
