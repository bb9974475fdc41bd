"""Golden references: values to compare a port of GPT-2 with.

write creates a folder of reference values: every intermediate tensor, gradients, AdamW steps,
sampling and tokenizer cases, each with a tolerance for ports in float32. check compares a port's
values with the folder: it reports the first difference and the usual mistake that explains it. llmc
writes the files that llm.c's own test reads. list prints all names and shapes.
"""

import argparse

from npgpt2.cli.inputs import add_model, load_model, model_folder
from npgpt2.cli.options import add_several, whole
from npgpt2.cli.output import note, one_line, progress, require_place, say, table

HELP = "write reference values for ports of GPT-2, and compare a port with them"
EXAMPLES = """examples:
  npgpt2 golden write gpt2-golden --model gpt2
  npgpt2 golden check my-port.safetensors --against gpt2-golden
  npgpt2 golden check my-port.npz --against gpt2-golden --html report.html
  npgpt2 golden llmc llm.c --model gpt2
  npgpt2 golden list"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    write = actions.add_parser("write", help="write a folder of reference values")
    write.add_argument("out", metavar="DIR", help="the folder to create")
    add_model(write)
    add_several(
        write, "--cases", metavar="NAME", type=_case,
        help="case to write, one or several; 'npgpt2 golden list' prints the names (default: all)",
    )  # fmt: skip
    size = write.add_mutually_exclusive_group()
    size.add_argument("--full", action="store_true", default=None, help="keep whole tensors")
    size.add_argument(
        "--slices", action="store_false", dest="full", default=None,
        help="keep 32 values of each tensor, its mean, root mean square and sha256 (default for "
        "models of more than a million parameters)",
    )  # fmt: skip
    write.add_argument("--force", action="store_true", help="replace an existing golden folder")

    check = actions.add_parser("check", help="compare a port's values with a golden folder")
    check.add_argument(
        "dump", metavar="DUMP",
        help="the port's tensors: safetensors, npz, or a folder of raw files with index.tsv",
    )  # fmt: skip
    check.add_argument("--against", metavar="DIR", required=True, help="a golden folder")
    check.add_argument("--html", metavar="FILE", help="also write the report as an HTML page")
    check.add_argument("--all", action="store_true", help="list every tensor")

    llmc = actions.add_parser("llmc", help="write the files that llm.c's test reads")
    llmc.add_argument("out", metavar="DIR", help="the folder to create")
    add_model(llmc)
    llmc.add_argument("--batch", type=whole, default=4, metavar="B", help="rows (default: 4)")
    llmc.add_argument(
        "--length", type=whole, default=64, metavar="T", help="tokens per row (default: 64)"
    )
    names = actions.add_parser("list", help="print the tensor names, in the order of computation")
    add_model(names)
    for action in (write, check, llmc, names):  # also accepted after the action
        action.add_argument(
            "--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS
        )


def _case(name: str) -> str:
    from npgpt2.golden.cases import CASES

    if name not in CASES:
        raise argparse.ArgumentTypeError(f"got {name!r}, expected one of {', '.join(CASES)}")
    return name


def run(args: argparse.Namespace) -> int:
    actions = {"write": _write, "check": _check, "llmc": _llmc, "list": _list}
    return actions[args.action](args)


def _write(args: argparse.Namespace) -> int:
    from npgpt2.golden import write

    folder = write(
        args.out, load_model(args, strict=True), only=args.cases or (), full=args.full,
        force=args.force, progress=progress,
    )  # fmt: skip
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {size:,} bytes")
    note(f"to compare a port with it: npgpt2 golden check DUMP --against {folder}")
    return 0


def _check(args: argparse.Namespace) -> int:
    from npgpt2.golden import check
    from npgpt2.golden.report import in_words

    if args.html is not None:
        require_place("html", args.html)
    report = check(args.dump, args.against)
    if args.html is not None:
        report.page().save(args.html)
    say(map(one_line, in_words(report, every=args.all)))
    if args.html is not None:
        note(f"the report as a page: {args.html}")
    return 0 if report.agrees else 1


def _llmc(args: argparse.Namespace) -> int:
    from npgpt2.golden.llmc import write_llmc

    model = load_model(args, strict=True)
    folder, losses = write_llmc(args.out, model, args.batch, args.length, progress)
    print("\n".join(f"loss of step {n}: {loss:.6f}" for n, loss in enumerate(losses, 1)))
    note(f"{folder}: llm.c's files; replace expected_losses in test_gpt2.c by the losses above")
    return 0


def _list(args: argparse.Namespace) -> int:
    from npgpt2.checkpoints.checkpoint import read_config
    from npgpt2.golden.cases import CASES, TOKENS
    from npgpt2.model.taps import tap_names

    config = read_config(model_folder(args, weights=False))
    sizes = {"B": 1, "T": TOKENS, "S": TOKENS, "C": config.n_embd, "F": config.mlp_width,
             "V": config.vocab_size}  # fmt: skip
    rows = [("eight/input_ids", "B × T", f"1x{TOKENS}", "the input: token ids, int32")]
    for tap in tap_names(config):
        here = sizes | {"H": config.heads_left(tap.layer or 0)}
        here["H·D"] = here["H"] * config.head_dim
        here["3·H·D"] = 3 * here["H·D"]
        shape = "x".join(str(here[axis]) for axis in tap.axes)
        rows.append((f"eight/{tap.name}", " × ".join(tap.axes), shape, tap.words))
    print("\n".join(table([("name", "axes", "shape", "description"), *rows], "llll")))
    print("\ncases, and the tensor names in each:")
    lines = [(f"  {name}", case.words, case.names) for name, case in CASES.items()]
    print("\n".join(table(lines, "lll")))
    return 0
