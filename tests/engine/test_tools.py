"""Function calls: each form written, parsed at every cut, forced by its grammar, and streamed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlc_bridge.engine import MLCEngine
from mlc_bridge.engine.openai.chat import CalledFunction, ChatCompletionRequest
from mlc_bridge.engine.tools import FORMS, form_of
from mlc_bridge.engine.turn import Turn
from mlc_bridge.errors import EngineError

CALLS = [
    CalledFunction(name="get_weather", arguments='{"city": "Köln \\"}{\\"", "days": 3}'),
    CalledFunction(name="now", arguments="{}"),
    CalledFunction(name="add", arguments='{"a": [1, {"b": null}], "c": true}'),
]
TEMPLATES = {  # words of real templates of each kind
    "hermes": "{% if tools %}<tools>{% endif %} a json object in <tool_call></tool_call>",
    "llama3_json": '{{- "<|python_tag|>" + tool_call.arguments }} Environment: ipython',
    "mistral": '{%- if tools %}[AVAILABLE_TOOLS]{% endif %}{{ "[TOOL_CALLS] [" }}',
    "pythonic": "in the format of [func_name1(params_name1=params_value1)]",
}


def read(name: str, pieces: list[str], **options: Any) -> tuple[str | None, list[Any]]:
    """Text and calls of a streamed answer, put together from the deltas alone."""
    turn, deltas = Turn(FORMS[name].parser(), **options), []
    for i, piece in enumerate(pieces):
        deltas += turn.push(piece, last=i == len(pieces) - 1)
    text = "".join(d.content or "" for d in deltas)
    calls: list[Any] = []
    for delta in deltas:
        for call in delta.tool_calls or ():
            if call.id is not None:
                assert (call.index, call.type) == (len(calls), "function")
                calls.append([call.function.name, ""])
            calls[call.index][1] += call.function.arguments
    assert [(c.function.name, c.function.arguments) for c in turn.calls] == list(map(tuple, calls))
    assert text == (turn.text or "")
    return turn.text, [(name, json.loads(arguments)) for name, arguments in calls]


@pytest.mark.parametrize("name", FORMS)
def test_the_template_shows_its_form(name: str) -> None:
    assert form_of(TEMPLATES[name]).name == name
    assert form_of("{{ messages[0].content }}").name == form_of(None).name == "hermes"


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(list(FORMS)), st.lists(st.integers(1, 9), max_size=80), st.integers(1, 3))
def test_calls_are_read_back_however_they_are_cut(name: str, cuts: list[int], count: int) -> None:
    text = FORMS[name].written(CALLS[:count])
    pieces, at = [], 0
    for cut in cuts:
        pieces.append(text[at : at + cut])
        at += cut
    said, calls = read(name, [*pieces, text[at:]])
    assert said is None
    assert calls == [(c.name, json.loads(c.arguments)) for c in CALLS[:count]]


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize(
    "text",
    ["", "plain", "a < b", '{"answer": 42}', "[1, 2]", "[x", '{"name": "f"', "  {", "[TOOL_", "\n"],
)
def test_what_is_no_call_is_text(name: str, text: str) -> None:
    for pieces in ([text], list(text) or [""]):
        assert read(name, pieces) == (text, [])


@pytest.mark.parametrize(
    ("name", "text", "said", "called"),
    [
        ("hermes", 'I look.\n<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>\n',
         "I look.", [("f", {"a": 1})]),
        ("hermes", '<tool_call>{"name": "f", "arguments": "{}"}</tool_call> ok', " ok",
         [("f", {})]),
        ("hermes", '<tool_call>{"name": "f", "argum', '<tool_call>{"name": "f", "argum', []),
        ("hermes", "<tool_call>\nnot json</tool_call>", "<tool_call>\nnot json</tool_call>", []),
        ("llama3_json", '<|python_tag|>{"name": "f", "parameters": {"a": "}"}}', None,
         [("f", {"a": "}"})]),
        ("mistral", '[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]g[CALL_ID]x1[ARGS]{}', None,
         [("f", {"a": 1}), ("g", {})]),
        ("pythonic", "<|python_start|>[f(a=1.5, b=[None, true]), m.g()]<|python_end|>", None,
         [("f", {"a": 1.5, "b": [None, True]}), ("m.g", {})]),
        ("pythonic", "[f(open('x'))]", "[f(open('x'))]", []),
        ("pythonic", "[f(a=__import__('os'))]", "[f(a=__import__('os'))]", []),
    ],
)  # fmt: skip
def test_other_ways_to_write(
    name: str, text: str, said: str | None, called: list[tuple[str, Any]]
) -> None:
    assert read(name, [text]) == (said, called)
    assert read(name, list(text)) == (said, called)


def test_only_one_call_where_one_is_allowed() -> None:
    for name, form in FORMS.items():
        _, calls = read(name, [form.written(CALLS)], parallel=False)
        assert len(calls) == 1


# --- through the model -------------------------------------------------------------------------

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 8},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "unit": {"enum": ["C", "F"]},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "now"}},
]
CHAT = [{"role": "user", "content": "What is the weather in Rome?"}]


def forced(engine: MLCEngine, **options: Any) -> Any:
    pytest.importorskip("xgrammar", reason="needs the extra structured")
    settings = {"messages": CHAT, "tools": TOOLS, "max_tokens": 200, "temperature": 1.0, **options}
    return engine.chat.completions.create(**settings)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMS)
def test_a_forced_call_follows_the_schema(
    engine: MLCEngine, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.chat_prompt, "form", FORMS[name])
    choice = {"type": "function", "function": {"name": "get_weather"}}
    for seed in range(3):
        answer = forced(engine, tool_choice=choice, parallel_tool_calls=False, seed=seed).choices[0]
        assert (answer.finish_reason, answer.message.content) == ("tool_calls", None)
        (call,) = answer.message.tool_calls
        assert (call.type, call.function.name) == ("function", "get_weather")
        found = json.loads(call.function.arguments)
        assert set(found) - {"unit"} == {"city", "days"}
        assert len(found["city"]) <= 8
        assert 1 <= found["days"] <= 9


@pytest.mark.slow
def test_streamed_calls_are_the_calls(engine: MLCEngine) -> None:
    whole = forced(engine, tool_choice="required", parallel_tool_calls=False, seed=4).choices[0]
    name, arguments, reasons = None, "", []
    for chunk in forced(
        engine, tool_choice="required", parallel_tool_calls=False, seed=4, stream=True
    ):
        (choice,) = chunk.choices
        reasons.append(choice.finish_reason)
        for call in choice.delta.tool_calls or ():
            name = name or call.function.name
            arguments += call.function.arguments
    (call,) = whole.message.tool_calls
    assert (name, arguments) == (call.function.name, call.function.arguments)
    assert (reasons[-1], set(reasons[:-1])) == ("tool_calls", {None})


@pytest.mark.slow
def test_calls_and_results_in_the_history(engine: MLCEngine) -> None:
    history = [
        *CHAT,
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "1", "type": "function",
             "function": {"name": "get_weather", "arguments": '{"city": "Rome"}'}}]},
        {"role": "tool", "tool_call_id": "1", "content": "sunny"},
    ]  # fmt: skip
    answer = engine.chat.completions.create(messages=history, tools=TOOLS, max_tokens=8)
    alone = engine.chat.completions.create(messages=CHAT, max_tokens=1)
    assert answer.usage.prompt_tokens > alone.usage.prompt_tokens + 60
    assert answer.choices[0].message.tool_calls is None


@pytest.mark.slow
def test_the_older_functions(engine: MLCEngine) -> None:
    """The same answer as to one tool, under the older names; also streamed and in a history."""
    choice = {"type": "function", "function": {"name": "get_weather"}}
    options: dict[str, Any] = {"parallel_tool_calls": False, "seed": 5}
    (call,) = forced(engine, tool_choice=choice, **options).choices[0].message.tool_calls
    older: dict[str, Any] = {
        "tools": None, "functions": [tool["function"] for tool in TOOLS],
        "function_call": {"name": "get_weather"}, "seed": 5,
    }  # fmt: skip
    answer = forced(engine, **older).choices[0]
    found = answer.message.model_dump()
    assert (answer.finish_reason, "tool_calls" in found) == ("function_call", False)
    assert found["function_call"] == call.function.model_dump()

    name, arguments = None, ""
    for chunk in forced(engine, **older, stream=True):
        if piece := chunk.choices[0].delta.function_call:
            name, arguments = name or piece.name, arguments + piece.arguments
    assert chunk.choices[0].finish_reason == "function_call"
    assert (name, arguments) == (call.function.name, call.function.arguments)

    result = {"role": "function", "name": "get_weather", "content": "sunny"}
    past = {"role": "assistant", "content": None, "function_call": found["function_call"]}
    tool = {"role": "assistant", "content": None, "tool_calls": [call.model_dump()]}
    texts = [
        engine.chat_prompt.text(ChatCompletionRequest(messages=[*CHAT, turn, result]))[1]
        for turn in (past, tool)
    ]
    assert texts[0] == texts[1]
    assert "get_weather" in texts[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tools": None, "functions": [{"name": "a b"}]}, "tools.0.function.name"),
        (
            {"tools": None, "functions": [TOOLS[0]["function"]], "function_call": {"name": "no"}},
            "names no tool",
        ),
        ({"tool_choice": "required", "tools": []}, "tool_choice needs tools"),
        ({"tool_choice": {"type": "function", "function": {"name": "no"}}}, "names no tool"),
        ({"tools": TOOLS * 2}, "two functions of one name"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
    ],
)
def test_tools_that_cannot_be(engine: MLCEngine, options: dict[str, Any], words: str) -> None:
    with pytest.raises(EngineError, match=words):
        forced(engine, **options)
