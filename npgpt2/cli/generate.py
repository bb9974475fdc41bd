"""Generate text that continues a prompt.

The text streams to standard output; several samples and beam search are printed at the end. A text
also ends at an end-of-text token or when the context is full. The default is sampling with
temperature 0.8 and top-p 0.95. Notes and timings go to standard error.
"""

import argparse
import json
import sys
import time
from dataclasses import replace

from npgpt2.cli.inputs import add_engine, add_model, given_prompt, load_engine
from npgpt2.cli.options import FILTERS, add_options, options_of, whole
from npgpt2.cli.output import note, progress
from npgpt2.engines import ModelSpec
from npgpt2.generation.options import DRAFT_TOKENS, GenerationOptions

HELP = "generate text that continues a prompt"
EXAMPLES = """examples:
  npgpt2 generate
  npgpt2 generate 'O Romeo,' --temperature 0 --max-new-tokens 40
  npgpt2 generate 'The meaning of life is' --model gpt2
  echo 'Once upon a time' | npgpt2 generate - --model DIR --seed 7 --stop '.'"""

WHY = {
    "eos": "the model ended the text",
    "stop": "a stop text appeared",
    "length": "--max-new-tokens reached",
    "context": "the context is full",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "prompt", metavar="PROMPT", nargs="?", default="\n",
        help="text to continue; - reads it from standard input and drops one final newline "
        "(default: a newline)",
    )  # fmt: skip
    add_model(parser)
    options = parser.add_argument_group("generation (filters in this order)")
    filters = ("repetition_penalty", *FILTERS)
    add_options(options, GenerationOptions, *filters, "num_beams", "seed")
    how_much = parser.add_argument_group("length and number of texts")
    add_options(how_much, GenerationOptions, "max_new_tokens", "stop", "num_samples")
    how = parser.add_argument_group("computation and output")
    add_options(how, GenerationOptions, "use_cache")
    lookup = {"type": draft_tokens, "nargs": "?", "const": DRAFT_TOKENS}
    add_options(how, GenerationOptions, "prompt_lookup", **lookup)
    add_engine(parser)
    add_options(parser, ModelSpec, "dtype", "strict")
    how.add_argument("--json", action="store_true", help="print one JSON object at the end")


def draft_tokens(text: str) -> int:
    try:
        return whole(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}. Put the prompt before this option") from None


def run(args: argparse.Namespace) -> int:
    from npgpt2.generation.language_model import collect, fresh_seed

    options = GenerationOptions(**options_of(args, GenerationOptions))
    if not options.greedy and options.num_beams == 1 and options.seed is None:
        options = replace(options, seed=fresh_seed())
    prompt = given_prompt(args.prompt, "PROMPT")

    started = time.perf_counter()
    model = load_engine(args)
    ids = model.encode(prompt)
    loaded = time.perf_counter()
    one = options.num_samples == 1 and not args.json
    pieces, first, steps = [], 0.0, list[int]()
    loop = model.pieces([ids], options, steps.append)
    most = options.num_samples  # pieces: one a token, or one a beam
    if options.num_beams == 1:
        most *= min(options.max_new_tokens, model.config.n_positions - len(ids))
    for piece in loop if one else progress(loop, "generating", most):
        first = first or time.perf_counter()
        pieces.append(piece)
        if one:
            sys.stdout.write(piece.text)
            sys.stdout.flush()
    ended = time.perf_counter()

    texts = collect([ids], options.num_samples, pieces)
    if args.json:
        samples = [{"text": t.text, "ids": t.ids, "finish_reason": t.finish_reason} for t in texts]
        print(
            json.dumps(
                {"prompt": prompt, "prompt_ids": ids, "seed": options.seed, "samples": samples},
                ensure_ascii=False,
            )
        )
    elif one:
        print()
    else:
        for number, text in enumerate(texts, 1):
            print(f"── {number} of {len(texts)} ──\n{text}")
    count = sum(len(text.ids) for text in texts)
    beams = options.num_beams > 1  # all pieces come at the end
    later, since = (count, loaded) if beams else (count - len(texts), first)
    rate = f", {later / (ended - since):.0f}/s" if later else ""
    if steps:
        rate += f", {sum(steps) / len(steps):.1f} per step"
    seed = "" if options.seed is None else f"; seed {options.seed}"
    why = "; ".join(sorted({WHY[text.finish_reason] for text in texts}))
    if any(text.finish_reason == "context" for text in texts):
        why += f" ({model.config.n_positions} tokens)"
    note(
        f"loaded in {loaded - started:.2f} s, first token after {first - loaded:.2f} s, "
        f"{count} tokens{rate}; {why}{seed}"
    )
    return 0
