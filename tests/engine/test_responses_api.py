"""``/v1/responses``: events in OpenAI's order, and the same answers as the chat interface."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytestmark = pytest.mark.slow

ASK = "What does os.path.join do?"
BODY = {"input": ASK, "temperature": 0}
TOOL = {"type": "function", "name": "f", "strict": True, "parameters": {
    "type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"],
    "additionalProperties": False}}  # fmt: skip


def ask(client: Any, **body: Any) -> Any:
    response = client.post("/v1/responses", json={**BODY, **body})
    assert response.status_code == 200, response.text
    return response.json()


def events(client: Any, **body: Any) -> list[dict[str, Any]]:
    response = client.post("/v1/responses", json={**BODY, **body, "stream": True})
    found = []
    for block in response.text.strip().split("\n\n"):
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    assert [e["sequence_number"] for e in found] == list(range(len(found)))
    return found


def test_the_answer_is_the_chat_answer(client: Any) -> None:
    messages = [{"role": "system", "content": "Hm."}, {"role": "user", "content": ASK}]
    chat = client.post("/v1/chat/completions", json={"messages": messages, "temperature": 0}).json()
    for given in (ASK, [{"role": "user", "content": [{"type": "input_text", "text": ASK}]}]):
        found = ask(client, input=given, instructions="Hm.")
        assert (found["object"], found["status"]) == ("response", "completed")
        (item,) = found["output"]
        assert item["content"][0]["text"] == chat["choices"][0]["message"]["content"]
        assert found["usage"]["total_tokens"] == chat["usage"]["total_tokens"]


def test_events_tell_the_same_step_by_step(client: Any) -> None:
    whole, found = ask(client), events(client)
    kinds = [e["type"].removeprefix("response.") for e in found]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert kinds[-4:] == [
        "output_text.done", "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip
    text = "".join(e["delta"] for e in found if e["type"] == "response.output_text.delta")
    assert text == found[-4]["text"] == whole["output"][0]["content"][0]["text"]
    last = found[-1]["response"]
    assert last["output"] == [found[-2]["item"]]
    cached = last["usage"].pop("input_tokens_details")["cached_tokens"]
    assert cached >= whole["usage"].pop("input_tokens_details")["cached_tokens"]
    assert cached > 0
    assert last["usage"] == whole["usage"]
    assert found[2]["item"]["content"] == []


def test_an_answer_that_was_cut_says_so(client: Any) -> None:
    found = ask(client, max_output_tokens=2)
    assert found["status"] == "incomplete"
    assert found["incomplete_details"] == {"reason": "max_output_tokens"}
    assert events(client, max_output_tokens=2)[-1]["type"] == "response.incomplete"


def test_a_call_and_its_output(client: Any) -> None:
    pytest.importorskip("xgrammar", reason="needs the extra structured")
    options = {"tools": [TOOL], "tool_choice": {"type": "function", "name": "f"}, "seed": 1,
               "parallel_tool_calls": False}  # fmt: skip
    (made,) = ask(client, **options)["output"]
    assert (made["type"], made["name"]) == ("function_call", "f")
    assert set(json.loads(made["arguments"])) == {"a"}
    found = events(client, **options)
    deltas = [e["delta"] for e in found if e["type"] == "response.function_call_arguments.delta"]
    assert "".join(deltas) == made["arguments"]
    back = {"type": "function_call_output", "call_id": made["call_id"], "output": "done"}
    again = ask(client, input=[{"role": "user", "content": ASK}, made, back], tools=[TOOL])
    assert again["usage"]["input_tokens"] > 60


def test_a_schema(client: Any) -> None:
    pytest.importorskip("xgrammar", reason="needs the extra structured")
    form = {"type": "json_schema", "name": "x", "strict": True, "schema": TOOL["parameters"]}
    found = ask(client, text={"format": form})
    assert set(json.loads(found["output"][0]["content"][0]["text"])) == {"a"}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"previous_response_id": "resp-1"}, "keeps no responses"),
        ({"background": True}, "keeps no responses"),
        ({"input": []}, "at least 1"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input_image"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"input": None}, "input"),
    ],
)
def test_what_it_cannot_do_is_refused(client: Any, body: dict[str, Any], words: str) -> None:
    response = client.post("/v1/responses", json={**BODY, **body})
    assert response.status_code == 400
    assert words in response.json()["error"]["message"]
