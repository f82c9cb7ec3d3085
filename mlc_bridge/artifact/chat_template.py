"""A checkpoint's own chat template (Jinja), rendered as HF's ``apply_chat_template`` does it.

A template is a stranger's program. Jinja's sandbox keeps it from files and attributes, not from
running for ever or filling the memory (``'a' * 10 ** 10`` is one expression), so it is rendered in
a child process with bounds (``confined.py``), kept for the next template: 0.3 ms a prompt beside
0.1 s for the first. Counting instructions in this process would miss what one C call does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from mlc_bridge.artifact.confined import Confined, Overrun
from mlc_bridge.artifact.conversation import Message
from mlc_bridge.artifact.json_text import read_part, text_of
from mlc_bridge.artifact.tokenizer_schema import SpecialTokens, TemplateFile, TokenizerConfig
from mlc_bridge.errors import ConfigError

Encode = Callable[[str], list[int]]
TEMPLATE = "chat_template.jinja"
SECONDS = 1.5
MEMORY = 512 << 20
LONGEST = 1 << 20
"""Processor time of one template, memory, and characters of its source."""


class Unrendered(ConfigError):
    """There is no prompt: ``TemplateFails``, ``DateAsked``, or a bound that was broken."""


class TemplateFails(Unrendered):
    """The template ends with an error, its own (``raise_exception``) or one of the language."""


class DateAsked(Unrendered):
    """The template prints the date of the day."""


@dataclass
class Budget:
    """Processor time that all renderings of one derivation may take together."""

    seconds: float = SECONDS


@dataclass(frozen=True)
class ChatTemplate:
    """A checkpoint's chat template, the special tokens it may print, and its tokenizer.

    ``bos``: text and id of the begin token, to become MLC's ``system_prefix_token_ids``.
    ``encode``: text to token ids without added special tokens; with it, ids are compared as well.
    ``dated``: it may print today's date, else that is refused.
    """

    source: str
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    bos: tuple[str, int] | None = None
    encode: Encode | None = None
    where: object = "chat template"
    dated: bool = False

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Any] | None = None,
        more: Mapping[str, Any] | None = None,
        budget: Budget | None = None,
    ) -> str:
        """The prompt as HF's ``apply_chat_template`` renders it; ``more`` are the template's own
        variables.

        Raises a kind of Unrendered.
        """
        variables = {
            **self.special_tokens,
            **(more or {}),
            "messages": [dict(m) for m in messages],
            "tools": tools,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        budget = budget or Budget()
        question = {"source": self.source, "variables": variables, "dated": self.dated}
        reply = self._ask(question, budget)
        if "text" in reply:
            return str(reply["text"])
        if "date" in reply:
            raise DateAsked("it prints today's date", where=self.where)
        raise TemplateFails(str(reply["error"]), where=self.where)

    def _ask(self, question: Mapping[str, Any], budget: Budget) -> dict[str, Any]:
        try:
            if len(self.source) > LONGEST:
                raise Overrun(f"its source is longer than {LONGEST >> 20} million characters")
            if budget.seconds <= 0:
                raise Overrun("it takes too long")
            reply = _child().ask(question, budget.seconds)
        except Overrun as overrun:
            raise Unrendered(
                f"the chat template cannot be used: {overrun}",
                where=self.where,
                expected=f"{SECONDS:g} s and {MEMORY >> 20} MiB at most",
                todo="Name one of MLC's templates with --conv-template NAME",
            ) from overrun
        budget.seconds -= reply["cpu"]
        return reply


@cache
def _child() -> Confined:
    return Confined("mlc_bridge.artifact.render_process", MEMORY)


def own_template(directory: Path) -> ChatTemplate | None:
    """The template in a directory of tokenizer files, or None; it may print the date."""
    settings = read_part(TokenizerConfig, directory / "tokenizer_config.json")
    source = template_source(directory, settings)
    if source is None:
        return None
    return ChatTemplate(source, special_tokens(directory, settings), where=directory, dated=True)


def template_source(directory: Path, settings: TokenizerConfig) -> str | None:
    """The default template: chat_template.jinja, .json, or in tokenizer_config.json.

    Raises ConfigError for a file that cannot be read or holds something else.
    """
    alone = directory / TEMPLATE
    if alone.is_file():
        return text_of(alone)
    found = settings.chat_template
    if not found:
        found = read_part(TemplateFile, directory / "chat_template.json").chat_template
    if isinstance(found, list):
        named = {t.name: t.template for t in found}
        found = named.get("default") or next(iter(named.values()), None)
    return found


def special_tokens(directory: Path, settings: TokenizerConfig) -> dict[str, str]:
    """Name -> text, as templates ask for them (``bos_token``)."""
    listed = read_part(SpecialTokens, directory / "special_tokens_map.json")
    return {**listed.texts(), **settings.texts()}
