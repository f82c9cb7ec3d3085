"""From messages to the text of a prompt.

Plain conversations take MLC's form of the template (``conv_template``), which is proven equal to
the model's own. What that form cannot say - tools, calls, a system message in the middle, the
template's own switches - goes to the model's Jinja template where the directory has one; where it
has none, or it knows nothing of tools, they are described in words.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from mlc_bridge.artifact.chat_template import ChatTemplate, Unrendered
from mlc_bridge.artifact.conversation import Conversation
from mlc_bridge.engine.openai.chat import CalledFunction, ChatCompletionRequest, Message, Tool
from mlc_bridge.engine.tools import form_of
from mlc_bridge.errors import EngineError

Turn = dict[str, Any]
TOOLS = """You may call functions to answer. Their signatures, as JSON schemas:
{functions}
To call one, answer with this form alone:
{example}"""


class ChatPrompt:
    """The prompts of one model; ``form`` is how it writes calls."""

    def __init__(self, conversation: Conversation, template: ChatTemplate | None) -> None:
        self._conversation, self._template = conversation, template
        source = template.source if template is not None else ""
        self.form = form_of(source)
        self._knows_tools = "tools" in source

    def text(self, request: ChatCompletionRequest) -> tuple[Sequence[int], str]:
        """Ids that come first, and the text behind them. Raises EngineError for a conversation
        that the template refuses."""
        turns = _with_one_system([_turn(message) for message in request.messages])
        tail = turns.pop()["content"] if request.continue_final_message else ""
        tools = [tool.model_dump(by_alias=True) for tool in request.offered]
        has_calls = any("tool_calls" in t or t["role"] == "tool" for t in turns)
        generation = request.add_generation_prompt or request.continue_final_message
        if self._template is not None and self._needs_template(request, turns, has_calls):
            return (), self._rendered(turns, tools, generation, request) + tail
        if tools or has_calls:
            turns = self._described(turns, request.offered)
        prefix = self._conversation.system_prefix_token_ids or ()
        return prefix, self._conversation.prompt(turns, add_generation_prompt=generation) + tail

    def _needs_template(
        self, request: ChatCompletionRequest, turns: list[Turn], has_calls: bool
    ) -> bool:
        if request.offered or has_calls:
            return self._knows_tools
        late_system = any(turn["role"] == "system" for turn in turns[1:])
        return bool(request.chat_template_kwargs) or late_system

    def _rendered(
        self,
        turns: list[Turn],
        tools: list[dict[str, Any]],
        generation: bool,
        request: ChatCompletionRequest,
    ) -> str:
        assert self._template is not None
        for turn in turns:
            for call in turn.get("tool_calls", ()):  # templates print the arguments as an object
                call["function"]["arguments"] = _object(call["function"]["arguments"])
        try:
            return self._template.render(
                turns,
                add_generation_prompt=generation,
                tools=tools or None,
                more=request.chat_template_kwargs,
            )
        except Unrendered as problem:
            raise EngineError(
                "the model's chat template refuses the conversation",
                where="messages",
                found=problem.what[:300],
            ) from None

    def _described(self, turns: list[Turn], tools: Sequence[Tool]) -> list[Turn]:
        """The same conversation in the words of a system, a user and an assistant."""
        plain: list[Turn] = []
        for turn in turns:
            if turn["role"] == "tool" and "tool" not in self._conversation.roles:
                text = f"<tool_response>\n{turn['content']}\n</tool_response>"
                plain.append({"role": "user", "content": text})
            elif "tool_calls" in turn:
                calls = [CalledFunction(**call["function"]) for call in turn["tool_calls"]]
                text = "\n".join(filter(None, (turn["content"], self.form.written(calls))))
                plain.append({"role": turn["role"], "content": text})
            else:
                plain.append({"role": turn["role"], "content": turn["content"]})
        if not tools:
            return plain
        return _with_one_system([{"role": "system", "content": self._introduction(tools)}, *plain])

    def _introduction(self, tools: Sequence[Tool]) -> str:
        functions = "\n".join(tool.function.model_dump_json() for tool in tools)
        example = CalledFunction(name="NAME", arguments='{"argument": "value"}')
        return TOOLS.format(functions=functions, example=self.form.written([example]))


def _turn(message: Message) -> Turn:
    """A message under the four names that templates know."""
    role = {"developer": "system", "function": "tool"}.get(message.role, message.role)
    turn: Turn = {**(message.model_extra or {}), "role": role, "content": message.text}
    if message.tool_calls:
        turn["tool_calls"] = [call.model_dump() for call in message.tool_calls]
    for key in ("tool_call_id", "name"):
        if (value := getattr(message, key)) is not None:
            turn[key] = value
    return turn


def _with_one_system(turns: list[Turn]) -> list[Turn]:
    """System messages at the beginning become one."""
    count = next((i for i, turn in enumerate(turns) if turn["role"] != "system"), len(turns))
    if count < 2:
        return turns
    text = "\n\n".join(turn["content"] for turn in turns[:count])
    return [{"role": "system", "content": text}, *turns[count:]]


def _object(arguments: Any) -> Any:
    try:
        found = json.loads(arguments)
    except (TypeError, ValueError, RecursionError):
        return arguments
    return found if isinstance(found, dict) else arguments
