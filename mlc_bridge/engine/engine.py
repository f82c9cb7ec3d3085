"""``MLCEngine``: a compiled model behind OpenAI's interface, as MLC LLM's engine of the same name.

    with MLCEngine("dist/model") as engine:
        for chunk in engine.chat.completions.create(messages=[...], stream=True):
            print(chunk.choices[0].delta.content, end="")

Requests may come from any number of threads at once; they run together, token by token (see
``scheduler``). Settings that a request leaves out come from ``mlc-chat-config.json``: temperature,
top_p, presence and frequency penalty; what ends an answer stands in its ``conv_template``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Literal, TypeVar, Unpack, overload

from mlc_bridge.engine.deltas import Deltas
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


class MLCEngine(Frontend):
    """See ``Frontend`` for the arguments; ``chat.completions`` and ``completions`` answer."""

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
        self.chat = Chat(self)
        self.completions = Completions(self)

    def __enter__(self) -> MLCEngine:
        return self


class ChatCompletions:
    """``engine.chat.completions``."""

    def __init__(self, engine: MLCEngine) -> None:
        self._engine = engine

    @overload
    def create(
        self, *, messages: list[dict[str, Any]], stream: Literal[True],
        **options: Unpack[ChatOptions],
    ) -> Iterator[ChatCompletionStreamResponse]: ...  # fmt: skip
    @overload
    def create(
        self, *, messages: list[dict[str, Any]], stream: Literal[False] | None = None,
        **options: Unpack[ChatOptions],
    ) -> ChatCompletionResponse: ...  # fmt: skip
    def create(
        self,
        *,
        messages: list[dict[str, Any]],
        stream: bool | None = None,
        **options: Unpack[ChatOptions],
    ) -> ChatCompletionResponse | Iterator[ChatCompletionStreamResponse]:
        """Answer a conversation; ``options`` are the fields of ``openai.chat``.

        With ``stream`` an iterator of chunks. Raises EngineError for an argument that is unknown or
        out of range, by name, and ContextOverflow for a prompt that does not fit.
        """
        request = request_of(
            ChatCompletionRequest, {"messages": messages, "stream": stream, **options}
        )
        deltas, frame = _begun(self._engine, request)
        if request.stream:
            return _stream(deltas, ChatStream(frame))
        return _whole(deltas, ChatWhole(frame))


class Chat:
    """``engine.chat``."""

    def __init__(self, engine: MLCEngine) -> None:
        self.completions = ChatCompletions(engine)


class Completions:
    """``engine.completions``."""

    def __init__(self, engine: MLCEngine) -> None:
        self._engine = engine

    @overload
    def create(
        self, *, prompt: str | list[Any], stream: Literal[True],
        **options: Unpack[CompletionOptions],
    ) -> Iterator[CompletionResponse]: ...  # fmt: skip
    @overload
    def create(
        self, *, prompt: str | list[Any], stream: Literal[False] | None = None,
        **options: Unpack[CompletionOptions],
    ) -> CompletionResponse: ...  # fmt: skip
    def create(
        self,
        *,
        prompt: str | list[Any],
        stream: bool | None = None,
        **options: Unpack[CompletionOptions],
    ) -> CompletionResponse | Iterator[CompletionResponse]:
        """Continue a text, a list of token ids, or each of a list of either; ``options`` are the
        fields of ``openai.completion``.

        Raises as ``ChatCompletions.create`` does.
        """
        request = request_of(CompletionRequest, {"prompt": prompt, "stream": stream, **options})
        deltas, frame = _begun(self._engine, request)
        if request.stream:
            return _stream(deltas, CompletionStream(frame))
        return _whole(deltas, CompletionWhole(frame))


def _begun(engine: MLCEngine, request: Request) -> tuple[Deltas, Any]:
    prompts = engine.prompts_of(request)
    structure = engine.structure_of(request)
    count = len(prompts) * request.drawn
    matchers = [] if structure is None else engine.matchers(request, structure, count)
    return engine.start(request, prompts, matchers, Deltas()), engine.frame(request, prompts)


def _stream(deltas: Deltas, shape: Shape[T]) -> Iterator[T]:
    with closing(deltas):
        for delta in deltas:
            yield from shape.push(delta)
        yield from shape.end()


def _whole(deltas: Deltas, shape: Shape[T]) -> T:
    (answer,) = _stream(deltas, shape)
    return answer
