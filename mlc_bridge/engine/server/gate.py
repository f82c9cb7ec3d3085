"""What every request passes before a route sees it: host, origin, key, number and size."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import JSONResponse

from mlc_bridge.engine.openai.error import failure
from mlc_bridge.engine.server.settings import Settings

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

OPEN = ("/", "/health")  # no key: the page asks for it itself, and probes have none


MOST_THROWN, PATIENCE = 2**28, 10.0  # bytes, seconds


class TooLarge(Exception):
    """The body is larger than the server allows."""


class Gate:
    """ASGI middleware; see the module docstring."""

    def __init__(self, app: App, settings: Settings, counted: Callable[[str, int], None]) -> None:
        self._inner, self._settings, self._running, self._counted = app, settings, 0, counted
        self._key = None if settings.api_key is None else f"Bearer {settings.api_key}".encode()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return
        send = self._counting(scope["path"], send)
        headers = Headers(scope=scope)
        refusal = self._refusal(scope, headers)
        if refusal is None and self._too_long(headers):
            await _thrown_away(receive)
            refusal = too_large(self._settings.max_body)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        self._running += 1
        try:
            await self._inner(scope, self._bounded(receive), send)
        finally:
            self._running -= 1

    def _refusal(self, scope: Message, headers: Headers) -> JSONResponse | None:
        s, host = self._settings, headers.get("host", "")
        if s.hosts is not None and _name(host) not in s.hosts:
            return refused(403, "this server does not answer to that host name", "host_not_allowed")
        origin = headers.get("origin")
        known = {"*", origin} & {*s.origins}
        if origin and not known and origin.partition("://")[2] != host:
            return refused(403, "requests of other web pages are not allowed", "origin_not_allowed")
        if scope["method"] == "OPTIONS":
            return None
        given = headers.get("authorization", "").encode("latin-1", errors="replace")
        if self._key and scope["path"] not in OPEN and not hmac.compare_digest(given, self._key):
            return refused(401, "a valid API key is needed", "invalid_api_key")
        if scope["method"] == "POST" and self._running >= s.max_requests:
            return refused(
                429, "too many requests at once", "rate_limit_exceeded", "rate_limit_error"
            )
        return None

    def _too_long(self, headers: Headers) -> bool:
        length = headers.get("content-length", "")
        return length.isdigit() and int(length[:20]) > self._settings.max_body

    def _counting(self, path: str, send: Send) -> Send:
        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._counted(path, message["status"])
            await send(message)

        return counting

    def _bounded(self, receive: Receive) -> Receive:
        seen = 0

        async def bounded() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._settings.max_body:
                raise TooLarge
            return message

        return bounded


async def _thrown_away(receive: Receive) -> None:
    """Read what is too long, up to a bound: a client that is still writing hears no answer."""
    seen = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE):
            while seen < MOST_THROWN:
                message = await receive()
                seen += len(message.get("body", b""))
                if not message.get("more_body"):
                    return


def refused(
    status: int, message: str, code: str, kind: str = "invalid_request_error"
) -> JSONResponse:
    headers = {"Retry-After": "1"} if status in (429, 503) else {}
    return JSONResponse(failure(message, code, kind), status, headers)


def too_large(most: int) -> JSONResponse:
    return refused(413, f"the body is larger than {most} bytes", "request_too_large")


def _name(host: str) -> str:
    """A Host header without its port."""
    return host if host.endswith("]") else host.rpartition(":")[0] or host
