"""Parts done by a Ray cluster: Ray Data over actors that hold one model each.

https://docs.ray.io/en/latest/data/batch_inference.html. What travels are parts, not rows: every
node reads the input and writes the output under the same paths (a shared file system), and has
npgpt2 installed. A part that is done twice, because a node was lost before it could tell, writes
the same file.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from npgpt2.bulk.folder import Settings
from npgpt2.bulk.parts import Part
from npgpt2.bulk.worker import Done, Worker
from npgpt2.errors import FileError, MissingPackage, NpGPT2Error


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
    local = address == "local"
    try:
        ray.init(
            address=address, log_to_driver=False, logging_level="ERROR",
            **({"include_dashboard": False} if local else {}),
        )  # fmt: skip
    except (ConnectionError, RuntimeError, ValueError) as error:
        said = str(error).strip().partition("\n")[0]
        raise FileError(f"--ray: got {address!r}, where no cluster answers ({said})") from None
    return int(ray.cluster_resources().get("CPU", 1))


def on_ray(
    settings: Settings, parts: Sequence[Part], out: str, workers: int, threads: int
) -> Iterator[Done]:
    """As `npgpt2.bulk.pool.on_pool`, by so many actors wherever the cluster has room."""
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    rows = [part._asdict() for part in parts]
    try:
        done = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            _Actor,
            fn_constructor_args=(settings, out, threads),
            batch_size=1,
            concurrency=workers,
            num_cpus=threads,
        )
        for row in done.iter_rows():
            yield Done(*(int(row[name]) for name in Done._fields))
    except ray.exceptions.RayError as error:
        cause: Any = error
        while cause is not None and not isinstance(cause, NpGPT2Error):
            cause = getattr(cause, "cause", None) or cause.__cause__
        raise (cause or error) from None


class _Actor:
    """A worker, as Ray Data calls it: columns of parts → columns of what was done."""

    def __init__(self, settings: Settings, out: str, threads: int) -> None:
        self._worker = Worker(settings, out, threads)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        columns = {name: batch[name].tolist() for name in Part._fields}
        parts = [Part(*row) for row in zip(*columns.values(), strict=True)]
        done = [self._worker(part) for part in parts]
        return {name: [getattr(one, name) for one in done] for name in Done._fields}
