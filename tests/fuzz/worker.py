"""Open one input in its own process, and record the result, the time and the memory.

The process opens many inputs, and is restarted if an input kills or blocks it.
"""

import multiprocessing
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import NamedTuple

import npgpt2
from npgpt2.base.errors import NpGPT2Error

# Seconds of the processor: those of the clock also count what other processes do meanwhile. As
# these slow down a core that they share, an input has more than one try. An input that waits, for
# a lock or a FIFO, takes none, so past HANG of the clock it is ended.
SECONDS, TRIES, HANG = 1.0, 3, 60.0
MEGABYTES = 100  # of memory, beside the bytes of the files
CEILING = 3 << 30  # bytes of address space: no input can take the machine along

ROOT = Path(npgpt2.__file__).parent
READ = ("checkpoints/", "tokenizer/", "base/files.py", "base/impostors.py", "model/config.py")
assert all((ROOT / name).exists() for name in READ)


class Outcome(NamedTuple):
    """The result of one input. `fault` describes what is wrong; empty if nothing is."""

    fault: str = ""
    refused: bool = False
    seconds: float = 0.0
    megabytes: float = 0.0
    new: bool = False  # it reached a line that none before it did


class Worker:
    """A process that opens inputs with one function: folder → None, or NpGPT2Error.

    Args:
        check: importable by its name.
        trace: report which inputs reach new lines; three times slower.
    """

    def __init__(self, check, trace=False):
        self._check, self._trace = check, trace
        self._folder = tempfile.TemporaryDirectory(prefix="npgpt2-fuzz-")
        self._process = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._end()
        self._folder.cleanup()

    def run(self, files):
        """Open one input."""
        if self._process is None:
            self._start()
        self._pipe.send(files)
        if not self._pipe.poll(HANG):
            self._end()
            return Outcome(f"hangs: no end after {HANG:g} s", seconds=HANG)
        try:
            outcome = self._pipe.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            code = self._process.exitcode
            self._end()
            return Outcome(f"the process died: exit code {code}")
        if outcome.megabytes > MEGABYTES:
            self._end()  # its peak would be the next one's
        return outcome

    def _start(self):
        context = multiprocessing.get_context("spawn")  # a fork would inherit BLAS's threads
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, self._check, Path(self._folder.name), self._trace)
        )
        self._process.start()
        theirs.close()
        self._pipe.recv()  # all is imported: from here on the clock counts

    def _end(self):
        if self._process is not None:
            self._pipe.close()  # at which it returns, unless it hangs
            self._process.join(0.5)
            self._process.kill()
            self._process.join()
            self._process = None


def _serve(pipe, check, folder, trace):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this
    resource.setrlimit(resource.RLIMIT_AS, (CEILING, CEILING))
    warnings.simplefilter("error")  # NumPy's: a number that overflowed
    warnings.simplefilter("ignore", UserWarning)  # npgpt2's own
    warnings.simplefilter("ignore", DeprecationWarning)  # Python's, of a pickled text's escapes
    lines = set() if trace else None
    _attempt({}, check, folder, None)  # imports what is imported late
    pipe.send(None)
    while True:
        try:
            files = pipe.recv()
        except EOFError:
            return
        outcome = _attempt(files, check, folder, lines)
        tries = TRIES - (lines is None)  # a trace may have taken the time
        while outcome.seconds > SECONDS and tries:
            outcome, tries = _attempt(files, check, folder, None), tries - 1
        pipe.send(outcome)


def _attempt(files, check, folder, lines):
    path = folder / "model"
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    for name, data in files.items():
        (path / name).write_bytes(data)
    known = len(lines) if lines is not None else 0
    before, start = _memory("VmSize"), time.process_time()
    refused, fault = False, ""
    if lines is not None:
        sys.settrace(_tracer(lines))
    try:
        check(path)
    except NpGPT2Error as error:
        refused = True
        if not str(error).isprintable():
            fault = f"an error's text is no printable line: {str(error)!r:.200}"
    except BaseException:  # a panic of Rust's is no Exception
        fault = traceback.format_exc(limit=-6)
    finally:
        sys.settrace(None)
    seconds = time.process_time() - start
    # The peak of address space: it counts maps, what libraries allocate, and what is allocated and
    # never touched, none of which tracemalloc or the resident size sees. It never falls, so a
    # process that has stayed below the bound for all inputs so far shows the first that does not.
    megabytes = (_memory("VmPeak") - before) / 1e6
    bound = MEGABYTES + sum(map(len, files.values())) / 1e6
    if not fault and seconds > SECONDS:
        fault = f"takes {seconds:.1f} s, expected {SECONDS:g} at most"
    if not fault and megabytes > bound:
        fault = f"takes {megabytes:,.0f} MB, expected {bound:,.0f} at most"
    new = lines is not None and len(lines) > known
    return Outcome(fault, refused, seconds, megabytes, new)


def _memory(what):
    """The memory of this process in bytes."""
    with open("/proc/self/status") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith(what))


def _tracer(lines):
    """A tracer for sys.settrace that collects (file, line) of the readers."""
    readers = tuple(str(ROOT / name) for name in READ)

    def line(frame, event, _):
        lines.add((frame.f_code.co_filename, frame.f_lineno))
        return line

    def call(frame, event, _):
        return line if frame.f_code.co_filename.startswith(readers) else None

    return call
