"""Golden references: numbers to hold a port of GPT-2 against.

write makes a folder of them: every intermediate, gradients, AdamW's steps, sampling, tokenizer
cases, each with the bound that a port in float32 can be held to. check compares a port's numbers
with it: the first that differs, and which of the usual mistakes gives such numbers. llmc writes
the files that llm.c's own test reads. list says which names there are.
"""

import argparse

from npgpt2.cli.inputs import add_model, load_model, model_folder
from npgpt2.cli.options import whole
from npgpt2.cli.output import note, one_line, progress, require_place, say, table, write_file

HELP = "references for ports: write them, hold a port against them"
EXAMPLES = """examples:
  npgpt2 golden write gpt2-golden --model gpt2
  npgpt2 golden check my-port.safetensors --against gpt2-golden
  npgpt2 golden check my-port.npz --against gpt2-golden --html report.html
  npgpt2 golden llmc llm.c --model gpt2
  npgpt2 golden list"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    write = actions.add_parser("write", help="make a folder of references")
    write.add_argument("out", metavar="DIR", help="the folder to make")
    add_model(write)
    write.add_argument(
        "--cases", metavar="NAME", nargs="+", default=[],
        help="some of the cases; 'npgpt2 golden list' has their names (default: all)",
    )  # fmt: skip
    size = write.add_mutually_exclusive_group()
    size.add_argument("--full", action="store_true", default=None, help="keep tensors whole")
    size.add_argument(
        "--slices", action="store_false", dest="full", default=None,
        help="keep 32 numbers of each, its mean, its root mean square and its sha256 (default for "
        "models of more than a million parameters)",
    )  # fmt: skip
    write.add_argument("--force", action="store_true", help="replace a golden folder that is there")

    check = actions.add_parser("check", help="compare a port's numbers")
    check.add_argument(
        "dump", metavar="DUMP", help="safetensors, npz, or a folder of raw files with index.tsv"
    )
    check.add_argument("--against", metavar="DIR", required=True, help="a golden folder")
    check.add_argument("--html", metavar="FILE", help="write the report as a page as well")
    check.add_argument("--all", action="store_true", help="list every tensor")

    llmc = actions.add_parser("llmc", help="the files of llm.c's test")
    llmc.add_argument("out", metavar="DIR", help="the folder to make")
    add_model(llmc)
    llmc.add_argument("--batch", type=whole, default=4, metavar="B", help="rows (default: 4)")
    llmc.add_argument("--length", type=whole, default=64, metavar="T", help="tokens (default: 64)")

    names = actions.add_parser("list", help="the names of tensors, in the order of the data's flow")
    add_model(names)
    for action in (write, check, llmc, names):  # behind the action as well
        action.add_argument(
            "--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS
        )


def run(args: argparse.Namespace) -> int:
    actions = {"write": _write, "check": _check, "llmc": _llmc, "list": _list}
    return actions[args.action](args)


def _write(args: argparse.Namespace) -> int:
    from npgpt2.golden import write

    folder = write(
        args.out, load_model(args, strict=True), only=args.cases, full=args.full, force=args.force,
        progress=progress,
    )  # fmt: skip
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {size:,} bytes")
    note(f"to hold a port against it: npgpt2 golden check DUMP --against {folder}")
    return 0


def _check(args: argparse.Namespace) -> int:
    from npgpt2.golden import check
    from npgpt2.golden.report import in_words

    if args.html is not None:
        require_place("html", args.html)
    report = check(args.dump, args.against)
    if args.html is not None:
        from npgpt2.golden.page import page

        write_file(args.html, page(report))
    say(map(one_line, in_words(report, every=args.all)))
    if args.html is not None:
        note(f"the same as a page: {args.html}")
    return 0 if report.agrees else 1


def _llmc(args: argparse.Namespace) -> int:
    from npgpt2.golden.llmc import write_llmc

    model = load_model(args, strict=True)
    folder, losses = write_llmc(args.out, model, args.batch, args.length, progress)
    print("\n".join(f"{loss:.6f}" for loss in losses))
    note(f"{folder}: llm.c's files; the losses above stand in test_gpt2.c as expected_losses")
    return 0


def _list(args: argparse.Namespace) -> int:
    from npgpt2.checkpoints.checkpoint import read_config
    from npgpt2.golden.cases import CASES, TOKENS
    from npgpt2.model.taps import tap_names

    config = read_config(model_folder(args, weights=False))
    sizes = {"B": 1, "T": TOKENS, "S": TOKENS, "C": config.n_embd, "F": config.mlp_width,
             "V": config.vocab_size}  # fmt: skip
    rows = []
    for tap in tap_names(config):
        here = sizes | {"H": config.heads_left(tap.layer or 0)}
        here["H·D"] = here["H"] * config.head_dim
        here["3·H·D"] = 3 * here["H·D"]
        shape = "x".join(str(here[axis]) for axis in tap.axes)
        rows.append((f"eight/{tap.name}", " × ".join(tap.axes), shape, tap.words))
    print("\n".join(table([("name", "axes", "shape", "what"), *rows], "llll")))
    print("\ncases, and the names in each:")
    lines = [(f"  {name}", case.words, case.names) for name, case in CASES.items()]
    print("\n".join(table(lines, "lll")))
    return 0
