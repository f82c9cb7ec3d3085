"""What the engine's thread has for one request, on its way to the reader.

The engine's thread never waits: ``Mailbox.put`` merges what the reader has not taken yet, so that a
reader who is slow or stuck costs one answer's text and nothing more. A reader in a thread iterates
over ``Deltas``, one in an event loop over ``AsyncDeltas``; dropping either cancels the answers.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, Protocol

from mlc_bridge.engine.sampler import TokenLogprobs

FinishReason = Literal["stop", "length"]
Entry = tuple[int, TokenLogprobs | None]
"""A token with its log probabilities; None for a prompt's first, which nothing predicts."""


@dataclass
class Delta:
    """What came since the last one: text, shown tokens with their log probabilities, and the end.

    ``generated`` counts the tokens that were drawn, a stop token included, ``cached`` those of the
    prompt that the prefix cache had; ``prompt`` are the tokens of the prompt, where their log
    probabilities were asked for.
    """

    index: int
    text: str = ""
    generated: int = 0
    cached: int = 0
    logprobs: list[Entry] = field(default_factory=list)
    prompt: list[Entry] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    error: BaseException | None = None

    def add(self, later: Delta) -> None:
        self.text += later.text
        self.generated += later.generated
        self.cached += later.cached
        self.logprobs += later.logprobs
        self.prompt = later.prompt or self.prompt
        self.finish_reason = later.finish_reason or self.finish_reason
        self.error = later.error or self.error


class Mailbox:
    """``notify`` is called, in the engine's thread, when something is there after nothing was."""

    def __init__(self, notify: Callable[[], None]) -> None:
        self._notify, self._lock = notify, threading.Lock()
        self._waiting: dict[int, Delta] = {}

    def put(self, delta: Delta) -> None:
        with self._lock:
            was_empty = not self._waiting
            if delta.index in self._waiting:
                self._waiting[delta.index].add(delta)
            else:
                self._waiting[delta.index] = delta
        if was_empty:
            self._notify()

    def take(self) -> list[Delta]:
        with self._lock:
            found, self._waiting = list(self._waiting.values()), {}
        return found


class Cancellable(Protocol):
    cancelled: bool


class _Reader:
    """How many answers are open, and what was taken but not yet given on.

    The mailbox does not know its reader, so that a reader may be dropped while answers go on.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self.mailbox = Mailbox(wake)
        self._answers: Sequence[Cancellable] = ()
        self._taken: list[Delta] = []
        self._open = 0

    def watch(self, answers: Sequence[Cancellable]) -> None:
        """The answers to wait for, one end each."""
        self._answers, self._open = answers, len(answers)

    def close(self) -> None:
        """Cancel what is unfinished."""
        self._open = 0
        for answer in self._answers:
            answer.cancelled = True

    __del__ = close

    def _next(self) -> Delta | None:
        if not self._taken:
            self._taken = self.mailbox.take()
        if not self._taken:
            return None
        delta = self._taken.pop(0)
        if delta.error is not None:
            self.close()
            raise delta.error
        self._open -= delta.finish_reason is not None
        return delta


class Deltas(_Reader, Iterator[Delta]):
    """In order of arrival, for a thread."""

    def __init__(self) -> None:
        self._event = threading.Event()
        super().__init__(self._event.set)

    def __next__(self) -> Delta:
        while self._open:
            if (delta := self._next()) is not None:
                return delta
            self._event.wait()
            self._event.clear()
        raise StopIteration


class AsyncDeltas(_Reader, AsyncIterator[Delta]):
    """In order of arrival, for the running event loop; waiting holds no thread."""

    def __init__(self) -> None:
        loop, self._event = asyncio.get_running_loop(), asyncio.Event()
        super().__init__(partial(_wake, loop, self._event))

    async def __anext__(self) -> Delta:
        while self._open:
            if (delta := self._next()) is not None:
                return delta
            await self._event.wait()
            self._event.clear()
        raise StopAsyncIteration


def _wake(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    with suppress(RuntimeError):  # the loop is closed: nobody reads any more
        loop.call_soon_threadsafe(event.set)
