"""Mistral: a list of objects behind a mark; newer models write the name before its arguments.

[TOOL_CALLS][{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {}}]
[TOOL_CALLS]f[ARGS]{"a": 1}
"""

from __future__ import annotations

from collections.abc import Sequence

from mlc_bridge.engine.openai.chat import CalledFunction, Tool
from mlc_bridge.engine.tools.form import Format, arguments_of, either, repeated, sequence
from mlc_bridge.engine.tools.json_calls import JsonCalls

OPEN = "[TOOL_CALLS]"


class Mistral:
    name = "mistral"

    def matches(self, template: str) -> bool:
        return OPEN in template

    def parser(self) -> JsonCalls:
        return JsonCalls(OPEN, ("[", "]", ","), named=True)

    def grammar(self, tools: Sequence[Tool], *, parallel: bool) -> Format:
        calls = [
            sequence(f'{{"name": "{tool.function.name}", "arguments": ', arguments_of(tool), "}")
            for tool in tools
        ]
        return sequence(OPEN, "[", repeated(either(calls), ", ", parallel=parallel), "]")

    def written(self, calls: Sequence[CalledFunction]) -> str:
        inner = ", ".join(f'{{"name": "{c.name}", "arguments": {c.arguments}}}' for c in calls)
        return f"{OPEN}[{inner}]"
