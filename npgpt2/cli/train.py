"""Train a GPT-2 on text, from scratch or from a checkpoint, with NumPy alone.

DIR becomes a checkpoint in the format of transformers, with the weights of the lowest validation
loss so far. It also contains log.jsonl, a plot of the loss (loss.png), and the state of the run.
Ctrl-C saves and stops. --resume continues, to the last bit as if the run had never stopped.
"""

import argparse
import shlex
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from npgpt2.base.errors import OptionError
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
        help="text files (UTF-8), or folders of *.txt files; each file is one document, or several "
        "separated by <|endoftext|>",
    )  # fmt: skip
    parser.add_argument("-o", "--out", metavar="DIR", required=True, help="the folder to create")
    parser.add_argument(
        "--resume", action="store_true", help="resume the run in DIR, with the same settings"
    )
    begin = parser.add_argument_group("initial model")
    add_options(begin, Settings, "init", "tokenizer", "vocab_size", *SHAPE, "freeze_embeddings")
    data = parser.add_argument_group("data and duration")
    read = ("window", "batch_size", "accumulate", "steps", "epochs", "val_fraction", "seed")
    add_options(data, Settings, *read)
    how = parser.add_argument_group("optimizer (AdamW) and regularization")
    learns = ("lr", "warmup", "schedule", "weight_decay", "beta1", "beta2", "clip", "dropout")
    add_options(how, Settings, *learns, "ema")
    work = parser.add_argument_group("performance, validation and saving")
    saving = ("eval_every", "save_every", "half")
    add_options(work, Settings, "gradient_checkpointing", "threads", *saving)


def _threads() -> int:
    """Every core; one where the library is missing that keeps BLAS to one thread in each."""
    if find_spec("threadpoolctl") is not None:
        return cores()
    note("threadpoolctl is not installed: training on one thread. Run: pip install 'npgpt2[train]'")
    return 1


def run(args: argparse.Namespace) -> int:
    from npgpt2.train import train

    settings = options_of(args, Settings)
    if "-" in args.corpus:
        raise OptionError("CORPUS", "got -, expected files or folders: training reads them again")
    if not args.resume and "threads" not in settings:
        settings["threads"] = _threads()
    watch = _watch()
    with _signals(watch):
        try:
            train(args.corpus, args.out, resume=args.resume, callback=watch, **settings)
        finally:
            watch.close()
    folder = shlex.quote(one_line(args.out))
    if watch.done < watch.steps:
        watch.note(
            f"saved after step {watch.done:,} of {watch.steps:,}. "
            f"To resume: npgpt2 train -o {folder} --resume"
        )
        return 130
    print(one_line(f"{args.out}: {_summary(args.out, watch.done)}"))
    watch.note(f"to generate text: npgpt2 generate --model {folder}")
    return 0


@contextmanager
def _signals(watch: Any) -> Iterator[None]:
    """On a signal, a run that has started saves and stops; a second Ctrl-C stops it at once."""

    def ask(number: int, _: Any) -> None:
        if not watch.steps or (watch.asked and number == signal.SIGINT):
            raise KeyboardInterrupt
        watch.asked = True
        watch.note("saving after this step (press Ctrl-C again to stop at once)")

    names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)]
    before = {name: signal.getsignal(getattr(signal, name)) for name in names}
    before = {name: was for name, was in before.items() if was != signal.SIG_IGN}  # as with nohup
    for name in before:
        signal.signal(getattr(signal, name), ask)
    try:
        yield
    finally:
        for name, was in before.items():
            signal.signal(getattr(signal, name), was)


def _watch() -> Any:
    from npgpt2.train import Callback

    class Watch(Callback):
        """Shows a progress bar, and a message for each validation."""

        def __init__(self) -> None:
            self.done, self.steps, self.asked = 0, 0, False
            self._tokens, self._bar = 0, None

        def note(self, text: str) -> None:
            if self._bar is not None:
                self._bar.clear()
            with suppress(OSError):  # standard error is closed: no reason to stop training
                note(text)

        def progress(self, loop: Any, what: str, total: int | None = None) -> Any:
            return progress(loop, what, total)

        def begins(self, done: int, steps: int, tokens: int) -> None:
            self.done, self.steps, self._tokens = done, steps, tokens
            if done:
                self.note(f"resuming after step {done:,} of {steps:,}")
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
    """The result of the whole run, including the parts before interruptions."""
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
