"""Continuous batching: which sequences run the next step of the model.

A step is one prefill (the next pieces of prompts, together at most ``prefill_chunk`` tokens) if one
is due, then one decode of every sequence that has its prompt behind it. So new requests enter
between two tokens of the running ones, and a long prompt delays those by one chunk at a time.

A sequence enters when a slot and the pages for what it has to prefill are free, and one page for
every running one is left. When decoding runs out of pages, the youngest sequence leaves and waits
again; its tokens, prompt and answer, are prefilled anew when it returns. One sequence always fits,
for the cache holds at least one context window.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as Items
from typing import Protocol

from mlc_bridge.engine.runtime import PAGE, Runtime
from mlc_bridge.packing import Array


class Answer(Protocol):
    """What a sequence gives its logits to. ``cancelled`` may be set by any thread."""

    cancelled: bool

    def next_token(self, logits: Array) -> int | None:
        """Choose the next token from ``logits`` ``[vocab]``; None ends the sequence."""
        ...

    def fail(self, error: BaseException) -> None:
        """The sequence cannot go on."""
        ...


class Sequence:
    """One prompt and the answer growing behind it.

    ``tokens`` holds prompt and answer, ``cached`` says how many of them are in the KV cache. Each
    of ``siblings`` wants another answer to the same prompt and takes over its cache.
    """

    def __init__(self, prompt: Items[int], answer: Answer, siblings: Items[Answer] = ()) -> None:
        self.tokens = list(prompt)
        self.answer = answer
        self.siblings = list(siblings)
        self.cached = 0
        self.slot = -1

    @property
    def pending(self) -> int:
        """Tokens that are not in the cache yet; 1 while decoding."""
        return len(self.tokens) - self.cached

    @property
    def cancelled(self) -> bool:
        return self.answer.cancelled and all(answer.cancelled for answer in self.siblings)


Piece = tuple[Sequence, list[int]]  # tokens that the next step appends to a sequence


class Scheduler:
    """Runs the sequences of one model; all calls come from one thread."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # oldest first
        self._free_slots()

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.running)

    def submit(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def step(self) -> None:
        """Prefill what is due, then decode every running sequence once."""
        self._drop_cancelled()
        self._admit()
        if pieces := self._with_room(self._due_prefill()):
            logits = self.runtime.prefill([s.slot for s, _ in pieces], [run for _, run in pieces])
            self._advance(pieces, logits)
        if pieces := self._with_room(self._due_decode()):
            logits = self.runtime.decode([s.slot for s, _ in pieces], [run[0] for _, run in pieces])
            self._advance(pieces, logits)

    def fail_all(self, error: BaseException) -> None:
        """End everything, running or waiting, and clear the cache."""
        sequences = [*self.running, *self.waiting]
        self.running.clear()
        self.waiting.clear()
        self._free_slots()
        for sequence in sequences:
            for answer in (sequence.answer, *sequence.siblings):
                answer.fail(error)
        self.runtime.clear()

    def _free_slots(self) -> None:
        self._slots = list(range(self.runtime.limits.max_batch))[::-1]

    def _drop_cancelled(self) -> None:
        for sequence in [s for s in self.running if s.cancelled]:
            self._leave(sequence)
        if any(s.cancelled for s in self.waiting):
            self.waiting = deque(s for s in self.waiting if not s.cancelled)

    def _admit(self) -> None:
        free = self.runtime.free_pages - sum(1 + s.pending // PAGE for s in self.running)
        while self.waiting and self._slots:
            free -= 2 + self.waiting[0].pending // PAGE
            if free < 0 and self.running:
                return
            sequence = self.waiting.popleft()
            sequence.slot = self._slots.pop()
            self.runtime.add(sequence.slot)
            self.running.append(sequence)

    def _leave(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.runtime.remove(sequence.slot)
        self._slots.append(sequence.slot)
        sequence.slot, sequence.cached = -1, 0

    def _due_prefill(self) -> list[Piece]:
        room, pieces = self.runtime.limits.prefill_chunk, []
        for sequence in self.running:
            run = sequence.tokens[sequence.cached : sequence.cached + room]
            if run and (sequence.pending > 1 or sequence.cached == 0):
                pieces.append((sequence, run))
                room -= len(run)
        return pieces

    def _due_decode(self) -> list[Piece]:
        return [(s, s.tokens[-1:]) for s in self.running if s.pending == 1 and s.cached]

    def _with_room(self, pieces: list[Piece]) -> list[Piece]:
        """Send the youngest sequences back to the queue until the pages suffice."""
        while len(self.running) > 1 and _new_pages(pieces) > self.runtime.free_pages:
            youngest = self.running[-1]
            self._leave(youngest)
            self.waiting.appendleft(youngest)
            pieces = [piece for piece in pieces if piece[0] is not youngest]
        return pieces

    def _advance(self, pieces: list[Piece], logits: Array) -> None:
        for (sequence, run), row in zip(pieces, logits, strict=True):
            sequence.cached += len(run)
            if sequence.pending == 0:
                self._branch(sequence, row)
                self._extend(sequence, row)

    def _extend(self, sequence: Sequence, logits: Array) -> None:
        token = sequence.answer.next_token(logits)
        if token is None:
            self._leave(sequence)
        else:
            sequence.tokens.append(token)

    def _branch(self, sequence: Sequence, logits: Array) -> None:
        """Each sibling becomes a sequence: a fork of the cache where a slot and a page for the
        unfinished one are free, else a place in the queue."""
        for answer in sequence.siblings:
            twin = Sequence(sequence.tokens, answer)
            if not self._slots or self.runtime.free_pages < 2:
                self.waiting.appendleft(twin)
                continue
            twin.slot, twin.cached = self._slots.pop(), sequence.cached
            self.runtime.fork(sequence.slot, twin.slot)
            self.running.append(twin)
            self._extend(twin, logits)
        sequence.siblings = []


def _new_pages(pieces: list[Piece]) -> int:
    """Pages that the pieces open."""
    return sum(-(-(s.cached + len(run)) // PAGE) - -(-s.cached // PAGE) for s, run in pieces)
