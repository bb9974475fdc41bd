"""Score a text: log-probability of each token, perplexity, bits per byte.

The first token has no context and is not scored; begin the text with <|endoftext|> to score all of
it. A text longer than the context is scored with a sliding window. Tokens are listed for texts of
up to 200 tokens; --json lists all tokens; --html writes them as a self-contained page.
"""

import argparse
import json
import math

from npgpt2.cli.inputs import add_engine, add_model, given_document, load_engine, spec_of
from npgpt2.cli.options import add_options, whole
from npgpt2.cli.output import note, progress, require_place, table
from npgpt2.engines import ModelSpec

HELP = "score a text: log-probabilities, perplexity, bits per byte"
EXAMPLES = """examples:
  npgpt2 score 'To be, or not to be'
  npgpt2 score book.txt --stride 512 --model gpt2
  npgpt2 score book.txt --html surprise.html"""
LISTED = 200


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "text", metavar="TEXT|FILE", help="a text or a text file; - reads standard input"
    )
    add_model(parser)
    parser.add_argument(
        "--stride", type=whole, metavar="N",
        help="move the window by N tokens; a smaller N gives each token more context and takes "
        "longer (default: half the context)",
    )  # fmt: skip
    add_engine(parser)
    add_options(parser, ModelSpec, "dtype", "strict")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--html", metavar="FILE", help="also write a page of the text, coloured by surprise"
    )


def run(args: argparse.Namespace) -> int:
    if args.html is not None:
        require_place("html", args.html)
    text = given_document(args.text)
    model = load_engine(args)
    score = model.score(text, args.stride, progress)
    if args.html is not None:
        from npgpt2.pictures.text import surprise_page

        surprise_page(score, model.tokenizer, spec_of(args).name).save(args.html)
        note(f"the text coloured by surprise: {args.html}")
    pieces = [model.tokenizer.piece(i) for i in score.ids.tolist()]
    logprobs = [None if math.isnan(p) else p for p in score.logprobs.tolist()]
    if args.json:
        print(
            json.dumps(
                {
                    "tokens": score.tokens,
                    "nats": score.nats,
                    "perplexity": score.perplexity,
                    "bits_per_byte": score.bits_per_byte,
                    "ids": score.ids.tolist(),
                    "pieces": pieces,
                    "logprobs": logprobs,
                },
                ensure_ascii=False,
            )
        )
        return 0
    if len(pieces) <= LISTED:
        rows = (
            (i, piece, "" if p is None else f"{p:.4f}")
            for i, piece, p in zip(score.ids.tolist(), pieces, logprobs, strict=True)
        )
        print("\n".join(table([("id", "piece", "log-probability (nats)"), *rows], "rlr")))
    print(
        f"{score.tokens:,} of {len(pieces):,} tokens scored, perplexity {score.perplexity:.4f}, "
        f"{score.bits_per_byte:.4f} bits per byte"
    )
    return 0
