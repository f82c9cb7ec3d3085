"""The REST interface: same answers as the Python one, OpenAI's shapes, errors as objects."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")
pytest.importorskip("httpx", reason="starlette's test client needs httpx")

from starlette.testclient import TestClient

from mlc_bridge.engine import EngineConfig, MLCEngine
from mlc_bridge.engine.server import app

pytestmark = pytest.mark.slow

CHAT = {"messages": [{"role": "user", "content": "What does os.path.join do?"}], "temperature": 0}


@pytest.fixture(scope="module")
def served(artifact: Path) -> MLCEngine:
    return MLCEngine(artifact, engine_config=EngineConfig(context_window_size=512))


@pytest.fixture(scope="module")
def client(served: MLCEngine) -> Iterator[TestClient]:
    with TestClient(app(served)) as client:
        yield client
    assert not served.alive  # the application ended its engine


def events(client: TestClient, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    with client.stream("POST", path, json={**body, "stream": True}) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def test_health_and_models(client: TestClient, artifact: Path) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    models = client.get("/v1/models").json()
    assert [m["id"] for m in models["data"]] == [artifact.name]


def test_chat_equals_the_python_interface(client: TestClient, served: MLCEngine) -> None:
    wanted = served.chat.completions.create(**CHAT)
    found = client.post("/v1/chat/completions", json=CHAT).json()
    assert found["object"] == "chat.completion"
    assert found["choices"][0]["message"] == {
        "role": "assistant", "content": wanted.choices[0].message.content,
    }  # fmt: skip
    assert found["choices"][0]["finish_reason"] == "stop"
    assert found["usage"] == wanted.usage.model_dump(exclude_none=True)


def test_chat_stream(client: TestClient, served: MLCEngine) -> None:
    wanted = served.chat.completions.create(**CHAT)
    body = {**CHAT, "stream_options": {"include_usage": True}}
    *chunks, last = events(client, "/v1/chat/completions", body)
    text = "".join(c["choices"][0]["delta"]["content"] for c in chunks)
    assert text == wanted.choices[0].message.content
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert len({c["id"] for c in chunks}) == 1
    assert (last["choices"], last["usage"]["total_tokens"]) == ([], wanted.usage.total_tokens)


def test_completions(client: TestClient, served: MLCEngine) -> None:
    body = {"prompt": "import ", "max_tokens": 8, "temperature": 0, "echo": True, "logprobs": 2}
    wanted = served.completions.create(**body).choices[0]
    found = client.post("/v1/completions", json=body).json()["choices"][0]
    assert found["text"] == wanted.text
    assert found["text"].startswith("import ")
    assert len(found["logprobs"]["tokens"]) == 8
    chunks = events(client, "/v1/completions", body)
    assert "".join(c["choices"][0]["text"] for c in chunks) == wanted.text


def test_many_clients_at_once(client: TestClient) -> None:
    prompts = [f"x{i} = " for i in range(12)]

    def say(prompt: str) -> str:
        body = {"prompt": prompt, "max_tokens": 16, "temperature": 0}
        return str(client.post("/v1/completions", json=body).json()["choices"][0]["text"])

    alone = list(map(say, prompts))
    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(say, prompts)) == alone


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "not JSON"),
        (b"[]", "not a JSON object"),
        (b"{}", "messages"),
        (json.dumps({**CHAT, "frobnicate": 1}).encode(), "frobnicate"),
        (json.dumps({**CHAT, "temperature": "hot"}).encode(), "temperature"),
    ],
)
def test_bad_requests_are_400_and_named(client: TestClient, body: bytes, words: str) -> None:
    response = client.post("/v1/chat/completions", content=body)
    assert response.status_code == 400
    assert words in response.json()["error"]["message"]
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_too_long_a_prompt(client: TestClient) -> None:
    response = client.post("/v1/completions", json={"prompt": [5] * 600})
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"


def test_an_ended_engine_is_503(artifact: Path) -> None:
    engine = MLCEngine(artifact)
    with TestClient(app(engine)) as client:
        engine.terminate()
        assert client.get("/health").status_code == 503
        assert client.post("/v1/chat/completions", json=CHAT).status_code == 503
