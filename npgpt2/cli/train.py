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
from pathlib import Path
from typing import Any

from npgpt2.base.threads import cores
from npgpt2.cli.options import add_options, options_of
from npgpt2.cli.output import bar, note, one_line, progress
from npgpt2.train.settings import SHAPE, Settings

HELP = "train a GPT-2 on text"
EXAMPLES = """examples:
  npgpt2 train book.txt -o my-gpt2
  npgpt2 train texts/ -o my-gpt2 --vocab-size 4096 --n-layer 8 --n-head 8 --n-embd 256 --epochs 30
  npgpt2 train letters.txt -o letters-gpt2 --init gpt2 --window 256 --batch-size 4 --steps 200
  npgpt2 train -o my-gpt2 --resume"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "corpus", nargs="*", metavar="CORPUS",
        help="text files (UTF-8), or folders of *.txt; each file is a document, and "
        "<|endoftext|> in a file separates documents",
    )  # fmt: skip
    parser.add_argument("-o", "--out", metavar="DIR", required=True, help="the folder to make")
    parser.add_argument(
        "--resume", action="store_true", help="go on with the run in DIR, as it was begun"
    )
    begin = parser.add_argument_group("what to begin with")
    add_options(begin, Settings, "init", "tokenizer", "vocab_size", *SHAPE, "freeze_embeddings")
    data = parser.add_argument_group("what is read, and for how long")
    read = ("window", "batch_size", "accumulate", "steps", "epochs", "val_fraction", "seed")
    add_options(data, Settings, *read)
    how = parser.add_argument_group("how it learns (AdamW)")
    learns = ("lr", "warmup", "schedule", "weight_decay", "beta1", "beta2", "clip", "dropout")
    add_options(how, Settings, *learns, "average")
    work = parser.add_argument_group("computing and saving")
    add_options(work, Settings, "recompute", "threads", "eval_every", "save_every", "half")


def run(args: argparse.Namespace) -> int:
    from npgpt2.train import train

    settings = options_of(args, Settings)
    if not args.resume:
        settings.setdefault("threads", cores())
    watch = _watch()
    with _signals(watch):
        try:
            train(args.corpus, args.out, resume=args.resume, listener=watch, **settings)
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
