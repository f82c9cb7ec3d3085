"""Deltas as the objects and events of ``/v1/responses``.

An answer is a list of items: a message, then function calls. A stream announces each item and each
part of it, gives the deltas, and says at the end of each what it became.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from mlc_bridge.engine.deltas import Delta
from mlc_bridge.engine.openai.answer import ResponseDelta, new_id
from mlc_bridge.engine.openai.responses_request import ResponsesRequest
from mlc_bridge.engine.responses import Frame

Object = dict[str, Any]


class ResponseWhole:
    """The finished response alone."""

    def __init__(self, frame: Frame, request: ResponsesRequest) -> None:
        self._events = ResponseEvents(frame, request)
        self._last: Object = {}

    def push(self, delta: Delta) -> Iterator[Object]:
        for event in self._events.push(delta):
            self._last = event
        yield from ()

    def end(self) -> Iterator[Object]:
        for event in self._events.end():
            self._last = event
        yield self._last["response"]


class ResponseEvents:
    """Events in order, each with its ``sequence_number``."""

    def __init__(self, frame: Frame, request: ResponsesRequest) -> None:
        self._frame, self._request, self._turn = frame, request, frame.turn()
        self._id, self._created, self._number = new_id("resp"), int(time.time()), 0
        self._items: list[Object] = []
        self._begun, self._cut = False, False

    def push(self, delta: Delta) -> Iterator[Object]:
        if not self._begun:
            self._begun = True
            yield self._event("response.created", response=self._response("in_progress"))
            yield self._event("response.in_progress", response=self._response("in_progress"))
        self._frame.count_in(delta)
        for piece in self._turn.push(delta.text, last=delta.finish_reason is not None):
            yield from self._say(piece)
        self._cut = self._cut or delta.finish_reason == "length"

    def end(self) -> Iterator[Object]:
        if not self._items:
            yield from self._open_message()
        yield from self._close()
        status = "incomplete" if self._cut else "completed"
        yield self._event(f"response.{status}", response=self._response(status))

    def _say(self, piece: ResponseDelta) -> Iterator[Object]:
        if piece.content:
            if not self._items or self._items[-1]["type"] != "message":
                yield from self._open_message()
            self._items[-1]["content"][0]["text"] += piece.content
            yield self._at("response.output_text.delta", delta=piece.content, logprobs=[], part=0)
        for call in piece.tool_calls or ():
            if call.id is not None:
                yield from self._open_call(call.id, call.function.name or "")
            if text := call.function.arguments:
                self._items[-1]["arguments"] += text
                yield self._at("response.function_call_arguments.delta", delta=text)

    def _open_message(self) -> Iterator[Object]:
        item: Object = {"type": "message", "id": new_id("msg"), "status": "in_progress",
                        "role": "assistant", "content": []}  # fmt: skip
        yield from self._open(item)
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        yield self._at("response.content_part.added", part=0, added=dict(part))
        item["content"].append(part)

    def _open_call(self, call_id: str, name: str) -> Iterator[Object]:
        yield from self._open(
            {"type": "function_call", "id": new_id("fc"), "status": "in_progress",
             "call_id": call_id, "name": name, "arguments": ""}
        )  # fmt: skip

    def _open(self, item: Object) -> Iterator[Object]:
        yield from self._close()
        self._items.append(item)
        index = len(self._items) - 1
        shown = {**item, "content": []} if "content" in item else dict(item)
        yield self._event("response.output_item.added", output_index=index, item=shown)

    def _close(self) -> Iterator[Object]:
        """The end of the item that is open."""
        if not self._items or self._items[-1]["status"] != "in_progress":
            return
        item = self._items[-1]
        if item["type"] == "message":
            part = item["content"][0]
            yield self._at("response.output_text.done", text=part["text"], logprobs=[], part=0)
            yield self._at("response.content_part.done", part=0, added=dict(part))
        else:
            arguments, name = item["arguments"], item["name"]
            yield self._at("response.function_call_arguments.done", arguments=arguments, name=name)
        item["status"] = "incomplete" if self._cut else "completed"
        index = len(self._items) - 1
        yield self._event("response.output_item.done", output_index=index, item=dict(item))

    def _at(
        self, kind: str, *, part: int | None = None, added: Object | None = None, **more: Any
    ) -> Object:
        """An event about the open item, or a part of it."""
        place: Object = {"item_id": self._items[-1]["id"], "output_index": len(self._items) - 1}
        if part is not None:
            place["content_index"] = part
        if added is not None:
            place["part"] = added
        return self._event(kind, **place, **more)

    def _event(self, kind: str, **more: Any) -> Object:
        self._number += 1
        return {"type": kind, "sequence_number": self._number - 1, **more}

    def _response(self, status: str) -> Object:
        request, usage = self._request, self._frame.usage()
        done = status != "in_progress"
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "model": self._frame.model,
            "output": [dict(item) for item in self._items],
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if self._cut else None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "metadata": request.metadata,
            "parallel_tool_calls": request.parallel_tool_calls,
            "previous_response_id": None,
            "store": False,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "tool_choice": request.tool_choice
            if isinstance(request.tool_choice, str)
            else {"type": "function", "name": request.tool_choice.function.name},
            "tools": [{"type": "function", "strict": True, **tool.function.model_dump()}
                      for tool in request.tools],
            "text": {"format": {"type": request.text.format.type}},
            "truncation": "disabled",
            "usage": {
                "input_tokens": usage.prompt_tokens,
                "input_tokens_details": usage.prompt_tokens_details.model_dump(),
                "output_tokens": usage.completion_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage.total_tokens,
            } if done else None,
        }  # fmt: skip
