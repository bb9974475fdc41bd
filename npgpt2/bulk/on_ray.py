"""Process parts on a Ray cluster: Ray Data with actors that have one model each.

https://docs.ray.io/en/latest/data/batch_inference.html. Ray sends parts, not rows: every node has
npgpt2 installed, and reads the input and writes the output under the same paths (a shared file
system). If a node is lost before it reports a part, the part is processed again and writes the same
file.
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
    """Connect to a cluster, or start one on this machine ("local"); returns its number of CPUs.

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
        if sys.platform == "linux":  # only this machine; Ray would replace 127.0.0.1
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
    """Raises FileError if no process answers at the address; Ray itself tries for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise OptionError("ray", f"got {address!r}, expected HOST:PORT, auto or local")
    try:
        socket.create_connection((host, int(port)), 5).close()
    except (OSError, OverflowError) as error:
        raise _nobody(address, str(error)) from None


def _nobody(address: str, said: str) -> FileError:
    return FileError(
        f"--ray: got {address!r}, but no cluster answers there ({said}). Check that it runs, and "
        "that RAY_AUTH_TOKEN is its token"
    )


@contextmanager
def _silence() -> Iterator[None]:
    """Hide what Ray's C++ code writes to standard error while it starts."""
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # not even lost nodes are reported
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
    """Like `npgpt2.bulk.pool.on_pool`, with `workers` actors anywhere in the cluster."""
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
    """A worker for Ray Data: columns of `Part` → columns of `Done`.

    An error is a column, too: as an exception it would lose its class.
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
