"""Serve a model over HTTP, in the words of OpenAI's completions API.

Its clients work unchanged: /v1/completions (streaming or not), /v1/embeddings, /v1/models. Texts
are written side by side, and each is what it would be alone: the same seed, the same text. A page
to try it is at /, what the server takes at /docs, Prometheus' numbers at /metrics. It listens to
this machine alone, unless --host says otherwise. SIGTERM or Ctrl-C: what runs is finished first.
"""

import argparse
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from npgpt2.cli.common import (
    add_engine,
    add_model,
    add_precision,
    load_engine,
    model_name,
    note,
    number,
    read_file,
    whole,
)
from npgpt2.errors import FileError, MissingPackage, OptionError, TokenizerError

if TYPE_CHECKING:
    from npgpt2.language_model import LanguageModel

HELP = "serve a model over HTTP, in the words of OpenAI's API"
EXAMPLES = """examples:
  npgpt2 serve
  npgpt2 serve --model OUT --engine onnx --slots 16
  npgpt2 serve --host 0.0.0.0 --api-key-file keys.txt --allow-host gpt2.example.org"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    network = parser.add_argument_group("network")
    network.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: %(default)s)"
    )
    network.add_argument(
        "--port", type=whole, default=8000, help="0: any that is free (default: %(default)s)"
    )
    network.add_argument(
        "--api-key-file",
        metavar="FILE",
        help="keys, one a line: every request but /livez needs one (default: none does)",
    )
    network.add_argument(
        "--allow-host",
        action="append",
        metavar="NAME",
        help="a name that this server goes by; may be given several times (addresses and localhost "
        "are known)",
    )
    load = parser.add_argument_group("load")
    load.add_argument(
        "--slots",
        type=whole,
        default=8,
        metavar="N",
        help="texts written at the same time (default: %(default)s)",
    )
    load.add_argument(
        "--queue",
        type=whole,
        default=64,
        metavar="N",
        help="texts that may wait for a slot; more are refused (default: %(default)s)",
    )
    load.add_argument(
        "--drain-seconds",
        type=number,
        default=30,
        metavar="S",
        help="what runs may take so long to finish when the server is told to end "
        "(default: %(default)s)",
    )
    add_engine(parser)
    add_precision(parser)


def run(args: argparse.Namespace) -> int:
    _require_range("port", args.port, 0, 65535)
    require_load(args)
    keys = [] if args.api_key_file is None else keys_in(args.api_key_file)
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
    hosts = args.allow_host
    if not local:
        hosts = hosts or []
        open_ = "" if keys else ", and needs no key: --api-key-file asks for one"
        note(f"warning: {address} is reached from other machines{open_}")
    place = f"http://{f'[{address}]' if ':' in address else address}:{port}"
    only = ", for this machine only" if local else ""

    def tell(text: str) -> None:
        note(f"{name} at {place}{only}. Ctrl-C ends it" if text == "ready" else text)

    name = model_name(args)
    engine = Engine(lambda: load_served(args), args.slots, args.queue, Metrics())
    service = Service(engine, name, args.debug)
    told = asyncio.run(serve(service, listener, args.drain_seconds, hosts, keys, tell))
    note("ended: nothing is left running")
    return 130 if told == signal.SIGINT else 0


def require_load(args: argparse.Namespace) -> None:
    _require_range("slots", args.slots, 1, 256)
    _require_range("queue", args.queue, 0, 100_000)
    _require_range("drain_seconds", args.drain_seconds, 0, 86_400)


def load_served(args: argparse.Namespace) -> "LanguageModel":
    model = load_engine(args)
    if not model.has_vocabulary:
        raise TokenizerError("--model: has no vocabulary, expected one: a server answers in text")
    return model


def keys_in(file: str) -> list[str]:
    """One a line; what begins with # is none."""
    keys = [line.strip() for line in read_file(Path(file)).splitlines()]
    keys = [key for key in keys if key and not key.startswith("#")]
    if not keys:
        raise FileError(f"{file}: holds no key, expected one a line")
    for n, key in enumerate(keys, 1):
        if not key.isascii() or not key.isprintable() or " " in key:
            raise FileError(f"{file}: key {n} is no key, expected ASCII letters, digits and signs")
    return keys


def _require_range(name: str, value: float, least: int, most: int) -> None:
    if not least <= value <= most:
        raise OptionError(name, f"got {value}, expected {least} to {most:,}")
