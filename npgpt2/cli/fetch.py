"""Download a model from the Hugging Face hub, and verify the size and checksum of each file.

An interrupted download resumes. Without -o the model goes into the hub's cache, where '--model
NAME' and transformers find it. The command prints the path of the folder.
"""

import argparse

from npgpt2.base.errors import OptionError
from npgpt2.cli.output import note, progress

HELP = "download a model from the Hugging Face hub, and verify it"
EXAMPLES = """examples:
  npgpt2 fetch gpt2
  npgpt2 fetch distilgpt2 -o weights/distilgpt2
  npgpt2 fetch user/model --revision v1.0"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="a model on the hub, such as gpt2")
    parser.add_argument("--revision", help="branch, tag or commit (default: main)")
    parser.add_argument("-o", "--out", metavar="DIR", help="the folder to create")
    parser.add_argument(
        "--force", action="store_true", help="replace files in DIR that differ from the hub's"
    )


def run(args: argparse.Namespace) -> int:
    from npgpt2.checkpoints.fetch import fetch
    from npgpt2.checkpoints.hub import EMBEDDED

    for option, what in (("out", "a folder"), ("revision", "a branch, tag or commit")):
        if getattr(args, option) == "":
            raise OptionError(option, f"got '', expected {what}")
    if args.name == EMBEDDED:
        raise OptionError("NAME", f"{EMBEDDED} is part of this package: no download is needed")
    found = fetch(args.name, args.out, args.revision, force=args.force, progress=progress)
    note(f"{found.files} files, {found.nbytes:,} bytes: sizes and checksums match the hub's")
    print(found.folder)
    return 0
