"""Derives MLC's ``conv_template`` from a checkpoint's own chat template, with proof.

The template is rendered on probe conversations whose contents are unlikely words; what stands
between those words is a role prefix, a separator or the system part:

    [user U, assistant A, user V] -> start U  sep0 + assistant  A  sep1 + user  V  sep0 + generation

The resulting ``Conversation`` is compared with the template, prompt by prompt, on conversations
with and without a system message, of several turns, with unicode and with white space at the
edges. All must be equal or ``ConfigError`` shows the first difference. An optional system message
and trimmed contents, for which MLC's form has no place, go into the ``mlc_bridge`` block of the
conversation, and ``Derived.notes`` say so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import Any

from mlc_bridge.artifact.chat_template import (
    Budget,
    ChatTemplate,
    DateAsked,
    TemplateFails,
    Unrendered,
)
from mlc_bridge.artifact.conversation import (
    PLACEHOLDERS,
    Beyond,
    Conversation,
    Message,
    template,
    template_names,
)
from mlc_bridge.errors import ConfigError

S, U, A, V, B, W = ("Sqxs", "Uqxu", "Aqxa", "Vqxv", "Bqxb", "Wqxw")  # in no template
Render = Callable[..., str]


@dataclass(frozen=True)
class Derived:
    """The conversation, how many prompts were compared equal, and what MLC's form cannot say."""

    conversation: Conversation
    proven: int
    notes: tuple[str, ...] = ()


class _NoForm(Exception):
    """The template joins the messages in a way that MLC's form has no place for."""


def derive(source: ChatTemplate) -> Derived:
    """MLC's form of the template, proven equal; ``ConfigError`` shows the first difference."""
    first: ConfigError | None = None
    render = partial(source.render, budget=Budget())
    try:
        for bos in _begin_tokens(source, render):
            for parts in _cuts(render, bos):
                try:
                    return _prove(_assemble(parts, render, bos), source, render, bos)
                except Unrendered:
                    raise
                except ConfigError as error:
                    first = first or error
    except DateAsked:
        raise _refusal(source, "it prints today's date, and MLC's template is fixed") from None
    except TemplateFails as error:
        raise _refusal(source, f"a plain conversation does not render: {error.what}") from error
    except _NoForm as error:
        raise _refusal(source, f"a plain conversation does not render: {error}") from error
    raise first or _refusal(source, "its turns cannot be told apart")


def _begin_tokens(source: ChatTemplate, render: Render) -> tuple[tuple[str, int] | None, ...]:
    """MLC's begin token, or (tried too, where tokens then differ) the token as text."""
    printed = source.bos is not None and render(_chat(U)).startswith(source.bos[0])
    return (source.bos, None) if printed else (None,)


# --- cutting a rendered probe into MLC's parts -------------------------------------------------


@dataclass(frozen=True)
class _Parts:
    """The text between the contents; ``start`` is all before the first user's content."""

    start: str
    user: str
    sep0: str
    assistant: str
    sep1: str
    generation: str


def _cuts(render: Render, bos: tuple[str, int] | None) -> Iterator[_Parts]:
    """Ways to cut the probe; the likeliest, what stands without a generation prompt, first."""
    start, ua, au, end = _between(render(_chat(U, A, V)), U, A, V)
    start = _without_bos(start, bos)
    sep0s = (_tail(render, U), _common_prefix(ua, end), "")
    sep1s = (_tail(render, U, A), au.removesuffix(_common_suffix(au, start)), "")
    cuts = dict.fromkeys((sep0, sep1) for sep0 in sep0s for sep1 in sep1s)
    for sep0, sep1 in cuts:
        if ua.startswith(sep0) and end.startswith(sep0) and au.startswith(sep1):
            user, assistant, generation = au[len(sep1) :], ua[len(sep0) :], end[len(sep0) :]
            yield _Parts(start, user, sep0, assistant, sep1, generation)


def _between(text: str, *marks: str) -> list[str]:
    """What stands before, between and after the marks, each there once and in order."""
    pieces = []
    for mark in marks:
        if text.count(mark) != 1:
            raise _NoForm("a message is left out, moved or printed twice")
        piece, _, text = text.partition(mark)
        pieces.append(piece)
    return [*pieces, text]


def _tail(render: Render, *contents: str) -> str:
    """What follows the last content where no generation prompt is asked for."""
    try:
        return render(_chat(*contents), add_generation_prompt=False).rpartition(contents[-1])[2]
    except TemplateFails:
        return ""


def _without_bos(text: str, bos: tuple[str, int] | None) -> str:
    if bos is None:
        return text
    if not text.startswith(bos[0]):
        raise _NoForm("the template does not print the begin token")
    return text.removeprefix(bos[0])


def _common_prefix(a: str, b: str) -> str:
    same = takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False))
    return "".join(x for x, _ in same)


def _common_suffix(a: str, b: str) -> str:
    return _common_prefix(a[::-1], b[::-1])[::-1]


def _chat(*contents: str, system: str | None = None) -> list[Message]:
    turns: list[Message] = [
        {"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)
    ]
    return turns if system is None else [{"role": "system", "content": system}, *turns]


# --- from the parts to a Conversation ----------------------------------------------------------


def _assemble(parts: _Parts, render: Render, bos: tuple[str, int] | None) -> Conversation:
    role = _common_prefix(parts.assistant, parts.generation)
    rest = parts.assistant.removeprefix(role)
    system, add_role = _system_part(parts.start, parts.user)
    beyond = _beyond(parts, render, bos)
    found: dict[str, Any] = {"system_message": system, "add_role_after_system_message": add_role}
    if beyond.system_template is not None:
        head, _, tail = beyond.system_template.partition(PLACEHOLDERS["system"])
        fits = system.startswith(head) and system.endswith(tail)
        if (
            PLACEHOLDERS["system"] in beyond.system_template
            and fits
            and len(system) >= len(head) + len(tail)
            and beyond.add_role_after_system_message == add_role
        ):  # the template has a default system message, so MLC's form says it all
            found["system_template"] = beyond.system_template
            found["system_message"] = system[len(head) : len(system) - len(tail)]
            beyond = beyond.model_copy(
                update={"system_template": None, "add_role_after_system_message": True}
            )
    return Conversation(
        **found,
        name="auto",
        system_prefix_token_ids=[bos[1]] if bos else None,
        roles={"user": parts.user, "assistant": role},
        role_templates={"assistant": rest + PLACEHOLDERS["assistant"]},
        role_empty_sep=parts.generation.removeprefix(role),
        seps=[parts.sep0, parts.sep1] if parts.sep0 != parts.sep1 else [parts.sep0],
        mlc_bridge=beyond if beyond != Beyond() else None,
    )


def _system_part(start: str, user: str) -> tuple[str, bool]:
    """The system part of ``start``, and whether the user's role follows it."""
    return (start.removesuffix(user), True) if start.endswith(user) else (start, False)


def _beyond(parts: _Parts, render: Render, bos: tuple[str, int] | None) -> Beyond:
    """How the template treats a system message, and which contents it trims."""
    trim = [
        r for r, chat in _padded().items() if _renders(render, chat) and not _kept(render, chat)
    ]
    try:
        text = _without_bos(render(_chat(U, A, V, system=S)), bos)
    except TemplateFails as error:
        return Beyond(system_refused=error.what or "it is refused", trim=tuple(trim))
    if S not in text:
        return Beyond(
            system_template=_system_part(parts.start, parts.user)[0],
            add_role_after_system_message=_system_part(parts.start, parts.user)[1],
            trim=tuple(trim),
        )
    try:
        head, tail, *_ = _between(text, S, U, A, V)
    except _NoForm:
        why = "the template puts it into a later turn, for which MLC's form has no place"
        return Beyond(system_refused=why, trim=tuple(trim))
    part, add_role = _system_part(head + PLACEHOLDERS["system"] + tail, parts.user)
    return Beyond(system_template=part, add_role_after_system_message=add_role, trim=tuple(trim))


PAD = " \n"


def _padded() -> dict[str, list[Message]]:
    """For each role a conversation whose content of that role has white space around it."""
    return {
        "system": _chat(U, system=PAD + S + PAD),
        "user": _chat(PAD + U + PAD),
        "assistant": _chat(U, PAD + A + PAD, V),
    }


def _renders(render: Render, messages: Sequence[Message]) -> bool:
    try:
        return bool(render(messages))
    except TemplateFails:
        return False


def _kept(render: Render, messages: Sequence[Message]) -> bool:
    text = render(messages)
    return any(m["content"] in text for m in messages if m["content"].startswith(PAD))


# --- the proof ---------------------------------------------------------------------------------


def _prove(
    found: Conversation, source: ChatTemplate, render: Render, bos: tuple[str, int] | None
) -> Derived:
    found, notes = _with_reasoning(found, render, bos)
    refused = found.mlc_bridge is not None and found.mlc_bridge.system_refused
    prefix = bos[0] if bos else ""
    proven = 0
    for messages in _conversations():
        if messages[0]["role"] == "system" and refused:
            continue
        theirs, ours = render(messages), found.prompt(messages)
        if prefix + ours != theirs:
            raise _difference(source, messages, prefix + ours, theirs)
        if source.encode and source.encode(theirs) != [
            *(found.system_prefix_token_ids or []),
            *source.encode(ours),
        ]:
            raise _refusal(source, "equal prompts give different tokens")
        proven += 1
    return Derived(_named(found), proven, (*notes, *_notes(found)))


def _conversations() -> Iterator[list[Message]]:
    """What the two must agree on, with a generation prompt each."""
    plain = (
        _chat(U),
        _chat(U, A, V),
        _chat(U, A, V, B, W),
        _chat("Grüße, 世界 🙂", "naïve\tcafé", "¿Qué? <b>&amp;</b> {x} \\n"),
        _chat("two\n\nlines", "a\n\n\nb", "c\nd"),
        _chat(" lead", " lead and trail ", "trail\n", "\n\nboth\n\n", "  "),
    )
    for chat in plain:
        yield list(chat)
    for system in ("Be brief.", "Zwei\nZeilen 🙂", " spaces around \n"):
        for chat in plain[:3]:
            yield [{"role": "system", "content": system}, *chat]


def _with_reasoning(
    found: Conversation, render: Render, bos: tuple[str, int] | None
) -> tuple[Conversation, tuple[str, ...]]:
    """Whether ``<think>...</think>`` of earlier turns is dropped, as some templates do."""
    chat = _chat(U, "<think>\nRqxr\n</think>\n\nAqxa", V)
    theirs = render(chat)
    if (bos[0] if bos else "") + found.prompt(chat) == theirs:
        return found, ()
    if "Rqxr" in theirs:
        return found, ("reasoning in earlier turns is rewritten by the model's own template",)
    strips = found.model_copy(update={"strip_reasoning_in_history": True})
    if (bos[0] if bos else "") + strips.prompt(chat) == theirs:
        return strips, ()
    return strips, ("white space after dropped reasoning differs from the model's own template",)


def _named(found: Conversation) -> Conversation:
    """MLC's own template of the same meaning lends its name and its way to write it."""
    for name in template_names():
        known = template(name)
        if _meaning(known) == _meaning(found):
            keep = ("name", "roles", "role_templates", "role_content_sep", "role_empty_sep", "seps")
            return found.model_copy(update={key: getattr(known, key) for key in keep})
    return found


def _meaning(c: Conversation) -> tuple[object, ...]:
    body = c.role_templates["assistant"].removesuffix(PLACEHOLDERS["assistant"])
    return (
        c.roles["user"] + c.role_content_sep,
        c.roles["assistant"] + c.role_content_sep + body,
        c.roles["assistant"] + c.role_empty_sep,
        c.role_templates["user"],
        c.seps[0],
        c.seps[-1],
        c.system_template,
        c.system_message,
        c.strip_reasoning_in_history,
    )


def _notes(found: Conversation) -> Iterator[str]:
    beyond = found.mlc_bridge
    if beyond is None:
        return
    if beyond.system_refused:
        yield f"no system message is accepted: {beyond.system_refused}"
    elif beyond.system_template is not None:
        yield (
            "system messages are rendered as the model's own template does; MLC LLM's engine, "
            "whose form has no optional system turn, puts their bare text first"
        )
    if beyond.trim:
        yield (
            f"white space around {', '.join(beyond.trim)} messages is trimmed as the model's own "
            "template does; MLC LLM's engine does not trim"
        )


def _refusal(source: ChatTemplate, why: str, **more: object) -> ConfigError:
    return ConfigError(
        f"MLC's conv_template cannot say what this chat template says: {why}",
        where=source.where,
        todo=f"Name one of MLC's templates with --conv-template NAME{_kindred(source.source)}",
        **more,
    )


def _kindred(source: str) -> str:
    """Templates of MLC whose separators stand in the source, as a hint."""
    known = {name: template(name).seps[0].strip() for name in template_names()}
    near = [name for name, sep in known.items() if len(sep) > 3 and sep in source]
    return f", for instance {', '.join(near[:4])}" if near else ""


def _difference(
    source: ChatTemplate, messages: Sequence[Message], ours: str, theirs: str
) -> ConfigError:
    at = max(len(_common_prefix(ours, theirs)) - 20, 0)
    roles = ", ".join(str(m["role"]) for m in messages)
    return _refusal(
        source,
        f"the first differing prompt ({roles}) differs at character {at + 20}",
        found=repr(ours[at : at + 60]),
        expected=repr(theirs[at : at + 60]),
    )
