"""How tests wait and measure time: neither may depend on how busy the machine is.

Tests wait for slow work instead of sleeping. They measure speed in processor seconds, which other
processes do not change, with a wide margin for slower processors; or better, they check the order
of events.
"""

import contextlib
import signal
import threading
import time

# Seconds: only what hangs takes so long, on any machine.
PATIENCE = 300.0
FOREVER = 86_400  # that a process sleeps which is to be ended: if it were waited for, a test fails


def until(condition, seconds=PATIENCE):
    """Wait until the condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds:g} s for what did not come"
        time.sleep(0.01)


def within(seconds, call):
    """Return a call's result; it takes less than this processor time, in one of three runs.

    Next to other processes on the same core and caches, the same work takes up to twice as long.
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
    """Fail if this block waits forever, as in opening a FIFO."""

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
    """`with process`, but always ends: it is killed if the block fails or waits too long."""
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
