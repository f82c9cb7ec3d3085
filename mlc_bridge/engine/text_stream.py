"""From tokens to text that may be shown: whole characters, never a part of a stop string.

Two things are held back: the bytes of a character that is not complete, and the longest end of the
text that could still grow into a stop string. The stop string that is complete first ends the text
(two complete at once: the one that began first), so the result does not depend on where tokens cut.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from mlc_bridge.engine.tokenizer import Tokenizer


class TextStream:
    """Text of one answer; ``push`` and ``finish`` return what became safe to show.

    ``continues`` a text: the space that tokenizers put before a first word is one of the answer.
    """

    def __init__(
        self, tokenizer: Tokenizer, stops: Sequence[str] = (), *, continues: bool = False
    ) -> None:
        self._tokenizer = tokenizer
        self._stops = tuple(stops)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self._at_start = tokenizer.strips_first_space and not continues
        self.stopped = False

    def push(self, token: int) -> str:
        """Take one more token. After a stop string ``stopped`` is set and nothing more comes."""
        return self._take(self._decoder.decode(self._tokenizer.bytes_of(token)))

    def finish(self) -> str:
        """The rest, at the end of the answer; an incomplete character becomes U+FFFD."""
        text = self._take(self._decoder.decode(b"", final=True)) + self._held
        self._held = ""
        return text

    def _take(self, text: str) -> str:
        if self._at_start and text:
            text, self._at_start = text.removeprefix(" "), False
        if self.stopped:
            return ""
        if not self._stops:
            return text
        self._held += text
        found = [(at + len(s), at) for s in self._stops if (at := self._held.find(s)) >= 0]
        if found:
            self.stopped = True
            text, self._held = self._held[: min(found)[1]], ""
            return text
        keep = max(_overlap(self._held, s) for s in self._stops)
        text, self._held = (
            self._held[: len(self._held) - keep],
            self._held[len(self._held) - keep :],
        )
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that begins ``stop``."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
