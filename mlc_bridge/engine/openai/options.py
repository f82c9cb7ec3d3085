"""The keyword arguments of ``create``, as types: MLC LLM's, and what else a request may hold."""

from __future__ import annotations

from typing import Any, TypedDict, TypeVar

from pydantic import BaseModel

from mlc_bridge.engine.openai.error import parse

R = TypeVar("R", bound=BaseModel)


class Options(TypedDict, total=False):
    """Of both kinds; see ``request.Request``."""

    model: str | None
    frequency_penalty: float | None
    presence_penalty: float | None
    logit_bias: dict[int, float] | None
    max_tokens: int | None
    n: int | None
    seed: int | None
    stop: str | list[str] | None
    stream_options: dict[str, Any] | None
    temperature: float | None
    top_p: float | None
    user: str | None
    response_format: dict[str, Any] | None
    request_id: str | None
    extra_body: dict[str, Any] | None
    debug_config: dict[str, Any] | None
    top_k: int | None
    min_p: float | None
    min_tokens: int | None
    repetition_penalty: float | None
    stop_token_ids: list[int] | None
    ignore_eos: bool | None
    cache_prompt: bool | None
    structured_outputs: dict[str, Any] | None
    guided_json: str | dict[str, Any] | None
    guided_regex: str | None
    guided_choice: list[str] | None
    guided_grammar: str | None


class ChatOptions(Options, total=False):
    logprobs: bool | None
    top_logprobs: int | None
    max_completion_tokens: int | None
    tools: list[dict[str, Any]] | None
    tool_choice: str | dict[str, Any] | None
    parallel_tool_calls: bool | None
    functions: list[dict[str, Any]] | None
    function_call: str | dict[str, Any] | None
    add_generation_prompt: bool | None
    continue_final_message: bool | None
    chat_template_kwargs: dict[str, Any] | None


class CompletionOptions(Options, total=False):
    best_of: int | None
    echo: bool | None
    logprobs: int | bool | None
    suffix: str | None


def request_of(kind: type[R], options: dict[str, Any]) -> R:
    """The request of a Python call: what stands in ``extra_body`` counts too, and an argument that
    is unknown is an error. Raises EngineError."""
    return parse(kind, {**options, **(options.get("extra_body") or {})}, strict=True)[0]
