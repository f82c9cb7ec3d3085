"""``/v1/chat/completions``: messages, tools, and how the assistant's turn begins."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from mlc_bridge.engine.openai.request import Request, Tolerant

MOST_TOOLS = 128


class Part(Tolerant):
    """A part of a message; text alone has a meaning for these models."""

    type: str = "text"
    text: str = ""
    refusal: str = ""

    @model_validator(mode="before")
    @classmethod
    def _is_text(cls, value: Any) -> Any:
        kind = value.get("type", "text") if isinstance(value, dict) else "text"
        if kind not in ("text", "input_text", "output_text", "refusal"):
            raise ValueError(f"this model reads text alone, not {str(kind)[:40]!r} parts")
        if kind != "refusal" and isinstance(value, dict) and not isinstance(value.get("text"), str):
            raise ValueError("a text part needs the key text")
        return value


class CalledFunction(Tolerant):
    name: str
    arguments: str = "{}"

    @field_validator("arguments", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        from json import dumps

        return dumps(value) if isinstance(value, dict) else value


class ToolCall(Tolerant):
    """One call that the assistant made."""

    id: str = ""
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(Tolerant):
    """``content`` is text, or a list of text parts, which are joined; the older ``function_call``
    is one of ``tool_calls``."""

    model_config = ConfigDict(extra="allow")

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | Annotated[list[Part], Field(fail_fast=True)] | None = None
    tool_calls: list[ToolCall] = Field(default_factory=list)
    tool_call_id: str | None = None
    name: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _older(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("function_call") is not None:
            rest = {k: v for k, v in value.items() if k != "function_call"}
            return {"tool_calls": [{"function": value["function_call"]}], **rest}
        return value

    @field_validator("content", mode="before")
    @classmethod
    def _plain_parts(cls, value: Any) -> Any:
        if isinstance(value, list):
            return [{"text": part} if isinstance(part, str) else part for part in value]
        return value

    @property
    def text(self) -> str:
        if isinstance(self.content, list):
            return "".join(part.text or part.refusal for part in self.content)
        return self.content or ""


class Function(Tolerant):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.\-]{1,64}$")]
    description: str = ""
    parameters: dict[str, Any] = Field(default_factory=lambda: {"type": "object", "properties": {}})


class Tool(Tolerant):
    type: Literal["function"] = "function"
    function: Function

    @model_validator(mode="before")
    @classmethod
    def _nested(cls, value: Any) -> Any:
        """The Responses interface has name and parameters beside the type."""
        if isinstance(value, dict) and "function" not in value and "name" in value:
            return {"type": value.get("type", "function"), "function": value}
        return value


class NamedFunction(Tolerant):
    name: str


class NamedTool(Tolerant):
    type: Literal["function"] = "function"
    function: NamedFunction

    @model_validator(mode="before")
    @classmethod
    def _nested(cls, value: Any) -> Any:
        if isinstance(value, dict) and "function" not in value and "name" in value:
            return {"function": {"name": value["name"]}}
        return value


class ChatCompletionRequest(Request):
    """``continue_final_message`` goes on with a last assistant message instead of answering it.

    ``functions`` and ``function_call`` are the older names of ``tools`` and ``tool_choice``; an
    answer to them makes one call at most, under the older name too.
    """

    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    max_tokens: Annotated[int, Field(ge=-1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] = 0
    tools: list[Tool] = Field(default_factory=list, max_length=MOST_TOOLS)
    tool_choice: Literal["none", "auto", "required"] | NamedTool = "auto"
    parallel_tool_calls: bool = True
    functions: list[Any] = Field(default_factory=list, max_length=MOST_TOOLS)
    function_call: Literal["none", "auto"] | NamedFunction = "auto"
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _older(cls, value: Any) -> Any:
        if not isinstance(value, dict) or value.get("tools") or not value.get("functions"):
            return value
        functions, choice = value["functions"], value.get("function_call") or "auto"
        if not isinstance(functions, list):
            raise ValueError("functions is no list")
        return {
            **value,
            "tools": [{"function": function} for function in functions],
            "tool_choice": choice if isinstance(choice, str) else {"function": choice},
            "parallel_tool_calls": False,
        }

    @field_validator("max_tokens")
    @classmethod
    def _at_least_one(cls, value: int | None) -> int | None:
        if value == 0:
            raise ValueError("Input should be greater than or equal to 1")
        return value

    @model_validator(mode="after")
    def _checks(self) -> ChatCompletionRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs=True")
        names = [tool.function.name for tool in self.tools]
        if len(set(names)) < len(names):
            raise ValueError("tools: two functions of one name")
        if self.forced and not self.tools:
            raise ValueError("tool_choice needs tools")
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            raise ValueError(f"tool_choice names no tool: {self.tool_choice.function.name[:64]!r}")
        if self.continue_final_message and self.messages[-1].role != "assistant":
            raise ValueError("continue_final_message needs a last message of the assistant")
        return self

    @property
    def forced(self) -> bool:
        """Whether the answer must be a call."""
        return self.tool_choice not in ("none", "auto")

    @property
    def offered(self) -> list[Tool]:
        """The tools that may be called."""
        return [] if self.tool_choice == "none" else self.tools

    @property
    def callable(self) -> list[Tool]:
        """The tools that a forced call may name."""
        if isinstance(self.tool_choice, NamedTool):
            name = self.tool_choice.function.name
            return [tool for tool in self.tools if tool.function.name == name]
        return self.offered

    @property
    def most_tokens(self) -> int | None:
        return self.max_completion_tokens or super().most_tokens

    @property
    def alternatives(self) -> int | None:
        return self.top_logprobs if self.logprobs else None
