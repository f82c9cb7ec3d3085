"""No body ends in a 5xx: each answer is 2xx, or 4xx in OpenAI's form, and the server goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

pytestmark = pytest.mark.slow

CHAT = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
TEXT = {"prompt": "x", "max_tokens": 2}
SHARED = (
    "model", "max_tokens", "min_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "stop",
    "stop_token_ids", "presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias",
    "n", "logprobs", "stream", "stream_options", "response_format", "structured_outputs",
    "debug_config", "user", "ignore_eos", "cache_prompt",
)  # fmt: skip
OF_CHAT = (
    "messages", "top_logprobs", "tools", "tool_choice", "parallel_tool_calls",
    "chat_template_kwargs", "continue_final_message", "max_completion_tokens",
)  # fmt: skip
OF_TEXT = ("prompt", "echo", "best_of", "suffix")
VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 2**63, -(2**70), 1e308, 0.5, "", "x", "\ud800", "\x00", [], [None],
    ["\udfff"], [[]], {}, {"x": None}, {"type": "\ud83d"},
)  # fmt: skip
PARTS: tuple[Any, ...] = (
    {"type": "text", "text": None}, {"type": "text"}, {"type": None}, {"type": 5, "text": "x"},
    {"type": "image_url", "image_url": {"url": "data:,"}}, {"type": "text", "text": ["x"]},
    {"type": "input_audio"}, None, 5, [], "\ud800", {"type": "refusal", "refusal": None},
)  # fmt: skip
MESSAGES: tuple[Any, ...] = (
    {"role": "user"}, {"role": "user", "content": 5}, {"role": "tool", "content": "x"},
    {"role": "assistant", "content": None}, {"role": None, "content": "x"}, {"content": "x"},
    {"role": "system", "content": "x"}, {"role": "assistant", "tool_calls": [{}]},
    {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]},
    {"role": "assistant", "tool_calls": [{"function": {"name": None, "arguments": None}}]},
    {"role": "user", "content": "x", "name": ["x"]}, {"role": "developer", "content": "\ud800"},
    {"role": "function", "name": "f", "content": None}, {"role": "user", "content": "\x00" * 99},
)  # fmt: skip
FORMATS: tuple[Any, ...] = (
    {"type": "json_schema"}, {"type": "json_schema", "json_schema": {"schema": None}},
    {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}},
    {"type": "json_schema", "json_schema": {"schema": {"$ref": "#/nowhere"}}},
    {"type": "json_schema", "json_schema": {"schema": {"$ref": "#"}}},
    {"type": "json_schema", "json_schema": {"schema": {"not": {}}}},
    {"type": "json_schema", "json_schema": {"schema": {"enum": []}}},
    {"type": "json_schema", "json_schema": {"schema": False}},
    {"type": "json_schema", "json_schema": {"schema": {"allOf": [{"$ref": "#"}]}}},
    {"type": "json_schema", "json_schema": {"schema": {"allOf": 5, "properties": []}}},
    {"type": "json_schema", "json_schema": {"schema": {"pattern": "(" * 40 + ")" * 40}}},
    {"type": "json_schema", "json_schema": {"schema": {"type": "string", "pattern": "["}}},
    {"type": "json_schema", "json_schema": {"schema": {"minimum": 5, "maximum": 1,
                                                       "type": "integer"}}},
    {"type": "json_object", "schema": "{"}, {"type": "json_object", "schema": "[" * 500},
    {"type": "structural_tag"}, {"type": "structural_tag", "format": {"type": "x"}},
    {"type": "structural_tag", "format": {"type": "regex", "pattern": "(" * 999}},
)  # fmt: skip
TOOLS: tuple[Any, ...] = (
    [{}], [{"type": "function"}], [{"type": "function", "function": {"name": ""}}],
    [{"type": "function", "function": {"name": "a b"}}], [{"type": "retrieval"}],
    [{"type": "function", "function": {"name": "f", "parameters": {"type": 5}}}],
    [{"type": "function", "function": {"name": "f", "parameters": {"not": {}}}}],
    [{"type": "function", "function": {"name": "f"}}] * 2, [{"name": "f", "type": "function"}],
)  # fmt: skip
RAW = (
    b"", b"null", b"5", b"\xff\xfe", b"{" * 10_000, b"[" * 10_000, b'{"a":' * 10_000,
    b'{"messages":' + b"[" * 5000 + b"]" * 5000 + b"}", b'{"messages": NaN}', b'{"x": 1e999}',
    b'{"messages": "\\ud800"}', b'{"messages": [{"role": "user", "content": "\\udfff"}]}',
    b'{"seed": ' + b"9" * 6000 + b"}", b'{"prompt": "x", "prompt": 5}', b'{"prompt": "x"',
    b"\xef\xbb\xbf{}", b'{"prompt": "\x00"}', b"--x\r\ncontent-disposition: form-data\r\n\r\n",
)  # fmt: skip


def bodies() -> Iterator[tuple[str, str, bytes]]:
    """Path, name and bytes."""
    for path, base, fields in (
        ("/v1/chat/completions", CHAT, (*SHARED, *OF_CHAT)),
        ("/v1/completions", TEXT, (*SHARED, *OF_TEXT)),
    ):
        for field in fields:
            for i, value in enumerate(VALUES):
                yield path, f"{field}-{i}", json.dumps({**base, field: value}).encode()
        for i, raw in enumerate(RAW):
            yield path, f"raw-{i}", raw
        for i, value in enumerate(FORMATS):
            yield path, f"format-{i}", json.dumps({**base, "response_format": value}).encode()
    chat = "/v1/chat/completions"
    for i, part in enumerate(PARTS):
        messages = [{"role": "user", "content": [part]}]
        yield chat, f"part-{i}", json.dumps({**CHAT, "messages": messages}).encode()
    for i, message in enumerate(MESSAGES):
        for extra in ({}, {"continue_final_message": True}):
            body = {**CHAT, "messages": [*CHAT["messages"], message], **extra}
            yield chat, f"message-{i}-{len(extra)}", json.dumps(body).encode()
    for i, tools in enumerate(TOOLS):
        for choice in ("auto", "required", {"type": "function", "function": {"name": "f"}}):
            body = {**CHAT, "tools": tools, "tool_choice": choice}
            yield chat, f"tools-{i}-{str(choice)[:8]}", json.dumps(body).encode()


BODIES = list(bodies())


def test_the_table_is_long() -> None:
    assert len({body for _, _, body in BODIES}) >= 500


def test_no_body_ends_in_a_failure(client: Any) -> None:
    pytest.importorskip("xgrammar", reason="needs the extra structured")
    wrong, seen = [], set()
    for path, name, body in BODIES:
        response = client.post(path, content=body)
        seen.add(response.status_code)
        if response.status_code >= 400:
            error = json.loads(response.content).get("error", {})
            good = response.status_code < 500 and set(error) == {"message", "type", "param", "code"}
        else:
            good = response.status_code == 200 and b'"error"' not in response.content
        if not good:
            wrong.append((path, name, response.status_code, response.text[:300]))
    assert not wrong
    assert seen == {200, 400}
    assert client.get("/health").json() == {"status": "ok"}
    assert client.post("/v1/chat/completions", json=CHAT).status_code == 200
