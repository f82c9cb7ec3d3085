"""One answer as it grows: logits in, pieces of text out.

Runs on the engine's thread (``next_token``); what it finds goes to the caller's thread through a
queue. A stop token or stop string ends the answer with ``stop`` and is not shown; ``max_tokens`` or
a full context window ends it with ``length``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Literal, Protocol

from mlc_bridge.engine.sampler import Sampler, Sampling, TokenLogprobs
from mlc_bridge.engine.text_stream import TextStream
from mlc_bridge.engine.tokenizer import Tokenizer
from mlc_bridge.engine.vocabulary import Vocabulary
from mlc_bridge.errors import EngineError
from mlc_bridge.packing import Array

FinishReason = Literal["stop", "length"]


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
    """What a request asks of one answer."""

    sampling: Sampling
    max_tokens: int
    stop_strings: tuple[str, ...] = ()
    stop_tokens: frozenset[int] = frozenset()


@dataclass
class Delta:
    """What came since the last one: text, shown tokens with their log probabilities, and the end.

    ``generated`` counts the tokens that were drawn, a stop token included.
    """

    index: int
    text: str = ""
    generated: int = 0
    logprobs: list[tuple[int, TokenLogprobs]] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    error: BaseException | None = None


class Generation:
    """An ``Answer`` of the scheduler. ``streaming`` sends every piece, else one at the end."""

    def __init__(
        self,
        index: int,
        wish: Wish,
        seed: int | None,
        tokenizer: Tokenizer,
        vocabulary: Vocabulary,
        out: SimpleQueue[Delta],
        *,
        streaming: bool,
        grammar: Grammar | None = None,
    ) -> None:
        self.index, self.cancelled = index, False
        self.out, self._wish, self._streaming, self._grammar = out, wish, streaming, grammar
        self._sampler, self._vocabulary = Sampler(wish.sampling, seed), vocabulary
        self._text = TextStream(tokenizer, wish.stop_strings)
        self._count = 0
        self._delta = Delta(index)

    def next_token(self, logits: Array) -> int | None:
        """Draw, show and check for the end; see ``scheduler.Answer``.

        Raises ModelFailure for logits that are not finite.
        """
        if self.cancelled:
            return None
        logits = logits[: self._vocabulary.end]
        if not math.isfinite(peak := float(logits.max())):
            raise ModelFailure(
                "the model's logits are not finite",
                found=peak,
                todo="Check the weights with mlc-bridge verify",
            )
        mask = None if self._grammar is None else self._grammar.mask()
        token, logprobs = self._sampler.next(logits, self._vocabulary.allowed(mask))
        self._count += 1
        self._delta.generated += 1
        if logprobs is not None and token not in self._wish.stop_tokens:
            self._delta.logprobs.append((token, logprobs))
        self._delta.finish_reason = reason = self._take(token)
        if reason is not None and not self._text.stopped:
            self._delta.text += self._text.finish()
        if reason is not None or self._streaming:
            self._send()
        return token if reason is None else None

    def fail(self, error: BaseException) -> None:
        """End the answer with an error."""
        self._delta.error = error
        self._send()

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


class Deltas(Iterator[Delta]):
    """What the answers of one request bring, in order of arrival; dropping it cancels them."""

    def __init__(self, generations: list[Generation]) -> None:
        self.generations = generations
        self._open = len(generations)

    def __next__(self) -> Delta:
        if not self._open:
            raise StopIteration
        delta = self.generations[0].out.get()
        if delta.error is not None:
            self.close()
            raise delta.error
        self._open -= delta.finish_reason is not None
        return delta

    def close(self) -> None:
        """Cancel what is unfinished."""
        self._open = 0
        for generation in self.generations:
            generation.cancelled = True

    __del__ = close
