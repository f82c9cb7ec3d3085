"""Who may ask and how much: hosts, origins, keys, sizes, numbers, times."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="needs the extra serve")
pytest.importorskip("prometheus_client", reason="needs the extra serve")
pytest.importorskip("httpx", reason="starlette's test client needs httpx")

from starlette.testclient import TestClient

from mlc_bridge.engine import AsyncMLCEngine
from mlc_bridge.engine.server import Settings, app

pytestmark = pytest.mark.slow

BODY = {"prompt": "x", "max_tokens": 1, "temperature": 0}


@pytest.fixture
def guarded(client: Any, served: AsyncMLCEngine) -> Callable[..., TestClient]:
    """A client of the same engine under other settings; ``client`` ends the engine."""

    def make(url: str = "http://localhost", **settings: Any) -> TestClient:
        return TestClient(app(served, Settings(**settings)), url, raise_server_exceptions=False)

    return make


def code(response: Any) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("http://localhost:8000", True),
        ("http://127.0.0.1", True),
        ("http://[::1]:8000", True),
        ("http://rebound.example", False),
        ("http://localhost.example:8000", False),
        ("http://127.0.0.1.example", False),
    ],
)
def test_only_known_hosts(guarded: Callable[..., TestClient], url: str, allowed: bool) -> None:
    response = guarded(url).get("/v1/models")
    if allowed:
        assert response.status_code == 200
    else:
        assert code(response) == (403, "host_not_allowed")
        assert guarded(url, hosts=None).get("/v1/models").status_code == 200


def test_pages_of_other_servers(guarded: Callable[..., TestClient]) -> None:
    page = {"origin": "https://page.example"}
    assert code(guarded().post("/v1/completions", json=BODY, headers=page)) == (
        403, "origin_not_allowed",
    )  # fmt: skip
    own = guarded().post("/v1/completions", json=BODY, headers={"origin": "http://localhost"})
    assert own.status_code == 200
    assert "access-control-allow-origin" not in own.headers
    open_ = guarded(origins=("https://page.example",))
    asked = open_.options(
        "/v1/completions", headers={**page, "access-control-request-method": "POST"}
    )
    assert asked.headers["access-control-allow-origin"] == "https://page.example"
    answer = open_.post("/v1/completions", json=BODY, headers=page)
    assert answer.headers["access-control-allow-origin"] == "https://page.example"
    other = open_.post("/v1/completions", json=BODY, headers={"origin": "https://evil.example"})
    assert other.status_code == 403


def test_a_key(guarded: Callable[..., TestClient]) -> None:
    client = guarded(api_key="sesam")
    for headers in ({}, {"authorization": "Bearer sesa"}, {"authorization": "sesam"},
                    {"authorization": "Bearer sesam2"}, {"authorization": b"\xff"}):  # fmt: skip
        assert code(client.get("/v1/models", headers=headers)) == (401, "invalid_api_key")
    assert client.get("/v1/models", headers={"authorization": "Bearer sesam"}).status_code == 200
    assert client.get("/health").status_code == 200


def test_sizes(guarded: Callable[..., TestClient]) -> None:
    client = guarded(max_body=1000)
    big = b" " * 1001
    assert code(client.post("/v1/completions", content=big)) == (413, "request_too_large")
    pieces = client.post("/v1/completions", content=iter([b" " * 600] * 2))
    assert code(pieces) == (413, "request_too_large")
    assert client.post("/v1/completions", json=BODY).status_code == 200


def test_lengths(guarded: Callable[..., TestClient], served: AsyncMLCEngine) -> None:
    before = served.longest_prompt
    try:
        client = guarded(max_prompt_tokens=10, max_answer_tokens=3)
        long = client.post("/v1/completions", json={**BODY, "prompt": [5] * 11})
        assert code(long) == (400, "context_length_exceeded")
        body = {**BODY, "max_tokens": 50, "ignore_eos": True}
        for limit in (50, None):
            answer = client.post("/v1/completions", json={**body, "max_tokens": limit}).json()
            assert answer["usage"]["completion_tokens"] == 3
    finally:
        served.longest_prompt = before


def test_numbers_and_times(guarded: Callable[..., TestClient]) -> None:
    none = guarded(max_requests=0).post("/v1/completions", json=BODY)
    assert code(none) == (429, "rate_limit_exceeded")
    assert none.headers["retry-after"]
    endless = {**BODY, "max_tokens": 400, "ignore_eos": True}
    late = guarded(request_seconds=0.001).post("/v1/completions", json=endless)
    assert late.status_code == 400
    assert "too long" in late.json()["error"]["message"]


def test_strict(guarded: Callable[..., TestClient]) -> None:
    client = guarded(strict=True, name="mine")
    assert client.post("/v1/completions", json={**BODY, "model": "mine"}).status_code == 200
    unknown = client.post("/v1/completions", json={**BODY, "frobnicate": 1})
    assert code(unknown) == (400, "unknown_parameter")
    assert unknown.json()["error"]["param"] == "frobnicate"
    other = client.post("/v1/completions", json={**BODY, "model": "gpt-5"})
    assert code(other) == (404, "model_not_found")
