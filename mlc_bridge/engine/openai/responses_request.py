"""``/v1/responses``: the part of it that a text model without a memory can answer.

Every request brings its whole conversation (``previous_response_id`` and stored items are refused)
and becomes a chat request.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from mlc_bridge.engine.openai.chat import ChatCompletionRequest, NamedTool, Tool
from mlc_bridge.engine.openai.error import parse
from mlc_bridge.engine.openai.request import Tolerant
from mlc_bridge.errors import EngineError


class TextFormat(Tolerant):
    """As ``response_format``, with the schema one level higher."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    schema_: dict[str, Any] | bool | None = Field(default=None, alias="schema")


class TextOptions(Tolerant):
    format: TextFormat = TextFormat()


class ResponsesRequest(Tolerant):
    input: str | Annotated[list[dict[str, Any]], Field(min_length=1)]
    model: str | None = None
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    tools: list[Tool] = Field(default_factory=list)
    tool_choice: Literal["none", "auto", "required"] | NamedTool = "auto"
    parallel_tool_calls: bool = True
    text: TextOptions = TextOptions()
    stream: bool = False
    metadata: dict[str, Any] = Field(default_factory=dict)
    previous_response_id: str | None = None
    conversation: Any = None
    background: bool = False

    # Known, and without a meaning here.
    store: Any = None
    user: Any = None
    include: Any = None
    reasoning: Any = None
    truncation: Any = None
    service_tier: Any = None
    prompt_cache_key: Any = None
    safety_identifier: Any = None
    top_logprobs: Any = None
    max_tool_calls: Any = None
    stream_options: Any = None

    @model_validator(mode="after")
    def _has_no_memory(self) -> ResponsesRequest:
        if self.previous_response_id or self.conversation or self.background:
            raise ValueError("this server keeps no responses: send the whole conversation as input")
        return self

    def chat(self) -> ChatCompletionRequest:
        """The same question as a chat request. Raises EngineError."""
        shared = ("model", "temperature", "top_p", "seed", "stream", "parallel_tool_calls")
        fields = {name: getattr(self, name) for name in shared}
        form = self.text.format
        if form.type == "json_schema":
            fields["response_format"] = {
                "type": form.type, "json_schema": {"schema": form.schema_},
            }  # fmt: skip
        elif form.type == "json_object":
            fields["response_format"] = {"type": form.type}
        return parse(
            ChatCompletionRequest,
            {
                **fields,
                "messages": self._messages(),
                "max_completion_tokens": self.max_output_tokens,
                "tools": [tool.model_dump() for tool in self.tools],
                "tool_choice": self.tool_choice
                if isinstance(self.tool_choice, str)
                else self.tool_choice.model_dump(),
            },
        )[0]

    def _messages(self) -> list[dict[str, Any]]:
        start = [{"role": "system", "content": self.instructions}] if self.instructions else []
        if isinstance(self.input, str):
            return [*start, {"role": "user", "content": self.input}]
        found: list[dict[str, Any]] = start
        for i, item in enumerate(self.input):
            _append(found, item, f"input.{i}")
        return found


def _append(messages: list[dict[str, Any]], item: dict[str, Any], where: str) -> None:
    kind = item.get("type") or "message"
    if kind == "message":
        messages.append({"role": item.get("role"), "content": item.get("content")})
    elif kind == "function_call":
        function = {"name": item.get("name"), "arguments": item.get("arguments")}
        call = {"id": item.get("call_id"), "type": "function", "function": function}
        if messages and messages[-1].get("tool_calls"):
            messages[-1]["tool_calls"].append(call)
        else:
            messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
    elif kind == "function_call_output":
        content, call_id = item.get("output"), item.get("call_id")
        messages.append({"role": "tool", "tool_call_id": call_id, "content": content})
    elif kind != "reasoning":
        raise EngineError("this kind of item means nothing here", where=where, found=str(kind)[:64])
