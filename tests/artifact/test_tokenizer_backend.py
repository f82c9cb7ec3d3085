"""A tokenizer file that brings the library down is an error, and a good one is tried only once."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlc_bridge.artifact import tokenizer_backend
from mlc_bridge.artifact.tokenizer_backend import encode, open_tokenizer
from mlc_bridge.errors import ConfigError

Change = Callable[[dict[str, Any]], Any]


def replaced(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}


BAD: dict[str, tuple[Change, str]] = {
    "a panic at the empty pattern": (lambda t: t.update(normalizer=replaced("", "x")), "Panic"),
    "a text that doubles forty times": (
        lambda t: t.update(
            normalizer={"type": "Sequence", "normalizers": [replaced(".", "xx")] * 40}
        ),
        "too long|memory|process down",
    ),
    "a panic while reading": (
        lambda t: t.update(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
        "Panic|charsmap",
    ),
    "no unknown token": (
        lambda t: t.update(model={"type": "Unigram", "vocab": [], "unk_id": None}),
        "unk_id",
    ),
    "no model": (lambda t: t.pop("model"), "model"),
}


@pytest.fixture
def text(example_float: Path) -> bytes:
    return (example_float / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("case", BAD)
def test_what_the_library_does_not_survive(text: bytes, case: str) -> None:
    change, words = BAD[case]
    found = json.loads(text)
    change(found)
    start = time.monotonic()
    with pytest.raises(ConfigError, match=words):
        open_tokenizer(json.dumps(found).encode(), "tokenizer.json")
    assert time.monotonic() - start < 15


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_json(content: bytes) -> None:
    with pytest.raises(ConfigError, match=r"tokenizer\.json"):
        open_tokenizer(content, "tokenizer.json")


def test_a_verdict_is_kept_by_the_bytes_of_the_file(
    text: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked = []
    real = tokenizer_backend._try_out
    monkeypatch.setattr(tokenizer_backend, "_try_out", lambda *a: (asked.append(a[1]), real(*a)))
    ids = encode(open_tokenizer(text, "first"), "import os")
    assert encode(open_tokenizer(text, "second"), "import os") == ids
    open_tokenizer(text + b"\n", "third")
    for _ in range(2):  # what is bad is tried again: nothing is kept of it
        with pytest.raises(ConfigError):
            open_tokenizer(b"{}", "bad")
    assert asked == ["first", "third", "bad", "bad"]


def test_a_cache_that_cannot_be_written_is_no_reason_to_fail(
    text: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert encode(open_tokenizer(text, "x"), "import os")


def test_a_panic_at_a_later_text_is_an_error_too() -> None:
    class Tokens:
        def encode_batch_fast(self, texts: list[str], add_special_tokens: bool) -> None:
            raise type("PanicException", (BaseException,), {})("index out of bounds")

    with pytest.raises(ConfigError, match="index out of bounds"):
        encode(Tokens(), "x")
