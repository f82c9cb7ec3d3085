"""``mlc-bridge serve`` as a process: loading, clients that leave, and the end in order."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="needs the extra serve")
pytest.importorskip("prometheus_client", reason="needs the extra serve")
httpx = pytest.importorskip("httpx", reason="starlette's test client needs httpx")

pytestmark = pytest.mark.slow

ENDLESS = {"prompt": "def ", "max_tokens": 1900, "ignore_eos": True}


def start(artifact: Path, *flags: str) -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, "-m", "mlc_bridge", "serve", str(artifact), "--port", "0", *flags]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def end(process: subprocess.Popen[str]) -> float:
    """Seconds from SIGTERM to the end."""
    began = time.perf_counter()
    process.terminate()
    assert process.wait(60) == 128 + signal.SIGTERM
    assert process.stdout is not None
    process.stdout.close()
    return time.perf_counter() - began


def wait_for(url: str, status: str) -> set[str]:
    seen: set[str] = set()
    for _ in range(600):
        seen.add(httpx.get(f"{url}/health").json()["status"])
        if status in seen:
            return seen
        time.sleep(0.1)
    raise AssertionError(seen)


@pytest.fixture(scope="module")
def url(artifact: Path) -> Iterator[str]:
    process, url = start(artifact, "--mode", "server", "--max-num-sequence", "2")
    try:
        assert wait_for(url, "ok") == {"loading", "ok"}
        yield url
    finally:
        end(process)


def load(url: str) -> dict[str, float]:
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    found = (re.fullmatch(r"mlc_bridge_(running|waiting|free_pages) (\S+)", x) for x in lines)
    return {m[1]: float(m[2]) for m in found if m}


def is_idle(url: str) -> bool:
    return any((load(url)["running"], load(url)["waiting"]) == (0, 0) or time.sleep(0.1)
               for _ in range(50))  # fmt: skip


def leave(url: str, body: dict[str, Any]) -> None:
    """Ask and go away after a moment."""
    if body["stream"]:
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as response:
            next(response.iter_lines())
        return
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{url}/v1/completions", json=body, timeout=httpx.Timeout(60, read=0.3))


@pytest.mark.parametrize("stream", [False, True])
def test_who_leaves_frees_the_place(url: str, stream: bool) -> None:
    assert is_idle(url)
    with ThreadPoolExecutor(8) as pool:
        for job in [pool.submit(leave, url, {**ENDLESS, "stream": stream}) for _ in range(24)]:
            job.result()
    assert is_idle(url)


def test_it_answers_while_many_wait(url: str) -> None:
    body = {**ENDLESS, "max_tokens": 40}
    with ThreadPoolExecutor(40) as pool:
        jobs = [pool.submit(httpx.post, f"{url}/v1/completions", json=body, timeout=300)
                for _ in range(40)]  # fmt: skip
        time.sleep(0.2)
        began = time.perf_counter()
        assert httpx.get(f"{url}/health").status_code == 200
        assert time.perf_counter() - began < 2
        assert {job.result().status_code for job in jobs} == {200}


def test_a_body_that_is_too_large_is_told_so(url: str) -> None:
    response = httpx.post(f"{url}/v1/completions", content=b" " * (9 << 20), timeout=60)
    assert response.status_code == 413


def test_the_end_is_in_order_and_in_time(artifact: Path) -> None:
    """And with ``--json`` the start is told in records."""
    process, line = start(artifact, "--drain-seconds", "1", "--json")
    assert process.stdout is not None
    listening, ready = json.loads(line), json.loads(process.stdout.readline())
    url = listening.pop("url")
    assert listening == {"event": "listening", "model": artifact.name}
    assert (ready["event"], ready["device"]) == ("ready", "cpu:0")
    assert ready["limits"]["max_batch"] == 8
    with httpx.stream("POST", f"{url}/v1/completions", json={**ENDLESS, "stream": True}) as answer:
        next(answer.iter_lines())
        assert end(process) < 20


def test_what_cannot_start_says_why(artifact: Path, url: str, tmp_path: Path) -> None:
    port = url.rpartition(":")[2]
    for arguments, words in (
        ([str(artifact), "--port", port], "cannot listen"),
        ([str(tmp_path), "--port", "0"], "mlc-chat-config.json"),
    ):
        command = [sys.executable, "-m", "mlc_bridge", "serve", *arguments]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert ran.returncode == 2, ran.stderr
        assert words in ran.stderr
        assert "Traceback" not in ran.stderr
