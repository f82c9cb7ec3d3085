"""The chat page: nothing from elsewhere; and, where a browser is, a conversation in it."""

from __future__ import annotations

import re
import shutil
from typing import Any

import pytest

pytestmark = pytest.mark.slow


def test_the_page_needs_nothing_from_elsewhere(client: Any) -> None:
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
    assert not re.findall(r"(?:src|href)\s*=\s*[\"'](?!data:)", page.text)
    assert "http" not in page.text
    (model,) = client.get("/v1/models").json()["data"]
    assert model["mlc_bridge"]["verified"] == "lib and weights belong together"


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
