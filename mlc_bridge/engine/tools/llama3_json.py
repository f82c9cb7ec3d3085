"""Llama 3.1 to 3.3: the whole answer is an object, further ones behind a semicolon.

{"name": "f", "parameters": {"a": 1}}; {"name": "g", "parameters": {}}
"""

from __future__ import annotations

from collections.abc import Sequence

from mlc_bridge.engine.openai.chat import CalledFunction, Tool
from mlc_bridge.engine.tools.form import Format, arguments_of, either, repeated, sequence
from mlc_bridge.engine.tools.json_calls import JsonCalls

TAG = "<|python_tag|>"


class Llama3Json:
    name = "llama3_json"

    def matches(self, template: str) -> bool:
        return TAG in template or ('"parameters"' in template and "ipython" in template)

    def parser(self) -> JsonCalls:
        return JsonCalls("", (TAG, ";"))

    def grammar(self, tools: Sequence[Tool], *, parallel: bool) -> Format:
        calls = [
            sequence(f'{{"name": "{tool.function.name}", "parameters": ', arguments_of(tool), "}")
            for tool in tools
        ]
        return repeated(either(calls), "; ", parallel=parallel)

    def written(self, calls: Sequence[CalledFunction]) -> str:
        return "; ".join(f'{{"name": "{c.name}", "parameters": {c.arguments}}}' for c in calls)
