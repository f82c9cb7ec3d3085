"""OpenAI's responses, as MLC LLM's engine names them; every key a client reads is there.

A key that only sometimes exists (``usage``, ``tool_calls``) is left out of the JSON while it is
None; the others are ``null``, as ``finish_reason`` is in every chunk but the last.
"""

from __future__ import annotations

import time
import uuid
from typing import Any, Literal

from pydantic import BaseModel, Field

FinishReason = Literal["stop", "length", "tool_calls", "function_call"]


def optional() -> Any:
    """None, and then not a key of the JSON."""
    return Field(default=None, exclude_if=lambda value: value is None)


class PromptTokensDetails(BaseModel):
    """Tokens of the prompts that the prefix cache had."""

    cached_tokens: int = 0


class CompletionUsage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails = PromptTokensDetails()
    extra: dict[str, Any] | None = optional()


class TopLogProbs(BaseModel):
    token: str
    logprob: float
    bytes: list[int] | None


class LogProbsContent(TopLogProbs):
    top_logprobs: list[TopLogProbs] = []


class LogProbs(BaseModel):
    content: list[LogProbsContent]
    refusal: None = None


class CompletionLogProbs(BaseModel):
    """One entry a token; the first of an echoed prompt has None."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class FunctionCall(BaseModel):
    name: str | None = optional()
    arguments: str = ""


class ToolCall(BaseModel):
    """In a delta only the first of a call has id, type and name."""

    index: int | None = optional()
    id: str | None = optional()
    type: Literal["function"] | None = optional()
    function: FunctionCall


class ResponseMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str | None = None
    refusal: None = None
    tool_calls: list[ToolCall] | None = optional()
    function_call: FunctionCall | None = optional()


class ResponseDelta(BaseModel):
    """``role`` is in the first delta of an answer alone."""

    role: Literal["assistant"] | None = optional()
    content: str | None = optional()
    tool_calls: list[ToolCall] | None = optional()
    function_call: FunctionCall | None = optional()


def _now() -> int:
    return int(time.time())


def new_id(kind: str) -> str:
    return f"{kind}-{uuid.uuid4().hex}"


class ChatChoice(BaseModel):
    index: int = 0
    message: ResponseMessage
    logprobs: LogProbs | None = None
    finish_reason: FinishReason | None = None


class ChatStreamChoice(BaseModel):
    index: int = 0
    delta: ResponseDelta
    logprobs: LogProbs | None = None
    finish_reason: FinishReason | None = None


class _Answer(BaseModel):
    id: str
    created: int = Field(default_factory=_now)
    model: str | None = None
    system_fingerprint: str = ""
    usage: CompletionUsage | None = None


class ChatCompletionResponse(_Answer):
    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]


class ChatCompletionStreamResponse(_Answer):
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    choices: list[ChatStreamChoice]


class CompletionChoice(BaseModel):
    text: str
    index: int = 0
    logprobs: CompletionLogProbs | None = None
    finish_reason: FinishReason | None = None


class CompletionResponse(_Answer):
    object: Literal["text_completion"] = "text_completion"
    choices: list[CompletionChoice]
