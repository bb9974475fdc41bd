"""Tokens per step with --prompt-lookup for different kinds of text.

    python -m benchmarks.prompt_lookup [--model DIR] [--rounds 3]

For each prompt it generates 128 tokens with and without drafts in turn, greedily and by sampling;
the text must be the same. Tokens per step depend on the model and the text alone; the ratio of
times depends on this machine.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TOKENS, DRAFT_TOKENS = 128, 16
CODE = """def forward(x, weight, bias):
    y = x @ weight
    y = y + bias
    return y


def backward(x, weight, grad):
    dx = grad @ weight.T
    dw = x.T @ grad
"""
VERSE = "The cat is on the mat, the cat is on the mat, the cat is on the mat, the cat is on"
PLAIN = "GLOUCESTER:\nHow now, my lord, what news from Wales, and where is the king to-night?\n"
PROMPTS = {"plain": PLAIN, "like code": CODE, "repetitive": VERSE}
# The last makes a model repeat itself, as small models do anyway.
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "sampled": {"temperature": 0.8, "top_p": 0.95, "seed": 1},
    "greedy, repeating": {"temperature": 0, "repetition_penalty": 0.5},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path("weights/shakespeare"))
    parser.add_argument("--rounds", type=int, default=3, help="the median of N rounds is reported")
    args = parser.parse_args()
    from npgpt2.base.blas import choose_kernel

    choose_kernel()
    from npgpt2 import GPT2, GenerationOptions

    model = GPT2.from_pretrained(args.model)
    row = "{:<12}{:<20}{:>16}{:>10}".format
    print(row("prompt", "", "tokens per step", "speed"))
    for name, prompt in PROMPTS.items():
        ids = model.encode(prompt)
        for way, options in WAYS.items():
            plain = GenerationOptions(TOKENS, **options)
            drafting = GenerationOptions(TOKENS, **options, prompt_lookup=DRAFT_TOKENS)
            steps: list[int] = []
            ratios = []
            for _ in range(args.rounds):
                text, slow = write(model, ids, plain)
                same, fast = write(model, ids, drafting, steps.append)
                if text != same:
                    raise SystemExit(f"{name}, {way}: the text differs")
                ratios.append(slow / fast)
            ratio = f"{statistics.median(ratios):.2f} x"
            print(row(name, way, f"{statistics.mean(steps):.1f}", ratio), flush=True)


def write(
    model: Any, ids: list[int], options: Any, on_step: Callable[[int], None] = lambda tokens: None
) -> tuple[list[int], float]:
    """The tokens, and seconds."""
    begun = time.perf_counter()
    text = [token for piece in model.pieces([ids], options, on_step) for token in piece.ids]
    return text, time.perf_counter() - begun


if __name__ == "__main__":
    main()
