"""Deltas of the engine's thread as OpenAI's response objects.

A shape takes deltas (``push``) and says at the end (``end``) what is left to say: a stream's shapes
give chunks as they come, the others one response.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from mlc_bridge.engine.deltas import Delta, Entry
from mlc_bridge.engine.openai.answer import (
    ChatChoice,
    ChatCompletionResponse,
    ChatCompletionStreamResponse,
    ChatStreamChoice,
    CompletionChoice,
    CompletionLogProbs,
    CompletionResponse,
    CompletionUsage,
    FinishReason,
    LogProbs,
    LogProbsContent,
    PromptTokensDetails,
    ResponseDelta,
    TopLogProbs,
    new_id,
)
from mlc_bridge.engine.tokenizer import Tokenizer
from mlc_bridge.engine.tools.form import Parser
from mlc_bridge.engine.turn import Turn

T_co = TypeVar("T_co", covariant=True)


class Shape(Protocol, Generic[T_co]):
    def push(self, delta: Delta) -> Iterator[T_co]: ...
    def end(self) -> Iterator[T_co]: ...


@dataclass
class Frame:
    """What all parts of one response share.

    Each of ``prompts`` has ``answers`` drawn, of which the ``shown`` most likely are given. Answer
    ``i`` belongs to prompt ``i // answers``.
    """

    tokenizer: Tokenizer
    model: str
    fingerprint: str
    prompts: Sequence[Sequence[int]]
    answers: int = 1
    shown: int = 1
    logprobs: bool = False
    include_usage: bool = False
    echo: bool = False
    parser: Callable[[], Parser] | None = None
    parallel: bool = True
    older: bool = False
    generated: int = field(default=0, init=False)
    cached: int = field(default=0, init=False)

    @property
    def count(self) -> int:
        return len(self.prompts) * self.answers

    def head(self, id_: str) -> dict[str, Any]:
        return {"id": id_, "model": self.model, "system_fingerprint": self.fingerprint}

    def count_in(self, delta: Delta) -> None:
        """Take the delta's tokens into the usage."""
        self.generated += delta.generated
        self.cached += delta.cached

    def usage(self) -> CompletionUsage:
        prompt = sum(map(len, self.prompts))
        return CompletionUsage(
            prompt_tokens=prompt,
            completion_tokens=self.generated,
            total_tokens=prompt + self.generated,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=self.cached),
        )

    def turn(self) -> Turn:
        parser = None if self.parser is None else self.parser()
        return Turn(parser, parallel=self.parallel, older=self.older)

    def echoed(self, index: int) -> str:
        """The prompt's text in front of answer ``index``."""
        return self.tokenizer.decode(self.prompts[index // self.answers]) if self.echo else ""


class _Whole:
    """Everything of each answer in one delta."""

    def __init__(self, frame: Frame) -> None:
        self._frame, self._whole = frame, [Delta(i) for i in range(frame.count)]

    def push(self, delta: Delta) -> Iterator[Any]:
        self._frame.count_in(delta)
        self._whole[delta.index].add(delta)
        yield from ()


class ChatWhole(_Whole):
    def end(self) -> Iterator[ChatCompletionResponse]:
        frame = self._frame
        choices = [self._choice(delta) for delta in self._whole]
        head = frame.head(new_id("chatcmpl"))
        yield ChatCompletionResponse(**head, choices=choices, usage=frame.usage())

    def _choice(self, delta: Delta) -> ChatChoice:
        turn = self._frame.turn()
        turn.push(delta.text, last=True)
        return ChatChoice(
            index=delta.index,
            message=turn.message(),
            logprobs=_chat_logprobs(self._frame, delta.logprobs),
            finish_reason=turn.reason(delta.finish_reason),
        )


class ChatStream:
    """The role first, then text and calls, at last the reason."""

    def __init__(self, frame: Frame) -> None:
        self._frame, self._head = frame, frame.head(new_id("chatcmpl"))
        self._turns: dict[int, Turn] = {}
        self._logprobs: dict[int, list[Entry]] = {}

    def push(self, delta: Delta) -> Iterator[ChatCompletionStreamResponse]:
        self._frame.count_in(delta)
        if delta.index not in self._turns:
            self._turns[delta.index] = self._frame.turn()
            yield self._chunk(delta.index, ResponseDelta(role="assistant", content=""))
        self._logprobs.setdefault(delta.index, []).extend(delta.logprobs)
        turn = self._turns[delta.index]
        for piece in turn.push(delta.text, last=delta.finish_reason is not None):
            yield self._chunk(delta.index, piece)
        if delta.finish_reason is not None:
            reason = turn.reason(delta.finish_reason)
            content = None if turn.calls else ""
            yield self._chunk(delta.index, ResponseDelta(content=content), reason)

    def end(self) -> Iterator[ChatCompletionStreamResponse]:
        if self._frame.include_usage:
            usage = self._frame.usage()
            yield ChatCompletionStreamResponse(**self._head, choices=[], usage=usage)

    def _chunk(
        self, index: int, delta: ResponseDelta, reason: FinishReason | None = None
    ) -> ChatCompletionStreamResponse:
        logprobs = _chat_logprobs(self._frame, self._logprobs.pop(index, []))
        choice = ChatStreamChoice(
            index=index,
            delta=delta,
            logprobs=logprobs if logprobs and logprobs.content else None,
            finish_reason=reason,
        )
        return ChatCompletionStreamResponse(**self._head, choices=[choice])


class CompletionWhole(_Whole):
    def end(self) -> Iterator[CompletionResponse]:
        frame = self._frame
        choices: list[CompletionChoice] = []
        for start in range(0, frame.count, frame.answers):
            drawn = self._whole[start : start + frame.answers]
            best = (
                sorted(drawn, key=_likelihood, reverse=True)
                if frame.answers > frame.shown
                else drawn
            )
            choices += [
                self._choice(len(choices) + i, d) for i, d in enumerate(best[: frame.shown])
            ]
        head = frame.head(new_id("cmpl"))
        yield CompletionResponse(**head, choices=choices, usage=frame.usage())

    def _choice(self, index: int, delta: Delta) -> CompletionChoice:
        return CompletionChoice(
            text=self._frame.echoed(delta.index) + delta.text,
            index=index,
            logprobs=_completion_logprobs(self._frame, [*delta.prompt, *delta.logprobs], 0),
            finish_reason=delta.finish_reason,
        )


class CompletionStream:
    def __init__(self, frame: Frame) -> None:
        self._frame, self._head = frame, frame.head(new_id("cmpl"))
        self._length: dict[int, int] = {}  # characters of each answer so far

    def push(self, delta: Delta) -> Iterator[CompletionResponse]:
        self._frame.count_in(delta)
        first = delta.index not in self._length
        text = (self._frame.echoed(delta.index) if first else "") + delta.text
        entries = [*delta.prompt, *delta.logprobs]
        if not text and not entries and delta.finish_reason is None:
            return
        at = self._length.get(delta.index, 0)
        self._length[delta.index] = at + len(text)
        choice = CompletionChoice(
            text=text,
            index=delta.index,
            logprobs=_completion_logprobs(self._frame, entries, at),
            finish_reason=delta.finish_reason,
        )
        yield CompletionResponse(**self._head, choices=[choice])

    def end(self) -> Iterator[CompletionResponse]:
        if self._frame.include_usage:
            yield CompletionResponse(**self._head, choices=[], usage=self._frame.usage())


def _likelihood(delta: Delta) -> float:
    """Mean log probability of an answer's tokens."""
    chosen = [p.chosen for _, p in delta.logprobs if p is not None]
    return sum(chosen) / len(chosen) if chosen else float("-inf")


def _chat_logprobs(frame: Frame, entries: Sequence[Entry]) -> LogProbs | None:
    if not frame.logprobs:
        return None
    content = [
        LogProbsContent(
            **_token(frame, token, p.chosen),
            top_logprobs=[TopLogProbs(**_token(frame, *t)) for t in p.top],
        )
        for token, p in entries
        if p is not None
    ]
    return LogProbs(content=content)


def _token(frame: Frame, token: int, logprob: float) -> dict[str, Any]:
    data = frame.tokenizer.bytes_of(token)
    text = data.decode("utf-8", errors="replace")
    return {"token": text, "logprob": logprob, "bytes": list(data)}


def _completion_logprobs(
    frame: Frame, entries: Sequence[Entry], start: int
) -> CompletionLogProbs | None:
    """``start``: characters before the first token."""
    if not frame.logprobs:
        return None
    tokens = [_text(frame, token) for token, _ in entries]
    offsets = [start]
    for text in tokens:
        offsets.append(offsets[-1] + len(text))
    return CompletionLogProbs(
        text_offset=offsets[:-1],
        tokens=tokens,
        token_logprobs=[None if p is None else p.chosen for _, p in entries],
        top_logprobs=[
            # The chosen token is there too, and of two with the same text the likelier.
            None if p is None else {_text(frame, i): v for i, v in [(t, p.chosen), *p.top[::-1]]}
            for t, p in entries
        ],
    )


def _text(frame: Frame, token: int) -> str:
    data = frame.tokenizer.bytes_of(token)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:  # OpenAI's way to show a piece of a character
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
