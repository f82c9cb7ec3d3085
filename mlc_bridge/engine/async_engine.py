"""``AsyncMLCEngine``: the same engine for an event loop; waiting holds no thread.

    engine = AsyncMLCEngine("dist/model")
    async for chunk in await engine.chat.completions.create(messages=[...], stream=True):
        print(chunk.choices[0].delta.content, end="")

Templates and tokenizing run in a small pool of threads, grammars are compiled in another, so that
one large request holds up neither the loop nor the other requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, closing
from pathlib import Path
from typing import Any, Literal, TypeVar, Unpack, overload

from mlc_bridge.engine.deltas import AsyncDeltas
from mlc_bridge.engine.frontend import Frontend, Request
from mlc_bridge.engine.openai.answer import (
    ChatCompletionResponse,
    ChatCompletionStreamResponse,
    CompletionResponse,
)
from mlc_bridge.engine.openai.chat import ChatCompletionRequest
from mlc_bridge.engine.openai.completion import CompletionRequest
from mlc_bridge.engine.openai.options import ChatOptions, CompletionOptions, request_of
from mlc_bridge.engine.responses import (
    ChatStream,
    ChatWhole,
    CompletionStream,
    CompletionWhole,
    Shape,
)
from mlc_bridge.engine.runtime import EngineConfig, Mode

T = TypeVar("T")
READERS = 2  # threads that tokenize


class AsyncMLCEngine(Frontend):
    """See ``Frontend`` for the arguments. One event loop at a time."""

    def __init__(
        self,
        model: str | Path,
        device: str = "auto",
        *,
        model_lib: str | Path | None = None,
        mode: Mode = "local",
        engine_config: EngineConfig | None = None,
        enable_tracing: bool = False,
        threads: int | None = None,
    ) -> None:
        super().__init__(
            model, device, model_lib=model_lib, mode=mode, engine_config=engine_config,
            enable_tracing=enable_tracing, threads=threads,
        )  # fmt: skip
        self.readers = ThreadPoolExecutor(READERS, thread_name_prefix="mlc-bridge-reader")
        self.chat = AsyncChat(self)
        self.completions = AsyncCompletions(self)

    def terminate(self) -> None:
        """End the engine and free the model; unfinished requests fail. May be called twice."""
        self.readers.shutdown(wait=False, cancel_futures=True)
        super().terminate()

    async def __aenter__(self) -> AsyncMLCEngine:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.terminate()

    async def answer(
        self, request: Request, shape: Callable[..., Any]
    ) -> AsyncGenerator[Any, None]:
        """Begin; what ``shape`` makes of the answers comes from the generator, whose end cancels
        what is unfinished. Raises as ``create`` does."""
        loop = asyncio.get_running_loop()
        prompts = await loop.run_in_executor(self.readers, self.prompts_of, request)
        structure, matchers = self.structure_of(request), []
        if structure is not None:
            count = len(prompts) * request.drawn
            matchers = await loop.run_in_executor(
                self.grammars.pool, self.matchers, request, structure, count
            )
        deltas = self.start(request, prompts, matchers, AsyncDeltas())
        return _shaped(deltas, shape(self.frame(request, prompts)))


async def _shaped(deltas: AsyncDeltas, shape: Shape[T]) -> AsyncGenerator[T, None]:
    with closing(deltas):
        async for delta in deltas:
            for part in shape.push(delta):
                yield part
        for part in shape.end():
            yield part


async def the_one(parts: AsyncGenerator[T, None]) -> T:
    """The only part of a response that is not streamed."""
    async with aclosing(parts):
        async for part in parts:
            return part
    raise AssertionError("a response has one part")


class AsyncChatCompletions:
    """``engine.chat.completions``."""

    def __init__(self, engine: AsyncMLCEngine) -> None:
        self._engine = engine

    @overload
    async def create(
        self, *, messages: list[dict[str, Any]], stream: Literal[True],
        **options: Unpack[ChatOptions],
    ) -> AsyncIterator[ChatCompletionStreamResponse]: ...  # fmt: skip
    @overload
    async def create(
        self, *, messages: list[dict[str, Any]], stream: Literal[False] | None = None,
        **options: Unpack[ChatOptions],
    ) -> ChatCompletionResponse: ...  # fmt: skip
    async def create(
        self,
        *,
        messages: list[dict[str, Any]],
        stream: bool | None = None,
        **options: Unpack[ChatOptions],
    ) -> ChatCompletionResponse | AsyncIterator[ChatCompletionStreamResponse]:
        """As ``MLCEngine``'s, awaited."""
        fields = {"messages": messages, "stream": stream, **options}
        request = request_of(ChatCompletionRequest, fields)
        if request.stream:
            return await self._engine.answer(request, ChatStream)
        return await the_one(await self._engine.answer(request, ChatWhole))


class AsyncChat:
    """``engine.chat``."""

    def __init__(self, engine: AsyncMLCEngine) -> None:
        self.completions = AsyncChatCompletions(engine)


class AsyncCompletions:
    """``engine.completions``."""

    def __init__(self, engine: AsyncMLCEngine) -> None:
        self._engine = engine

    @overload
    async def create(
        self, *, prompt: str | list[Any], stream: Literal[True],
        **options: Unpack[CompletionOptions],
    ) -> AsyncIterator[CompletionResponse]: ...  # fmt: skip
    @overload
    async def create(
        self, *, prompt: str | list[Any], stream: Literal[False] | None = None,
        **options: Unpack[CompletionOptions],
    ) -> CompletionResponse: ...  # fmt: skip
    async def create(
        self,
        *,
        prompt: str | list[Any],
        stream: bool | None = None,
        **options: Unpack[CompletionOptions],
    ) -> CompletionResponse | AsyncIterator[CompletionResponse]:
        """As ``MLCEngine``'s, awaited."""
        request = request_of(CompletionRequest, {"prompt": prompt, "stream": stream, **options})
        if request.stream:
            return await self._engine.answer(request, CompletionStream)
        return await the_one(await self._engine.answer(request, CompletionWhole))
