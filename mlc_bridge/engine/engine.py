"""``MLCEngine``: a compiled model behind OpenAI's interface, as MLC LLM's engine of the same name.

    with MLCEngine("dist/model") as engine:
        for chunk in engine.chat.completions.create(messages=[...], stream=True):
            print(chunk.choices[0].delta.content, end="")

Requests may come from any number of threads at once; they run together, token by token (see
``scheduler``). Settings that a request leaves out come from ``mlc-chat-config.json``: temperature,
top_p, presence and frequency penalty; what ends an answer stands in its ``conv_template``.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from mlc_bridge.artifact.chat_config import ChatConfig
from mlc_bridge.engine.generation import Delta, Deltas, Generation, Wish
from mlc_bridge.engine.grammar import Grammars, Matcher
from mlc_bridge.engine.loop import Loop
from mlc_bridge.engine.protocol import (
    ChatCompletionRequest,
    ChatCompletionResponse,
    ChatCompletionStreamResponse,
    CompletionRequest,
    CompletionResponse,
)
from mlc_bridge.engine.responses import (
    Frame,
    chat_response,
    chat_stream,
    completion_response,
    completion_stream,
)
from mlc_bridge.engine.runtime import EngineConfig, Mode, Runtime
from mlc_bridge.engine.sampler import Sampling
from mlc_bridge.engine.scheduler import Sequence as Prompt
from mlc_bridge.engine.tokenizer import Tokenizer
from mlc_bridge.engine.vocabulary import Vocabulary, check_ids, within
from mlc_bridge.errors import ContextOverflow, EngineError

Request = ChatCompletionRequest | CompletionRequest
R = TypeVar("R", bound=BaseModel)


class MLCEngine:
    """Loads a model directory and its compiled lib; ready when the constructor returns.

    ``model_lib`` None takes ``lib.so`` of the directory; ``device`` "auto" the one that the lib was
    compiled for. ``mode``: "local" serves up to 4 requests at once, "interactive" one, "server" as
    many as the lib allows. ``threads`` run the kernels on a CPU (default: the physical cores).
    Raises ArtifactError, ConfigError or EngineError, naming what does not fit, before anything
    runs.
    """

    def __init__(
        self,
        model: str | Path,
        model_lib: str | Path | None = None,
        *,
        device: str = "auto",
        mode: Mode = "local",
        threads: int | None = None,
        engine_config: EngineConfig | None = None,
    ) -> None:
        directory = Path(model).expanduser()
        self.config = ChatConfig.load(directory)
        self.tokenizer = Tokenizer(directory, self.config.tokenizer_info)
        self._vocabulary = self._known_ids()
        runtime = Runtime.open(directory, model_lib, device=device, mode=mode, config=engine_config)
        self.model, self.model_lib = str(model), runtime.library.path
        self.device, self.limits = str(runtime.library.device), runtime.limits
        self._loop = Loop(runtime, threads)
        # Ends the thread when the engine is dropped, and before the interpreter goes away.
        self._end = weakref.finalize(self, self._loop.close)
        self.chat = Chat(self)
        self.completions = Completions(self)

    @property
    def alive(self) -> bool:
        """False once the engine was terminated or its thread died."""
        return self._loop.alive

    @property
    def threads(self) -> int:
        """Threads that run the kernels, as TVM reports them."""
        return self._loop.threads

    def terminate(self) -> None:
        """End the engine and free the model; unfinished requests fail. May be called twice."""
        self._end()

    def __enter__(self) -> MLCEngine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.terminate()

    def _known_ids(self) -> Vocabulary:
        """What may be drawn. Raises EngineError for a begin token that the model does not have."""
        template, size = self.config.conv_template, self.config.vocab_size
        check_ids(template.system_prefix_token_ids or (), size, "system_prefix_token_ids")
        return Vocabulary.of(size, (*self.tokenizer.ids, *template.stop_token_ids))

    def start(self, tokens: Sequence[int], request: Request) -> Deltas:
        """Begin ``request.n`` answers to the prompt ``tokens``.

        Raises ContextOverflow, and EngineError for an id that the model does not have.
        """
        check_ids(tokens, self._vocabulary.size, "the prompt")
        room = self.limits.context_window - len(tokens)
        if not tokens:
            raise EngineError("the prompt is empty")
        if room < 1:
            raise ContextOverflow(
                "the prompt leaves no room for an answer",
                found=f"{len(tokens)} tokens",
                expected=f"at most {self.limits.context_window - 1}",
                todo="Shorten the prompt, or compile with a larger --context-window-size",
            )
        deltas = Deltas(self._generations(request, room))
        first, *rest = deltas.generations
        self._loop.submit(Prompt(tokens, first, rest))
        return deltas

    def _generations(self, request: Request, room: int) -> list[Generation]:
        out: SimpleQueue[Delta] = SimpleQueue()
        wish = self._wish(request, room)
        seeds = [None if request.seed is None else request.seed + i for i in range(request.n)]
        return [
            Generation(
                i, wish, seed, self.tokenizer, self._vocabulary, out,
                streaming=request.stream, grammar=self._grammar(request, wish),
            )
            for i, seed in enumerate(seeds)
        ]  # fmt: skip

    def _grammar(self, request: Request, wish: Wish) -> Matcher | None:
        wanted = request.response_format
        if wanted is None or wanted.type == "text":
            return None
        return self._grammars.matcher(wanted, free_end=not wish.stop_tokens)

    @cached_property
    def _grammars(self) -> Grammars:
        size = self._vocabulary.size
        stops = within(self.config.conv_template.stop_token_ids, size)
        return Grammars(self.tokenizer, size, stops)

    def _wish(self, request: Request, room: int) -> Wish:
        template = self.config.conv_template
        ignore = request.debug_config is not None and request.debug_config.ignore_eos
        own = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ())
        return Wish(
            self._sampling(request),
            min(request.max_tokens or room, room),
            () if ignore else (*own, *template.stop_str),
            frozenset(() if ignore else template.stop_token_ids),
        )

    def _sampling(self, request: Request) -> Sampling:
        def pick(name: str, default: float) -> float:
            asked, model = getattr(request, name), getattr(self.config, name)
            return float(next((v for v in (asked, model) if v is not None), default))

        bias = request.logit_bias or {}
        check_ids(bias.keys(), self._vocabulary.size, "logit_bias")
        return Sampling(
            temperature=pick("temperature", 1.0),
            top_p=pick("top_p", 1.0),
            presence_penalty=pick("presence_penalty", 0.0),
            frequency_penalty=pick("frequency_penalty", 0.0),
            # As in MLC, a model's own default for this one is not applied.
            repetition_penalty=request.repetition_penalty or 1.0,
            logit_bias={t: b for t, b in bias.items() if t < self._vocabulary.end},
            logprobs=request.alternatives,
        )

    def frame(self, tokens: Sequence[int], request: Request, prefix: str = "") -> Frame:
        """What the parts of a response to ``request`` share."""
        options = request.stream_options
        return Frame(
            self.tokenizer,
            request.model or Path(self.model).name,
            len(tokens),
            request.alternatives is not None,
            options is not None and options.include_usage,
            prefix,
        )


class ChatCompletions:
    """``engine.chat.completions``."""

    def __init__(self, engine: MLCEngine) -> None:
        self._engine = engine

    def create(
        self, *, messages: list[dict[str, Any]], stream: bool = False, **options: Any
    ) -> ChatCompletionResponse | Iterator[ChatCompletionStreamResponse]:
        """Answer a conversation; ``options`` are the fields of ``protocol.ChatCompletionRequest``.

        With ``stream`` an iterator of chunks. Raises EngineError for an argument that is unknown or
        out of range, by name, and ContextOverflow for a prompt that does not fit.
        """
        return self.answer(
            parse(ChatCompletionRequest, {"messages": messages, "stream": stream, **options})
        )

    def answer(
        self, request: ChatCompletionRequest
    ) -> ChatCompletionResponse | Iterator[ChatCompletionStreamResponse]:
        """As ``create``, for a request that is already parsed."""
        engine, template = self._engine, self._engine.config.conv_template
        text = template.prompt([m.model_dump(exclude_none=True) for m in request.messages])
        tokens = [*(template.system_prefix_token_ids or ()), *engine.tokenizer.encode(text)]
        deltas, frame = engine.start(tokens, request), engine.frame(tokens, request)
        if request.stream:
            return chat_stream(frame, deltas)
        return chat_response(frame, deltas, request.n)


class Chat:
    """``engine.chat``."""

    def __init__(self, engine: MLCEngine) -> None:
        self.completions = ChatCompletions(engine)


class Completions:
    """``engine.completions``."""

    def __init__(self, engine: MLCEngine) -> None:
        self._engine = engine

    def create(
        self, *, prompt: str | list[int], stream: bool = False, **options: Any
    ) -> CompletionResponse | Iterator[CompletionResponse]:
        """Continue a text or a list of token ids; ``options`` are ``protocol.CompletionRequest``'s.

        Raises as ``ChatCompletions.create`` does.
        """
        return self.answer(
            parse(CompletionRequest, {"prompt": prompt, "stream": stream, **options})
        )

    def answer(
        self, request: CompletionRequest
    ) -> CompletionResponse | Iterator[CompletionResponse]:
        """As ``create``, for a request that is already parsed."""
        engine = self._engine
        prompt = request.prompt
        tokens = engine.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        deltas = engine.start(tokens, request)
        prefix = engine.tokenizer.decode(tokens) if request.echo else ""
        frame = engine.frame(tokens, request, prefix)
        if request.stream:
            return completion_stream(frame, deltas, request.n)
        return completion_response(frame, deltas, request.n)


def parse(kind: type[R], fields: dict[str, Any]) -> R:
    """A checked request. Raises EngineError naming the argument."""
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"]) or "the request"
        if first["type"] == "extra_forbidden":
            known = ", ".join(sorted(kind.model_fields))
            raise EngineError("unknown argument", where=name, expected=f"one of {known}") from None
        raise EngineError(first["msg"], where=name, found=repr(first["input"])) from None
