"""MLC's ``conv_template``: how a list of chat messages becomes one prompt.

    tokens = system_prefix_token_ids + encode(prompt)
    prompt = system + turn + turn + ... + roles.assistant + role_empty_sep
    system = system_template with {system_message} replaced
    turn   = role + role_content_sep + content + (seps[-1] if assistant else seps[0])

The schema and the rules are those of MLC LLM (``protocol/conversation_protocol.py``, July 2026),
whose named templates are the data of ``conversation_templates.json`` (only what differs from the
defaults). MLC's form has one system text for every conversation, cannot leave the system turn out
and never trims. What a checkpoint's own template does beyond that stands in the optional
``mlc_bridge`` block, which MLC's readers skip: our prompt is then exact, and MLC's is exact
wherever its form allows it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from mlc_bridge.errors import ConfigError, EngineError

Message = Mapping[str, Any]
PLACEHOLDERS = {role: f"{{{role}_message}}" for role in ("system", "user", "assistant", "tool")}
FUNCTION = "{function_string}"


class Beyond(BaseModel):
    """What MLC's form cannot say; absent means that nothing is missing."""

    model_config = ConfigDict(extra="allow")

    system_template: str | None = None
    """Used instead of the outer one when the conversation brings its own system message."""
    add_role_after_system_message: bool = True
    """As the outer key, for ``system_template``."""
    system_refused: str | None = None
    """Why the model's template takes no system message (or none that this form can hold)."""
    trim: tuple[str, ...] = ()
    """Roles whose content is stripped of outer whitespace."""


class Conversation(BaseModel):
    """One conversation template; the keys are MLC's own."""

    model_config = ConfigDict(extra="allow")

    name: str | None = None
    system_template: str = PLACEHOLDERS["system"]
    system_message: str = ""
    system_prefix_token_ids: list[int] | None = None
    add_role_after_system_message: bool = True
    roles: dict[str, str]
    role_templates: dict[str, str] = Field(default_factory=dict)
    messages: list[tuple[str, str | list[dict[str, Any]] | None]] = Field(default_factory=list)
    seps: list[str] = Field(min_length=1, max_length=2)
    role_content_sep: str = ""
    role_empty_sep: str = ""
    stop_str: list[str] = Field(default_factory=list)
    stop_token_ids: list[int] = Field(default_factory=list)
    strip_reasoning_in_history: bool = False
    function_string: str = ""
    use_function_calling: bool = False
    mlc_bridge: Beyond | None = None

    def model_post_init(self, _: Any) -> None:
        defaults = {role: PLACEHOLDERS[role] for role in ("user", "assistant", "tool")}
        self.role_templates = {**defaults, **self.role_templates}

    def to_json(self) -> dict[str, Any]:
        """As MLC writes it."""
        found = self.model_dump()
        if self.mlc_bridge is None:
            del found["mlc_bridge"]
        else:
            found["mlc_bridge"] = self.mlc_bridge.model_dump(exclude_defaults=True)
        return found

    def prompt(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """The text to encode after ``system_prefix_token_ids``; ends where the assistant begins.

        ``messages``: mappings with ``role`` and ``content`` (a string, or a list of text parts).
        Raises ``EngineError`` for a role the template does not know and a system message not first.
        """
        turns = [*self.messages, *((m["role"], _text(m.get("content"))) for m in messages)]
        asked = turns.pop(0)[1] if turns and turns[0][0] == "system" else None
        system, add_role = self._system(None if asked is None else _text(asked))
        if self.strip_reasoning_in_history:
            turns = _without_reasoning(turns)
        text = system
        for i, (role, content) in enumerate(turns):
            text += self._turn(role, _text(content), bare=i == 0 and system != "" and not add_role)
        if add_generation_prompt:
            text += self.roles["assistant"] + self.role_empty_sep
        return self._with_function(text)

    def _with_function(self, text: str) -> str:
        """The last placeholder becomes the function; a user's own such words stay untouched."""
        if not any(FUNCTION in t for t in (self.system_template, *self.role_templates.values())):
            return text
        head, _, tail = text.rpartition(FUNCTION)
        return (head + self.function_string + tail).replace(FUNCTION, "")

    def _system(self, asked: str | None) -> tuple[str, bool]:
        """The system part, and whether the first turn still gets its role."""
        beyond = self.mlc_bridge or Beyond()
        if asked is not None and beyond.system_refused:
            raise EngineError(
                f"this model's template takes no system message: {beyond.system_refused}",
                todo="Put the instruction into the first user message",
            )
        template, add_role = self.system_template, self.add_role_after_system_message
        if asked is not None and beyond.system_template is not None:
            template, add_role = beyond.system_template, beyond.add_role_after_system_message
        message = self.system_message if asked is None else self._trimmed("system", asked)
        return template.replace(PLACEHOLDERS["system"], message), add_role

    def _turn(self, role: str, content: str, *, bare: bool) -> str:
        if role == "system" or role not in self.roles:
            raise EngineError(
                "a system message must come first" if role == "system" else "unknown role",
                found=repr(role),
                expected=" or ".join(self.roles),
            )
        start = "" if bare else self.roles[role] + self.role_content_sep
        template = self.role_templates.get(role, PLACEHOLDERS.get(role, "{}"))
        body = template.replace(PLACEHOLDERS.get(role, "{}"), self._trimmed(role, content))
        return start + body + (self.seps[-1] if role == "assistant" else self.seps[0])

    def _trimmed(self, role: str, content: str) -> str:
        return content.strip() if self.mlc_bridge and role in self.mlc_bridge.trim else content


def _text(content: str | list[dict[str, Any]] | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    for part in content:
        if part.get("type") != "text":
            raise EngineError("only text parts are supported", found=repr(part.get("type")))
    return "".join(part["text"] for part in content)


def _without_reasoning(turns: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Drop ``<think>...</think>`` from assistant turns before the last user turn, as MLC does."""
    last_user = max((i for i, (role, _) in enumerate(turns) if role == "user"), default=-1)
    return [
        (role, content.rpartition("</think>")[2].lstrip("\n"))
        if role == "assistant" and i < last_user and "</think>" in content
        else (role, content)
        for i, (role, content) in enumerate(turns)
    ]


@cache
def _data() -> dict[str, dict[str, Any]]:
    text = files("mlc_bridge.artifact").joinpath("conversation_templates.json").read_text("utf-8")
    data: dict[str, dict[str, Any]] = json.loads(text)
    return data


def template_names() -> tuple[str, ...]:
    """MLC's template names."""
    return tuple(_data())


def template(name: str) -> Conversation:
    """MLC's template of this name. Raises ``ConfigError`` with the list for an unknown one."""
    if name not in _data():
        raise ConfigError(
            "unknown conversation template",
            found=repr(name),
            expected="auto, " + ", ".join(_data()),
        )
    return Conversation(name=name, **_data()[name])
