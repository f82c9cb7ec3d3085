"""Jobs and reports as JSON and back: ``Record`` is what both are.

    text = report.to_json()
    assert BuildReport.from_json(text).to_json() == text

Paths are strings in JSON. ``BuildJob.json_schema()`` describes the JSON of a class, with the
meaning of every field (its annotation); ``mlc-bridge schema BuildJob`` prints it.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Self, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from mlc_bridge.errors import ConfigError


class Record:
    """A frozen dataclass that goes through JSON."""

    def to_json(self, indent: int | None = 2) -> str:
        """All fields, nested records too."""
        return (
            TypeAdapter(type(self))
            .dump_json(self, indent=indent, by_alias=True, fallback=str)
            .decode()
        )

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """The record that ``to_json`` wrote. Raises ConfigError naming the field at fault."""
        try:
            found: Self = TypeAdapter(cls).validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join((cls.__name__, *map(str, first["loc"])))
            raise ConfigError(first["msg"].lower(), where=where) from error
        return found

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """JSON Schema; each field's meaning is its description."""
        schema = TypeAdapter(cls).json_schema()
        for name, text in meanings(cls).items():
            schema["properties"][name]["description"] = text
        return schema


def meanings(kind: type) -> dict[str, str]:
    """Field -> what it means, as its annotation says."""
    hints = get_type_hints(kind, include_extras=True)
    found = {f.name: get_args(hints[f.name])[1:] for f in dataclasses.fields(kind)}
    return {name: extra[0] for name, extra in found.items() if extra and isinstance(extra[0], str)}
