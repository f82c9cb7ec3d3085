"""Requests and responses: OpenAI's fields as MLC LLM's engine has them.

Request models refuse unknown arguments by name; response models give every field a client reads.
"""

from __future__ import annotations

import time
import uuid
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

FinishReason = Literal["stop", "length"]
Penalty = Annotated[float, Field(ge=-2, le=2)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class StreamOptions(_Strict):
    include_usage: bool = False


class DebugConfig(_Strict):
    """MLC's extension: ``ignore_eos`` generates ``max_tokens`` tokens whatever they are."""

    ignore_eos: bool = False


class JsonSchema(_Strict):
    """OpenAI's ``json_schema`` block."""

    name: str = "answer"
    schema_: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(_Strict):
    """``text``, ``json_object`` (any JSON, or MLC's ``schema`` as JSON text), ``json_schema``."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    schema_: str | dict[str, Any] | None = Field(default=None, alias="schema")
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _has_schema(self) -> ResponseFormat:
        if self.type == "json_schema" and self.json_schema is None:
            raise ValueError("json_schema needs the key json_schema")
        return self


class _Request(_Strict):
    model: str | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    logit_bias: dict[int, Annotated[float, Field(ge=-100, le=100)]] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    n: Annotated[int, Field(ge=1)] = 1
    stream: bool = False
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    user: str | None = None
    debug_config: DebugConfig | None = None

    @model_validator(mode="after")
    def _checks(self) -> _Request:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream=True")
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if not all(stops):
            raise ValueError("a stop string must not be empty")
        return self


class Message(_Strict):
    """``content`` is text or a list of text parts; ``name`` is accepted and not used, as in MLC."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None


class ChatCompletionRequest(_Request):
    messages: Annotated[list[Message], Field(min_length=1)]
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] = 0

    @model_validator(mode="after")
    def _check_logprobs(self) -> ChatCompletionRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs=True")
        return self

    @property
    def alternatives(self) -> int | None:
        return self.top_logprobs if self.logprobs else None


class CompletionRequest(_Request):
    prompt: str | list[int]
    echo: bool = False
    best_of: Literal[1] = 1
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None

    @property
    def alternatives(self) -> int | None:
        return self.logprobs


class CompletionUsage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    extra: dict[str, Any] | None = None


class TopLogProbs(BaseModel):
    token: str
    logprob: float
    bytes: list[int] | None


class LogProbsContent(TopLogProbs):
    top_logprobs: list[TopLogProbs] = []


class LogProbs(BaseModel):
    content: list[LogProbsContent]


class CompletionLogProbs(BaseModel):
    text_offset: list[int] | None = None
    token_logprobs: list[float]
    tokens: list[str]
    top_logprobs: list[dict[str, float]]


class ResponseMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str | None = None


def _now() -> int:
    return int(time.time())


def new_id(kind: Literal["chatcmpl", "cmpl"]) -> str:
    return f"{kind}-{uuid.uuid4().hex}"


class ChatChoice(BaseModel):
    finish_reason: FinishReason | None = None
    index: int = 0
    message: ResponseMessage
    logprobs: LogProbs | None = None


class ChatStreamChoice(BaseModel):
    finish_reason: FinishReason | None = None
    index: int = 0
    delta: ResponseMessage
    logprobs: LogProbs | None = None


class ChatCompletionResponse(BaseModel):
    id: str
    choices: list[ChatChoice]
    created: int = Field(default_factory=_now)
    model: str | None = None
    system_fingerprint: str = ""
    object: Literal["chat.completion"] = "chat.completion"
    usage: CompletionUsage | None = None


class ChatCompletionStreamResponse(BaseModel):
    id: str
    choices: list[ChatStreamChoice]
    created: int = Field(default_factory=_now)
    model: str | None = None
    system_fingerprint: str = ""
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    usage: CompletionUsage | None = None


class CompletionChoice(BaseModel):
    finish_reason: FinishReason | None = None
    index: int = 0
    logprobs: CompletionLogProbs | None = None
    text: str


class CompletionResponse(BaseModel):
    id: str
    choices: list[CompletionChoice]
    created: int = Field(default_factory=_now)
    model: str | None = None
    object: Literal["text_completion"] = "text_completion"
    usage: CompletionUsage | None = None
