"""The ASGI application: routes, the gate before them, and every error in OpenAI's form."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mlc_bridge.engine.async_engine import AsyncMLCEngine
from mlc_bridge.engine.generation import ModelFailure
from mlc_bridge.engine.openai.error import error_object, failure
from mlc_bridge.engine.server import about, generate
from mlc_bridge.engine.server.gate import Gate, TooLarge, refused, too_large
from mlc_bridge.engine.server.metrics import Metrics
from mlc_bridge.engine.server.served import NotReady, Served
from mlc_bridge.engine.server.settings import Settings
from mlc_bridge.errors import BridgeError

ROUTES = (
    ("POST", "/v1/chat/completions", generate.chat_completions),
    ("POST", "/v1/completions", generate.completions),
    ("POST", "/v1/responses", generate.responses),
    ("POST", "/v1/embeddings", generate.embeddings),
    ("GET", "/v1/models", about.models),
    ("GET", "/v1/models/{id:path}", about.model),
    ("POST", "/tokenize", about.tokenize),
    ("POST", "/detokenize", about.detokenize),
    ("GET", "/", about.page),
    ("GET", "/health", about.health),
    ("GET", "/version", about.version),
    ("GET", "/metrics", about.metrics),
)


def app(
    engine: AsyncMLCEngine | Callable[[], AsyncMLCEngine],
    settings: Settings | None = None,
    *,
    loaded: Callable[[], None] | None = None,
) -> Starlette:
    """The application; ending it ends the engine. One that is still to be opened is opened while
    the server answers already; then ``loaded`` is called."""
    settings = settings or Settings()
    if isinstance(engine, AsyncMLCEngine):
        name = settings.name or Path(engine.model).expanduser().resolve().name
        here = Served(lambda: engine, settings, name)
        here.take(engine)
    else:
        here = Served(engine, settings, settings.name or "model")
    cors = Middleware(
        CORSMiddleware, allow_origins=settings.origins, allow_methods=["*"], allow_headers=["*"]
    )
    metrics = Metrics(here)
    gate = Middleware(Gate, settings=settings, counted=metrics.counted)
    application = Starlette(
        routes=[Route(path, call, methods=[method]) for method, path, call in ROUTES],
        middleware=[gate, *([cors] if settings.origins else [])],
        exception_handlers=HANDLERS,
        lifespan=_lifespan(here, loaded),
    )
    application.state.served, application.state.metrics = here, metrics
    return application


def _lifespan(here: Served, loaded: Callable[[], None] | None) -> Any:
    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        async def load() -> None:
            if here.status == "loading":
                await here.load()
            if loaded is not None:
                loaded()

        loading = asyncio.create_task(load())
        try:
            yield
        finally:
            await loading
            here.end()

    return lifespan


def _bridge(_: Request, error: Any) -> Response:
    return JSONResponse(error_object(error), 500 if isinstance(error, ModelFailure) else 400)


def _not_ready(_: Request, error: Any) -> Response:
    return refused(503, f"the model is {error}", "model_not_ready", "server_error")


def _http(_: Request, error: Any) -> Response:
    found = failure(str(error.detail), "not_found" if error.status_code == 404 else None)
    return JSONResponse(found, error.status_code, error.headers)


def _no_model(_: Request, error: Any) -> Response:
    return about.no_model(str(error))


def _large(request: Request, _: Any) -> Response:
    return too_large(request.app.state.served.settings.max_body)


def _slow(_: Request, __: Any) -> Response:
    return refused(408, "the body did not arrive in time", "timeout")


def _gone(_: Request, __: Any) -> Response:
    return Response(status_code=499)  # nobody reads it


def _defect(_: Request, error: Any) -> Response:
    logging.getLogger("uvicorn.error").error("a defect of mlc-bridge", exc_info=error)
    return refused(
        500, f"a defect of the server: {type(error).__name__}", "server_error", "server_error"
    )


HANDLERS: dict[Any, Any] = {
    BridgeError: _bridge,
    NotReady: _not_ready,
    HTTPException: _http,
    TooLarge: _large,
    TimeoutError: _slow,
    generate.ClientGone: _gone,
    generate.NoSuchModel: _no_model,
    Exception: _defect,
}
