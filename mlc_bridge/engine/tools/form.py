"""The contract of a form, and what all forms share."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mlc_bridge.engine.openai.chat import CalledFunction, Tool
from mlc_bridge.engine.structure import Structure

Format = dict[str, Any]
"""A node of xgrammar's structural tag."""


@dataclass(frozen=True)
class Begin:
    """A call of this function begins."""

    name: str


@dataclass(frozen=True)
class Arguments:
    """The next piece of the begun call's arguments, JSON text."""

    text: str


Piece = str | Begin | Arguments  # a string is ordinary text


class Parser(Protocol):
    """Streamed text of one answer -> pieces; whatever is no call is text."""

    def push(self, text: str) -> list[Piece]: ...
    def finish(self) -> list[Piece]: ...


class Form(Protocol):
    name: str

    def matches(self, template: str) -> bool:
        """Whether the template writes calls in this form."""
        ...

    def parser(self) -> Parser: ...

    def grammar(self, tools: Sequence[Tool], *, parallel: bool) -> Format:
        """One call of one of ``tools``; with ``parallel`` further ones may follow."""
        ...

    def written(self, calls: Sequence[CalledFunction]) -> str:
        """An assistant's turn that makes these calls."""
        ...


def sequence(*elements: Format | str) -> Format:
    nodes = [{"type": "const_string", "value": e} if isinstance(e, str) else e for e in elements]
    return {"type": "sequence", "elements": nodes}


def either(options: Sequence[Format]) -> Format:
    return options[0] if len(options) == 1 else {"type": "or", "elements": list(options)}


def repeated(call: Format, separator: str, *, parallel: bool) -> Format:
    """``call``, and with ``parallel`` more of them behind separators."""
    if not parallel:
        return call
    return sequence(call, {"type": "star", "content": sequence(separator, call)})


def arguments_of(tool: Tool) -> Format:
    return {
        "type": "json_schema",
        "json_schema": tool.function.parameters,
        "max_whitespace_cnt": 2,
    }


def structure_of(grammar: Format, special: Mapping[str, int]) -> Structure:
    """The grammar for a tokenizer with these special tokens."""
    tag = {"type": "structural_tag", "format": with_special_tokens(grammar, special)}
    return Structure("tag", json.dumps(tag))


def with_special_tokens(node: Format, special: Mapping[str, int]) -> Format:
    """``node`` with the special tokens in its fixed strings as tokens: no text spells them."""
    if node["type"] == "const_string" and special:
        cut = re.split("(" + "|".join(map(re.escape, special)) + ")", node["value"])
        parts = [{"type": "token", "token": special[p]} if p in special else p for p in cut if p]
        return sequence(*parts) if len(parts) > 1 else sequence(*parts)["elements"][0]
    if "elements" in node:
        return {**node, "elements": [with_special_tokens(e, special) for e in node["elements"]]}
    if node["type"] == "star":
        return {**node, "content": with_special_tokens(node["content"], special)}
    return node
