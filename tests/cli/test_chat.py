"""The conversation in a terminal, against an engine that repeats what it was asked."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from mlc_bridge.cli.chat import Chat
from mlc_bridge.errors import EngineError


class Echo:
    """Answers with the roles and words it was sent; "long" is interrupted, "bad" is refused."""

    def __init__(self) -> None:
        self.chat = SimpleNamespace(completions=self)
        self.asked: list[list[tuple[str, str]]] = []

    def create(self, *, messages: list[dict[str, str]], **_: Any) -> Iterator[Any]:
        self.asked.append([(m["role"], m["content"]) for m in messages])
        if messages[-1]["content"] == "bad":
            raise EngineError("refused")
        return self._chunks(messages[-1]["content"])

    def _chunks(self, text: str) -> Iterator[Any]:
        for piece in ("you said ", text):
            end = "length" if piece == text else None
            delta = SimpleNamespace(delta=SimpleNamespace(content=piece), finish_reason=end)
            yield SimpleNamespace(choices=[delta], usage=None)
            if text == "long":
                raise KeyboardInterrupt
        yield SimpleNamespace(choices=[], usage=SimpleNamespace(completion_tokens=7))


def talk(typed: str, monkeypatch: pytest.MonkeyPatch, system: str | None = None) -> Echo:
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    engine: Any = Echo()
    Chat(engine, {}, system).talk()
    return engine


def test_history_and_commands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = (
        "one\n\ntwo\n/stats\n/reset\nthree\n/system Be short.\n/system\nfour\n/nonsense\n/quit\nx\n"
    )
    engine = talk(typed, monkeypatch, system="Hm.")
    hm, short = ("system", "Hm."), ("system", "Be short.")
    assert engine.asked == [
        [hm, ("user", "one")],
        [hm, ("user", "one"), ("assistant", "you said one"), ("user", "two")],
        [hm, ("user", "three")],
        [short, ("user", "four")],
    ]
    out, err = capsys.readouterr()
    assert out == "".join(f"you said {word}\n" for word in ("one", "two", "three", "four"))
    assert "7 tokens" in err
    assert "Be short." in err
    assert "/reset " in err


def test_messages_of_many_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = talk('a\\\nb\n"""\nx = 1\n\ny = 2\n"""\n"""one line"""\n', monkeypatch)
    assert [asked[-1][1] for asked in engine.asked] == ["a\nb", "x = 1\n\ny = 2", "one line"]


def test_ctrl_c_ends_the_answer_and_an_error_forgets_the_question(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = talk("long\nbad\nlast\n", monkeypatch)
    assert engine.asked[-1] == [
        ("user", "long"), ("assistant", "you said "), ("user", "last"),
    ]  # fmt: skip
    err = capsys.readouterr().err
    assert "(stopped)" in err
    assert "error: refused" in err


def test_json_is_one_line_for_each_turn(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("one\nlong\nbad\n"))
    engine: Any = Echo()
    Chat(engine, {}, as_json=True).talk()
    one, long, bad = map(json.loads, capsys.readouterr().out.splitlines())
    assert (one["prompt"], one["text"], one["finish_reason"]) == ("one", "you said one", "length")
    assert one["tokens"] == 7
    assert one["tokens_per_s"] > 0 < one["first_token_s"]
    assert (long["text"], long["finish_reason"]) == ("you said ", "interrupted")
    assert bad == {"prompt": "bad", "error": "refused."}
    Chat(engine, {}, as_json=True).say("two")
    out, err = capsys.readouterr()
    assert json.loads(out)["text"] == "you said two"
    assert err == ""
