"""Hermes, Qwen 2.5 and 3, and the generic form: an object between two marks, again for each call.

<tool_call>
{"name": "f", "arguments": {"a": 1}}
</tool_call>
"""

from __future__ import annotations

from collections.abc import Sequence

from mlc_bridge.engine.openai.chat import CalledFunction, Tool
from mlc_bridge.engine.tools.form import Format, arguments_of, either, repeated, sequence
from mlc_bridge.engine.tools.json_calls import JsonCalls

OPEN, CLOSE = "<tool_call>", "</tool_call>"


class Hermes:
    name = "hermes"

    def matches(self, template: str) -> bool:
        return OPEN in template and "<function=" not in template

    def parser(self) -> JsonCalls:
        return JsonCalls(OPEN, (CLOSE,))

    def grammar(self, tools: Sequence[Tool], *, parallel: bool) -> Format:
        calls = [
            sequence(
                f'{OPEN}\n{{"name": "{tool.function.name}", "arguments": ',
                arguments_of(tool),
                f"}}\n{CLOSE}",
            )
            for tool in tools
        ]
        return repeated(either(calls), "\n", parallel=parallel)

    def written(self, calls: Sequence[CalledFunction]) -> str:
        return "\n".join(
            f'{OPEN}\n{{"name": "{c.name}", "arguments": {c.arguments}}}\n{CLOSE}' for c in calls
        )
