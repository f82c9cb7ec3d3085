"""JSON of a stranger's file: an object, or the user's error; nothing else comes out."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from mlc_bridge.errors import BridgeError, ConfigError

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
Model = TypeVar("Model", bound=BaseModel)


def json_object(
    text: str | bytes, where: object, kind: type[BridgeError] = ConfigError
) -> dict[str, Any]:
    """The object that ``text`` holds. Raises ``kind`` for anything else."""
    try:
        text = text.decode() if isinstance(text, bytes) else text
        found = json.loads(text)
        if _SURROGATE.search(text):  # half of a pair is no text: it could not be written again
            json.dumps(found, ensure_ascii=False).encode()
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


def text_of(path: Path) -> str:
    """A UTF-8 text file. Raises ConfigError."""
    try:
        return path.read_bytes().decode()
    except OSError as error:
        raise ConfigError(f"cannot be read ({error.strerror})", where=path) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"is no UTF-8 text: {error}", where=path) from error


def read_part(schema: type[Model], path: Path) -> Model:
    """A file that need not be there: without it the schema's defaults. Raises ConfigError."""
    return checked(schema, json_object(text_of(path), path) if path.is_file() else {}, path)
