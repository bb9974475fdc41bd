"""How tests wait, and how they measure: neither may depend on how busy a machine is.

What takes its time is waited for, not slept for. What has to be quick is measured in seconds of the
processor, which other processes do not take, with a wide margin for processors that are slower; or
better it is shown by what came before what.
"""

import contextlib
import signal
import threading
import time

# Seconds: only what hangs takes so long, on any machine.
PATIENCE = 300.0
FOREVER = 86_400  # that a process sleeps which is to be ended: if it were waited for, a test fails


def until(condition, seconds=PATIENCE):
    """Wait for it."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds:g} s for what did not come"
        time.sleep(0.01)


def within(seconds, call):
    """What a call gives; it takes less than so many seconds of the processor, once in three times.

    Beside others that use the same core and its caches the same work takes up to twice as long.
    """
    for _ in range(3):
        begun = time.process_time()
        found = call()
        taken = time.process_time() - begun
        if taken < seconds:
            return found
    raise AssertionError(f"takes {taken:.1f} s of the processor, expected {seconds:g} at most")


@contextlib.contextmanager
def bounded():
    """What waits for ever in this block, such as the opening of a FIFO, fails."""

    def stop(*_):
        raise TimeoutError(f"still waiting after {PATIENCE:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(int(PATIENCE))
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def watched(process):
    """`with process`, that ends: it is killed where the block fails, or nothing comes for ever."""
    timer = threading.Timer(PATIENCE, process.kill)
    timer.start()
    try:
        with process:
            try:
                yield process
            except BaseException:
                process.kill()
                raise
    finally:
        timer.cancel()
