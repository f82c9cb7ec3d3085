"""A checkpoint's own chat template (Jinja), rendered as HF's ``apply_chat_template`` does it.

The environment is HF's: sandboxed, ``trim_blocks`` and ``lstrip_blocks``, filter ``tojson``,
``raise_exception`` and ``strftime_now``, the ``generation`` block and loop controls. The
date is refused (``DateAsked``): what is derived from a template must hold on other days too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mlc_bridge.artifact.conversation import Message

Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class ChatTemplate:
    """A checkpoint's chat template, the special tokens it may print, and its tokenizer.

    ``bos``: text and id of the begin token, to become MLC's ``system_prefix_token_ids``.
    ``encode``: text to token ids without added special tokens; with it, ids are compared as well.
    """

    source: str
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    bos: tuple[str, int] | None = None
    encode: Encode | None = None
    where: object = "chat template"

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """The prompt as HF's ``apply_chat_template`` renders it. Raises jinja2.TemplateError."""
        return _environment().from_string(self.source).render(
            messages=[dict(m) for m in messages],
            tools=None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **self.special_tokens,
        )  # fmt: skip


class _Generation(Extension):
    """HF's ``{% generation %}`` block, which marks the assistant's text and prints it unchanged."""

    tags = {"generation"}  # noqa: RUF012 (as jinja2 declares it)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class DateAsked(Exception):
    """The template prints the date of the day."""


def _environment() -> ImmutableSandboxedEnvironment:
    """HF's environment: the same filters, globals and white-space rules, and no way out."""

    def tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def strftime_now(_: str) -> str:
        raise DateAsked

    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    env.filters["tojson"] = tojson
    env.globals.update(raise_exception=raise_exception, strftime_now=strftime_now)
    return env
