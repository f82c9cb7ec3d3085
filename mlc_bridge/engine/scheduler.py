"""Continuous batching: which sequences run the next step of the model.

A step is one prefill (the next pieces of prompts, together at most ``prefill_chunk`` tokens) if one
is due, then one decode of every sequence that has its prompt behind it. So new requests enter
between two tokens of the running ones, and a long prompt delays those by one chunk at a time.

A sequence enters when a slot and the pages for what it has to prefill are free, and one page for
every running one is left. When decoding runs out of pages, the youngest sequence leaves and waits
again; its tokens, prompt and answer, are prefilled anew when it returns. One sequence always fits,
for the cache holds at least one context window.

The cache of a sequence that ended stays until its slot or pages are needed. A new prompt that
begins like one of them (the next turn of a chat) takes it over and prefills only the rest; where a
sequence only grows (recurrent layers) it must begin with all of it. How a
prompt is cut into pieces decides how its logits are rounded, so an ``exact`` sequence takes nothing
over and is prefilled alone, always in the same pieces; when it returns after it had to leave, its
answer's tokens are decoded again, not prefilled.

Some models read long sequences in another way (``Limits.crosses``): one that grows so long leaves
its cache and is prefilled from its beginning, in a first piece that shows its length.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass
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
    of ``siblings`` wants another answer to the same prompt and takes over its cache. ``reader``
    gets the logits ``[rows, vocab]`` of the prompt, with the place of the first row. ``entered`` is
    told once how many tokens of the prompt come from the prefix cache.
    """

    def __init__(
        self,
        prompt: Items[int],
        answer: Answer,
        siblings: Items[Answer] = (),
        *,
        exact: bool = False,
        reader: Callable[[int, Array], None] | None = None,
        entered: Callable[[int], None] | None = None,
    ) -> None:
        self.tokens = list(prompt)
        self.prompt_length = len(self.tokens)
        self.answer = answer
        self.siblings = list(siblings)
        self.exact, self.reader, self.entered = exact, reader, entered
        self.cached = 0
        self.slot = -1

    @property
    def decodes(self) -> bool:
        """Whether the next token goes the way of one token."""
        if self.exact:
            return self.cached >= self.prompt_length
        return self.pending == 1 and self.cached > 0

    @property
    def pending(self) -> int:
        """Tokens that are not in the cache yet; 1 while decoding."""
        return len(self.tokens) - self.cached

    @property
    def cancelled(self) -> bool:
        return self.answer.cancelled and all(answer.cancelled for answer in self.siblings)


@dataclass(frozen=True)
class Past:
    """The cache of a sequence that ended: its tokens and where they are."""

    tokens: list[int]
    slot: int

    def common(self, tokens: Items[int]) -> int:
        """Tokens at the beginning that are the same."""
        pairs = enumerate(zip(self.tokens, tokens, strict=False))
        return next((i for i, (a, b) in pairs if a != b), min(len(self.tokens), len(tokens)))


Piece = tuple[Sequence, list[int]]  # tokens that the next step appends to a sequence
_SCORED = 2**24  # logits of a prompt that are looked at together: 64 MiB


@dataclass
class Counts:
    """What the scheduler has done since it began; tokens ``reused`` were not prefilled."""

    prefilled: int = 0
    reused: int = 0
    drawn: int = 0
    preempted: int = 0


class Scheduler:
    """Runs the sequences of one model; all calls come from one thread."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # oldest first
        self.counts = Counts()
        self._past: list[Past] = []  # oldest first
        self._free_slots()

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.running)

    def submit(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def step(self) -> None:
        """Prefill what is due, then decode every running sequence once."""
        self._drop_cancelled()
        self._restart_grown()
        self._admit()
        self._read_prompt()
        if pieces := self._with_room(self._due_prefill()):
            logits = self.runtime.prefill([s.slot for s, _ in pieces], [run for _, run in pieces])
            self.counts.prefilled += sum(len(run) for _, run in pieces)
            self._advance(pieces, logits)
        if pieces := self._with_room(self._due_decode()):
            logits = self.runtime.decode([s.slot for s, _ in pieces], [run[0] for _, run in pieces])
            self._advance(pieces, logits)

    def fail_all(self, error: BaseException) -> None:
        """End everything, running or waiting, and clear the cache."""
        sequences = [*self.running, *self.waiting]
        self.running.clear()
        self.waiting.clear()
        self._past.clear()
        self._free_slots()
        for sequence in sequences:
            for answer in (sequence.answer, *sequence.siblings):
                answer.fail(error)
        self.runtime.clear()

    def _free_slots(self) -> None:
        self._slots = list(range(self.runtime.limits.max_batch))[::-1]

    def _drop_cancelled(self) -> None:
        for sequence in [s for s in self.running if s.cancelled]:
            self._end(sequence)
        if any(s.cancelled for s in self.waiting):
            self.waiting = deque(s for s in self.waiting if not s.cancelled)

    def _restart_grown(self) -> None:
        crosses = self.runtime.limits.crosses
        for sequence in self.running:
            if sequence.cached and crosses(sequence.cached, len(sequence.tokens)):
                self.runtime.remove(sequence.slot)
                self.runtime.add(sequence.slot)
                sequence.cached = 0

    def _admit(self) -> None:
        while self.waiting:
            past, common = self._find_past(self.waiting[0])
            pages = 2 + (self.waiting[0].pending - common) // PAGE
            while not self._has_place(past, pages) and self._evict(past):
                pass
            if not self._has_place(past, pages) and self.running:
                return
            self._enter(self.waiting.popleft(), past, common)

    def _find_past(self, sequence: Sequence) -> tuple[Past | None, int]:
        """The past that shares most tokens, at least a page, and how many; one token must be
        left.
        """
        best, most, tokens = None, PAGE - 1, sequence.tokens
        if sequence.exact or sequence.reader is not None:
            return None, 0
        crosses = self.runtime.limits.crosses
        for past in self._past:
            if crosses(*sorted((len(past.tokens), len(tokens)))):
                continue
            common = min(past.common(tokens), len(tokens) - 1)
            if self.runtime.limits.only_grows and common < len(past.tokens):
                continue
            if common > most:
                best, most = past, common
        return best, 0 if best is None else most

    def _has_place(self, past: Past | None, pages: int) -> bool:
        """A slot, and pages beside those that the running sequences are about to take."""
        claimed = sum(1 + s.pending // PAGE for s in self.running)
        slot = past is not None or bool(self._slots)
        return slot and self.runtime.free_pages >= claimed + pages

    def _enter(self, sequence: Sequence, past: Past | None, common: int) -> None:
        if past is None:
            sequence.slot = self._slots.pop()
            self.runtime.add(sequence.slot)
        else:
            self._past.remove(past)
            sequence.slot, sequence.cached = past.slot, common
            self.runtime.pop(past.slot, len(past.tokens) - common)
            self.counts.reused += common
        if sequence.entered is not None:
            sequence.entered(common)
            sequence.entered = None
        self.running.append(sequence)

    def _end(self, sequence: Sequence) -> None:
        """The sequence is through; its cache may stay."""
        if not self.runtime.limits.prefix_cache:
            self._leave(sequence)
            return
        self.running.remove(sequence)
        self._past.append(Past(sequence.tokens[: sequence.cached], sequence.slot))

    def _leave(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._free(sequence.slot)
        sequence.slot, sequence.cached = -1, 0

    def _evict(self, kept: Past | None = None) -> bool:
        """Give up the oldest past but ``kept``; False when there is none."""
        oldest = next((past for past in self._past if past is not kept), None)
        if oldest is None:
            return False
        self._past.remove(oldest)
        self._free(oldest.slot)
        return True

    def _free(self, slot: int) -> None:
        self.runtime.remove(slot)
        self._slots.append(slot)

    def _read_prompt(self) -> None:
        """The next piece of one prompt whose logits are asked for."""
        sequence = next((s for s in self.running if s.reader is not None), None)
        if sequence is None or sequence.reader is None:
            return
        limits, start = self.runtime.limits, sequence.cached
        rows = min(limits.prefill_chunk, max(1, _SCORED // self.runtime.vocab_size))
        if limits.crosses(start + rows, len(sequence.tokens)):
            rows = limits.prefill_chunk
        run = sequence.tokens[start : start + rows]
        if not self._with_room([(sequence, run)]):
            return
        logits = self.runtime.score(sequence.slot, run)
        self.counts.prefilled += len(run)
        sequence.reader(start, logits)
        if len(run) == sequence.pending:
            sequence.reader = None
        self._advance([(sequence, run)], logits[-1:])

    def _due_prefill(self) -> list[Piece]:
        limits, pieces = self.runtime.limits, list[Piece]()
        room = limits.prefill_chunk
        for sequence in self.running:
            if sequence.reader is not None or sequence.decodes or (sequence.exact and pieces):
                continue
            run = self._next_run(sequence, room)
            if pieces and limits.crosses(sequence.cached + len(run), len(sequence.tokens)):
                continue  # comes first in a later step
            if run:
                pieces.append((sequence, run))
                room -= len(run)
            if sequence.exact:
                break
        return pieces

    def _next_run(self, sequence: Sequence, room: int) -> list[int]:
        """The next piece to prefill: of an exact sequence only the prompt, unless its length
        decides how it is read."""
        prompt, tokens = sequence.prompt_length, sequence.tokens
        only_prompt = sequence.exact and not self.runtime.limits.crosses(prompt, len(tokens))
        end = min(prompt if only_prompt else len(tokens), sequence.cached + room)
        return tokens[sequence.cached : end]

    def _due_decode(self) -> list[Piece]:
        due = [s for s in self.running if s.decodes and s.reader is None]
        return [(s, s.tokens[s.cached : s.cached + 1]) for s in due]

    def _with_room(self, pieces: list[Piece]) -> list[Piece]:
        """Until the pages suffice, give up pasts and send the youngest sequences back to the
        queue.
        """
        while _new_pages(pieces) > self.runtime.free_pages:
            if self._evict():
                continue
            if len(self.running) == 1:
                break
            youngest = self.running[-1]
            self._leave(youngest)
            self.waiting.appendleft(youngest)
            self.counts.preempted += 1
            pieces = [piece for piece in pieces if piece[0] is not youngest]
        return pieces

    def _advance(self, pieces: list[Piece], logits: Array) -> None:
        for (sequence, run), row in zip(pieces, logits, strict=True):
            sequence.cached += len(run)
            if sequence.pending == 0:
                self._branch(sequence, row)
                self._extend(sequence, row)

    def _extend(self, sequence: Sequence, logits: Array) -> None:
        self.counts.drawn += 1
        try:
            token = sequence.answer.next_token(logits)
        except Exception as error:  # one answer's trouble is not the others'
            sequence.answer.fail(error)
            self._leave(sequence)
            return
        if token is None:
            self._end(sequence)
        else:
            sequence.tokens.append(token)

    def _branch(self, sequence: Sequence, logits: Array) -> None:
        """Each sibling becomes a sequence: a fork of the cache where a slot and a page for the
        unfinished one are free, else a place in the queue."""
        for answer in sequence.siblings:
            twin = Sequence(sequence.tokens, answer, exact=sequence.exact)
            while (not self._slots or self.runtime.free_pages < 2) and self._evict():
                pass
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
