"""The chat page: nothing from elsewhere; and, where a browser is, a conversation in it."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from mlc_bridge.engine import AsyncMLCEngine

pytestmark = pytest.mark.slow


def test_the_page_needs_nothing_from_elsewhere(client: Any) -> None:
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
    assert not re.findall(r"(?:src|href)\s*=\s*[\"'](?!data:)", page.text)
    assert "http" not in page.text
    (model,) = client.get("/v1/models").json()["data"]
    assert model["mlc_bridge"]["verified"] == "lib and weights belong together"


@pytest.fixture
def url(client: Any, served: AsyncMLCEngine) -> Iterator[str]:
    """A real port for the browser; ``client`` ends the engine."""
    import uvicorn

    from mlc_bridge.engine.server import app

    config = uvicorn.Config(app(served), port=0, log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        pass
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


def test_a_conversation_in_a_browser(url: str) -> None:
    browsers = pytest.importorskip("playwright.sync_api", reason="drives the browser")
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("needs chromium")
    with browsers.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page()
        broken: list[Any] = []
        page.on("pageerror", lambda problem: broken.append(problem))
        page.goto(url)
        page.wait_for_selector("#about:has-text('belong together')")
        page.fill("#text", "What does os.path.join do?")
        page.press("#text", "Enter")
        page.wait_for_selector("#stats:has-text('tokens/s')")
        assert page.text_content("article.assistant")
        page.click("details summary")
        page.fill("#temperature", "2")
        page.fill("#text", "Go on")
        page.press("#text", "Enter")
        page.wait_for_selector("text=Stop")
        page.click("#send")
        page.wait_for_selector("text=Send")
        page.click("#reset")
        assert page.query_selector("article") is None
        assert not broken
        browser.close()
