"""Structured output: whatever the model would like to say, the answer parses."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mlc_bridge.engine import MLCEngine
from mlc_bridge.errors import EngineError

pytest.importorskip("xgrammar", reason="needs the extra structured")

pytestmark = pytest.mark.slow

CHAT = [{"role": "user", "content": "Describe a file."}]
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "size": {"type": "integer", "minimum": 0, "maximum": 999},
        "kind": {"enum": ["text", "binary"]},
    },
    "required": ["name", "size", "kind"],
    "additionalProperties": False,
}


def answer(engine: MLCEngine, format_: dict[str, Any], **options: Any) -> Any:
    settings = {"temperature": 1.0, "max_tokens": 200, **options}
    response = engine.chat.completions.create(messages=CHAT, response_format=format_, **settings)
    return response.choices


@pytest.mark.parametrize(
    "format_",
    [
        {"type": "json_schema", "json_schema": {"name": "file", "schema": SCHEMA}},
        {"type": "json_object", "schema": json.dumps(SCHEMA)},
    ],
    ids=["openai", "mlc"],
)
def test_answers_fit_the_schema(engine: MLCEngine, format_: dict[str, Any]) -> None:
    for choice in answer(engine, format_, n=4, seed=1):
        found = json.loads(choice.message.content)
        assert choice.finish_reason == "stop"
        assert set(found) == {"name", "size", "kind"}
        assert isinstance(found["name"], str)
        assert 0 <= found["size"] <= 999
        assert found["kind"] in ("text", "binary")


def test_the_model_alone_would_not_do_it(engine: MLCEngine) -> None:
    text = engine.chat.completions.create(messages=CHAT, temperature=0, max_tokens=50)
    text = text.choices[0].message.content
    with pytest.raises(json.JSONDecodeError):
        json.loads(text)


def test_any_json(engine: MLCEngine) -> None:
    bias = {engine.tokenizer.encode("}")[0]: 8.0}  # so that this small model comes to an end
    for choice in answer(engine, {"type": "json_object"}, n=3, seed=2, logit_bias=bias):
        if choice.finish_reason == "stop":
            json.loads(choice.message.content)
        else:
            assert choice.message.content.lstrip()[0] in "[{"


def test_text_is_free(engine: MLCEngine) -> None:
    free = engine.chat.completions.create(messages=CHAT, temperature=0, max_tokens=200)
    assert answer(engine, {"type": "text"}, temperature=0.0)[0] == free.choices[0]


@pytest.mark.parametrize(
    "format_", [{"type": "json_object", "schema": "{"}, {"type": "json_schema"}, {"type": "xml"}]
)
def test_bad_formats_are_named(engine: MLCEngine, format_: dict[str, Any]) -> None:
    with pytest.raises(EngineError, match="response_format"):
        answer(engine, format_)
