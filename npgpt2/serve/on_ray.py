"""The same server on several machines: a Ray Serve application.

    serve run npgpt2.serve:app model=DIR replicas=4

https://docs.ray.io/en/latest/serve/index.html. Ray's proxies take the requests and send each to a
replica. Every replica has its own slots, queue and prefix cache. The proxies also set the address
and the timeouts for slow clients.
"""

import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import fields, replace
from typing import Any

from npgpt2.base.errors import MissingPackage, OptionError
from npgpt2.engines import ModelSpec, open_model
from npgpt2.generation.language_model import LanguageModel
from npgpt2.serve.api import Service, application
from npgpt2.serve.engine import Engine
from npgpt2.serve.guard import Guard
from npgpt2.serve.metrics import Metrics
from npgpt2.serve.settings import Settings

# The arguments, named as on the command line, and their defaults.
OF_MODEL: dict[str, Any] = {"model": None, "revision": None}
OF_MODEL |= {f.name: f.default for f in fields(ModelSpec) if f.name != "strict"}
OF_SERVER = {f.name: f.default for f in fields(Settings)} | {"allow_host": ()}
DEFAULTS: dict[str, Any] = {**OF_MODEL, **OF_SERVER, "replicas": 1, "cpus": 1}


def app(args: Mapping[str, Any]) -> Any:
    """A Ray Serve application: `replicas` copies of the server with `cpus` CPUs each.

    Args:
        args: options of `npgpt2 serve`, `replicas` and `cpus`, see `DEFAULTS`. Numbers may be text,
            as `serve run` passes them.

    Raises:
        OptionError: an unknown name, or a value of the wrong type or out of range.
        MissingPackage: Ray is not installed.
    """
    chosen = dict(DEFAULTS)
    for name, value in args.items():
        if name not in DEFAULTS:
            raise OptionError(name, f"is not an option, expected one of {', '.join(DEFAULTS)}")
        value = os.fspath(value) if isinstance(value, os.PathLike) else value
        number = isinstance(DEFAULTS[name], int) or name == "threads"
        chosen[name] = _number(name, value) if number and value is not None else value
    if isinstance(chosen["allow_host"], str):
        chosen["allow_host"] = (chosen["allow_host"],)
    settings = Settings(**{name: chosen[name] for name in OF_SERVER})
    spec = ModelSpec(**{name: chosen[name] for name in OF_MODEL})
    if spec.engine == "onnx" and spec.threads is None:
        spec = replace(spec, threads=max(1, chosen["cpus"]))
    try:
        from ray import serve
    except ImportError as error:
        raise MissingPackage(f"ray: needs ray ({error}). Run: pip install 'npgpt2[ray]'") from error
    deployment = serve.deployment(
        name="npgpt2",
        num_replicas=chosen["replicas"],
        ray_actor_options={"num_cpus": chosen["cpus"]},
        # With more, the server itself answers 429 with Retry-After.
        max_ongoing_requests=settings.slots + settings.queue + 16,
        graceful_shutdown_timeout_s=float(settings.drain_seconds + 10),
    )
    return deployment(serve.ingress(lambda: _replica(spec, settings))()).bind()


def _number(name: str, value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        raise OptionError(name, f"got {value!r}, expected an integer") from None


def _replica(spec: ModelSpec, settings: Settings) -> Guard:
    """The application of one replica; it opens the model before it takes requests."""

    def opened() -> LanguageModel:
        return open_model(spec, tell=lambda text: print(f"npgpt2: {text}", file=sys.stderr))

    engine = Engine(opened, settings.slots, settings.queue, Metrics())

    @asynccontextmanager
    async def open_(_: Any) -> AsyncIterator[None]:
        engine.start()
        await engine.loaded()
        yield
        await engine.drain(float(settings.drain_seconds))
        engine.close()

    # The proxies have their own addresses, so by default every IP address is allowed as Host.
    service = Service(engine, spec.name)
    return application(service, settings.allow_host, settings.keys(), open_)
