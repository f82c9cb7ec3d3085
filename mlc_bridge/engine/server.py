"""OpenAI's REST interface over an engine (fastapi and uvicorn, the extra ``serve``).

    GET  /health                  {"status": "ok"}; 503 once the engine has ended
    GET  /v1/models               the one model served
    POST /v1/chat/completions     protocol.ChatCompletionRequest; server-sent events with "stream"
    POST /v1/completions          protocol.CompletionRequest, the same

Errors are OpenAI's error object: 400 for what the request got wrong, 500 and 503 for what we did.
A client that goes away in the middle of a stream cancels its answers.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from mlc_bridge.engine.engine import MLCEngine, parse
from mlc_bridge.engine.generation import ModelFailure
from mlc_bridge.engine.protocol import ChatCompletionRequest, CompletionRequest
from mlc_bridge.errors import BridgeError, ContextOverflow, EngineError, MissingDependency

try:
    import uvicorn
    from anyio.to_thread import current_default_thread_limiter
    from fastapi import FastAPI, Request, Response
    from fastapi.responses import JSONResponse, StreamingResponse
    from starlette.concurrency import iterate_in_threadpool, run_in_threadpool
except ImportError as error:
    raise MissingDependency(str(error.name), "serving", "pip install 'mlc-bridge[serve]'") from None

DONE = "data: [DONE]\n\n"


def serve(engine: MLCEngine, host: str = "127.0.0.1", port: int = 8000) -> None:
    """Serve until interrupted, then end the engine."""
    uvicorn.run(app(engine), host=host, port=port, log_level="info")


def app(engine: MLCEngine) -> FastAPI:
    """The ASGI application; ending it ends the engine."""
    application = FastAPI(title="mlc-bridge", lifespan=_lifespan(engine))
    name, started = Path(engine.model).resolve().name, int(time.time())

    @application.get("/health")
    def health() -> Response:
        if engine.alive:
            return JSONResponse({"status": "ok"})
        return JSONResponse({"status": "ended"}, 503)

    @application.get("/v1/models")
    def models() -> dict[str, Any]:
        model = {"id": name, "object": "model", "created": started, "owned_by": "mlc-bridge"}
        return {"object": "list", "data": [model]}

    @application.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await answer(request, ChatCompletionRequest, engine.chat.completions.answer)

    @application.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await answer(request, CompletionRequest, engine.completions.answer)

    async def answer(request: Request, kind: type[Any], call: Callable[[Any], Any]) -> Response:
        try:
            wish = parse(kind, _object(await request.body()))
            result = await run_in_threadpool(call, wish)
        except BridgeError as error:
            return JSONResponse(_error(error), _status(engine, error))
        if not wish.stream:
            return JSONResponse(result.model_dump(exclude_none=True))
        return StreamingResponse(_events(result), media_type="text/event-stream")

    return application


def _lifespan(engine: MLCEngine) -> Any:
    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        # A waiting request holds a thread; more may wait than run.
        current_default_thread_limiter().total_tokens = 4 * engine.limits.max_batch + 40
        try:
            yield
        finally:
            engine.terminate()

    return lifespan


async def _events(chunks: Generator[BaseModel]) -> AsyncIterator[str]:
    try:
        async for chunk in iterate_in_threadpool(chunks):
            yield f"data: {chunk.model_dump_json(exclude_none=True)}\n\n"
    except BridgeError as error:
        yield f"data: {json.dumps(_error(error))}\n\n"
    finally:
        chunks.close()
    yield DONE


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except ValueError as problem:
        raise EngineError("the body is not JSON", found=str(problem)) from None
    if not isinstance(found, dict):
        raise EngineError("the body is not a JSON object", found=type(found).__name__)
    return found


def _error(error: BridgeError) -> dict[str, Any]:
    code = "context_length_exceeded" if isinstance(error, ContextOverflow) else None
    param = None if error.where is None else str(error.where)
    kind = "server_error" if isinstance(error, ModelFailure) else "invalid_request_error"
    return {"error": {"message": str(error), "type": kind, "param": param, "code": code}}


def _status(engine: MLCEngine, error: BridgeError) -> int:
    if not engine.alive:
        return 503
    return 500 if isinstance(error, ModelFailure) else 400
