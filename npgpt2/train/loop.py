"""The training loop: batches, steps, validations, checkpoints.

A run is a folder. It contains the model in the format of transformers, and:

    training.json        the settings, and the sha256 and size of the corpus
    train.npy, val.npy   the token ids
    log.jsonl            one line per step, and one line per validation
    loss.png             a plot of the log
    checkpoint-N/        the state to resume from; see `npgpt2.train.state`

The windows, dropout and learning rate of a step are functions of the settings and the step number.
So a run that was killed and resumed gives the same bits as one that was not.
"""

import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from npgpt2.base.errors import FileError, MissingPackage, OptionError, TrainingError
from npgpt2.base.files import fsync, held, new_folder
from npgpt2.checkpoints.checkpoint import save
from npgpt2.checkpoints.formats.find import SINGLE
from npgpt2.gpt2 import GPT2
from npgpt2.model.config import GPT2Config
from npgpt2.model.params import build_tree, named_parameters, param_shapes
from npgpt2.tokenizer.interface import end_id
from npgpt2.train import log
from npgpt2.train.callback import Callback
from npgpt2.train.corpus import Batch, Windows, load_ids, validation_batches
from npgpt2.train.loss import Gradients
from npgpt2.train.ops import Drop
from npgpt2.train.optimizer import AdamW, Flat, learning_rate
from npgpt2.train.picture import draw
from npgpt2.train.prepare import SETTINGS, TOKENS, Begun, prepare, require_same
from npgpt2.train.settings import Settings
from npgpt2.train.state import Arrays, checkpoints, load_state, prune, save_state

LOG, PICTURE = "log.jsonl", "loss.png"
EPOCHS, LR, LR_INIT, WARMUP = 10.0, 1e-3, 5e-5, 100  # defaults
VALIDATED = 512  # validation windows at most, spread evenly over the validation part
SAMPLED = 60  # tokens of a sample


def train(
    corpus: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    resume: bool = False,
    callback: Callback | None = None,
    **settings: Any,
) -> Path:
    """Train a GPT-2 on text, or resume a run; returns the folder, which `GPT2` can load.

    Args:
        corpus: one or more text files or folders of text files. A resumed run needs none, since
            its folder contains the tokens. If you give some, the text must be the same.
        out: the run's folder.
        resume: resume from the newest checkpoint in the folder.
        callback: receives the events of the run.
        settings: see `npgpt2.train.settings.Settings`.

    Raises:
        OptionError, InputError: settings or text are invalid.
        TrainingError: the run is resumed with other settings; or its loss is not finite.
        FileError: the folder exists, or the disk is full.
        MissingPackage: the extra `train` is not installed.
    """
    if not str(out):
        raise OptionError("out", "got an empty name, expected a folder to create")
    out, callback = Path(out), callback or Callback()
    corpus = [corpus] if isinstance(corpus, (str, Path)) else corpus
    begun = (out / SETTINGS).exists()
    if resume and not begun:
        raise FileError(
            f"{out}: has no {SETTINGS}, expected a run. Leave out --resume to start one"
        )
    if not resume and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileError(
            f"{out}: already {'contains a run' if begun else 'exists'}, expected a new folder. "
            f"{'Add --resume to continue it' if begun else 'Give another name'}"
        )
    if resume:
        require_same(corpus, out, settings, callback)
    else:
        asked = Settings(**settings)
        _shares(asked)  # reports a missing package before anything is written
        with new_folder(out, replaces=lambda _: False) as work:
            prepare(corpus, out, work, asked, callback)
    with held(out):
        Training(out, callback).go()
    return out


class Training:
    """A run, loaded from its newest checkpoint."""

    def __init__(self, out: Path, callback: Callback) -> None:
        self.out, self.callback = out, callback
        self.settings, _, self._bytes = Begun.read(out)
        settings = self.settings
        self.config = GPT2Config.from_file(out / "config.json")
        shapes = param_shapes(self.config).items()
        empty = build_tree({name: np.zeros(shape, np.float32) for name, shape in shapes})
        self.arrays = Arrays.of(empty, settings)
        self.state = load_state(out, self.arrays)

        length = settings.window or self.config.n_positions
        ids = {part: load_ids(out / TOKENS[part]) for part in self._bytes}
        self._windows = Windows(ids["train"], length, settings.seed)
        self._validation = ids.get("val")
        self._length, self._rows = length, settings.batch_size * settings.accumulate
        epochs = settings.epochs or EPOCHS
        self.steps = settings.steps or math.ceil(epochs * self._windows.per_epoch / self._rows)
        self._warmup = min(WARMUP, self.steps // 10) if settings.warmup is None else settings.warmup
        self._peak = settings.lr or (LR if settings.init is None else LR_INIT)

    def go(self) -> None:
        """Run all remaining steps."""
        settings, state, callback = self.settings, self.state, self.callback
        log.cut(self.out / LOG, state.step)
        if state.step == self.steps:  # it may have been killed right after its last checkpoint
            prune(self.out, state.step)
            draw(log.read(self.out / LOG), self.out / PICTURE)
        shares = _shares(settings)
        with workers(settings.threads, shares) as pool, log.writing(self.out / LOG) as write:
            gradients = Gradients(
                self.arrays.params, self.config, shares, pool, settings.gradient_checkpointing
            )
            optimizer = AdamW(
                *self.arrays[:3],
                steps=state.step,
                beta1=settings.beta1,
                beta2=settings.beta2,
                weight_decay=settings.weight_decay,
                clip=settings.clip,
                each=pool.map,
                shares=settings.threads,
            )
            callback.begins(state.step, self.steps, self._rows * self._length)
            started, spent = time.monotonic(), state.seconds
            while state.step < self.steps:
                line = self._step(gradients, optimizer)
                write(line)
                callback.step(line)
                last = state.step == self.steps
                if self._validation is not None and (last or state.step % settings.eval_every == 0):
                    line = self._validate(gradients)
                    write(line)
                    callback.validated(line)
                stop = not last and callback.stopped()
                if last or stop or state.step % settings.save_every == 0:
                    state.seconds = spent + time.monotonic() - started
                    self._save()
                if stop:
                    break

    def _step(self, gradients: Gradients, optimizer: AdamW) -> dict[str, Any]:
        settings, done, rows = self.settings, self.state.step, self.settings.batch_size
        nats = 0.0
        for row in range(0, self._rows, rows):
            batch = self._windows.batch(done * self._rows + row, rows)
            drop = Drop(0.0, settings.seed, done, row)
            nats += gradients.add(batch, self._rows * self._length, drop)
        lr = learning_rate(done, self._peak, self._warmup, self.steps, settings.schedule)
        mean, total = nats / (self._rows * self._length), gradients.total()
        norm = optimizer.norm(total)
        if not math.isfinite(mean):
            raise self._diverged(done + 1, "loss", mean, batch)
        if not math.isfinite(norm):
            raise self._diverged(done + 1, "gradient norm", norm, batch, total)
        optimizer.step(total, lr, norm)
        total.array[...] = 0.0
        self.state.step += 1
        self._follow()
        return {"step": done + 1, "loss": mean, "norm": norm, "lr": lr}

    def _follow(self) -> None:
        """Update the EMA. Its decay grows with the steps, so that it forgets the first weights.

        The formula is that of TensorFlow's ExponentialMovingAverage with `num_updates`.
        """
        if self.arrays.ema is None:
            return
        keep = min(self.settings.ema, (1 + self.state.step) / (10 + self.state.step))
        trained = slice(self.arrays.params.trained)  # without frozen weights: they must not change
        mean, new = self.arrays.ema.array[trained], self.arrays.params.array[trained]
        mean *= keep
        mean += (1.0 - keep) * new

    def _validate(self, gradients: Gradients) -> dict[str, Any]:
        ids, state = self._validation, self.state
        assert ids is not None
        windows = -(-(len(ids) - 1) // self._length)
        stride = -(-windows // VALIDATED) * self._length
        batches = [
            next(validation_batches(ids[first : first + self._length + 1], self._length, 1))
            for first in range(0, len(ids) - 1, stride)
        ]
        nats, count = gradients.nats(self.arrays.model, batches)
        mean = nats / count
        if not math.isfinite(mean):
            raise self._diverged(state.step, "validation loss", mean, batches[0])
        if state.best is None or mean < state.best:
            state.best = mean
            self._write_model()
        bits = mean / math.log(2) * len(ids) / self._bytes["val"]
        return {
            "step": state.step,
            "validation": mean,
            "bits_per_byte": bits,
            "sample": self._sample(),
        }

    def _sample(self) -> str:
        model = GPT2(self.config, self.arrays.model, self.out)
        end = end_id(model.tokenizer)
        start = [int(self._windows.batch(0, 1).ids[0, 0]) if end is None else end]
        seed = (self.settings.seed + self.state.step) % 2**64
        most = max(1, min(SAMPLED, self.config.n_positions - 1))
        return model.generate([start], max_new_tokens=most, seed=seed)[0].text

    # ── files ────────────────────────────────────────────────────────────────────────────────────

    def _save(self) -> None:
        if self._validation is None or not (self.out / SINGLE).exists():
            self._write_model()
        fsync(self.out / LOG)  # a checkpoint must never be ahead of the log
        save_state(self.out, self.config, self.arrays, self.state)
        draw(log.read(self.out / LOG), self.out / PICTURE)

    def _write_model(self) -> None:
        """Save the model: the lowest validation loss so far; without validation, the newest."""
        dtype = np.float16 if self.settings.half else np.float32
        save(self.out, self.config, self.arrays.model, dtype)

    def _diverged(
        self, step: int, what: str, value: float, batch: Batch, gradient: Flat | None = None
    ) -> TrainingError:
        """An error that names the first tensor, in order of computation, that is not finite."""
        found: list[str] = []

        def listen(name: str, array: Any) -> None:
            if not found and not np.isfinite(array).all():
                found.append(name)

        params = self.arrays.params.tree
        with np.errstate(all="ignore"):
            for name, array in named_parameters(params):
                listen(name, array)
            GPT2(self.config, params)(batch.ids, use_cache=False, tap=listen)
            for name, array in reversed(list(named_parameters(gradient and gradient.tree))):
                listen(f"the gradient of {name}", array)
        return TrainingError(
            f"step {step}: the {what} is {value}, first in {found[0] if found else 'the loss'}, "
            f"expected a finite number. {checkpoints(self.out)[0]} is kept; try a lower --lr"
        )


def _shares(settings: Settings) -> int:
    """The number of threads that share the rows of a batch.

    Raises:
        MissingPackage: there are several, and threadpoolctl is not installed.
    """
    shares = min(settings.threads, settings.batch_size)
    if shares > 1:
        try:
            import threadpoolctl  # noqa: F401
        except ImportError:
            raise MissingPackage(
                "threads: more than one needs the package threadpoolctl. "
                "Run: pip install 'npgpt2[train]', or use --threads 1"
            ) from None
    return shares


@contextmanager
def workers(threads: int, shares: int) -> Iterator[ThreadPoolExecutor]:
    """A thread pool; if several threads share a batch, BLAS uses one thread in each of them."""
    with ExitStack() as stack:
        if shares > 1:
            from threadpoolctl import threadpool_limits

            stack.enter_context(threadpool_limits(limits=1, user_api="blas"))
        yield stack.enter_context(ThreadPoolExecutor(threads))
