"""Write an HTML page that shows how the model processes a prompt.

The page shows every step of the forward pass: tokens, embeddings, the inside of every block,
attention, logits and the sampled token. It also shows what the model would predict after each
block, and the generated text. The page is one file; it needs no server and no network.

With --live, write a folder for any web server instead. The model then runs in the browser (on
onnxruntime-web), and runs again when you type.
"""

import argparse
import os
from pathlib import Path

from npgpt2.base.errors import FileError, OptionError
from npgpt2.cli.inputs import add_model, given_prompt, load_model, model_folder, spec_of
from npgpt2.cli.options import FILTERS, add_options, options_of
from npgpt2.cli.output import note, one_line, progress, require_place, say, table
from npgpt2.engines import ModelSpec
from npgpt2.generation.options import EXPLAINED, GenerationOptions

HELP = "show how the model processes a prompt, as an HTML page"
EXAMPLES = """examples:
  npgpt2 explain 'O Romeo, Romeo! wherefore art thou'
  npgpt2 explain 'The meaning of life is' --model gpt2 -o life.html --open
  npgpt2 explain --live -o site --open
  npgpt2 explain --live DIR -o site 'Once upon a time'"""
FILE, LIVE = "explain.html", 200  # new tokens of a live page, at most
FIRST = {"shakespeare": "O Romeo, Romeo! wherefore art thou"}  # default prompt of a live page
UNNAMED = object()  # --live without a model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "prompt", metavar="PROMPT", nargs="?",
        help="text to process; - reads it from standard input, without one newline at its end",
    )  # fmt: skip
    add_model(parser)
    parser.add_argument(
        "-o", "--out", metavar="FILE|DIR",
        help=f"file to write (default: {FILE}); with --live, the folder to create (required)",
    )  # fmt: skip
    parser.add_argument("--open", action="store_true", help="open it in a browser; a live page is "
                        "served from this machine until Ctrl-C")  # fmt: skip
    how = parser.add_argument_group("generation (filters in this order)")
    add_options(how, GenerationOptions, *FILTERS)
    add_options(how, GenerationOptions, "seed", help="random seed (default: 0)")
    most = f"generate at most N tokens (default: {EXPLAINED['max_new_tokens']})"
    add_options(how, GenerationOptions, "max_new_tokens", help=most)
    add_options(parser, ModelSpec, "dtype", "strict")
    live = parser.add_argument_group("live page")
    live.add_argument(
        "--live", metavar="MODEL", nargs="?", const=UNNAMED,
        help="create a static site that runs this model (default: the model of --model)",
    )  # fmt: skip
    live.add_argument(
        "--node-modules", metavar="DIR",
        help="npm folder with onnxruntime-web and @huggingface/tokenizers, as 'npm install' "
        "creates it (default: the nearest node_modules, from the current folder upwards)",
    )  # fmt: skip
    live.add_argument("--force", action="store_true", help="replace an existing site")


def run(args: argparse.Namespace) -> int:
    given = options_of(args, GenerationOptions)
    options = GenerationOptions(**EXPLAINED | given)
    return _live(args, options) if args.live is not None else _page(args, options)


def _page(args: argparse.Namespace, options: GenerationOptions) -> int:
    from npgpt2.pictures.explain import explain_page
    from npgpt2.pictures.record import record

    for name in ("node_modules", "force"):
        if getattr(args, name):
            raise OptionError(name, "applies only to a live page. Add --live, or leave it out")
    if args.prompt is None:
        raise OptionError("PROMPT", "got none, expected a text. Write it in quotes")
    file = FILE if args.out is None else args.out
    require_place("out", file)
    prompt = given_prompt(args.prompt, "PROMPT")
    kept = record(load_model(args), prompt, options, spec_of(args).name, progress)
    page = explain_page(kept)
    page.save(file)
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
            raise OptionError("live", f"got {args.live!r} and --model {args.model!r}, expected "
                              "one of the two")  # fmt: skip
        args.model = args.live
    if args.seed is not None:
        raise OptionError("seed", "does not apply to a live page. Leave it out")
    if options.max_new_tokens > LIVE:
        raise OptionError("max_new_tokens", f"got {options.max_new_tokens}, expected {LIVE} at "
                          "most on a live page")  # fmt: skip
    if not args.out:
        raise OptionError("out", "got none, expected a folder to create. Add -o DIR")
    spec = spec_of(args)
    if spec.dtype != "float32" or spec.strict:
        raise OptionError("strict" if spec.strict else "dtype", "does not apply to a live page. "
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
        note(f"to view the page, run: python -m http.server -d {one_line(str(folder))}")
    return 0


def _live_model(args: argparse.Namespace) -> Path:
    try:
        return model_folder(args)
    except FileError as error:
        if args.prompt is None and args.live is not UNNAMED:
            raise FileError(f"{error}. (Give the PROMPT before --live)") from None
        raise


def show(address: str) -> None:
    import webbrowser  # here, because every command imports this file

    if not webbrowser.open(address):
        note(f"could not open a browser. Open {address}")


def serve(folder: Path) -> None:
    """Serve a site on 127.0.0.1 and open it in a browser, until Ctrl-C."""
    from functools import partial
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (its name there)
            pass

    handler = partial(Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        address = f"http://127.0.0.1:{server.server_port}/"
        note(f"serving on {address} until Ctrl-C")
        show(address)
        server.serve_forever()
