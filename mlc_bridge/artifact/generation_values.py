"""Sampling defaults and special ids, in ``generation_config.json`` and, of old, ``config.json``."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Id = Annotated[int, Field(strict=True, ge=-1, lt=2**32)]
Value = Annotated[float, Field(allow_inf_nan=False)]


class GenerationValues(BaseModel):
    """The keys that are read; all others are left alone."""

    model_config = ConfigDict(extra="allow")

    pad_token_id: Id | None = None
    bos_token_id: Id | None = None
    eos_token_id: Id | list[Id] | None = None
    temperature: Value | None = None
    presence_penalty: Value | None = None
    frequency_penalty: Value | None = None
    repetition_penalty: Value | None = None
    top_p: Value | None = None
