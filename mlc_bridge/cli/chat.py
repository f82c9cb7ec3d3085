"""The terminal side of a conversation: reads lines, streams answers, keeps the history."""

from __future__ import annotations

import signal
import sys
import time
from typing import TYPE_CHECKING, Any

from mlc_bridge.errors import BridgeError

if TYPE_CHECKING:
    from mlc_bridge.engine.engine import MLCEngine

HELP = "/help this text   /reset forget the conversation   /stats last answer's speed   /exit leave"


class Chat:
    """One conversation with ``engine``; ``wishes`` are sampling settings of every request."""

    def __init__(self, engine: MLCEngine, wishes: dict[str, Any], system: str | None) -> None:
        self._engine, self._wishes = engine, wishes
        self._start = [{"role": "system", "content": system}] if system else []
        self._messages = list(self._start)
        self._stats = "no answer yet"

    def talk(self) -> None:
        """Read and answer until ``/exit`` or the end of input."""
        signal.signal(signal.SIGINT, signal.default_int_handler)  # Ctrl-C ends an answer only
        print(HELP, file=sys.stderr)
        while True:
            try:
                line = input(">>> " if sys.stdin.isatty() else "").strip()
            except (EOFError, KeyboardInterrupt):
                return
            if line == "/exit":
                return
            if not self._command(line):
                self._answer(line)

    def say(self, prompt: str) -> None:
        """Answer one prompt; the answer goes to stdout, its speed to stderr."""
        self._messages.append({"role": "user", "content": prompt})
        self._stream()
        print(f"({self._stats})", file=sys.stderr)

    def _answer(self, line: str) -> None:
        before = list(self._messages)
        try:
            self._messages.append({"role": "user", "content": line})
            self._stream()
        except KeyboardInterrupt:  # ends this answer, not the conversation
            print(" (stopped)", file=sys.stderr)
            self._messages = before
        except BridgeError as error:
            print(f"error: {error}", file=sys.stderr)
            self._messages = before

    def _command(self, line: str) -> bool:
        """Whether ``line`` needs no answer of the model."""
        if line == "/reset":
            self._messages = list(self._start)
        elif line == "/stats":
            print(f"({self._stats})", file=sys.stderr)
        elif line.startswith("/"):
            print(HELP, file=sys.stderr)
        return line == "" or line.startswith("/")

    def _stream(self) -> None:
        started = time.perf_counter()
        first, pieces, tokens = None, [], 0
        chunks: Any = self._engine.chat.completions.create(
            messages=self._messages,
            stream=True,
            stream_options={"include_usage": True},
            **self._wishes,
        )
        for chunk in chunks:
            if chunk.usage is not None:
                tokens = chunk.usage.completion_tokens
            for choice in chunk.choices:
                text = choice.delta.content or ""
                if text and first is None:
                    first = time.perf_counter()
                pieces.append(text)
                print(text, end="", flush=True)
        print()
        self._messages.append({"role": "assistant", "content": "".join(pieces)})
        self._stats = _speed(tokens, started, first or time.perf_counter())


def _speed(tokens: int, started: float, first: float) -> str:
    decoding = time.perf_counter() - first
    rate = f", {(tokens - 1) / decoding:.1f} tokens/s" if tokens > 1 and decoding > 0 else ""
    return f"{tokens} tokens, first after {first - started:.2f} s{rate}"
