"""The server process: its socket, its signals, and its limits for connections.

uvicorn speaks HTTP, with h11. The limits that it lacks are here: the time for the headers of a
request, the time that an answer may stay unread, and the number of connections.
"""

import asyncio
import contextlib
import json
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from npgpt2.base.errors import FileError
from npgpt2.serve.api import Service, application
from npgpt2.serve.guard import HEAD_BYTES
from npgpt2.serve.protocol import ApiError

HEAD_SECONDS = 10.0  # from a request's first byte, or the connection, to the end of its headers
UNREAD_SECONDS = 30.0  # how long an answer may wait for its client to read
IDLE_SECONDS = 30  # how long a connection may stay open between two requests
MAX_CONNECTIONS = 512


class Connection(H11Protocol):
    """One connection, with time limits."""

    _head: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
            return
        self._head = self.loop.call_later(HEAD_SECONDS, self._too_slow)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.transport.is_closing():
            return
        begun = self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]
        if not begun:
            self._stop("_head")
        elif self._head is None:
            self._head = self.loop.call_later(HEAD_SECONDS, self._too_slow)
        if self.conn.our_state is h11.DONE and self.conn.their_state is h11.SEND_BODY:
            self.transport.close()  # the client still sends after the answer

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop("_head")
        self._stop("_unread")
        super().connection_lost(exc)

    def _too_slow(self) -> None:
        self._head = None
        if self.conn.trailing_data[0]:
            self._refuse(ApiError(408, f"headers: did not arrive within {HEAD_SECONDS:g} s"))
        else:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Called when h11 refuses a request, while its exception is being handled."""
        error = sys.exc_info()[1]
        status = getattr(error, "error_status_hint", 400)
        self._refuse(ApiError(status, f"request: {error or msg}"))

    def _refuse(self, error: ApiError) -> None:
        body = json.dumps(error.body).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        with contextlib.suppress(h11.LocalProtocolError):  # an answer has begun and is cut off
            for event in (
                h11.Response(status_code=error.status, headers=headers),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
        self.loop.call_later(UNREAD_SECONDS, self.transport.abort)

    # ── unread answers ───────────────────────────────────────────────────────────────────────────

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(UNREAD_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        self._stop("_unread")
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self.loop.call_later(UNREAD_SECONDS, self.transport.abort)

    def _stop(self, timer: str) -> None:
        running = getattr(self, timer)
        if running is not None:
            running.cancel()
            setattr(self, timer, None)


class Server(uvicorn.Server):
    """uvicorn's server with `stop`: it drains first, and answers health checks meanwhile."""

    def __init__(self, app: Any, drain: Callable[[], Awaitable[None]]) -> None:
        config = uvicorn.Config(
            app, http=Connection, ws="none", lifespan="off", log_config=None, log_level="critical",
            access_log=False, server_header=False, timeout_keep_alive=IDLE_SECONDS,
            timeout_graceful_shutdown=5, h11_max_incomplete_event_size=HEAD_BYTES,
        )  # fmt: skip
        super().__init__(config)
        self._drain, self.told = drain, 0

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Use Python's signal handlers: the event loop on Windows has none. They run when the loop
        wakes, and uvicorn wakes it ten times a second."""
        loop = asyncio.get_running_loop()

        def tell(number: int, _: Any) -> None:
            loop.call_soon_threadsafe(self.stop, number)

        names = [name for name in ("SIGINT", "SIGTERM", "SIGBREAK") if hasattr(signal, name)]
        before = {name: signal.signal(getattr(signal, name), tell) for name in names}
        try:
            yield
        finally:
            for name, was in before.items():
                # None: the handler before was not set from Python.
                signal.signal(getattr(signal, name), signal.SIG_DFL if was is None else was)

    def stop(self, number: int) -> None:
        """The first call drains, then ends; the second call ends at once."""
        if self.told:
            self.should_exit = self.force_exit = True
            # Since Python 3.12 a closed server waits for its connections.
            for connection in self.server_state.connections:
                connection.transport.abort()
            return
        self.told = number
        self._draining = asyncio.ensure_future(self._end())

    async def _end(self) -> None:
        await self._drain()
        self.should_exit = True


async def serve(
    service: Service,
    listener: socket.socket,
    drain_seconds: float,
    hosts: Iterable[str] | None = None,
    keys: Iterable[str] = (),
    tell: Callable[[str], None] = lambda text: None,
) -> int:
    """Serve until a signal ends it; returns the number of the signal.

    It answers with 503 while the model is being loaded and while the server drains.

    Args:
        hosts, keys: see `Guard`.
        tell: callback for log lines: "ready" when the model is loaded, and what happens to running
            texts at the end.

    Raises:
        whatever loading the model raised.
    """
    engine = service.engine

    async def drain() -> None:
        if engine.held:
            texts = f"{engine.held} text{'' if engine.held == 1 else 's'}"
            limit = f"{drain_seconds:g} s. A second signal ends it at once"
            tell(f"shutting down: {texts} may finish within {limit}")
        if cut := await engine.drain(drain_seconds):
            tell(f"warning: {cut} of them did not finish, their clients got an error")

    server = Server(application(service, hosts, keys), drain)
    serving = asyncio.ensure_future(server.serve([listener]))
    engine.start()
    try:
        loaded = asyncio.ensure_future(engine.loaded())
        await asyncio.wait([loaded, serving], return_when=asyncio.FIRST_COMPLETED)
        if loaded.done():
            try:
                loaded.result()
                tell("ready")
            except BaseException:
                server.should_exit = True
                raise
        await serving
    finally:
        await serving
        engine.close()
    return server.told


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        FileError: the address is in use, not allowed, or not one of this machine.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1024)
    except OSError as error:
        hint = "Choose another address with --host or --port"
        raise FileError(f"{host}:{port}: {error.strerror or error}. {hint}") from None
    listener.setblocking(False)
    return listener
