"""What a chat and a completion request share: limits, sampling, stops, structure.

OpenAI's fields, MLC LLM's ``debug_config`` and ``repetition_penalty``, and the extras that vLLM and
llama.cpp have taught clients to send.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from mlc_bridge.engine.structure import Structure

MEANINGLESS = frozenset(
    (
        "add_special_tokens", "extra_body", "id_slot",
        "logits_all", "metadata", "modalities", "n_keep", "prediction", "priority",
        "prompt_cache_key", "prompt_cache_retention", "reasoning_effort", "request_id",
        "return_progress", "return_token_ids", "return_tokens", "safety_identifier",
        "service_tier", "skip_special_tokens", "spaces_between_special_tokens", "store",
        "timings_per_token", "truncate_prompt_tokens", "user", "verbosity",
        "web_search_options",
    )
)  # fmt: skip
"""Fields that are known and change nothing here."""

MOST_CHOICES, MOST_STOPS, LONGEST_STOP, MOST_BIASES = 128, 32, 512, 4096
Penalty = Annotated[float, Field(ge=-2, le=2)]


class Tolerant(BaseModel):
    """``null`` says the same as leaving the key out."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False, populate_by_name=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {key: item for key, item in value.items() if item is not None}


class StreamOptions(Tolerant):
    include_usage: bool = False


class DebugConfig(Tolerant):
    """MLC's extension: ``ignore_eos`` generates ``max_tokens`` tokens whatever they are."""

    ignore_eos: bool = False


class JsonSchema(Tolerant):
    """OpenAI's ``json_schema`` block."""

    schema_: dict[str, Any] | bool = Field(default=True, alias="schema")


class ResponseFormat(Tolerant):
    """``text``, ``json_object`` (an object, or MLC's ``schema`` as JSON text), ``json_schema``."""

    type: Literal["text", "json_object", "json_schema", "structural_tag"] = "text"
    schema_: str | dict[str, Any] | None = Field(default=None, alias="schema")
    json_schema: JsonSchema | None = None
    format: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _complete(self) -> ResponseFormat:
        if self.type == "json_schema" and self.json_schema is None and self.schema_ is None:
            raise ValueError("json_schema needs the key json_schema")
        if self.type == "structural_tag" and self.format is None:
            raise ValueError("structural_tag needs the key format")
        return self

    @property
    def structure(self) -> Structure | None:
        if self.type == "text":
            return None
        if self.type == "structural_tag":
            return Structure("tag", json.dumps({"type": "structural_tag", "format": self.format}))
        if self.json_schema is not None:
            return Structure("json", json.dumps(self.json_schema.schema_))
        if isinstance(self.schema_, dict):
            return Structure("json", json.dumps(self.schema_))
        return Structure("json", self.schema_ or '{"type": "object"}')


class Structured(Tolerant):
    """vLLM's ``structured_outputs``; ``guided_json`` and so on are the older names."""

    json_: str | dict[str, Any] | None = Field(default=None, alias="json")
    json_object: bool = False
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None

    @property
    def structure(self) -> Structure | None:
        if self.json_ is not None:
            schema = self.json_ if isinstance(self.json_, str) else json.dumps(self.json_)
            return Structure("json", schema)
        if self.json_object:
            return Structure("json", '{"type": "object"}')
        if self.regex is not None:
            return Structure("regex", self.regex)
        if self.choice:
            return Structure("ebnf", "root ::= " + " | ".join(map(json.dumps, self.choice)))
        return None if self.grammar is None else Structure("ebnf", self.grammar)


class Request(Tolerant):
    """The fields of both kinds."""

    model: str | None = None
    max_tokens: Annotated[int, Field(ge=-1)] | None = None
    min_tokens: Annotated[int, Field(ge=0)] = 0
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**31)] = 0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    repeat_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    logit_bias: dict[int, Annotated[float, Field(ge=-100, le=100)]] = Field(default_factory=dict)
    seed: int | None = None
    stop: list[Annotated[str, Field(min_length=1, max_length=LONGEST_STOP)]] = Field(
        default_factory=list, max_length=MOST_STOPS
    )
    stop_token_ids: list[int] = Field(default_factory=list, max_length=1024)
    ignore_eos: bool = False
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] = 1
    stream: bool = False
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: Structured | None = None
    guided_json: str | dict[str, Any] | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    json_schema: dict[str, Any] | None = None
    grammar: str | None = None
    cache_prompt: bool = True
    debug_config: DebugConfig | None = None

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return ([value] if value else []) if isinstance(value, str) else value

    @field_validator("logit_bias", mode="before")
    @classmethod
    def _no_bias(cls, value: Any) -> Any:
        if isinstance(value, dict) and len(value) > MOST_BIASES:
            raise ValueError(f"at most {MOST_BIASES} tokens")
        return {} if value == [] else value  # llama.cpp's clients send an empty list

    @field_validator("seed")
    @classmethod
    def _random(cls, value: int | None) -> int | None:
        return None if value == -1 else value  # vLLM's and llama.cpp's word for "any"

    @model_validator(mode="after")
    def _usage_needs_stream(self) -> Request:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream=True")
        return self

    @property
    def ignores_end(self) -> bool:
        return self.ignore_eos or (self.debug_config is not None and self.debug_config.ignore_eos)

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def most_tokens(self) -> int | None:
        """The most tokens of one answer; None where the request sets no limit."""
        return None if self.max_tokens in (None, -1) else self.max_tokens

    @property
    def structure(self) -> Structure | None:
        """What the answer must follow: OpenAI's field first, then vLLM's, then llama.cpp's."""
        schema = self.guided_json if self.guided_json is not None else self.json_schema
        guided = Structured.model_validate(
            {
                "json": schema,
                "regex": self.guided_regex,
                "choice": self.guided_choice,
                "grammar": self.guided_grammar or self.grammar,
            }
        )
        asked = (self.response_format, self.structured_outputs, guided)
        return next((s for a in asked if a is not None and (s := a.structure) is not None), None)

    # What the kinds answer differently.
    @property
    def alternatives(self) -> int | None:
        """Alternatives whose log probabilities are wanted beside each token's; None for none."""
        raise NotImplementedError

    @property
    def drawn(self) -> int:
        """Answers to draw for one prompt."""
        return self.n
