"""The batcher in its own thread, and its interface for asyncio.

The event loop admits and counts requests; the thread computes. Only the event loop changes the
counts, only the thread touches the batcher. Jobs and `gone` go from the loop to the thread, results
go back once per step.
"""

import asyncio
import math
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from npgpt2.base.arrays import Array
from npgpt2.base.errors import TokenizerError
from npgpt2.generation.batcher import Batcher, Job
from npgpt2.generation.language_model import LanguageModel, Piece, Writing
from npgpt2.generation.scoring import log_softmax
from npgpt2.serve.metrics import Metrics
from npgpt2.serve.protocol import ApiError


class Chosen(NamedTuple):
    """A token and its log-probabilities (natural logarithm)."""

    token: int
    logprob: float | None  # None for the first token of a text, which has no context
    top: list[tuple[int, float]]  # the most probable tokens, best first


class Heard(NamedTuple):
    """The result of one step for one text of a request."""

    number: int  # index of the text in its request
    piece: Piece
    chosen: list[Chosen]  # the piece's tokens; in the first, after those of the prompt


class Engine:
    """A model and its batcher, for a server.

    Args:
        load: returns the model; called in the thread.
        slots: texts that are generated at the same time.
        queue: texts that may wait for a slot.

    Attributes:
        state: "loading", "ready", "draining", or "failed".
        model: None until it is loaded.
        failure: the exception that `load` raised.
        held: admitted texts that have not ended.
    """

    def __init__(
        self, load: Callable[[], LanguageModel], slots: int, queue: int, metrics: Metrics
    ) -> None:
        self.slots, self.queue, self.metrics = slots, queue, metrics
        self.state, self.held = "loading", 0
        self.model: LanguageModel | None = None
        self.failure: BaseException | None = None
        self._load = load
        self._tickets: set[Ticket] = set()
        self._inbox: list[Job] = []
        self._out: list[tuple[Ticket, Heard | Exception]] = []
        self._wake, self._closing = threading.Condition(), False
        self._changed = asyncio.Event()
        self._seconds = 1.0  # recent duration of a text, as a moving average

    # ── the event loop's side ────────────────────────────────────────────────────────────────────

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="npgpt2 engine", daemon=True)
        self._thread.start()

    async def loaded(self) -> None:
        """Wait until the model is loaded. Raises what `load` raised."""
        while self.state == "loading":
            self._changed.clear()
            await self._changed.wait()
        if self.failure is not None:
            raise self.failure

    def require_ready(self) -> LanguageModel:
        """The model; raises ApiError, 503, while it is being loaded or the server shuts down."""
        if self.state != "ready" or self.model is None:
            raise ApiError(
                503,
                f"the server is {self.state}. Try again",
                None,
                self.state,
                {"Retry-After": "1"},
            )
        return self.model

    def admit(self, texts: int, param: str) -> "Ticket":
        """Reserve places for `texts` texts; ApiError 429 if the queue is full, 400 if too many."""
        self.require_ready()
        room = self.slots + self.queue
        if texts > room:
            raise ApiError(400, f"{param}: asks for {texts} texts, expected at most {room}", param)
        if self.held + texts > room:
            self.metrics.refused.inc()
            seconds = math.ceil(self._seconds * max(1, self.held) / self.slots)
            raise ApiError(
                429,
                f"the queue is full ({self.queue} texts). Try again",
                None,
                "queue_full",
                {"Retry-After": str(min(60, max(1, seconds)))},
            )
        return Ticket(self, texts)

    async def drain(self, seconds: float) -> int:
        """Accept no new texts, give admitted ones so many seconds to finish, and cancel the rest.

        Returns:
            the number of texts that were cancelled.
        """
        if self.state == "ready":
            self.state = "draining"
        end = time.monotonic() + seconds
        while self.held and time.monotonic() < end:
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), end - time.monotonic())
            except asyncio.TimeoutError:
                break
        left = self.held
        for ticket in list(self._tickets):
            ticket.fail(ApiError(503, "the server shut down before the end", None, "draining"))
        return left

    def close(self) -> None:
        """End the thread, after its current step."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self.state != "loading":  # an import in the thread cannot be interrupted
            self._thread.join()

    def _submit(self, jobs: Sequence[Job]) -> None:
        with self._wake:
            self._inbox += jobs
            self._wake.notify()

    def _release(self, texts: int) -> None:
        self.held -= texts
        self.metrics.held.set(self.held)
        self._changed.set()

    def _now(self, state: str, model: LanguageModel | None, failure: BaseException | None) -> None:
        if self.state == "loading":
            self.state = state
        self.model, self.failure = model, failure
        self._changed.set()

    def _deliver(self, heard: list[tuple["Ticket", Heard | Exception]], running: int) -> None:
        self.metrics.running.set(running)
        for ticket, item in heard:
            ticket.put(item)

    # ── the thread's side ────────────────────────────────────────────────────────────────────────

    def _run(self) -> None:
        try:
            model = self._load()
            if not model.has_vocabulary:
                raise TokenizerError(
                    "--model: has no vocabulary, expected one, since the server returns text"
                )
            batcher = Batcher(model.slots(self.slots))
        except BaseException as error:
            self._tell(self._now, "failed", None, error)
            return
        self._tell(self._now, "ready", model, None)
        work = False
        while True:
            with self._wake:
                while not (self._inbox or work or self._closing):
                    self._wake.wait()
                if self._closing:
                    return
                jobs, self._inbox = self._inbox, []
            for job in jobs:
                batcher.add(job)
            try:
                work = batcher.step()
            except Exception as error:  # a bug: all requests fail, the server goes on
                for job in batcher.jobs:
                    job.fail(error)
                batcher, work = Batcher(batcher.slots), False
            heard, self._out = self._out, []
            self._tell(self._deliver, heard, batcher.busy)

    def _tell(self, f: Callable[..., None], *args: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(f, *args)
        except RuntimeError:  # the event loop is closed
            self._closing = True

    def _heard(self, ticket: "Ticket", item: Heard | Exception) -> None:
        self._out.append((ticket, item))


class Ticket:
    """The places and texts of one request. Leaving its `with` block frees them in any case."""

    def __init__(self, engine: Engine, texts: int) -> None:
        self._engine, self._open = engine, texts
        self._items: asyncio.Queue[Heard | Exception] = asyncio.Queue()
        self._jobs: list[Job] = []
        self._begun, self._first = time.monotonic(), True
        engine.held += texts
        engine.metrics.held.set(engine.held)
        engine._tickets.add(self)

    def __enter__(self) -> "Ticket":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancel the texts that have not ended, and free their places."""
        for job in self._jobs:
            job.gone = True
        self._engine._release(self._open)
        self._engine._tickets.discard(self)
        self._open = 0

    def submit(
        self, texts: Sequence[Writing], logprobs: int | None = None, echo: bool = False,
        write: bool = True,
    ) -> None:  # fmt: skip
        """Submit texts to the batcher.

        Args:
            logprobs: number of top tokens; None for no log-probabilities.
            echo: return log-probabilities of the prompt's tokens as well.
            write: False to prefill the prompts and generate nothing.
        """
        for index, text in enumerate(texts):
            known: list[Chosen] = []
            job = Job(
                text, self._teller(index, logprobs, known), self._failer, reads_only=not write
            )
            if echo and logprobs is not None:
                known.append(Chosen(job.prompt[0], None, []))
                job.tell_prompt = _reader(job.prompt, logprobs, known)
            self._jobs.append(job)
        self._engine._submit(self._jobs)

    def _teller(
        self, number: int, logprobs: int | None, known: list[Chosen]
    ) -> Callable[[Piece, Array], None]:
        def tell(piece: Piece, logits: Array) -> None:
            chosen, known[:] = list(known), []
            if logprobs is not None and piece.ids:
                chosen += judged(logits[None], list(piece.ids), logprobs)
            self._engine._heard(self, Heard(number, piece, chosen))

        return tell

    def _failer(self, error: Exception) -> None:
        self._engine._heard(self, error)

    def fail(self, error: Exception) -> None:
        """End the request with an error."""
        for job in self._jobs:
            job.gone = True
        self._items.put_nowait(error)

    def put(self, item: Heard | Exception) -> None:
        """Add a result of the thread; called on the event loop."""
        engine, now = self._engine, time.monotonic()
        if isinstance(item, Heard):
            if self._first:
                engine.metrics.first_token.observe(now - self._begun)
                self._first = False
            engine.metrics.written.inc(len(item.piece.ids))
            if item.piece.finish is not None and self._open:
                job = self._jobs[item.number]
                engine.metrics.read.inc(len(job.prompt))
                engine.metrics.reused.inc(job.reused)
                engine._seconds += 0.2 * (now - self._begun - engine._seconds)
                self._open -= 1
                engine._release(1)
        self._items.put_nowait(item)

    async def __aiter__(self) -> AsyncIterator[Heard]:
        """The results until every text has ended. Raises the error of a text that failed."""
        left = len(self._jobs)
        while left:
            item = await self._items.get()
            if isinstance(item, Exception):
                raise item
            left -= item.piece.finish is not None
            yield item


def judged(logits: Array, tokens: Sequence[int], top: int) -> list[Chosen]:
    """Logits (T, V) and the T chosen tokens → their log-probabilities, with the `top` best.

    >>> [(c.token, round(c.logprob, 3), c.top) for c in judged(np.zeros((1, 2)), [1], 0)]
    [(1, -0.693, [])]
    """
    logprobs, found = log_softmax(logits), []
    for row, token in zip(logprobs, tokens, strict=True):
        best = np.argpartition(-row, min(top, len(row) - 1))[:top] if top else np.zeros(0, int)
        best = best[np.argsort(-row[best], kind="stable")]
        found.append(Chosen(token, float(row[token]), [(int(i), float(row[i])) for i in best]))
    return found


def _reader(prompt: list[int], top: int, known: list[Chosen]) -> Callable[[int, Array], None]:
    """A `tell_prompt` callback that adds the log-probabilities of a prompt's tokens to `known`."""

    def read(start: int, logits: Array) -> None:
        following = prompt[start + 1 : start + 1 + len(logits)]
        known.extend(judged(logits[: len(following)], following, top))

    return read
