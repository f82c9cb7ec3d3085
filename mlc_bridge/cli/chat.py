"""The terminal side of a conversation: reads messages, streams answers, keeps the history.

A line that ends with a backslash goes on in the next; three double quotes begin and end a message
of many lines. On a terminal the arrow keys bring back earlier lines. Ctrl-C stops an answer, which
then stays in the conversation as far as it came. With ``as_json`` an answer is one line of JSON on
stdout: prompt, text, why it ended, tokens and seconds; or prompt and error.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mlc_bridge.errors import BridgeError

if TYPE_CHECKING:
    from mlc_bridge.engine.engine import MLCEngine

HELP = """\
/help            this text
/reset           forget the conversation
/system [TEXT]   set the system message and begin anew; without TEXT show it
/stats           speed of the last answer
/quit            leave (also /exit, Ctrl-D)
Ctrl-C           stop an answer
\\ at the end of a line goes on in the next; \"\"\" begins and ends a message of many lines"""
QUOTES = '"""'


@dataclass
class Chat:
    """One conversation with ``engine``; ``wishes`` are sampling settings of every request."""

    engine: MLCEngine
    wishes: dict[str, Any]
    system: str | None = None
    as_json: bool = False
    _turns: list[dict[str, Any]] = field(default_factory=list, init=False)
    _stats: str = field(default="no answer yet", init=False)

    def talk(self) -> None:
        """Read and answer until ``/quit`` or the end of input."""
        signal.signal(signal.SIGINT, signal.default_int_handler)  # Ctrl-C ends an answer only
        if sys.stdin.isatty():
            with suppress(ImportError):
                import readline  # noqa: F401  arrow keys and earlier lines
        print("/help says what can be typed", file=sys.stderr)
        for text in _messages():
            if text in ("/quit", "/exit"):
                return
            if not self._command(text):
                self._answer(text)

    def say(self, prompt: str) -> None:
        """Answer one prompt; the answer goes to stdout, its speed to stderr."""
        self._turns.append({"role": "user", "content": prompt})
        self._stream()
        if not self.as_json:
            print(f"({self._stats})", file=sys.stderr)

    def _answer(self, text: str) -> None:
        before = list(self._turns)
        try:
            self._turns.append({"role": "user", "content": text})
            self._stream()
        except BridgeError as error:
            if self.as_json:
                print(json.dumps({"prompt": text, "error": str(error)}), flush=True)
            print(f"error: {error}", file=sys.stderr)
            self._turns = before

    def _command(self, text: str) -> bool:
        """Whether ``text`` needs no answer of the model."""
        word, _, rest = text.partition(" ")
        if word == "/reset":
            self._turns = []
        elif word == "/system" and rest.strip():
            self.system, self._turns = rest.strip(), []
        elif word == "/system":
            print(self.system or "(no system message)", file=sys.stderr)
        elif word == "/stats":
            print(f"({self._stats})", file=sys.stderr)
        elif text.startswith("/"):
            print(HELP, file=sys.stderr)
        return text == "" or text.startswith("/")

    def _stream(self) -> None:
        system = [{"role": "system", "content": self.system}] if self.system else []
        pieces, clock, ended = list[str](), _Clock(), "stop"
        chunks: Any = self.engine.chat.completions.create(
            messages=[*system, *self._turns],
            stream=True,
            stream_options={"include_usage": True},
            **self.wishes,
        )
        try:
            for chunk in chunks:
                clock.see(chunk)
                for choice in chunk.choices:
                    pieces.append(choice.delta.content or "")
                    ended = choice.finish_reason or ended
                    self._show(pieces[-1])
            self._show("\n")
        except KeyboardInterrupt:  # ends this answer, not the conversation
            chunks.close()
            ended = "interrupted"
            print(" (stopped)", file=sys.stderr)
        if self.as_json:
            prompt, text = self._turns[-1]["content"], "".join(pieces)
            told = {"prompt": prompt, "text": text, "finish_reason": ended, **clock.numbers}
            print(json.dumps(told), flush=True)
        self._turns.append({"role": "assistant", "content": "".join(pieces)})
        self._stats = clock.text

    def _show(self, text: str) -> None:
        if not self.as_json:
            print(text, end="", flush=True)


def _messages() -> Iterator[str]:
    """What is typed, message by message."""
    prompt = ">>> " if sys.stdin.isatty() else ""
    while True:
        try:
            yield _message(prompt)
        except KeyboardInterrupt:  # throws away a half-typed message
            print(file=sys.stderr)
        except EOFError:
            return


def _message(prompt: str) -> str:
    more = "... " if prompt else ""
    line = input(prompt)
    if not line.lstrip().startswith(QUOTES):
        while line.endswith("\\"):
            line = line[:-1] + "\n" + input(more)
        return line.strip()
    text = line.lstrip().removeprefix(QUOTES)
    while not text.rstrip().endswith(QUOTES):
        text += "\n" + input(more)
    return text.rstrip().removesuffix(QUOTES).strip("\n")


class _Clock:
    """When the first text of an answer came, and how many tokens there were."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._first: float | None = None
        self._tokens = 0

    def see(self, chunk: Any) -> None:
        if chunk.usage is not None:
            self._tokens = chunk.usage.completion_tokens
        elif any(choice.delta.content for choice in chunk.choices):
            self._first = self._first or time.perf_counter()
            self._tokens += 1

    @property
    def numbers(self) -> dict[str, float | None]:
        """Tokens, seconds to the first one, and the rate of those after it."""
        now = time.perf_counter()
        first = self._first or now
        some = self._tokens > 1 and now > first
        rate = (self._tokens - 1) / (now - first) if some else None
        seconds = first - self._started
        return {"tokens": self._tokens, "first_token_s": seconds, "tokens_per_s": rate}

    @property
    def text(self) -> str:
        tokens, first, rate = self.numbers.values()
        said = f", {rate:.1f} tokens/s" if rate is not None else ""
        return f"{tokens} tokens, first after {first:.2f} s{said}"
