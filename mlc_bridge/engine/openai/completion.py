"""``/v1/completions``: a text, a list of token ids, or a list of either."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from mlc_bridge.engine.openai.request import MOST_CHOICES, Request

MOST_PROMPTS = 2048
Ids = Annotated[list[Annotated[int, Field(strict=True)]], Field(min_length=1, fail_fast=True)]


class CompletionRequest(Request):
    """``echo`` with ``logprobs`` gives the prompt's own log probabilities; ``max_tokens`` 0 draws
    nothing."""

    prompt: Annotated[list[str | Ids], Field(min_length=1, max_length=MOST_PROMPTS, fail_fast=True)]
    echo: bool = False
    best_of: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    suffix: str | None = None

    @field_validator("prompt", mode="before")
    @classmethod
    def _prompts(cls, value: Any) -> Any:
        tokens = isinstance(value, list) and value and all(type(t) is int for t in value)
        return [value] if isinstance(value, str) or tokens else value

    @field_validator("logprobs", mode="before")
    @classmethod
    def _yes_or_no(cls, value: Any) -> Any:
        return {True: 1, False: None}[value] if isinstance(value, bool) else value

    @model_validator(mode="after")
    def _checks(self) -> CompletionRequest:
        if self.suffix:
            raise ValueError("suffix: this model does not fill in the middle")
        if self.best_of is not None and self.best_of < self.n:
            raise ValueError("best_of must be at least n")
        if self.best_of is not None and self.best_of > self.n and self.stream:
            raise ValueError("best_of above n cannot be streamed")
        if self.drawn * len(self.prompt) > MOST_PROMPTS:
            raise ValueError(f"prompts times answers must be at most {MOST_PROMPTS}")
        return self

    @property
    def alternatives(self) -> int | None:
        return self.logprobs

    @property
    def drawn(self) -> int:
        return self.best_of or self.n
