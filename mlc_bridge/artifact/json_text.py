"""JSON of a stranger's file: an object, or the user's error; nothing else comes out."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from mlc_bridge.errors import BridgeError, ConfigError

Model = TypeVar("Model", bound=BaseModel)


def json_object(
    text: str | bytes, where: object, kind: type[BridgeError] = ConfigError
) -> dict[str, Any]:
    """The object that ``text`` holds. Raises ``kind`` for anything else."""
    try:
        found = json.loads(text)
        str(found).encode()  # half a surrogate pair is no text, and could not be written again
    except (ValueError, RecursionError) as problem:
        why = "nested too deeply" if isinstance(problem, RecursionError) else problem
        raise kind(f"cannot be read as JSON: {why}", where=where) from problem
    if not isinstance(found, dict):
        raise kind("must hold a JSON object", where=where, found=type(found).__name__)
    return found


def checked(
    schema: type[Model], found: object, where: object, kind: type[BridgeError] = ConfigError
) -> Model:
    """``found`` as ``schema``. Raises ``kind``, naming the first key at fault."""
    try:
        return schema.model_validate(found)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"])) or "the file"
        given = repr(first["input"])
        raise kind(
            f"{key}: {first['msg'][:200]}",
            where=where,
            found=given[:80] if first["type"] != "missing" else None,
        ) from error
