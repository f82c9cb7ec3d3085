"""The keys that somebody reads of the JSON files around a tokenizer; all others are left alone."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Id = Annotated[int, Field(ge=0, lt=2**32)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow", protected_namespaces=())


class Token(_Part):
    content: str


Special = str | Token | None | Literal[False]
"""A token as its text or as an object; files also say null and false for "none"."""


class SpecialTokens(_Part):
    """``special_tokens_map.json``, and the same keys of ``tokenizer_config.json``."""

    bos_token: Special = None
    eos_token: Special = None
    unk_token: Special = None
    pad_token: Special = None
    sep_token: Special = None
    cls_token: Special = None

    def texts(self) -> dict[str, str]:
        """Name -> text of those that are set."""
        found = {name: getattr(self, name) for name in SpecialTokens.model_fields}
        return {
            name: token.content if isinstance(token, Token) else token
            for name, token in found.items()
            if token
        }


class NamedTemplate(_Part):
    name: str
    template: str


Template = str | list[NamedTemplate] | None


class TokenizerConfig(SpecialTokens):
    """``tokenizer_config.json``; ``added_tokens_decoder`` is id -> token."""

    added_tokens_decoder: dict[Id, Token] | None = None
    chat_template: Template = None


class TemplateFile(_Part):
    """``chat_template.json``, as processors write it."""

    chat_template: Template = None


class TokenizerJson(_Part):
    """``tokenizer.json`` beside what the tokenizers library reads of it."""

    added_tokens: list[Token] | None = None
    truncation: Any = None
    padding: Any = None
