"""What one answer of a chat says: text, and calls of functions where tools were offered."""

from __future__ import annotations

import uuid

from mlc_bridge.engine.openai.answer import (
    FinishReason,
    FunctionCall,
    ResponseDelta,
    ResponseMessage,
    ToolCall,
)
from mlc_bridge.engine.tools.form import Arguments, Begin, Parser


class Turn:
    """``push`` gives what is new, ``text`` and ``calls`` are the whole. Without ``parallel`` calls
    after the first are dropped; ``older`` shows the one as ``function_call``."""

    def __init__(
        self, parser: Parser | None, *, parallel: bool = True, older: bool = False
    ) -> None:
        self._parser, self._parallel, self._older = parser, parallel, older
        self._said, self._blank, self._dropping = "", "", False
        self._calls: list[ToolCall] = []

    @property
    def text(self) -> str | None:
        """None where the answer is nothing but calls."""
        return self._said or (None if self._calls else "")

    @property
    def calls(self) -> list[ToolCall]:
        return [call.model_copy(update={"index": None}) for call in self._calls]

    def message(self) -> ResponseMessage:
        """The whole answer."""
        if self._older and self._calls:
            return ResponseMessage(content=self.text, function_call=self._calls[0].function)
        return ResponseMessage(content=self.text, tool_calls=self.calls or None)

    def reason(self, given: FinishReason | None) -> FinishReason | None:
        if not self._calls or given != "stop":
            return given
        return "function_call" if self._older else "tool_calls"

    def push(self, text: str, *, last: bool) -> list[ResponseDelta]:
        if self._parser is None:
            self._said += text
            return [ResponseDelta(content=text)] if text else []
        pieces = self._parser.push(text) + (self._parser.finish() if last else [])
        found = [d for piece in pieces for d in self._delta(piece)]
        return found + (self._rest() if last else [])

    def _delta(self, piece: str | Begin | Arguments) -> list[ResponseDelta]:
        if isinstance(piece, str):
            return self._say(piece)
        self._blank = ""
        if isinstance(piece, Begin):
            self._dropping = bool(self._calls) and not self._parallel
            return [] if self._dropping else [self._begin(piece.name)]
        if self._dropping:
            return []
        call = self._calls[-1]
        call.function.arguments += piece.text
        more = ToolCall(index=call.index, function=FunctionCall(arguments=piece.text))
        return [self._shown(more)]

    def _shown(self, call: ToolCall) -> ResponseDelta:
        if self._older:
            return ResponseDelta(function_call=call.function)
        return ResponseDelta(tool_calls=[call])

    def _begin(self, name: str) -> ResponseDelta:
        call = ToolCall(
            index=len(self._calls),
            id=f"call_{uuid.uuid4().hex[:24]}",
            type="function",
            function=FunctionCall(name=name, arguments=""),
        )
        self._calls.append(call.model_copy(deep=True))
        return self._shown(call)

    def _say(self, text: str) -> list[ResponseDelta]:
        """Blanks at the end wait: before a call they mean nothing."""
        text = self._blank + text
        kept = text.rstrip()
        self._blank = text[len(kept) :]
        self._said += kept
        return [ResponseDelta(content=kept)] if kept else []

    def _rest(self) -> list[ResponseDelta]:
        text, self._blank = self._blank, ""
        if not text or self._calls:
            return []
        self._said += text
        return [ResponseDelta(content=text)]
