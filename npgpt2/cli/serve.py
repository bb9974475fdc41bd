"""Serve a model over HTTP with OpenAI's completions API.

OpenAI's clients work unchanged: /v1/completions (also streaming), /v1/embeddings, /v1/models.
Continuous batching generates several texts at once; a seed gives the same text whatever other
requests run. A page to try the model is at /, the API documentation at /docs, Prometheus metrics at
/metrics. Only this machine can connect unless --host is given. SIGTERM or Ctrl-C lets
running texts finish first.
"""

import argparse
import signal

from npgpt2.base.errors import MissingPackage, OptionError
from npgpt2.cli.inputs import add_engine, add_model, load_engine, spec_of
from npgpt2.cli.options import add_options, options_of, whole
from npgpt2.cli.output import note
from npgpt2.engines import ModelSpec
from npgpt2.serve.settings import Settings

HELP = "serve a model over HTTP with OpenAI's completions API"
EXAMPLES = """examples:
  npgpt2 serve
  npgpt2 serve --model EXPORTED --slots 16
  npgpt2 serve --host 0.0.0.0 --api-key-file keys.txt --allow-host gpt2.example.org"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    network = parser.add_argument_group("network")
    network.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: %(default)s)"
    )
    network.add_argument(
        "--port", type=whole, default=8000, help="port; 0 means any free one (default: %(default)s)"
    )
    add_options(network, Settings, "api_key_file", "allow_host")
    load = parser.add_argument_group("load")
    add_options(load, Settings, "slots", "queue", "drain_seconds")
    add_engine(parser)
    add_options(parser, ModelSpec, "dtype", "strict")


def run(args: argparse.Namespace) -> int:
    if not 0 <= args.port <= 65535:
        raise OptionError("port", f"got {args.port}, expected 0 to 65,535")
    settings = Settings(**options_of(args, Settings))
    keys, name = settings.keys(), spec_of(args).name
    import asyncio
    import ipaddress

    try:
        from npgpt2.serve.api import Service
        from npgpt2.serve.engine import Engine
        from npgpt2.serve.metrics import Metrics
        from npgpt2.serve.server import listen, serve
    except ImportError as error:
        raise MissingPackage(
            f"serve: needs {error.name}. Run: pip install 'npgpt2[serve]'"
        ) from error
    listener = listen(args.host, args.port)
    address, port = listener.getsockname()[:2]
    local = ipaddress.ip_address(address).is_loopback
    hosts = settings.allow_host
    if not local:
        hosts = hosts or ()
        open_ = "" if keys else " without a key. Require one with --api-key-file"
        note(f"warning: other machines can connect to {address}{open_}")
    place = f"http://{f'[{address}]' if ':' in address else address}:{port}"
    only = ", for this machine only" if local else ""

    def tell(text: str) -> None:
        note(f"{name} at {place}{only}. Ctrl-C ends it" if text == "ready" else text)

    engine = Engine(lambda: load_engine(args), settings.slots, settings.queue, Metrics())
    service = Service(engine, name, args.debug)
    told = asyncio.run(serve(service, listener, settings.drain_seconds, hosts, keys, tell))
    note("the server has stopped")
    return 130 if told == signal.SIGINT else 0
