"""Calls written as JSON objects, read as they come.

Between the objects stand the form's own marks. Of an object whose name comes first the arguments
are passed on piece by piece; one written otherwise waits until it is whole.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field

from mlc_bridge.engine.tools.form import Arguments, Begin, Piece

_HEAD = re.compile(
    r'\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
)
_NAMED = re.compile(r"([\w.\-]+)(?:\[CALL_ID\][\w\-]*)?(?:\[ARGS\])?\s*(?=\{)")
_LONGEST_HEAD = 1024


@dataclass
class Braces:
    """Finds the end of a JSON object that comes in pieces."""

    depth: int = 0
    in_string: bool = False
    escaped: bool = False

    def end(self, text: str) -> int | None:
        """Characters of ``text`` up to the object's last brace; None when it goes on."""
        for i, c in enumerate(text):
            if self.escaped:
                self.escaped = False
            elif self.in_string:
                self.escaped, self.in_string = c == "\\", c != '"'
            elif c == '"':
                self.in_string = True
            elif c in "{[":
                self.depth += 1
            elif c in "}]":
                self.depth -= 1
                if self.depth <= 0:
                    return i + 1
        return None


@dataclass
class JsonCalls:
    """``opener`` begins calls ("" where an answer that begins with a brace is one), ``marks`` may
    stand around objects. ``named``: the name may stand before an object of arguments alone."""

    opener: str
    marks: tuple[str, ...]
    named: bool = False
    _held: str = field(default="", init=False)
    _braces: Braces = field(default_factory=Braces, init=False)
    _seen: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._state = self._text if self.opener else self._between
        self._wrapped, self._opened, self._lead = True, not self.opener, ""

    def push(self, text: str) -> list[Piece]:
        self._held += text
        pieces: list[Piece] = []
        while self._state(pieces):
            pass
        return [piece for piece in pieces if piece != ""]

    def finish(self) -> list[Piece]:
        pieces = self.push("")
        held, self._held = self._held, ""
        if self._state == self._object:  # a call that was cut off is shown as it stands
            pieces.append(self._mark() + self._lead + held)
        elif self._state == self._text or (self._state == self._between and self._opened):
            pieces.append(self._mark() + held)
        return [piece for piece in pieces if piece != ""]

    def _mark(self) -> str:
        """The opener, where nothing came of it."""
        opened, self._opened = self._opened, False
        return self.opener if opened else ""

    # Each state takes from what is held and says whether to go on at once.

    def _text(self, pieces: list[Piece]) -> bool:
        at = self._held.find(self.opener)
        cut = at if at >= 0 else len(self._held) - _overlap(self._held, self.opener)
        if text := self._held[:cut]:
            pieces.append(text)
        self._held = self._held[cut:]
        if at < 0:
            return False
        self._held = self._held[len(self.opener) :]
        self._state, self._opened = self._between, True
        return True

    def _between(self, pieces: list[Piece]) -> bool:
        held = self._held.lstrip()
        marks = (self.opener, *self.marks) if self.opener else self.marks
        if any(m.startswith(held) and m != held for m in marks):  # a mark that is not whole, or ""
            return False
        if mark := next((m for m in marks if held.startswith(m)), None):
            self._held = held[len(mark) :]
            return True
        if held.startswith("{"):
            self._lead = self._held[: len(self._held) - len(held)]
            self._held, self._state = held, self._object
            self._braces, self._seen, self._wrapped = Braces(), 0, True
            return True
        if self.named and (match := _NAMED.match(held)):
            self._begin(pieces, match[1], held[match.end() :], wrapped=False)
            return True
        if self.named and len(held) < 256 and re.fullmatch(r"[\w.\-\[\]]*\s*", held):
            return False
        self._held = self._mark() + self._held
        self._state = self._after_mark if self.opener else self._rest
        return True

    def _after_mark(self, pieces: list[Piece]) -> bool:
        """Text that begins with an opener of nothing."""
        cut = len(self.opener) if self._held.startswith(self.opener) else 0
        pieces.append(self._held[:cut])
        self._held, self._state = self._held[cut:], self._text
        return True

    def _object(self, pieces: list[Piece]) -> bool:
        match = _HEAD.match(self._held) if len(self._held) < _LONGEST_HEAD else None
        if match:
            self._begin(pieces, json.loads(match[1]), self._held[match.end() :], wrapped=True)
            return True
        end = self._braces.end(self._held[self._seen :])
        if end is None:
            self._seen = len(self._held)
            return False
        whole = self._held[: self._seen + end]
        self._held, self._state = self._held[len(whole) :], self._between
        if call := _call(whole):
            pieces += call
            self._opened = False
        else:
            pieces.append(self._mark() + self._lead + whole)
        return True

    def _arguments(self, pieces: list[Piece]) -> bool:
        end = self._braces.end(self._held)
        if text := self._held[:end]:
            pieces.append(Arguments(text))
        self._held = "" if end is None else self._held[end:]
        if end is None:
            return False
        self._state = self._close if self._wrapped else self._between
        return True

    def _close(self, pieces: list[Piece]) -> bool:
        _, brace, self._held = self._held.partition("}")
        if brace:
            self._state = self._between
        return bool(brace)

    def _rest(self, pieces: list[Piece]) -> bool:
        if self._held:
            pieces.append(self._held)
        self._held = ""
        return False

    def _begin(self, pieces: list[Piece], name: str, rest: str, *, wrapped: bool) -> None:
        pieces.append(Begin(name))
        self._opened = False
        self._held, self._state, self._wrapped = rest, self._arguments, wrapped
        self._braces = Braces()


def _call(text: str) -> list[Piece] | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    arguments = found.get("arguments", found.get("parameters"))
    if not isinstance(found.get("name"), str) or not isinstance(arguments, (dict, str)):
        return None
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return [Begin(found["name"]), Arguments(text)]


def _overlap(text: str, mark: str) -> int:
    """Length of the longest end of ``text`` that begins ``mark``."""
    sizes = range(min(len(text), len(mark) - 1), 0, -1)
    return next((n for n in sizes if text.endswith(mark[:n])), 0)
