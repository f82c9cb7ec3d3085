"""One answer as it grows: logits in, pieces of text out.

Runs on the engine's thread (``next_token``); what it finds goes to the reader through a mailbox. A
stop token or stop string ends the answer with ``stop`` and is not shown; ``max_tokens`` or a full
context window ends it with ``length``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from mlc_bridge.engine.deltas import Delta, Entry, FinishReason, Mailbox
from mlc_bridge.engine.sampler import Sampler, Sampling, logprobs_of
from mlc_bridge.engine.text_stream import TextStream
from mlc_bridge.engine.tokenizer import Tokenizer
from mlc_bridge.engine.vocabulary import Vocabulary
from mlc_bridge.errors import EngineError
from mlc_bridge.packing import Array


class ModelFailure(EngineError):
    """Not the request's fault: the model failed under it, or the engine has ended."""


class Grammar(Protocol):
    """Which tokens may come next."""

    def mask(self) -> Array | None:
        """True for allowed token ids ``[vocab]``; None when all are."""
        ...

    def accept(self, token: int) -> bool:
        """Take the token; True when the answer is complete with it."""
        ...


@dataclass(frozen=True)
class Wish:
    """What a request asks of one answer.

    ``prompt_logprobs``: alternatives for every token of the prompt, or None. ``streaming`` sends
    every piece, else one at the end; ``continues``: the answer goes on with the prompt's text.
    """

    sampling: Sampling
    max_tokens: int
    min_tokens: int = 0
    stop_strings: tuple[str, ...] = ()
    stop_tokens: frozenset[int] = frozenset()
    prompt_logprobs: int | None = None
    streaming: bool = False
    continues: bool = False


class Generation:
    """An ``Answer`` of the scheduler."""

    def __init__(
        self,
        index: int,
        wish: Wish,
        seed: int | None,
        tokenizer: Tokenizer,
        vocabulary: Vocabulary,
        out: Mailbox,
        *,
        grammar: Grammar | None = None,
    ) -> None:
        self.index, self.cancelled = index, False
        self.out, self._wish, self._grammar = out, wish, grammar
        self._sampler, self._vocabulary = Sampler(wish.sampling, seed), vocabulary
        self._text = TextStream(tokenizer, wish.stop_strings, continues=wish.continues)
        self._count = 0
        self._delta = Delta(index)

    def read_prompt(self, entries: list[Entry]) -> None:
        """Take the log probabilities of the prompt's tokens."""
        self._delta.prompt = entries

    def entered(self, cached: int) -> None:
        """The prompt enters the model; ``cached`` of its tokens are there already."""
        self._delta.cached = cached

    def next_token(self, logits: Array) -> int | None:
        """Draw, show and check for the end; see ``scheduler.Answer``.

        Raises ModelFailure for logits that are not finite.
        """
        if self.cancelled:
            return None
        if self._wish.max_tokens == 0:
            self._delta.finish_reason = "length"
            self._send()
            return None
        logits = logits[: self._vocabulary.end]
        if not math.isfinite(peak := float(logits.max())):
            raise ModelFailure(
                "the model's logits are not finite",
                found=peak,
                todo="Check the weights with mlc-bridge verify",
            )
        token = self._draw(logits)
        self._delta.finish_reason = reason = self._take(token)
        if reason is not None and not self._text.stopped:
            self._delta.text += self._text.finish()
        if reason is not None or self._wish.streaming:
            self._send()
        return token if reason is None else None

    def fail(self, error: BaseException) -> None:
        """End the answer with an error."""
        self._delta.error = error
        self._send()

    def _draw(self, logits: Array) -> int:
        mask = None if self._grammar is None else self._grammar.mask()
        early = mask is None and self._count < self._wish.min_tokens
        forbidden = self._wish.stop_tokens if early else ()
        token, logprobs = self._sampler.next(logits, self._vocabulary.allowed(mask), forbidden)
        self._count += 1
        self._delta.generated += 1
        if logprobs is not None and token not in self._wish.stop_tokens:
            self._delta.logprobs.append((token, logprobs))
        return token

    def _take(self, token: int) -> FinishReason | None:
        if token in self._wish.stop_tokens:
            return "stop"
        complete = self._grammar is not None and self._grammar.accept(token)
        self._delta.text += self._text.push(token)
        if self._text.stopped or complete:
            return "stop"
        return "length" if self._count >= self._wish.max_tokens else None

    def _send(self) -> None:
        self.out.put(self._delta)
        self._delta = Delta(self.index)


class PromptReader:
    """Log probabilities of a prompt's own tokens, piece by piece as the model reads it."""

    def __init__(self, tokens: Sequence[int], count: int) -> None:
        self._tokens, self._count = tokens, count
        self.entries: list[Entry] = [(tokens[0], None)]

    def read(self, start: int, logits: Array) -> None:
        """``logits`` ``[rows, vocab]`` after the tokens from ``start`` on; a piece may come again
        after the sequence had to leave."""
        del self.entries[start + 1 :]
        for row, token in zip(logits, self._tokens[start + 1 :], strict=False):
            self.entries.append((token, logprobs_of(row, token, self._count)))
