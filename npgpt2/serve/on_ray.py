"""The same server on several machines: a Ray Serve application.

    serve run npgpt2.serve:app model=DIR engine=onnx replicas=4

https://docs.ray.io/en/latest/serve/index.html. Ray's proxies hear the requests and give each to a
replica, which has slots and a queue of its own; what one replica has read of a prompt, another has
not. Patience with slow clients, and the address, are the proxies'.
"""

from argparse import Namespace
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from npgpt2.cli.serve import require_load
from npgpt2.errors import MissingPackage, OptionError
from npgpt2.serve.api import Service, application
from npgpt2.serve.engine import Engine
from npgpt2.serve.guard import Guard
from npgpt2.serve.metrics import Metrics

# What may be given, by the names of the command line, and what is taken for the rest.
DEFAULTS: dict[str, Any] = {
    "model": None, "revision": None, "engine": "numpy", "device": None, "precision": None,
    "threads": None, "graph_cache": None, "dtype": "float32", "slots": 8, "queue": 64,
    "api_key_file": None, "allow_host": (), "drain_seconds": 30, "replicas": 1, "cpus": 1,
}  # fmt: skip


def app(args: Mapping[str, Any]) -> Any:
    """A Ray Serve application: `replicas` of the server, each with so many `cpus`.

    Args:
        args: of `DEFAULTS`, the options of `npgpt2 serve` and these two; numbers may be text, as
            `serve run` gives them.

    Raises:
        OptionError: another name, or no number where one is expected.
        MissingPackage: Ray is not installed.
    """
    chosen = dict(DEFAULTS)
    for name, value in args.items():
        if name not in DEFAULTS:
            raise OptionError(name, f"is no option, expected one of {', '.join(DEFAULTS)}")
        number = isinstance(DEFAULTS[name], int) or name == "threads"
        chosen[name] = _number(name, value) if number and value is not None else value
    require_load(Namespace(**chosen))
    try:
        from ray import serve
    except ImportError as error:
        raise MissingPackage(f"ray: needs ray ({error}). Run: pip install 'npgpt2[ray]'") from error
    deployment = serve.deployment(
        name="npgpt2",
        num_replicas=chosen["replicas"],
        ray_actor_options={"num_cpus": chosen["cpus"]},
        # Beyond these the server itself says 429, and when to come again.
        max_ongoing_requests=chosen["slots"] + chosen["queue"] + 16,
        graceful_shutdown_timeout_s=float(chosen["drain_seconds"] + 10),
    )
    return deployment(serve.ingress(lambda: _replica(chosen))()).bind()


def _number(name: str, value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        raise OptionError(name, f"got {value!r}, expected a whole number") from None


def _replica(chosen: Mapping[str, Any]) -> Guard:
    """The application of one replica, which opens the model before it takes requests."""
    from npgpt2.cli.common import model_name
    from npgpt2.cli.serve import keys_in, load_served

    args = Namespace(**chosen, strict=False)
    if args.threads is None and args.engine == "onnx":
        args.threads = max(1, args.cpus)
    hosts = [args.allow_host] if isinstance(args.allow_host, str) else args.allow_host
    keys = keys_in(args.api_key_file) if args.api_key_file else []
    engine = Engine(lambda: load_served(args), args.slots, args.queue, Metrics())

    @asynccontextmanager
    async def open_(_: Any) -> AsyncIterator[None]:
        engine.start()
        await engine.loaded()
        yield
        await engine.drain(float(args.drain_seconds))
        engine.close()

    # The proxies' addresses are theirs, and names are for who set them up.
    return application(Service(engine, model_name(args)), hosts, keys, open_)
