"""Streaming shows the same text wherever tokens cut characters and stop strings."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_tokenizer import byte_fallback, byte_level

from mlc_bridge.engine.text_stream import TextStream
from mlc_bridge.engine.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("byte_level")
    byte_level().save(str(path / "tokenizer.json"))
    return Tokenizer(path)


def stream(tokenizer: Tokenizer, text: bytes, stops: tuple[str, ...] = ()) -> list[str]:
    """What a stream of one-byte tokens shows, piece by piece."""
    ids = {tokenizer.bytes_of(i): i for i in range(256)}
    out = TextStream(tokenizer, stops)
    pieces = []
    for byte in text:
        pieces.append(out.push(ids[bytes([byte])]))
        if out.stopped:
            return pieces
    return [*pieces, out.finish()]


def test_a_character_is_shown_when_its_last_byte_is_there(tokenizer: Tokenizer) -> None:
    assert stream(tokenizer, "a🙂b".encode()) == ["a", "", "", "", "🙂", "b", ""]


def test_an_incomplete_character_ends_as_replacement(tokenizer: Tokenizer) -> None:
    assert stream(tokenizer, "é".encode()[:1]) == ["", "�"]


@pytest.mark.parametrize(
    ("text", "stops", "shown"),
    [
        ("one END two", ("END",), "one "),
        ("one EN two", ("END",), "one EN two"),
        ("one E", ("END",), "one E"),
        ("aab", ("ab",), "a"),
        ("xabcy", ("abc", "b"), "xa"),  # "b" is complete first
        ("xabcy", ("bc", "abc"), "x"),  # both complete with "c": the earlier start
        ("größe", ("öß",), "gr"),
        ("END", ("END",), ""),
    ],
)
def test_stop_strings_are_found_and_never_shown(
    tokenizer: Tokenizer, text: str, stops: tuple[str, ...], shown: str
) -> None:
    assert "".join(stream(tokenizer, text.encode(), stops)) == shown


@settings(max_examples=200, deadline=None)
@given(
    text=st.text("abé🙂", max_size=12),
    stops=st.lists(st.text("abé🙂", min_size=1, max_size=3), max_size=3),
)
def test_result_equals_a_search_over_all_beginnings(
    tokenizer: Tokenizer, text: str, stops: list[str]
) -> None:
    shown = text
    for end in range(1, len(text) + 1):
        starts = [end - len(s) for s in stops if text[:end].endswith(s)]
        if starts:
            shown = text[: min(starts)]
            break
    assert "".join(stream(tokenizer, text.encode(), tuple(stops))) == shown


def test_first_space_of_a_sentencepiece_answer_is_dropped(tmp_path: Path) -> None:
    byte_fallback().save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path)
    ids = tokenizer.encode("he w")
    out = TextStream(tokenizer)
    assert "".join(map(out.push, ids)) + out.finish() == "he w"
