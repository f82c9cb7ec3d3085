"""Calibration data: a file of chats or texts in, token ids out.

=============  ==========================================================  ========================
format         one record                                                  told apart by
=============  ==========================================================  ========================
ShareGPT JSON  ``{"conversations": [{"from": "human", "value": ...}]}``    file starts with ``[``
JSONL          ``{"messages": [{"role": ..., "content": ...}]}``,          file starts with ``{``
               ``{"prompt": ..., "response": ...}`` or ``{"text": ...}``
plain text     about 8000 characters, whole lines                          anything else
=============  ==========================================================  ========================

Every record shape is read from both JSON and JSONL, and so are plain strings, lists of strings in
JSON, and ``inputs_pretokenized`` in place of ``text`` (msModelSlim's). Chats pass through the
model's own conversation template, since activations of text without the template's tokens are not
those of real use.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlc_bridge.artifact.conversation import Conversation
from mlc_bridge.errors import ConfigError, EngineError

TEXT_PIECE = 8000
ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "model"), "assistant"),
    "system": "system",
    "tool": "tool",
}
TEXTS = ("text", "inputs_pretokenized")  # the second is msModelSlim's word
ANSWERS = ("response", "completion", "answer", "output")


@dataclass(frozen=True)
class Record:
    """One record: the turns of a chat as (role, content), or a plain text."""

    turns: tuple[tuple[str, str], ...] = ()
    text: str = ""


@dataclass(frozen=True)
class Sample:
    """Token ids as the model sees them, and how many of the last ones are the model's answer."""

    ids: tuple[int, ...]
    answer: int

    @property
    def prompt(self) -> tuple[int, ...]:
        return self.ids[: len(self.ids) - self.answer]


def read_records(path: str | Path) -> list[Record]:
    """All records of a data file. Raises ConfigError naming file and record."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as problem:
        raise ConfigError(f"cannot read the data set ({problem.strerror})", where=path) from None
    except UnicodeDecodeError:
        raise ConfigError("the data set is not UTF-8 text", where=path) from None
    start = text.lstrip()[:1]
    if start == "[":
        records = [_record(item, f"{path}, item {i}") for i, item in enumerate(_flat(text, path))]
    elif start == "{":
        lines = ((i, line) for i, line in enumerate(text.splitlines(), 1) if line.strip())
        records = [_record(_json(line, f"{path}:{i}"), f"{path}:{i}") for i, line in lines]
    else:
        records = [Record(text=piece) for piece in _pieces(text)]
    records = [r for r in records if r.turns or r.text.strip()]
    if not records:
        raise ConfigError("the data set holds no text", where=path)
    return records


def draw(records: Sequence[Record], count: int, seed: int) -> list[Record]:
    """``count`` records without repetition, the same ones for the same seed; all if fewer."""
    if count >= len(records):
        return list(records)
    return random.Random(seed).sample(records, count)


def tokenize(
    record: Record, conversation: Conversation, encode: Callable[[str], list[int]], limit: int
) -> Sample | None:
    """The first ``limit`` tokens of the record; None where the template refuses its roles."""
    if not record.turns:
        ids = tuple(encode(record.text)[:limit])
        return Sample(ids, len(ids) // 2)
    messages = [{"role": role, "content": content} for role, content in record.turns]
    asked = messages[:-1] if messages[-1]["role"] == "assistant" else messages
    prefix = tuple(conversation.system_prefix_token_ids or ())
    try:
        whole = conversation.prompt(messages, add_generation_prompt=asked is messages)
        prompt = conversation.prompt(asked)
    except EngineError:
        return None
    ids = (prefix + tuple(encode(whole)))[:limit]
    return Sample(ids, max(0, len(ids) - len(prefix) - len(encode(prompt))))


def _flat(text: str, path: Path) -> list[Any]:
    """The items of a JSON list; those of lists in it too (msModelSlim's batches of texts)."""
    items = _json(text, path)
    return [x for item in items for x in (item if isinstance(item, list) else [item])]


def _record(item: Any, where: str) -> Record:
    if isinstance(item, Mapping):
        if isinstance(turns := item.get("conversations"), list):
            return Record(turns=_turns(turns, "from", "value", where))
        if isinstance(turns := item.get("messages"), list):
            return Record(turns=_turns(turns, "role", "content", where))
        if isinstance(prompt := item.get("prompt"), str):
            answer = next((item[k] for k in ANSWERS if isinstance(item.get(k), str)), None)
            asked = (("user", prompt),)
            return Record(turns=asked if answer is None else (*asked, ("assistant", answer)))
        for key in TEXTS:
            if isinstance(text := item.get(key), str):
                return Record(text=text)
    if isinstance(item, str):
        return Record(text=item)
    found = f"keys {', '.join(map(str, item))}" if isinstance(item, Mapping) else repr(item)[:60]
    raise ConfigError(
        "not a calibration record",
        where=where,
        found=found,
        expected="conversations, messages, prompt or text",
    )


def _turns(
    turns: Iterable[Any], role_key: str, content_key: str, where: str
) -> tuple[tuple[str, str], ...]:
    read = []
    for turn in turns:
        role = turn.get(role_key) if isinstance(turn, Mapping) else None
        content = turn.get(content_key) if isinstance(turn, Mapping) else None
        if isinstance(content, list):
            content = "".join(
                str(part.get("text", "")) for part in content if isinstance(part, Mapping)
            )
        if not isinstance(role, str) or role not in ROLES or not isinstance(content, str):
            raise ConfigError(
                f"a turn needs {role_key} and {content_key}",
                where=where,
                found=repr(turn)[:80],
                expected=f"{role_key} one of {', '.join(ROLES)}",
            )
        read.append((ROLES[role], content))
    return tuple(read)


def _json(text: str, where: object) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise ConfigError(f"cannot be read as JSON: {problem}", where=where) from None


def _pieces(text: str) -> list[str]:
    """Cut at line ends into pieces of about ``TEXT_PIECE`` characters."""
    pieces, piece = [], ""
    for line in text.splitlines(keepends=True):
        if piece and len(piece) + len(line) > TEXT_PIECE:
            pieces.append(piece)
            piece = ""
        piece += line
    return [*pieces, piece]
