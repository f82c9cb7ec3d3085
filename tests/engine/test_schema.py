"""Schemas before the grammar library sees them: bounded, merged, or refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mlc_bridge.engine.schema import prepared
from mlc_bridge.engine.structure import Structure
from mlc_bridge.errors import EngineError


def merged(schema: Any) -> Any:
    return json.loads(prepared(Structure("json", json.dumps(schema))).text)


A, B = ({"type": "object", "properties": {n: {"type": "integer"}}, "required": [n]} for n in "ab")


def test_all_of_becomes_one() -> None:
    assert merged({"allOf": [A, B]}) == {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "required": ["a", "b"],
    }
    assert merged({"allOf": [{"type": ["integer", "null"], "minimum": 1}, {"type": "number",
                   "minimum": 3, "maximum": 9}, {"maximum": 7}]}) == {
        "type": "integer", "minimum": 3, "maximum": 7,
    }  # fmt: skip
    assert merged({"enum": [1, 2, 3], "allOf": [{"enum": [3, 2]}]}) == {"enum": [2, 3]}
    deep = merged({"properties": {"x": {"allOf": [A, {"properties": {"a": {"maximum": 5}}}]}}})
    assert deep["properties"]["x"]["properties"]["a"] == {"type": "integer", "maximum": 5}


def test_all_of_follows_references() -> None:
    schema = {"$defs": {"A": A, "B": {"allOf": [{"$ref": "#/$defs/A"}, B]}},
              "allOf": [{"$ref": "#/$defs/B"}]}  # fmt: skip
    found = merged(schema)
    assert found["required"] == ["a", "b"]
    recursive = {"$defs": {"N": {"type": "object", "properties": {"next": {"$ref": "#/$defs/N"}}}},
                 "allOf": [{"$ref": "#/$defs/N"}, A]}  # fmt: skip
    assert set(merged(recursive)["properties"]) == {"next", "a"}


def nested(levels: int) -> Any:
    schema: Any = {"type": "integer"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        (nested(60), "nested too deep"),
        ({"type": "string", "pattern": "(" * 100 + ")" * 100}, "nested groups"),
        ({"type": "string", "pattern": "a" * 3000}, "too long a pattern"),
        ({"patternProperties": {"(" * 100: {}}}, "nested groups"),
        ({"enum": ["x" * 200_000]}, "too long"),
        ({"properties": {"a": {"not": {}}}}, "'not'"),
        ({"type": "array", "uniqueItems": True}, "'uniqueItems'"),
        ({"allOf": [{"$ref": "#/$defs/X"}]}, "leads nowhere"),
        ({"$defs": {"X": {"allOf": [{"$ref": "#/$defs/X"}]}}, "allOf": [{"$ref": "#/$defs/X"}]},
         "refers to itself"),
        ({"allOf": [{"pattern": "a"}, {"pattern": "b"}]}, "sets pattern twice"),
    ],
)  # fmt: skip
def test_what_cannot_be_followed_is_refused_by_name(schema: Any, words: str) -> None:
    with pytest.raises(EngineError, match=words):
        merged(schema)


def test_properties_may_have_any_name() -> None:
    names = {name: {"type": "integer"} for name in ("not", "if", "allOf", "pattern", "$ref")}
    assert merged({"type": "object", "properties": names})["properties"] == names
