"""How a request is refused: OpenAI's error object, with the argument's name where there is one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from mlc_bridge.engine.generation import ModelFailure
from mlc_bridge.engine.openai.request import MEANINGLESS
from mlc_bridge.errors import BridgeError, ContextOverflow, EngineError

R = TypeVar("R", bound=BaseModel)
SHOWN = 200  # characters of a wrong value that are quoted
KINDS = ("str", "bool", "NamedTool")


def parse(
    kind: type[R], fields: dict[str, Any], *, strict: bool = False
) -> tuple[R, tuple[str, ...]]:
    """A checked request and the names of unknown arguments, which ``strict`` refuses.

    Raises EngineError naming the argument.
    """
    known = {field.alias or name for name, field in kind.model_fields.items()} | MEANINGLESS
    unknown = tuple(name for name in fields if name not in known)
    if unknown and strict:
        expected = "one of " + ", ".join(sorted(kind.model_fields))
        raise EngineError("unknown argument", where=unknown[0][:SHOWN], expected=expected)
    try:
        return kind.model_validate(fields), unknown
    except ValidationError as error:
        # Of a value that might be one thing or another, the reading that came furthest.
        found = max(error.errors(include_url=False, include_context=False), key=_depth)
    what = found["msg"].removeprefix("Value error, ")
    raise EngineError(what, where=_name(found), found=_short(found["input"])) from None


def _depth(found: Mapping[str, Any]) -> tuple[int, bool]:
    return len(found["loc"]), not found["type"].endswith("_type")


def _name(found: Mapping[str, Any]) -> str:
    """The argument's path, without the names of the kinds that were tried."""
    parts = [str(part)[:SHOWN] for part in found["loc"]]
    kept = [part for part in parts if part not in KINDS and "[" not in part]
    return ".".join(kept) or "the request"


def read_object(body: bytes) -> dict[str, Any]:
    """The JSON object of a body. Raises EngineError; nesting is bounded by the parser."""
    try:
        found = from_json(body, allow_inf_nan=False)
    except ValueError as problem:
        raise EngineError("the body is not JSON", found=str(problem)[:SHOWN]) from None
    if not isinstance(found, dict):
        raise EngineError("the body is not a JSON object", found=type(found).__name__)
    return found


def error_object(error: BridgeError) -> dict[str, Any]:
    """OpenAI's error object."""
    param = None if error.where is None else str(error.where)
    return failure(str(error), code_of(error), kind_of(error), param)


def failure(
    message: str,
    code: str | None = None,
    kind: str = "invalid_request_error",
    param: str | None = None,
) -> dict[str, Any]:
    return {"error": {"message": _sendable(message), "type": kind, "param": param, "code": code}}


def code_of(error: BridgeError) -> str:
    if isinstance(error, ContextOverflow):
        return "context_length_exceeded"
    if isinstance(error, ModelFailure):
        return "server_error"
    return "unknown_parameter" if error.what == "unknown argument" else "invalid_value"


def kind_of(error: BridgeError) -> str:
    return "server_error" if isinstance(error, ModelFailure) else "invalid_request_error"


def _short(value: Any) -> str:
    text = repr(value) if isinstance(value, (str, int, float, bool)) else type(value).__name__
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."


def _sendable(text: str) -> str:
    return text.encode("utf-8", errors="replace").decode("utf-8")
