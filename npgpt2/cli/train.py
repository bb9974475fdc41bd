"""Train a GPT-2 on text, from nothing or from a checkpoint, with NumPy alone.

The folder that is made is a checkpoint as transformers has it, with the lowest validation loss so
far. Beside it lie log.jsonl, a picture of the loss (loss.png), and what it takes to go on: Ctrl-C
saves, and --resume goes on as if nothing had happened, to the last bit.
"""

import argparse
import shlex
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

from npgpt2.cli.common import bar, cores, note, number, one_line, progress, whole

HELP = "train a GPT-2 on text"
EXAMPLES = """examples:
  npgpt2 train book.txt -o my-gpt2
  npgpt2 train texts/ -o my-gpt2 --vocab-size 4096 --n-layer 8 --n-head 8 --n-embd 256 --epochs 30
  npgpt2 train letters.txt -o letters-gpt2 --init gpt2 --window 256 --batch-size 4 --steps 200
  npgpt2 train -o my-gpt2 --resume"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "corpus",
        nargs="*",
        metavar="CORPUS",
        help="text files (UTF-8), or folders of *.txt; each file is a document, and "
        "<|endoftext|> in a file separates documents",
    )
    parser.add_argument("-o", "--out", metavar="DIR", required=True, help="the folder to make")
    parser.add_argument(
        "--resume", action="store_true", help="go on with the run in DIR, as it was begun"
    )
    begin = parser.add_argument_group("what to begin with")
    begin.add_argument(
        "--init", metavar="MODEL", help="fine-tune a checkpoint folder or a model of the hub"
    )
    begin.add_argument(
        "--tokenizer", metavar="MODEL", help="take its vocabulary (default: train one)"
    )
    begin.add_argument(
        "--vocab-size",
        type=whole,
        metavar="N",
        help="tokens of the vocabulary to train, at most (default: 2048)",
    )
    for name, text, default in (
        ("n-layer", "number of blocks", 6),
        ("n-head", "attention heads of a block", 6),
        ("n-embd", "width, a multiple of the heads", 192),
        ("n-positions", "tokens of the longest context", 256),
    ):
        begin.add_argument(
            f"--{name}", type=whole, metavar="N", help=f"{text} (default: {default})"
        )
    begin.add_argument(
        "--freeze-embeddings",
        action="store_true",
        default=None,
        help="leave wte and wpe as they are",
    )
    data = parser.add_argument_group("what is read, and for how long")
    data.add_argument(
        "--window", type=whole, metavar="N", help="tokens in a row (default: the longest context)"
    )
    data.add_argument(
        "--batch-size", type=whole, metavar="N", help="rows computed at a time (default: 16)"
    )
    data.add_argument(
        "--accumulate", type=whole, metavar="N", help="batches for one step (default: 1)"
    )
    data.add_argument(
        "--steps", type=whole, metavar="N", help="how many steps to take; or, instead:"
    )
    data.add_argument(
        "--epochs", type=number, metavar="X", help="how often to read all of the text (default: 10)"
    )
    data.add_argument(
        "--val-fraction",
        type=number,
        metavar="F",
        help="of the characters, at the end, kept for validation (default: 0.1)",
    )
    data.add_argument(
        "--seed",
        type=whole,
        metavar="S",
        help="of weights, order and dropout: the same seed, the same model (default: 0)",
    )
    how = parser.add_argument_group("how it learns (AdamW)")
    how.add_argument(
        "--lr",
        type=number,
        metavar="X",
        help="highest learning rate (default: 1e-3; with --init 5e-5)",
    )
    how.add_argument(
        "--warmup",
        type=whole,
        metavar="N",
        help="steps until it is reached (default: 100, or a tenth of all if fewer)",
    )
    how.add_argument(
        "--schedule",
        choices=("cosine", "constant"),
        help="from there: half a cosine down to 0, or as it is (default: cosine)",
    )
    how.add_argument(
        "--weight-decay",
        type=number,
        metavar="X",
        help="how fast matrices shrink; biases and gains do not (default: 0.1)",
    )
    how.add_argument(
        "--beta1", type=number, metavar="X", help="memory of the gradient (default: 0.9)"
    )
    how.add_argument(
        "--beta2", type=number, metavar="X", help="memory of its square (default: 0.99)"
    )
    how.add_argument(
        "--clip",
        type=number,
        metavar="X",
        help="a gradient longer than this is shortened to it (default: 1)",
    )
    how.add_argument(
        "--dropout",
        type=number,
        metavar="P",
        help="of embeddings, attention and residuals (default: 0.1; with --init the model's)",
    )
    how.add_argument(
        "--average",
        type=number,
        metavar="X",
        help="make the model from a running mean of the weights, which keeps X of itself at each "
        "step: 0.995 is the last 200 steps or so (default: 0, the weights themselves)",
    )
    work = parser.add_argument_group("computing and saving")
    work.add_argument(
        "--recompute",
        action="store_true",
        default=None,
        help="keep only the inputs of blocks for the way back: less memory, a third more work, the "
        "same bits",
    )
    work.add_argument(
        "--threads",
        type=whole,
        metavar="N",
        help="share a batch out among N; another N, other last digits. Each holds a "
        "gradient of its own (default: one for each core)",
    )
    work.add_argument(
        "--eval-every", type=whole, metavar="N", help="steps between validations (default: 250)"
    )
    work.add_argument(
        "--save-every", type=whole, metavar="N", help="steps between checkpoints (default: 250)"
    )
    work.add_argument(
        "--half", action="store_true", default=None, help="write the model in float16"
    )


def run(args: argparse.Namespace) -> int:
    from npgpt2.train import Settings, train

    known = {f.name for f in fields(Settings)}
    given = {k: v for k, v in vars(args).items() if k in known and v is not None}
    if not args.resume:
        given.setdefault("threads", cores())
    watch = _watch()
    with _signals(watch):
        try:
            train(args.corpus, args.out, resume=args.resume, listener=watch, **given)
        finally:
            watch.close()
    folder = shlex.quote(one_line(args.out))
    if watch.done < watch.steps:
        watch.note(
            f"saved after step {watch.done:,} of {watch.steps:,}. "
            f"To go on: npgpt2 train -o {folder} --resume"
        )
        return 130
    print(one_line(f"{args.out}: {_summary(args.out, watch.done)}"))
    watch.note(f"to read what it writes: npgpt2 generate --model {folder}")
    return 0


@contextmanager
def _signals(watch: Any) -> Iterator[None]:
    """A run that has begun saves and ends when it is told to; a second Ctrl-C ends it at once."""

    def ask(number: int, _: Any) -> None:
        if not watch.steps or (watch.asked and number == signal.SIGINT):
            raise KeyboardInterrupt
        watch.asked = True
        watch.note("saving after this step (Ctrl-C again ends at once)")

    names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)]
    before = {name: signal.getsignal(getattr(signal, name)) for name in names}
    before = {name: was for name, was in before.items() if was != signal.SIG_IGN}  # nohup
    for name in before:
        signal.signal(getattr(signal, name), ask)
    try:
        yield
    finally:
        for name, was in before.items():
            signal.signal(getattr(signal, name), was)


def _watch() -> Any:
    from npgpt2.train import Listener

    class Watch(Listener):
        """A bar, or lines; a line for each validation."""

        def __init__(self) -> None:
            self.done, self.steps, self.asked = 0, 0, False
            self._tokens, self._bar = 0, None

        def note(self, text: str) -> None:
            if self._bar is not None:
                self._bar.clear()
            with suppress(OSError):  # nobody reads any more: no reason to stop learning
                note(text)

        def progress(self, loop: Any, what: str, total: int | None = None) -> Any:
            return progress(loop, what, total)

        def begins(self, done: int, steps: int, tokens: int) -> None:
            self.done, self.steps, self._tokens = done, steps, tokens
            if done:
                self.note(f"going on after step {done:,} of {steps:,}")
            self._bar = bar("training", done * tokens, steps * tokens, " tokens", unit_scale=True)

        def step(self, line: dict[str, Any]) -> None:
            self.done = line["step"]
            if self._bar is not None:
                self._bar.set_description_str(f"step {self.done:,}/{self.steps:,}", refresh=False)
                self._bar.set_postfix_str(f"loss {line['loss']:.3f}", refresh=False)
                self._bar.update(self._tokens)

        def validated(self, line: dict[str, Any]) -> None:
            self.note(_in_words(line))
            self.note(f"  {one_line(line['sample'])}")

        def stopped(self) -> bool:
            return self.asked

        def close(self) -> None:
            if self._bar is not None:
                self._bar.close()

    return Watch()


def _summary(out: str, steps: int) -> str:
    """What is there at the end, of all sittings."""
    from npgpt2.train.log import read
    from npgpt2.train.loop import LOG

    checks = [line for line in read(Path(out) / LOG) if "validation" in line]
    best = min(checks, key=lambda line: line["validation"], default=None)
    return f"{steps:,} steps" + (f"; best {_in_words(best)}" if best else "")


def _in_words(line: dict[str, Any]) -> str:
    return (
        f"step {line['step']:,}: validation loss {line['validation']:.4f}, "
        f"{line['bits_per_byte']:.4f} bits per byte"
    )
