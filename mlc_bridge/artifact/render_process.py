"""The child that renders chat templates (see ``confined.py``); the environment is HF's.

Sandboxed, ``trim_blocks`` and ``lstrip_blocks``, filter ``tojson``, ``raise_exception`` and
``strftime_now``, the ``generation`` block and loop controls. The date is refused unless the
question allows it: what is derived from a template must hold on other days too.
"""

from __future__ import annotations

import json
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mlc_bridge.artifact.confined import serve

OUTPUT = 1 << 20


class _Generation(Extension):
    """HF's ``{% generation %}`` block, which marks the assistant's text and prints it unchanged."""

    tags = {"generation"}  # noqa: RUF012 (as jinja2 declares it)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class DateAsked(Exception):
    """The template prints the date of the day."""


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """``text`` of ``source`` with ``variables``; or ``error``; or ``date``: the date was asked."""
    try:
        text = _template(question["source"], question["dated"]).render(**question["variables"])
    except DateAsked:
        return {"date": True}
    except TemplateError as error:
        return {"error": error.message or type(error).__name__}
    text.encode()  # a half of a surrogate pair is no text: it could not be written
    if len(text) > OUTPUT:
        return {"error": f"it prints more than {OUTPUT >> 20} million characters"}
    return {"text": text}


@lru_cache(1)
def _template(source: str, dated: bool) -> Template:
    return _environment(dated).from_string(source)


def _environment(dated: bool) -> ImmutableSandboxedEnvironment:
    """HF's environment: the same filters, globals and white-space rules, and no way out."""

    def tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    def raise_exception(message: str) -> None:
        raise TemplateError(str(message))

    def strftime_now(form: str) -> str:
        if not dated:
            raise DateAsked
        return datetime.now().strftime(form)

    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    env.filters["tojson"] = tojson
    env.globals.update(raise_exception=raise_exception, strftime_now=strftime_now)
    return env


if __name__ == "__main__":
    serve(answer)
