"""Access control: the Host header and the API key.

A page of another site can make its name resolve to 127.0.0.1 and then read the answers of a server
there (DNS rebinding). It cannot choose the Host header, which still has the name of its site.
"""

import base64
import hmac
import ipaddress
import time
from collections.abc import Iterable
from hashlib import sha256
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from npgpt2.serve.metrics import Metrics
from npgpt2.serve.protocol import ApiError

MAX_HEADERS = 100
HEAD_BYTES = 16 << 10
ALIVE = "/livez"  # for process supervisors, which have no key


class Guard:
    """An ASGI middleware that checks the headers, the host and the key of each request.

    Args:
        hosts: names of this server; every IP address is then allowed as well. None: only
            localhost and loopback addresses are.
        keys: valid API keys; if empty, no key is needed.
        paths: paths that metrics count by name.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        hosts: Iterable[str] | None = None,
        keys: Iterable[str] = (),
        paths: Iterable[str] = (),
    ) -> None:
        self._app, self._metrics, self._paths = app, metrics, frozenset(paths)
        self._hosts = None if hosts is None else {host.lower() for host in hosts}
        self._keys = [sha256(key.encode()).digest() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, path = time.monotonic(), scope["path"]

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                known = path if path in self._paths else "other"
                self._metrics.requests.labels(known, message["status"]).inc()
            await send(message)
            last = message["type"] == "http.response.body" and not message.get("more_body")
            if last and path in self._paths:
                self._metrics.duration.labels(path).observe(time.monotonic() - begun)

        try:
            self._check(scope)
        except ApiError as error:
            await refusal(error, close=True)(scope, receive, counted)
            return
        await self._app(scope, receive, counted)

    def _check(self, scope: Scope) -> None:
        count, size = len(scope["headers"]), sum(len(k) + len(v) for k, v in scope["headers"])
        if count > MAX_HEADERS or size > HEAD_BYTES:
            raise ApiError(
                431,
                f"headers: got {count} with {size:,} bytes, expected at most {MAX_HEADERS} and "
                f"{HEAD_BYTES:,}",
            )
        if scope["path"] == ALIVE:
            return
        headers = Headers(scope=scope)
        if not self._is_ours(headers.get("host", "")):
            raise ApiError(
                403,
                "Host: is not a name of this server. Allow it with --allow-host NAME",
                "Host",
                "host_not_allowed",
            )
        if self._keys and not self._has_key(headers.get("authorization", "")):
            raise ApiError(
                401,
                "Authorization: expected 'Bearer KEY' with a valid key of this server",
                "Authorization",
                "invalid_api_key",
                {"WWW-Authenticate": 'Basic realm="npgpt2"'},  # browsers then ask for a password
            )

    def _is_ours(self, host: str) -> bool:
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        name = name.strip("[]").rstrip(".").lower()
        if name == "localhost":
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:  # a name, which a stranger may have registered
            return self._hosts is not None and name in self._hosts
        return address.is_loopback or self._hosts is not None

    def _has_key(self, authorization: str) -> bool:
        """Whether the header has a valid key; takes the same time for every key."""
        kind, _, given = authorization.partition(" ")
        if kind.lower() == "basic":  # from a browser: any user name, the key as password
            try:
                given = base64.b64decode(given, validate=True).decode().partition(":")[2]
            except ValueError:
                given = ""
        digest = sha256(given.strip().encode()).digest()
        found = [hmac.compare_digest(digest, key) for key in self._keys]
        return sum(found) > 0


def refusal(error: ApiError, close: bool = False) -> JSONResponse:
    """An error response; `close` closes the connection without reading the rest of the request."""
    headers: dict[str, Any] = error.headers | ({"Connection": "close"} if close else {})
    return JSONResponse(error.body, error.status, headers)
