"""Show the contents of a checkpoint.

By default, list every parameter with its shape, dtype and bytes, and the totals. With TENSOR, or a
slice of it, print its values. With --prompt, print the ids and pieces of a text, their rows of wte
and wpe, and the shapes of each layer's KV cache. --plot draws the distribution of the weights and
lists the farthest outliers.
"""

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from npgpt2.base.errors import OptionError, TensorNotFound
from npgpt2.base.options import nearest
from npgpt2.cli.inputs import add_model, given_prompt, load_model, spec_of
from npgpt2.cli.options import add_options
from npgpt2.cli.output import note, progress, require_matplotlib, require_place, table
from npgpt2.engines import ModelSpec

if TYPE_CHECKING:
    from npgpt2.pictures.weights import Spread

HELP = "list parameters, print a tensor, or show the tokens and KV cache of a prompt"
EXAMPLES = """examples:
  npgpt2 inspect
  npgpt2 inspect 'wte.weight[:5]'
  npgpt2 inspect 'h.0.attn.c_attn.bias[10:20]' --model DIR
  npgpt2 inspect --plot weights.png
  npgpt2 inspect h.0.attn.c_attn.weight --plot tensor.png
  npgpt2 inspect --prompt 'The meaning of life is' --model gpt2"""

TENSOR = re.compile(r"(?P<name>[\w.]+)(\[(?P<index>[-\d:, .]*)\])?")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "tensor", metavar="TENSOR[SLICE]", nargs="?",
        help="name of a parameter, optionally with a slice as in Python",
    )  # fmt: skip
    add_model(parser)
    parser.add_argument(
        "--prompt", metavar="TEXT", help="text to show as tokens; - reads standard input"
    )
    parser.add_argument(
        "--plot", metavar="FILE.png",
        help="draw the distribution of the values of each tensor, or of TENSOR (needs matplotlib)",
    )  # fmt: skip
    add_options(parser, ModelSpec, "dtype", "strict")


def run(args: argparse.Namespace) -> int:
    if args.tensor and args.prompt is not None:
        raise OptionError("prompt", "got TENSOR as well, expected one of the two")
    if args.plot is not None:
        if args.prompt is not None:
            raise OptionError("plot", "draws weights, got --prompt as well. Leave one out")

        require_matplotlib()
        require_place("plot", args.plot)
    if args.prompt is not None:
        show_prompt(args)
    elif args.tensor:
        show_tensor(args)
    else:
        list_parameters(args)
    return 0


def list_parameters(args: argparse.Namespace) -> None:
    from npgpt2.checkpoints.checkpoint import Checkpoint

    spec = spec_of(args)
    checkpoint = Checkpoint.open(spec.folder(tell=note))
    found: list[Spread] = []
    if args.plot is not None:
        from npgpt2.pictures.weights import draw_all, spreads

        found = spreads(checkpoint, spec.dtype, spec.strict, progress)
        draw_all(found, spec.name, Path(args.plot))
    infos = checkpoint.tensors.values()
    rows = [(i.name, " × ".join(map(str, i.shape)), i.dtype, f"{i.nbytes:,}") for i in infos]
    print("\n".join(table([("parameter", "shape", "dtype", "bytes"), *rows], "lllr")))
    numbers = 0
    for info in infos:
        size = 1
        for n in info.shape:
            size *= n
        numbers += size
    tied = checkpoint.config.tie_word_embeddings
    head = f"lm_head is {'tied to wte' if tied else 'not tied to wte'}"
    if checkpoint.config.head != "lm_head":
        head = f"the head is {checkpoint.config.head}"
    print(
        f"{len(rows)} tensors, {numbers:,} parameters, {sum(i.nbytes for i in infos):,} bytes; "
        f"{head}"
    )
    if args.plot is not None:
        show_outliers(found, args.plot)


def show_outliers(found: "list[Spread]", picture: str) -> None:
    """Print the farthest outliers, and the file of the picture."""
    from npgpt2.pictures.weights import FAR, farthest

    rows = [
        (o.tensor, f"[{', '.join(map(str, o.place))}]", f"{o.value:.6g}", f"{o.deviations:.2f}")
        for o in farthest(found)
    ]
    print()
    if rows:
        head = ("outlier", "index", "value", "standard deviations")
        print("\n".join(table([head, *rows], "llrr")))
    else:
        print(f"no outliers: no value is beyond {FAR:g} standard deviations")
    note(f"distribution of the values: {picture}")


def show_tensor(args: argparse.Namespace) -> None:
    import numpy as np

    from npgpt2.checkpoints.checkpoint import Checkpoint
    from npgpt2.model.params import named_parameters

    match = TENSOR.fullmatch(re.sub(r"\bh\[(\d+)\]", r"h.\1", args.tensor))  # as in Python
    if not match:
        raise OptionError("TENSOR", f"got {args.tensor!r}, expected a name such as wte.weight[:5]")
    name = match["name"].removeprefix("transformer.")
    spec = spec_of(args)
    checkpoint = Checkpoint.open(spec.folder(tell=note))  # whichever head it has
    params = checkpoint.read(np.dtype(spec.dtype), strict=spec.strict, progress=progress)
    arrays = dict(named_parameters(params))
    if name not in arrays:
        near = nearest(name, arrays)
        hint = f"Did you mean {near}?" if near else "'npgpt2 inspect' lists all names"
        if name == "lm_head.weight":  # not a parameter of a tied model
            hint = "The head is tied to wte. Use wte.weight"
        raise TensorNotFound(f"{args.tensor}: no parameter {name!r} in the checkpoint. {hint}")
    array = arrays[name]
    if match["index"] is not None:
        try:
            array = array[parse_index(match["index"])]
        except (IndexError, ValueError) as error:
            raise OptionError(
                "TENSOR", f"got the slice [{match['index']}] for shape {array.shape}: {error}"
            ) from None
    found: list[Spread] = []
    if args.plot is not None:
        from npgpt2.pictures.weights import draw_one, spread

        if not np.size(array):
            raise OptionError("plot", f"got {args.tensor}, which is empty, expected values")
        found = [spread(args.tensor, np.asarray(array))]  # indices within the slice
        draw_one(found[0], args.tensor, Path(args.plot))
    shape = " × ".join(map(str, array.shape)) or "scalar"
    kept = checkpoint.tensors[name].dtype
    stored = "" if kept == f"F{8 * array.itemsize}" else f" (stored as {kept})"
    print(f"{args.tensor}  {shape}  {array.dtype}{stored}")
    print(np.array2string(np.asarray(array), precision=8, max_line_width=100))
    if args.plot is not None:
        show_outliers(found, args.plot)


def parse_index(text: str) -> tuple[int | slice, ...]:
    """Parse an index as in Python: integers and slices, nothing else.

    >>> parse_index(":5, -1"), parse_index("::2")
    ((slice(None, 5, None), -1), (slice(None, None, 2),))
    """

    def part(piece: str) -> int | slice:
        if ":" not in piece:
            return int(piece)
        bounds = [int(b) if b.strip() else None for b in piece.split(":")]
        if len(bounds) > 3:
            raise ValueError(f"too many colons in {piece!r}")
        return slice(*bounds)

    return tuple(part(piece) for piece in text.split(","))


def show_prompt(args: argparse.Namespace) -> None:
    import numpy as np

    text = given_prompt(args.prompt, "--prompt")
    model = load_model(args)
    ids = model.encode(text)
    wte, wpe = model.params.wte.weight, model.params.wpe.weight

    def begin(row: "np.ndarray[tuple[int, ...], np.dtype[np.floating]]") -> str:
        return " ".join(f"{x:+.4f}" for x in row[:4]) + (" …" if len(row) > 4 else "")

    rows = [
        (at, i, model.tokenizer.piece(i), begin(wte[i]), begin(wpe[at])) for at, i in enumerate(ids)
    ]
    head = ("position", "id", "piece", "row of wte", "row of wpe")
    print("\n".join(table([head, *rows], "rrlll")))
    cache = model([ids], use_cache=True).past_key_values
    assert cache is not None  # use_cache=True
    print(f"\nKV cache after these {len(ids)} tokens (batch, heads, tokens, head_dim):")
    for layer in range(len(cache)):
        key, value = cache[layer]
        print(
            f"  layer {layer}: key {key.shape}, value {value.shape}, {key.dtype}, "
            f"{key.nbytes + value.nbytes:,} bytes"
        )
