"""Process parts in processes of this machine.

A process that dies (memory, a crash in a library) is replaced, and its part is processed again. The
run fails when three processes have died on a part.
"""

import multiprocessing
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for

from npgpt2.base.errors import FileError
from npgpt2.bulk.folder import Settings
from npgpt2.bulk.parts import Part
from npgpt2.bulk.worker import Done, Worker

TRIES = 3
NOTHING = Done(-1, 0, 0, 0)  # no part has ended, but the work goes on


def on_pool(
    settings: Settings, parts: Sequence[Part], out: str, workers: int, threads: int
) -> Iterator[Done]:
    """Process all parts; yields each when it is written, in any order, and `NOTHING` every second.

    Raises:
        FileError: too many processes died on a part.
        NpGPT2Error: the model cannot be opened, or a part cannot be read or written.
    """
    left, tries = deque(parts), Counter[int]()
    while left:
        pool = ProcessPoolExecutor(
            workers, multiprocessing.get_context("spawn"), _begin, (settings, out, threads)
        )
        running: dict[Future[Done], Part] = {}
        try:
            while left or running:
                while left and len(running) < 2 * workers:
                    part = left.popleft()
                    running[pool.submit(_do, part)] = part
                ended = wait(running, timeout=1, return_when=FIRST_COMPLETED).done
                if not ended:
                    yield NOTHING
                for future in ended:
                    done = future.result()
                    del running[future]
                    yield done
        except BrokenProcessPool:
            died = sorted(running.values())
            left.extendleft(reversed(died))
            tries.update(part.number for part in died[:workers])  # the others had not started
            part, count = died[0], max(tries[part.number] for part in died)
            if count >= TRIES:
                raise FileError(
                    f"{part.file}: a worker died {count} times, at or near rows {part.first:,} to "
                    f"{part.first + part.rows - 1:,}. If memory is short, try --workers 1"
                ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            for thread in threading.enumerate():  # else Python writes to a closed pipe at exit
                if type(thread).__name__ == "_ExecutorManagerThread":
                    thread.join(5)


_worker: Worker | None = None
_told: tuple[Settings, str, int]


def _begin(settings: Settings, out: str, threads: int) -> None:
    """Initialize a new process: it ends when its parent ends, and leaves Ctrl-C to the parent."""
    global _told
    _told = settings, out, threads
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    wait_for([sentinel])
    os._exit(1)


def _do(part: Part) -> Done:
    """Process a part. The first part opens the model, so that its errors are reported."""
    global _worker
    if _worker is None:
        _worker = Worker(*_told)
    return _worker(part)
