"""The REST interface: same answers as the Python one, OpenAI's shapes, errors as objects."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mlc_bridge import __version__
from mlc_bridge.engine import AsyncMLCEngine, MLCEngine

pytestmark = pytest.mark.slow

CHAT = {"messages": [{"role": "user", "content": "What does os.path.join do?"}], "temperature": 0}
TEXT = {"prompt": "import ", "max_tokens": 8, "temperature": 0}


def events(client: Any, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    with client.stream("POST", path, json={**body, "stream": True}) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def test_chat_equals_the_python_interface(client: Any, engine: MLCEngine) -> None:
    wanted = engine.chat.completions.create(**CHAT)
    found = client.post("/v1/chat/completions", json=CHAT).json()
    choice = found["choices"][0]
    assert found["object"] == "chat.completion"
    assert found["id"].startswith("chatcmpl-")
    assert found["system_fingerprint"].startswith("fp_")
    assert choice == {
        "index": 0,
        "message": {
            "role": "assistant",
            "content": wanted.choices[0].message.content,
            "refusal": None,
        },
        "logprobs": None,
        "finish_reason": "stop",
    }
    told = wanted.usage.model_dump()
    for usage in (found["usage"], told):  # which of the two met the other's prefix does not matter
        usage.pop("prompt_tokens_details")
    assert found["usage"] == told


def test_chat_stream(client: Any, engine: MLCEngine) -> None:
    wanted = engine.chat.completions.create(**CHAT)
    body = {**CHAT, "stream_options": {"include_usage": True}}
    first, *chunks, last = events(client, "/v1/chat/completions", body)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    text = "".join(c["choices"][0]["delta"]["content"] for c in chunks)
    assert text == wanted.choices[0].message.content
    reasons = [c["choices"][0]["finish_reason"] for c in (first, *chunks)]
    assert reasons == [None] * len(chunks) + ["stop"]
    assert all("role" not in c["choices"][0]["delta"] for c in chunks)
    assert len({c["id"] for c in chunks}) == 1
    assert (last["choices"], last["usage"]["total_tokens"]) == ([], wanted.usage.total_tokens)


def test_completions(client: Any, engine: MLCEngine) -> None:
    body = {**TEXT, "echo": True, "logprobs": 2}
    wanted = engine.completions.create(**body).choices[0]
    found = client.post("/v1/completions", json=body).json()["choices"][0]
    assert found["text"] == wanted.text
    assert found["text"].startswith("import ")
    chunks = events(client, "/v1/completions", body)
    assert "".join(c["choices"][0]["text"] for c in chunks) == wanted.text
    tokens = [t for c in chunks for t in c["choices"][0]["logprobs"]["tokens"]]
    assert tokens == found["logprobs"]["tokens"]
    assert "".join(tokens) == wanted.text
    offsets = [o for c in chunks for o in c["choices"][0]["logprobs"]["text_offset"]]
    assert offsets == found["logprobs"]["text_offset"]


def test_many_clients_at_once(client: Any) -> None:
    prompts = [f"x{i} = " for i in range(12)]

    def say(prompt: str) -> str:
        body = {"prompt": prompt, "max_tokens": 16, "temperature": 0}
        return str(client.post("/v1/completions", json=body).json()["choices"][0]["text"])

    alone = list(map(say, prompts))
    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(say, prompts)) == alone
    body = {"prompt": prompts, "max_tokens": 16, "temperature": 0}
    together = client.post("/v1/completions", json=body).json()["choices"]
    assert [c["index"] for c in together] == list(range(12))
    assert [c["text"] for c in together] == alone


def test_what_the_server_says_about_itself(client: Any, artifact: Path) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/version").json() == {"version": __version__}
    (model,) = client.get("/v1/models").json()["data"]
    assert (model["id"], model["max_model_len"]) == (artifact.name, 512)
    assert client.get(f"/v1/models/{artifact.name}").json() == model
    missing = client.get("/v1/models/gpt-5")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")
    refused = client.post("/v1/embeddings", json={"input": "x", "model": artifact.name})
    assert refused.status_code == 400
    assert "no embeddings" in refused.json()["error"]["message"]
    assert client.get("/nowhere").json()["error"]["code"] == "not_found"
    assert client.get("/v1/completions").status_code == 405


def test_metrics_count_what_was_done(client: Any) -> None:
    def values() -> dict[str, float]:
        lines = client.get("/metrics").text.splitlines()
        pairs = [line.rpartition(" ") for line in lines if not line.startswith("#")]
        return {name: float(value) for name, _, value in pairs}

    before = values()
    client.post("/v1/completions", json={**TEXT, "seed": 1, "ignore_eos": True})
    after = values()
    grown = {name: after[name] - before.get(name, 0) for name in after}
    assert grown["mlc_bridge_generated_tokens_total"] == 8
    assert grown["mlc_bridge_prompt_tokens_total"] == 2
    assert grown["mlc_bridge_answer_seconds_count"] == 1
    assert grown['mlc_bridge_requests_total{path="/v1/completions",status="200"}'] == 1
    assert after["mlc_bridge_running"] == after["mlc_bridge_waiting"] == 0


def test_tokens_and_back(client: Any, engine: MLCEngine) -> None:
    text = "def f(x):\n    return x"
    for key in ("prompt", "content"):
        found = client.post("/tokenize", json={key: text}).json()
        assert found["tokens"] == engine.tokenizer.encode(text)
        assert found["count"] == len(found["tokens"])
    back = client.post("/detokenize", json={"tokens": found["tokens"]}).json()
    assert back["prompt"] == back["content"] == text
    chat = client.post("/tokenize", json={"messages": CHAT["messages"]}).json()
    answer = client.post("/v1/chat/completions", json={**CHAT, "max_tokens": 1}).json()
    assert chat["count"] == answer["usage"]["prompt_tokens"]
    assert client.post("/tokenize", json={}).status_code == 400


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        (b"{", None, "not JSON"),
        (b"[]", None, "not a JSON object"),
        (b"{}", "messages", "required"),
        (json.dumps({**CHAT, "temperature": "hot"}).encode(), "temperature", "number"),
        (json.dumps({**CHAT, "seed": 1.5}).encode(), "seed", "integer"),
    ],
)
def test_bad_requests_are_400_and_named(
    client: Any, body: bytes, param: str | None, words: str
) -> None:
    response = client.post("/v1/chat/completions", content=body)
    error = response.json()["error"]
    assert (response.status_code, error["type"]) == (400, "invalid_request_error")
    assert words in error["message"]
    assert error["param"] == param
    assert error["code"] == "invalid_value"


def test_unknown_arguments_are_named_in_a_header(client: Any) -> None:
    plain = client.post("/v1/chat/completions", json={**CHAT, "user": "me", "store": None})
    assert "x-mlc-bridge-ignored" not in plain.headers
    odd = {**CHAT, "frobnicate": 1, "größe\r\nx": {}, "store": True}
    response = client.post("/v1/chat/completions", json=odd)
    assert response.status_code == 200
    assert response.headers["x-mlc-bridge-ignored"] == "frobnicate, gr%C3%B6%C3%9Fe%0D%0Ax"
    assert response.json()["choices"] == plain.json()["choices"]


def test_too_long_a_prompt(client: Any) -> None:
    for prompt in ([5] * 600, "word " * 600, "x" * 4_000_000):
        response = client.post("/v1/completions", json={"prompt": prompt})
        assert response.status_code == 400
        assert response.json()["error"]["code"] == "context_length_exceeded"


def test_an_ended_engine_is_503(artifact: Path) -> None:
    from starlette.testclient import TestClient

    from mlc_bridge.engine.server import app

    engine = AsyncMLCEngine(artifact)
    with TestClient(app(engine), "http://localhost") as client:
        engine.terminate()
        assert client.get("/health").status_code == 503
        assert client.post("/v1/chat/completions", json=CHAT).status_code == 503
