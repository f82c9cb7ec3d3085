"""Structured output: whatever the model would like to say, the answer parses."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
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


WORDS = ["Köln", '東京 "x"', "a\nb", "\\d+"]


@pytest.mark.parametrize(
    ("asked", "pattern"),
    [
        ({"guided_choice": WORDS}, "|".join(map(re.escape, WORDS))),
        ({"structured_outputs": {"choice": WORDS}}, "|".join(map(re.escape, WORDS))),
        ({"guided_regex": "[a-f]{3}-[0-9]{2}"}, "[a-f]{3}-[0-9]{2}"),
        ({"structured_outputs": {"regex": "(yes|no)!"}}, "(yes|no)!"),
        ({"guided_grammar": 'root ::= "x" [0-9] "y"'}, "x[0-9]y"),
        ({"guided_json": {"type": "boolean"}}, "true|false"),
        ({"guided_json": '{"type": "boolean"}'}, "true|false"),
        ({"structured_outputs": {"json": {"const": 5}}}, "5"),
        (
            {"response_format": {"type": "structural_tag", "format": {
                "type": "const_string", "value": "so be it"}}},
            "so be it",
        ),
    ],
)  # fmt: skip
def test_other_ways_to_ask(engine: MLCEngine, asked: dict[str, Any], pattern: str) -> None:
    response = engine.chat.completions.create(messages=CHAT, max_tokens=60, seed=1, **asked)
    assert response.choices[0].finish_reason == "stop"
    assert re.fullmatch(pattern, response.choices[0].message.content)


def test_white_space_ends(engine: MLCEngine) -> None:
    """A model that likes blanks best still comes to the end of its JSON."""
    blanks = [i for i in engine.tokenizer.ids if engine.tokenizer.bytes_of(i).isspace()]
    bias = dict.fromkeys(blanks[:200], 50.0)
    (choice,) = answer(
        engine,
        {"type": "json_schema", "json_schema": {"schema": SCHEMA}},
        logit_bias=bias,
        max_tokens=400,
    )
    assert choice.finish_reason == "stop"
    assert set(json.loads(choice.message.content)) == {"name", "size", "kind"}


def test_log_probabilities_beside_a_schema(engine: MLCEngine) -> None:
    (choice,) = answer(
        engine, {"type": "json_schema", "json_schema": {"schema": {"enum": ["a", "b"]}}},
        logprobs=True, top_logprobs=5,
    )  # fmt: skip
    tokens = choice.logprobs.content
    assert "".join(t.token for t in tokens) == choice.message.content
    assert all(np.isfinite([t.logprob, *(o.logprob for o in t.top_logprobs)]).all() for t in tokens)


@pytest.mark.parametrize(
    "schema",
    [
        {"$defs": {"n": {"type": "object", "properties": {"v": {"type": "boolean"},
         "next": {"anyOf": [{"$ref": "#/$defs/n"}, {"type": "null"}]}}, "required": ["v", "next"],
         "additionalProperties": False}}, "$ref": "#/$defs/n"},
        {"allOf": [{"type": "object", "properties": {"a": {"type": "boolean"}}},
                   {"required": ["a"]}]},
    ],
)  # fmt: skip
def test_recursive_and_merged_schemas(engine: MLCEngine, schema: dict[str, Any]) -> None:
    bias = {engine.tokenizer.encode(word)[0]: 20.0 for word in ("null", "}")}  # so that it ends
    form = {"type": "json_schema", "json_schema": {"schema": schema}}
    for choice in answer(engine, form, n=2, seed=3, logit_bias=bias):
        found = json.loads(choice.message.content)
        assert isinstance(found.get("v", found.get("a")), bool)


def test_what_takes_too_long_is_refused_and_the_next_is_not(
    engine: MLCEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlc_bridge.engine.grammar.SECONDS", 1.0)
    parts = [{"type": "object", "properties": {f"p{i}_{j}": {"type": "string"} for j in range(12)}}
             for i in range(120)]  # fmt: skip
    heavy = {"type": "json_schema", "json_schema": {"schema": {"anyOf": parts}}}
    with pytest.raises(EngineError, match=r"compiling it: it (takes too long|gives more)"):
        answer(engine, heavy)
    assert (
        answer(engine, {"type": "json_object", "schema": '{"const": 1}'})[0].message.content == "1"
    )
