"""What the server says about itself and its model."""

from __future__ import annotations

from importlib.resources import files
from typing import Annotated, Any

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from mlc_bridge import __version__
from mlc_bridge.engine.openai.chat import ChatCompletionRequest, Message
from mlc_bridge.engine.openai.error import failure
from mlc_bridge.engine.openai.request import Tolerant
from mlc_bridge.engine.server.generate import read
from mlc_bridge.engine.server.served import Served, served
from mlc_bridge.errors import EngineError

PAGE = files("mlc_bridge.engine.server").joinpath("page.html").read_bytes()
PAGE_HEADERS = {
    # Nothing from elsewhere, and nobody puts the page into another.
    "content-security-policy": "default-src 'self'; style-src 'unsafe-inline'; img-src data:; "
    "script-src 'unsafe-inline'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


async def page(_: Request) -> Response:
    return HTMLResponse(PAGE, headers=PAGE_HEADERS)


async def health(request: Request) -> Response:
    status = served(request).status
    return JSONResponse({"status": status}, 200 if status == "ok" else 503)


async def version(_: Request) -> Response:
    return JSONResponse({"version": __version__})


async def metrics(request: Request) -> Response:
    text = generate_latest(request.app.state.metrics.registry)
    return Response(text, media_type=CONTENT_TYPE_LATEST)


async def models(request: Request) -> Response:
    return JSONResponse({"object": "list", "data": [_card(served(request))]})


async def model(request: Request) -> Response:
    here, wanted = served(request), request.path_params["id"]
    if wanted == here.name:
        return JSONResponse(_card(here))
    return no_model(wanted)


def no_model(name: str) -> Response:
    message = f"the model {name[:200]!r} does not exist here"
    return JSONResponse(failure(message, "model_not_found", param="model"), 404)


def _card(here: Served) -> dict[str, Any]:
    card = {"id": here.name, "object": "model", "created": here.started, "owned_by": "mlc-bridge"}
    if here.status == "ok":
        engine = here.engine
        card["max_model_len"] = engine.limits.context_window
        bound = engine.config.fingerprint is not None
        card["mlc_bridge"] = {
            "quantization": engine.config.quantization,
            "context": engine.limits.context_window,
            "fingerprint": engine.fingerprint,
            "verified": "lib and weights belong together"
            if bound
            else "lib and weights are not bound to each other",
        }
    return card


class TokenizeRequest(Tolerant):
    """vLLM's ``prompt`` or ``messages``, llama.cpp's ``content``."""

    model: str | None = None
    prompt: str | None = None
    content: str | None = None
    messages: Annotated[list[Message], Field(fail_fast=True)] | None = None
    add_generation_prompt: bool = True


class DetokenizeRequest(Tolerant):
    model: str | None = None
    tokens: Annotated[list[Annotated[int, Field(ge=0)]], Field(fail_fast=True)]


async def tokenize(request: Request) -> Response:
    asked, headers = await read(request, TokenizeRequest)
    engine = served(request).engine
    tokens = await run_in_threadpool(_tokens, engine, asked)
    found = {"tokens": tokens, "count": len(tokens), "max_model_len": engine.limits.context_window}
    return JSONResponse(found, headers=headers)


def _tokens(engine: Any, asked: TokenizeRequest) -> list[int]:
    if asked.messages:
        chat = ChatCompletionRequest(
            messages=asked.messages, add_generation_prompt=asked.add_generation_prompt
        )
        prefix, text = engine.chat_prompt.text(chat)
        return [*prefix, *engine.tokenizer.encode(text)]
    text = asked.prompt if asked.prompt is not None else asked.content
    if text is None:
        raise EngineError("nothing to tokenize", where="prompt", expected="a text")
    return list(engine.tokenizer.encode(text))


async def detokenize(request: Request) -> Response:
    asked, headers = await read(request, DetokenizeRequest)
    text = served(request).engine.tokenizer.decode(asked.tokens)
    return JSONResponse({"prompt": text, "content": text}, headers=headers)
