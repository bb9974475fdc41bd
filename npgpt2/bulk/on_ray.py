"""Parts done by a Ray cluster: Ray Data over actors that hold one model each.

https://docs.ray.io/en/latest/data/batch_inference.html. What travels are parts, not rows: every
node reads the input and writes the output under the same paths (a shared file system), and has
npgpt2 installed. A part that is done twice, because a node was lost before it could tell, writes
the same file.
"""

import logging
import os
import pickle
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from npgpt2.base.errors import FileError, MissingPackage, NpGPT2Error, OptionError
from npgpt2.bulk.folder import Settings
from npgpt2.bulk.parts import Part
from npgpt2.bulk.worker import Done, Worker


def connect(address: str) -> int:
    """Join a cluster, or begin one on this machine ("local"); returns its processors.

    Raises:
        MissingPackage: Ray is not installed.
        FileError: there is no cluster at the address.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingPackage(
            f"--ray: needs ray ({error}). Run: pip install 'npgpt2[ray]'"
        ) from error
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    alone: dict[str, Any] = {}
    if address == "local":
        alone = {"include_dashboard": False}
        if sys.platform == "linux":  # of this machine alone; 127.0.0.1 is not let stand
            alone["_node_ip_address"] = "127.0.0.2"
    elif address != "auto":
        _require_somebody(address)
    try:
        with _silence():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **alone)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise _nobody(address, str(error).strip().partition("\n")[0]) from None
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return int(resources.get("CPU", 1))


def _require_somebody(address: str) -> None:
    """Ray itself tries for minutes. Raises FileError."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise OptionError("ray", f"got {address!r}, expected HOST:PORT, auto or local")
    try:
        socket.create_connection((host, int(port)), 5).close()
    except (OSError, OverflowError) as error:
        raise _nobody(address, str(error)) from None


def _nobody(address: str, said: str) -> FileError:
    return FileError(
        f"--ray: got {address!r}, where no cluster answers ({said}). Is it up, and does "
        "RAY_AUTH_TOKEN hold its token?"
    )


@contextmanager
def _silence() -> Iterator[None]:
    """Ray's C++ speaks to standard error as it is loaded, even to say that it will be silent."""
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # a lost node is no news to a person
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)


def on_ray(
    settings: Settings, parts: Sequence[Part], out: str, workers: int, threads: int
) -> Iterator[Done]:
    """As `npgpt2.bulk.pool.on_pool`, by so many actors wherever the cluster has room."""
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    rows = [part._asdict() for part in parts]
    work = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _Actor,
        fn_constructor_args=(settings, out, threads),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=threads,
    )
    for row in work.iter_rows():
        if row["failure"]:
            raise pickle.loads(row["failure"])
        yield Done(*(int(row[name]) for name in Done._fields))


class _Actor:
    """A worker, as Ray Data calls it: columns of parts → columns of what was done.

    What one fails with is a column, too: as an exception it would arrive without its kind.
    """

    def __init__(self, settings: Settings, out: str, threads: int) -> None:
        self._told = settings, out, threads
        self._worker: Worker | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        part, failure = Part(*(batch[name].tolist()[0] for name in Part._fields)), b""
        done = Done(part.number, 0, 0, 0)
        try:
            if self._worker is None:
                self._worker = Worker(*self._told)
            done = self._worker(part)
        except NpGPT2Error as error:
            failure = pickle.dumps(error)
        return {name: [value] for name, value in done._asdict().items()} | {"failure": [failure]}
