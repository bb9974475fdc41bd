"""Run pieces of work on all cores, each with its own matrix products.

While several threads of ours work, BLAS uses one thread per call: two calls that both use all cores
wait for each other. This needs the OpenBLAS of NumPy's wheels; with another BLAS, the pieces run
one after the other.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable
from functools import cache
from typing import TYPE_CHECKING, TypeVar

from npgpt2.base.blas import openblas

if TYPE_CHECKING:  # the import takes 10 ms at every start, and few commands need it
    from concurrent.futures import Future, ThreadPoolExecutor

T = TypeVar("T")

_alone = threading.Lock()  # one `spread` at a time; a second caller works on its own thread


def cores() -> int:
    """Number of processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def spread(f: Callable[[T], object], items: Iterable[T]) -> None:
    """Call f on every item, in any order, on as many threads as BLAS has. Raises what f raises."""
    from concurrent.futures import wait

    left, blas = deque(items), openblas()
    threads = blas.threads() if blas and len(left) > 1 else 1
    if blas is None or threads == 1 or not _alone.acquire(blocking=False):
        for item in left:
            f(item)
        return

    def take() -> None:
        while True:
            try:
                item = left.popleft()
            except IndexError:
                return
            f(item)

    others: list[Future[None]] = []
    try:
        blas.use(1)
        others += [_pool().submit(take) for _ in range(threads - 1)]
        take()
    finally:
        left.clear()
        wait(others)
        blas.use(threads)
        _alone.release()
    for other in others:
        other.result()


@cache
def _pool() -> "ThreadPoolExecutor":
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(thread_name_prefix="npgpt2")


if hasattr(os, "register_at_fork"):  # a forked child has none of its parent's threads

    def _forget() -> None:
        global _alone
        _pool.cache_clear()
        _alone = threading.Lock()

    os.register_at_fork(after_in_child=_forget)
