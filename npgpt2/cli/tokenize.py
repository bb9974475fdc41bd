"""Show the tokens of a text: id, piece and bytes.

A piece is spelled as in vocab.json: Ġ is a space, Ċ a newline. Text such as <|endoftext|> is
encoded as the special token of that name, unless you give --plain. --html also writes a page that
shows the token boundaries.
"""

import argparse
import json

from npgpt2.cli.inputs import add_model, given_document, model_folder, spec_of
from npgpt2.cli.output import note, require_place, table

HELP = "show the tokens of a text"
EXAMPLES = """examples:
  npgpt2 tokenize 'O Romeo,'
  npgpt2 tokenize 'O Romeo,' --html tokens.html
  npgpt2 tokenize - --json --model gpt2 < poem.txt"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "text", metavar="TEXT|FILE", help="a text or a text file; - reads standard input"
    )
    add_model(parser)
    parser.add_argument("--plain", action="store_true", help="encode special tokens as plain text")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--html", metavar="FILE", help="also write an HTML page that shows the token boundaries"
    )


def run(args: argparse.Namespace) -> int:
    from npgpt2.tokenizer.load import load_tokenizer

    if args.html is not None:
        require_place("html", args.html)
    text = given_document(args.text)
    tokenizer = load_tokenizer(model_folder(args, weights=False))
    ids = tokenizer.encode(text, special=not args.plain)
    if args.html is not None:
        from npgpt2.pictures.text import tokens_page

        tokens_page(text, ids, tokenizer, spec_of(args).name).save(args.html)
        note(f"token boundaries: {args.html}")
    pieces = [tokenizer.piece(i) for i in ids]
    data = [tokenizer.token_bytes(i) for i in ids]
    if args.json:
        spelled = [b.hex(" ") for b in data]
        print(json.dumps({"ids": ids, "pieces": pieces, "bytes": spelled}, ensure_ascii=False))
    elif ids:
        rows = ((i, piece, b.hex(" ")) for i, piece, b in zip(ids, pieces, data, strict=True))
        print("\n".join(table(rows, "rll")))
        print(f"{len(ids):,} tokens, {sum(map(len, data)):,} bytes")
    else:
        print("0 tokens, 0 bytes")
    return 0
