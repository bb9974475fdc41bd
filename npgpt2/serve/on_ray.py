"""The same server on several machines: a Ray Serve application.

    serve run npgpt2.serve:app model=DIR replicas=4

https://docs.ray.io/en/latest/serve/index.html. Ray's proxies hear the requests and give each to a
replica, which has slots and a queue of its own; what one replica has read of a prompt, another has
not. Patience with slow clients, and the address, are the proxies'.
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

# What may be given, by the names of the command line, and what is taken for the rest.
OF_MODEL: dict[str, Any] = {"model": None, "revision": None}
OF_MODEL |= {f.name: f.default for f in fields(ModelSpec) if f.name != "strict"}
OF_SERVER = {f.name: f.default for f in fields(Settings)} | {"allow_host": ()}
DEFAULTS: dict[str, Any] = {**OF_MODEL, **OF_SERVER, "replicas": 1, "cpus": 1}


def app(args: Mapping[str, Any]) -> Any:
    """A Ray Serve application: `replicas` of the server, each with so many `cpus`.

    Args:
        args: of `DEFAULTS`, the options of `npgpt2 serve` and these two; numbers may be text, as
            `serve run` gives them.

    Raises:
        OptionError: another name, no number where one is expected, or one out of range.
        MissingPackage: Ray is not installed.
    """
    chosen = dict(DEFAULTS)
    for name, value in args.items():
        if name not in DEFAULTS:
            raise OptionError(name, f"is no option, expected one of {', '.join(DEFAULTS)}")
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
        # Beyond these the server itself says 429, and when to come again.
        max_ongoing_requests=settings.slots + settings.queue + 16,
        graceful_shutdown_timeout_s=float(settings.drain_seconds + 10),
    )
    return deployment(serve.ingress(lambda: _replica(spec, settings))()).bind()


def _number(name: str, value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        raise OptionError(name, f"got {value!r}, expected a whole number") from None


def _replica(spec: ModelSpec, settings: Settings) -> Guard:
    """The application of one replica, which opens the model before it takes requests."""

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

    # The proxies' addresses are theirs, and names are for who set them up.
    service = Service(engine, spec.name)
    return application(service, settings.allow_host, settings.keys(), open_)
