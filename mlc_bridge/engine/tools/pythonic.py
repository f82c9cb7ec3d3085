"""Llama 3.2 and 4, and others: the whole answer is a Python list of calls.

[f(a=1, b="x"), g()]
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence
from typing import Any

from mlc_bridge.engine.openai.chat import CalledFunction, Tool
from mlc_bridge.engine.tools.form import Arguments, Begin, Format, Piece, either, repeated, sequence

MARKS = ("<|python_start|>", "<|python_end|>")
_BEGINS = re.compile(r"\[\s*(?:[A-Za-z_][\w.]*\s*(?:\(|$)|$)")
_LONGEST = 2**16
_NAMES = {"true": True, "false": False, "null": None}


class Pythonic:
    name = "pythonic"

    def matches(self, template: str) -> bool:
        return "<|python_start|>" in template or "[func_name1(" in template

    def parser(self) -> PythonicCalls:
        return PythonicCalls()

    def grammar(self, tools: Sequence[Tool], *, parallel: bool) -> Format:
        calls = [_call_grammar(tool) for tool in tools]
        return sequence("[", repeated(either(calls), ", ", parallel=parallel), "]")

    def written(self, calls: Sequence[CalledFunction]) -> str:
        return "[" + ", ".join(map(_call_text, calls)) + "]"


class PythonicCalls:
    """An answer that begins like a call waits until it is whole; any other is text at once."""

    def __init__(self) -> None:
        self._held, self._is_text = "", False

    def push(self, text: str) -> list[Piece]:
        if self._is_text:
            return [text] if text else []
        self._held += text
        start = self._start
        waits = not start or any(mark.startswith(start) for mark in MARKS)
        if waits or (_BEGINS.match(start) and len(start) < _LONGEST):
            return []
        self._is_text, held, self._held = True, self._held, ""
        return [held]

    def finish(self) -> list[Piece]:
        held, self._held = self._held, ""
        if self._is_text or not held:
            return []
        start = self._start_of(held)
        return _calls(start) or [held]

    @property
    def _start(self) -> str:
        return self._start_of(self._held)

    def _start_of(self, text: str) -> str:
        text = text.strip()
        for mark in MARKS:
            text = text.removeprefix(mark).removesuffix(mark).strip()
        return text


def _calls(text: str) -> list[Piece] | None:
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    calls = tree.elts if isinstance(tree, ast.List) else []
    pieces: list[Piece] = []
    try:
        for call in calls:
            if not isinstance(call, ast.Call) or call.args:
                return None
            arguments = {k.arg: _value(k.value) for k in call.keywords if k.arg is not None}
            text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
            pieces += [Begin(ast.unparse(call.func)), Arguments(text)]
    except (TypeError, ValueError, RecursionError):
        return None
    return pieces


def _value(node: ast.expr) -> Any:
    """A literal in which JSON's three words may stand too."""

    class Words(ast.NodeTransformer):
        def visit_Name(self, name: ast.Name) -> ast.expr:
            return ast.Constant(_NAMES[name.id]) if name.id in _NAMES else name

    return ast.literal_eval(Words().visit(node))


def _call_grammar(tool: Tool) -> Format:
    """The arguments in the schema's order, JSON literals; those not required come last and may be
    left out from the end."""
    schema = tool.function.parameters
    properties: dict[str, Any] = schema.get("properties") or {}
    required = [name for name in properties if name in (schema.get("required") or ())]
    shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    node: Format = sequence(")")
    for name in reversed([*required, *(n for n in properties if n not in required)]):
        comma = "" if name == (required or list(properties))[0] else ", "
        inner = {**properties[name], **shared} if isinstance(properties[name], dict) else True
        value = {"type": "json_schema", "json_schema": inner, "max_whitespace_cnt": 2}
        with_it = sequence(f"{comma}{name}=", value, node)
        node = with_it if name in required else either([with_it, sequence(")")])
    return sequence(f"{tool.function.name}(", node)


def _call_text(call: CalledFunction) -> str:
    try:
        arguments = json.loads(call.arguments)
    except ValueError:
        arguments = {}
    inner = ", ".join(f"{k}={v!r}" for k, v in arguments.items())
    return f"{call.name}({inner})"
