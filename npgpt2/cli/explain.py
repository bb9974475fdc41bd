"""See a model think: one page, which needs no server and no network.

The page shows the way of a prompt through the model, array by array: tokens, embeddings, the inside
of every block, attention, logits and the token that is drawn; what the model would say after each
block; and what it writes on. It is one file that can be mailed.

With --live it is a folder for any web server, in which the model itself runs in the browser (on
onnxruntime-web) and thinks again of whatever is typed.
"""

import argparse
import os
from pathlib import Path

from npgpt2.base.errors import FileError, OptionError
from npgpt2.cli.inputs import add_model, given_prompt, load_model, model_folder, spec_of
from npgpt2.cli.options import FILTERS, add_options, options_of
from npgpt2.cli.output import note, one_line, progress, require_place, say, table, write_file
from npgpt2.engines import ModelSpec
from npgpt2.generation.options import GenerationOptions

HELP = "see a model think, as a page"
EXAMPLES = """examples:
  npgpt2 explain 'O Romeo, Romeo! wherefore art thou'
  npgpt2 explain 'The meaning of life is' --model gpt2 -o life.html --open
  npgpt2 explain --live -o site --open
  npgpt2 explain --live DIR -o site 'Once upon a time'"""
FILE, WRITTEN, LIVE = "explain.html", 20, 200  # tokens to write: by default, most on a live page
FIRST = {"shakespeare": "O Romeo, Romeo! wherefore art thou"}  # of a live page, unless it is told
UNNAMED = object()  # --live without a model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "prompt", metavar="PROMPT", nargs="?",
        help="text to think about; - reads it from standard input, less one newline at its end",
    )  # fmt: skip
    add_model(parser)
    parser.add_argument(
        "-o", "--out", metavar="FILE|DIR",
        help=f"the page to write (default: {FILE}); with --live the folder to make, which has to "
        "be named",
    )  # fmt: skip
    parser.add_argument("--open", action="store_true", help="open it in a browser; a live page is "
                        "served on this machine until Ctrl-C")  # fmt: skip
    how = parser.add_argument_group("what it writes on (the filters run in this order)")
    add_options(how, GenerationOptions, *FILTERS)
    add_options(how, GenerationOptions, "seed", help="of the random numbers (default: 0)")
    most = f"at most N tokens (default: {WRITTEN})"
    add_options(how, GenerationOptions, "max_new_tokens", help=most)
    add_options(parser, ModelSpec, "dtype", "strict")
    live = parser.add_argument_group("a live page")
    live.add_argument(
        "--live", metavar="MODEL", nargs="?", const=UNNAMED,
        help="make a static site in which this model runs; without MODEL the one of --model",
    )  # fmt: skip
    live.add_argument(
        "--node-modules", metavar="DIR",
        help="npm's folder with onnxruntime-web and @huggingface/tokenizers, as 'npm install' "
        "makes it (default: the nearest node_modules, from the current folder upwards)",
    )  # fmt: skip
    live.add_argument("--force", action="store_true", help="replace a site that is there")


def run(args: argparse.Namespace) -> int:
    given = options_of(args, GenerationOptions)
    options = GenerationOptions(**{"seed": 0, "max_new_tokens": WRITTEN} | given)
    return _live(args, options) if args.live is not None else _page(args, options)


def _page(args: argparse.Namespace, options: GenerationOptions) -> int:
    from npgpt2.pictures.explain import explain_page
    from npgpt2.pictures.record import record

    for name in ("node_modules", "force"):
        if getattr(args, name):
            raise OptionError(name, "is of a live page. Add --live, or leave it out")
    if args.prompt is None:
        raise OptionError("PROMPT", "got none, expected a text. Write it in quotes")
    file = FILE if args.out is None else args.out
    require_place("out", file)
    prompt = given_prompt(args.prompt, "PROMPT")
    kept = record(load_model(args), prompt, options, spec_of(args).name, progress)
    page = explain_page(kept)
    write_file(file, page)
    print(f"{one_line(file)}: {len(page.encode()):,} bytes")
    if args.open:
        show(Path(file).absolute().as_uri())
    return 0


def _live(args: argparse.Namespace, options: GenerationOptions) -> int:
    from npgpt2.checkpoints.checkpoint import read_config
    from npgpt2.pictures.explain import live_page
    from npgpt2.pictures.record import MOST, require_short
    from npgpt2.tokenizer.load import load_tokenizer
    from npgpt2_onnx.write.site import site

    if args.live is not UNNAMED:
        if args.model not in (None, os.environ.get("NPGPT2_MODEL")):
            raise OptionError("live", f"got {args.live!r}, and --model {args.model!r}: expected "
                              "one of the two")  # fmt: skip
        args.model = args.live
    if args.seed is not None:
        raise OptionError("seed", "is of a page, not of a live one. Leave it out")
    if options.max_new_tokens > LIVE:
        raise OptionError("max_new_tokens", f"got {options.max_new_tokens}, expected {LIVE} at "
                          "most on a live page")  # fmt: skip
    if not args.out:
        raise OptionError("out", "no folder was named, expected one to make. Give -o DIR")
    spec = spec_of(args)
    if spec.dtype != "float32" or spec.strict:
        raise OptionError("strict" if spec.strict else "dtype", "is of a page, not of a live one. "
                          "Leave it out")  # fmt: skip
    name = spec.name
    prompt = FIRST.get(name, "") if args.prompt is None else given_prompt(args.prompt, "PROMPT")
    source = _live_model(args)
    if args.prompt is not None:
        most = min(MOST, read_config(source).n_positions)
        require_short(load_tokenizer(source).encode(prompt), most)
    folder = site(
        source, args.out, lambda config: live_page(config, name, prompt, options),
        node_modules=args.node_modules, force=args.force, progress=progress,
    )  # fmt: skip
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    rows = [(path.relative_to(folder), f"{path.stat().st_size:,}") for path in files]
    say(table([(one_line(f"in {folder}"), "bytes"), *rows], "lr"))
    if args.open:
        serve(folder)
    else:
        note(f"to look at it: python -m http.server -d {one_line(str(folder))}")
    return 0


def _live_model(args: argparse.Namespace) -> Path:
    try:
        return model_folder(args)
    except FileError as error:
        if args.prompt is None and args.live is not UNNAMED:
            raise FileError(f"{error}. (A text goes before --live)") from None
        raise


def show(address: str) -> None:
    import webbrowser  # where it is used: every command imports this file

    if not webbrowser.open(address):
        note(f"no browser could be opened. Open {address}")


def serve(folder: Path) -> None:
    """Show a site in a browser, from this machine and to it alone, until Ctrl-C."""
    from functools import partial
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (its name there)
            pass

    handler = partial(Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        address = f"http://127.0.0.1:{server.server_port}/"
        note(f"{address} until Ctrl-C")
        show(address)
        server.serve_forever()
