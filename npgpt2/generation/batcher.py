"""Continuous batching: texts join and leave a running batch; each is the same as if it ran alone.

One `step` prefills at most two chunks of prompts, so that a long prompt does not stall the texts in
decode, and then generates one token of every text in decode. There are no threads and no network
here: the server calls `step` while a request waits, bulk work calls it until all texts are done.

Yu et al. 2022, "Orca: A Distributed Serving System for Transformer-Based Generative Models",
https://www.usenix.org/conference/osdi22/presentation/yu

Axes: B rows in decode, T tokens, V vocabulary.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from npgpt2.base.arrays import Array
from npgpt2.base.threads import spread
from npgpt2.generation.generate import sound
from npgpt2.generation.language_model import Piece, Writing
from npgpt2.generation.slots import Block, Slots

# Tokens of a prompt per prefill call, counted from its beginning: a prompt is cut the same way
# whatever else is in the batch, so its keys and values are the same to the last bit. Chunks of 64
# reach 0.96 to 0.99 of the speed of chunks of 256 (124M, two cores).
CHUNK = 64

# Chunks between two decode steps: a decode step waits for five or six times its own duration at
# most. Two, because a step with few rows takes nearly as long as one with many.
PIECES = 2

PREFIX_BYTES = 256 << 20  # keys and values of earlier prompts, kept for later prompts


@dataclass(eq=False)
class Job:
    """A text to generate, and its callbacks.

    Attributes:
        text: the text, with no token generated yet.
        tell: callback for each piece, with the logits (V,) from which its token was chosen.
        fail: callback for an error; no other call follows.
        tell_prompt: optional callback `tell_prompt(start, logits)` for each chunk of the prompt:
            the logits (T, V) of the tokens after those from `start` on.
        reads_only: prefill the prompt and generate nothing; one piece without a token ends it.
        gone: set, from any thread, to cancel the job: the next step frees its slot.
        reused: tokens of the prompt taken from the prefix cache.
    """

    text: Writing
    tell: Callable[[Piece, Array], None]
    fail: Callable[[Exception], None]
    tell_prompt: Callable[[int, Array], None] | None = None
    reads_only: bool = False
    gone: bool = False
    reused: int = 0

    def __post_init__(self) -> None:
        self.prompt = list(self.text.seen)


class Batcher:
    """Runs jobs in the slots of an engine.

    Attributes:
        waiting: jobs without a slot, in order of arrival.
        reading: the job in prefill.
        writing: the jobs in decode, job i in slot i.

    >>> from npgpt2 import GPT2, GenerationOptions
    >>> model = GPT2.from_pretrained("tests/data/tiny")
    >>> options = GenerationOptions(temperature=0, max_new_tokens=4)
    >>> batcher = Batcher(model.slots(2))
    >>> text: list[str] = []
    >>> for prompt in ("O Romeo,", "KING"):
    ...     row = model.writing(model.encode(prompt), options)
    ...     batcher.add(Job(row, lambda piece, _: text.append(piece.text), print))
    >>> while batcher.step():
    ...     pass
    >>> text
    ['\\n', 'H', 'A', 'I', 'M', 't', ':', ' is']
    """

    def __init__(self, slots: Slots, prefix_bytes: int = PREFIX_BYTES) -> None:
        self.slots, self._prefixes = slots, Prefixes(prefix_bytes)
        slots.lengths[:] = 0
        self.waiting: deque[Job] = deque()
        self.reading: Job | None = None
        self.writing: list[Job] = []
        self._slot = 0  # of the job in prefill

    def add(self, job: Job) -> None:
        self.waiting.append(job)

    @property
    def jobs(self) -> list[Job]:
        """All jobs that have not ended."""
        reading = [] if self.reading is None else [self.reading]
        return [*self.writing, *reading, *self.waiting]

    @property
    def busy(self) -> int:
        """The number of slots in use."""
        return len(self.writing) + (self.reading is not None)

    def step(self) -> bool:
        """Prefill up to `PIECES` chunks and decode one token per text; False if no job is left."""
        self._drop()
        for _ in range(PIECES):
            if self.reading is None and self.waiting and len(self.writing) < self.slots.count:
                self._begin(self.waiting.popleft())
            if self.reading is not None:
                self._read(self.reading)
        if self.writing:
            self._write()
        return bool(self.waiting or self.busy)

    def _drop(self) -> None:
        """Remove cancelled jobs."""
        if any(job.gone for job in self.waiting):
            self.waiting = deque(job for job in self.waiting if not job.gone)
        if self.reading is not None and self.reading.gone:
            self.reading = None
            self.slots.clear(self._slot)
        for slot in reversed(range(len(self.writing))):
            if self.writing[slot].gone:
                self._leave(slot)

    def _begin(self, job: Job) -> None:
        """Give the job a slot, and restore what the prefix cache has of its prompt."""
        self.reading, self._slot = job, len(self.writing)
        if job.tell_prompt is None:  # else it needs the logits of every token
            for block in self._prefixes.known(job.prompt):
                self.slots.restore(self._slot, block)
                job.reused += CHUNK

    def _read(self, job: Job) -> None:
        start = int(self.slots.lengths[self._slot])
        ids = job.prompt[start : start + CHUNK]
        stop = start + len(ids)
        try:
            logits = self.slots.prefill(self._slot, np.array(ids), job.tell_prompt is not None)
            sound(logits)
            if job.tell_prompt is not None:
                job.tell_prompt(start, logits)
                logits = logits[-1]
        except Exception as error:
            self.reading = None
            self.slots.clear(self._slot)
            job.fail(error)
            return
        if len(ids) == CHUNK:
            copied = partial(self.slots.block, self._slot, start, stop)
            self._prefixes.keep(job.prompt[:stop], copied)
        if stop < len(job.prompt):
            return
        self.reading = None
        if job.reads_only:
            self.slots.clear(self._slot)
            job.tell(Piece(0, "", (), "length"), logits)
            return
        slot = len(self.writing)
        if self._slot != slot:  # other jobs have left since it began
            self.slots.move(self._slot, slot)
        self.writing.append(job)
        self._choose([slot], logits[None])

    def _write(self) -> None:
        ids = np.array([job.text.seen[-1] for job in self.writing])
        try:
            logits = self.slots.step(ids)
        except Exception as error:  # from the engine: the content of every slot is unknown
            failed, self.writing = self.writing, []
            for slot, job in enumerate(failed):
                self.slots.clear(slot)
                job.fail(error)
            return
        self._choose(range(len(ids)), logits)

    def _choose(self, slots: Sequence[int], logits: Array) -> None:
        """Choose each slot's next token from its logits (B, V); texts that have ended leave."""
        pieces: dict[int, Piece | Exception] = {}

        def choose(i: int) -> None:
            text = self.writing[slots[i]].text
            try:
                pieces[i] = text.piece(0, *text.choose(sound(logits[i])))
            except Exception as error:  # NaN in one row does not affect the others
                pieces[i] = error

        spread(choose, range(len(slots)))
        for i in reversed(range(len(slots))):  # from the end: the last slot fills the gap
            job, piece = self.writing[slots[i]], pieces[i]
            if isinstance(piece, Exception):
                job.fail(piece)
            else:
                job.tell(piece, logits[i])
            if isinstance(piece, Exception) or piece.finish is not None:
                self._leave(slots[i])

    def _leave(self, slot: int) -> None:
        last = len(self.writing) - 1
        job = self.writing.pop()
        if slot == last:
            self.slots.clear(slot)
        else:
            self.writing[slot] = job
            self.slots.move(last, slot)


class Prefixes:
    """Prefix cache: keys and values of the first tokens of prompts, in blocks of `CHUNK` tokens.

    The key of a block is all ids up to its end. A block is what prefill computed, so a text after
    it is the same to the last bit. The least recently used blocks are dropped first.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most, self._held = most_bytes, 0
        self._blocks: OrderedDict[bytes, Block] = OrderedDict()

    def known(self, prompt: Sequence[int]) -> list[Block]:
        """The cached blocks that a prompt begins with. They never contain its last token: the
        logits after it are needed."""
        found = []
        for end in range(CHUNK, len(prompt), CHUNK):
            key = _key(prompt[:end])
            if key not in self._blocks:
                break
            self._blocks.move_to_end(key)
            found.append(self._blocks[key])
        return found

    def keep(self, ids: Sequence[int], block: Callable[[], Block]) -> None:
        """Cache the block that ends with these ids; drop the least recently used ones if the cache
        is full."""
        key = _key(ids)
        if key in self._blocks:
            self._blocks.move_to_end(key)
            return
        self._blocks[key] = block()
        self._held += _size(self._blocks[key])
        while self._held > self._most:
            self._held -= _size(self._blocks.popitem(last=False)[1])


def _key(ids: Sequence[int]) -> bytes:
    return np.array(ids, np.int32).tobytes()


def _size(block: Block) -> int:
    return sum(array.nbytes for array in block)
