"""``/v1/chat/completions``, ``/v1/completions`` and ``/v1/responses``."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from functools import partial
from typing import Any, TypeVar
from urllib.parse import quote

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from mlc_bridge.engine.async_engine import the_one
from mlc_bridge.engine.frontend import Request as Wish
from mlc_bridge.engine.openai.chat import ChatCompletionRequest
from mlc_bridge.engine.openai.completion import CompletionRequest
from mlc_bridge.engine.openai.error import error_object, failure, parse, read_object
from mlc_bridge.engine.openai.responses_request import ResponsesRequest
from mlc_bridge.engine.response_events import ResponseEvents, ResponseWhole
from mlc_bridge.engine.responses import ChatStream, ChatWhole, CompletionStream, CompletionWhole
from mlc_bridge.engine.server.served import Served, served
from mlc_bridge.errors import BridgeError, EngineError

R = TypeVar("R", bound=BaseModel)
T = TypeVar("T")
DONE = b"data: [DONE]\n\n"
IGNORED = "x-mlc-bridge-ignored"


async def chat_completions(request: Request) -> Response:
    wish, headers = await read(request, ChatCompletionRequest)
    return await answered(request, wish, headers, ChatStream if wish.stream else ChatWhole)


async def completions(request: Request) -> Response:
    wish, headers = await read(request, CompletionRequest)
    shape = CompletionStream if wish.stream else CompletionWhole
    return await answered(request, wish, headers, shape)


async def responses(request: Request) -> Response:
    asked, headers = await read(request, ResponsesRequest)
    shape = partial(ResponseEvents if asked.stream else ResponseWhole, request=asked)
    return await answered(request, asked.chat(), headers, shape, _named_event)


def _named_event(event: dict[str, Any]) -> bytes:
    return f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()


def _data(part: BaseModel) -> bytes:
    return b"data: " + part.model_dump_json().encode() + b"\n\n"


async def read(request: Request, kind: type[R]) -> tuple[R, dict[str, str]]:
    """The checked request, and the header that names what was ignored. Raises EngineError."""
    here = served(request)
    fields = read_object(await body_of(request))
    wish, unknown = parse(kind, fields, strict=here.settings.strict)
    if unknown:
        names = ", ".join(quote(name[:64], safe="-_.") for name in unknown[:32])
        return wish, {IGNORED: names}
    return wish, {}


async def body_of(request: Request) -> bytes:
    """Raises TimeoutError for a client that does not send what it announced."""
    async with asyncio.timeout(served(request).settings.body_seconds):
        return await request.body()


async def answered(
    request: Request,
    wish: Wish,
    headers: dict[str, str],
    shape: Callable[..., Any],
    event: Callable[[Any], bytes] = _data,
) -> Response:
    here = served(request)
    limit(wish, here)
    parts = await unless_gone(request, here.engine.answer(wish, shape))
    parts = request.app.state.metrics.observed(timed(parts, here.settings.request_seconds))
    if wish.stream:
        last = DONE if event is _data else b""
        return EventStream(events(parts, event, last), headers)
    whole = await unless_gone(request, the_one(parts))
    if isinstance(whole, dict):
        return JSONResponse(whole, headers=headers)
    return Response(whole.model_dump_json(), media_type="application/json", headers=headers)


def limit(wish: Wish, here: Served) -> None:
    """Bound what is asked by what the server allows. Raises EngineError."""
    most = here.settings.max_answer_tokens
    if most is not None and (wish.most_tokens is None or wish.most_tokens > most):
        wish.max_tokens = most
        if isinstance(wish, ChatCompletionRequest):
            wish.max_completion_tokens = None
    if here.settings.strict and wish.model not in (None, here.name):
        raise NoSuchModel(wish.model or "")


async def timed(parts: AsyncGenerator[T, None], seconds: float) -> AsyncGenerator[T, None]:
    """Raises EngineError when the answer takes longer."""
    end = time.monotonic() + seconds
    async with aclosing(parts):
        while True:
            try:
                async with asyncio.timeout(end - time.monotonic()):
                    part = await anext(parts)
            except StopAsyncIteration:
                return
            except TimeoutError:
                raise EngineError("the answer took too long", expected=f"{seconds:g} s") from None
            yield part


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """``work``, cancelled when the client goes away; then raises CancelledError."""
    return await _first(asyncio.ensure_future(work), asyncio.ensure_future(_gone(request.receive)))


async def _first(work: asyncio.Future[T], leaving: asyncio.Future[None]) -> T:
    both: set[asyncio.Future[Any]] = {work, leaving}
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientGone
        return work.result()
    finally:
        work.cancel()
        leaving.cancel()
        await asyncio.gather(work, leaving, return_exceptions=True)


class NoSuchModel(Exception):
    """The request names a model that is not here."""


class ClientGone(Exception):
    """Nobody is there to answer."""


async def _gone(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def events(
    parts: AsyncGenerator[Any, None], event: Callable[[Any], bytes], last: bytes
) -> AsyncGenerator[bytes, None]:
    """Server-sent events; what goes wrong on the way is an event too."""
    async with aclosing(parts):
        try:
            async for part in parts:
                yield event(part)
        except BridgeError as error:
            yield f"data: {json.dumps(error_object(error))}\n\n".encode()
    if last:
        yield last


class EventStream(Response):
    """Sends as the client reads, and ends when it leaves, also while there is nothing to send."""

    media_type = "text/event-stream"

    def __init__(self, lines: AsyncGenerator[bytes, None], headers: dict[str, str]) -> None:
        super().__init__(
            headers={**headers, "cache-control": "no-cache", "x-accel-buffering": "no"}
        )
        del self.headers["content-length"]
        self._lines = lines

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await _first(
                asyncio.ensure_future(self._send(send)), asyncio.ensure_future(_gone(receive))
            )
        except (ClientGone, OSError):
            pass
        finally:
            await self._lines.aclose()

    async def _send(self, send: Any) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        async for line in self._lines:
            await send({"type": "http.response.body", "body": line, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def embeddings(request: Request) -> Response:
    """These libs give logits, no hidden states."""
    await body_of(request)
    message = "this model writes text and gives no embeddings"
    return JSONResponse(failure(message, "model_not_supported", param="model"), 400)
