"""Deltas of the engine's thread as OpenAI's response objects."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field

from mlc_bridge.engine.generation import Delta, Deltas
from mlc_bridge.engine.protocol import (
    ChatChoice,
    ChatCompletionResponse,
    ChatCompletionStreamResponse,
    ChatStreamChoice,
    CompletionChoice,
    CompletionLogProbs,
    CompletionResponse,
    CompletionUsage,
    LogProbs,
    LogProbsContent,
    ResponseMessage,
    TopLogProbs,
    new_id,
)
from mlc_bridge.engine.sampler import TokenLogprobs
from mlc_bridge.engine.tokenizer import Tokenizer


@dataclass
class Frame:
    """What all parts of one response share."""

    tokenizer: Tokenizer
    model: str
    prompt_tokens: int
    logprobs: bool
    include_usage: bool = False
    prefix: str = ""
    generated: int = field(default=0, init=False)

    def usage(self) -> CompletionUsage:
        total = self.prompt_tokens + self.generated
        return CompletionUsage(
            prompt_tokens=self.prompt_tokens, completion_tokens=self.generated, total_tokens=total
        )

    def merged(self, deltas: Deltas, count: int) -> list[Delta]:
        """Everything of each of ``count`` answers in one delta."""
        whole = [Delta(i) for i in range(count)]
        with closing(deltas):
            for delta in deltas:
                one = whole[delta.index]
                one.text += delta.text
                one.generated += delta.generated
                one.logprobs += delta.logprobs
                one.finish_reason = delta.finish_reason
                self.generated += delta.generated
        return whole

    def visible(self, deltas: Deltas) -> Iterator[Delta]:
        """The deltas that a stream shows."""
        with closing(deltas):
            for delta in deltas:
                self.generated += delta.generated
                if delta.text or delta.finish_reason or delta.logprobs:
                    yield delta


def chat_response(frame: Frame, deltas: Deltas, count: int) -> ChatCompletionResponse:
    choices = [
        ChatChoice(
            index=d.index,
            finish_reason=d.finish_reason,
            message=ResponseMessage(content=d.text),
            logprobs=_chat_logprobs(frame, d),
        )
        for d in frame.merged(deltas, count)
    ]
    return ChatCompletionResponse(
        id=new_id("chatcmpl"), choices=choices, model=frame.model, usage=frame.usage()
    )


def chat_stream(frame: Frame, deltas: Deltas) -> Iterator[ChatCompletionStreamResponse]:
    id_ = new_id("chatcmpl")
    for d in frame.visible(deltas):
        choice = ChatStreamChoice(
            index=d.index,
            finish_reason=d.finish_reason,
            delta=ResponseMessage(content=d.text),
            logprobs=_chat_logprobs(frame, d),
        )
        yield ChatCompletionStreamResponse(id=id_, choices=[choice], model=frame.model)
    if frame.include_usage:
        yield ChatCompletionStreamResponse(
            id=id_, choices=[], model=frame.model, usage=frame.usage()
        )


def completion_response(frame: Frame, deltas: Deltas, count: int) -> CompletionResponse:
    choices = [
        CompletionChoice(
            index=d.index,
            finish_reason=d.finish_reason,
            text=frame.prefix + d.text,
            logprobs=_completion_logprobs(frame, d),
        )
        for d in frame.merged(deltas, count)
    ]
    return CompletionResponse(
        id=new_id("cmpl"), choices=choices, model=frame.model, usage=frame.usage()
    )


def completion_stream(frame: Frame, deltas: Deltas, count: int) -> Iterator[CompletionResponse]:
    id_ = new_id("cmpl")
    if frame.prefix:
        echoed = [CompletionChoice(index=i, text=frame.prefix) for i in range(count)]
        yield CompletionResponse(id=id_, choices=echoed, model=frame.model)
    for d in frame.visible(deltas):
        choice = CompletionChoice(
            index=d.index,
            finish_reason=d.finish_reason,
            text=d.text,
            logprobs=_completion_logprobs(frame, d),
        )
        yield CompletionResponse(id=id_, choices=[choice], model=frame.model)
    if frame.include_usage:
        yield CompletionResponse(id=id_, choices=[], model=frame.model, usage=frame.usage())


def _chat_logprobs(frame: Frame, delta: Delta) -> LogProbs | None:
    if not frame.logprobs:
        return None
    return LogProbs(content=[_chat_token(frame, *entry) for entry in delta.logprobs])


def _chat_token(frame: Frame, token: int, logprobs: TokenLogprobs) -> LogProbsContent:
    top = [_token(frame, i, value) for i, value in logprobs.top]
    one = _token(frame, token, logprobs.chosen)
    return LogProbsContent(**one.model_dump(), top_logprobs=top)


def _token(frame: Frame, token: int, logprob: float) -> TopLogProbs:
    data = frame.tokenizer.bytes_of(token)
    return TopLogProbs(token=_text(frame, token), logprob=logprob, bytes=list(data))


def _completion_logprobs(frame: Frame, delta: Delta) -> CompletionLogProbs | None:
    if not frame.logprobs:
        return None
    return CompletionLogProbs(
        token_logprobs=[p.chosen for _, p in delta.logprobs],
        tokens=[_text(frame, token) for token, _ in delta.logprobs],
        top_logprobs=[{_text(frame, i): v for i, v in p.top} for _, p in delta.logprobs],
    )


def _text(frame: Frame, token: int) -> str:
    return frame.tokenizer.bytes_of(token).decode("utf-8", errors="replace")
