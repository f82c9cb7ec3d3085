"""The client that most programs use, against our server: its own types, retries and errors."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest

from mlc_bridge.engine import MLCEngine

openai = pytest.importorskip("openai", reason="the client itself")
pytestmark = pytest.mark.slow

CHAT = [{"role": "user", "content": "What does os.path.join do?"}]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}, "days": {"type": "integer"}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": SCHEMA}}
MODEL: dict[str, Any] = {"model": "any", "temperature": 0}


@pytest.fixture(scope="module")
def ai(url: str) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def text(engine: MLCEngine) -> str:
    return str(
        engine.chat.completions.create(messages=CHAT, temperature=0.0).choices[0].message.content
    )


def test_models(ai: Any) -> None:
    (model,) = ai.models.list().data
    assert ai.models.retrieve(model.id) == model
    with pytest.raises(openai.NotFoundError) as refused:
        ai.models.retrieve("another")
    assert refused.value.code == "model_not_found"


def test_chat(ai: Any, text: str) -> None:
    whole = ai.chat.completions.create(messages=CHAT, **MODEL)
    assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == (text, "stop")
    again = ai.chat.completions.create(messages=CHAT, logprobs=True, top_logprobs=2, **MODEL)
    assert again.usage.prompt_tokens_details.cached_tokens == again.usage.prompt_tokens - 1
    tokens = again.choices[0].logprobs.content
    assert b"".join(bytes(t.bytes) for t in tokens).decode() == text
    assert all(t.top_logprobs[0].logprob == t.logprob for t in tokens)


def test_streams(ai: Any, text: str) -> None:
    options = {"stream": True, "stream_options": {"include_usage": True}, **MODEL}
    *chunks, last = ai.chat.completions.create(messages=CHAT, **options)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == text
    assert (last.choices, last.usage.completion_tokens > 0) == ([], True)
    with ai.chat.completions.stream(messages=CHAT, **MODEL) as stream:  # its own events
        assert [e.content for e in stream if e.type == "content.done"] == [text]
        assert stream.get_final_completion().choices[0].message.content == text


def test_completions(ai: Any, engine: MLCEngine) -> None:
    options = {"prompt": ["import ", "def "], "max_tokens": 6, "echo": True, "logprobs": 1}
    wanted = engine.completions.create(temperature=0.0, **options)
    found = ai.completions.create(best_of=1, **options, **MODEL)
    assert [c.text for c in found.choices] == [c.text for c in wanted.choices]
    assert found.choices[0].logprobs.token_logprobs[0] is None
    chunks = ai.completions.create(prompt="import ", max_tokens=6, stream=True, **MODEL)
    assert "import " + "".join(c.choices[0].text for c in chunks) == wanted.choices[0].text


def test_tools_and_schemas(ai: Any) -> None:
    pytest.importorskip("xgrammar", reason="needs the extra structured")
    answer = ai.chat.completions.create(
        messages=CHAT, tools=[TOOL], tool_choice="required", parallel_tool_calls=False, **MODEL
    )
    (call,) = answer.choices[0].message.tool_calls
    assert (call.function.name, answer.choices[0].finish_reason) == ("get_weather", "tool_calls")
    assert set(json.loads(call.function.arguments)) == {"city", "days"}
    back = [
        *CHAT,
        answer.choices[0].message,
        {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
    ]
    assert ai.chat.completions.create(messages=back, tools=[TOOL], max_tokens=4, **MODEL).choices

    from pydantic import BaseModel, Field

    class Forecast(BaseModel):
        city: str = Field(max_length=8)
        warm: bool

    found = ai.chat.completions.parse(messages=CHAT, response_format=Forecast, **MODEL)
    assert isinstance(found.choices[0].message.parsed, Forecast)


def test_responses(ai: Any, text: str) -> None:
    answer = ai.responses.create(input=CHAT, **MODEL)
    assert (answer.output_text, answer.status) == (text, "completed")
    *_, last = ai.responses.create(input=CHAT, stream=True, **MODEL)
    assert (last.type, last.response.output_text) == ("response.completed", text)


def test_many_at_once(url: str, text: str) -> None:
    async def work() -> None:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as ai:
            create = ai.chat.completions.create

            async def streamed() -> str:
                chunks = await create(messages=CHAT, stream=True, **MODEL)
                return "".join([c.choices[0].delta.content or "" async for c in chunks])

            async def whole() -> str:
                return str((await create(messages=CHAT, **MODEL)).choices[0].message.content)

            jobs = [job() for job in (streamed, whole) * 3]
            assert await asyncio.gather(*jobs) == [text] * 6

    asyncio.run(work())


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
         "messages.0.content.0"),
        ({"logit_bias": {"5000": 1}}, "logit_bias"),
    ],
)  # fmt: skip
def test_refusals_are_its_own_errors(ai: Any, options: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        ai.chat.completions.create(**{"messages": CHAT, **MODEL, **options})
    assert (refused.value.param, refused.value.type) == (param, "invalid_request_error")
    with pytest.raises(openai.BadRequestError) as long:
        ai.completions.create(prompt=[5] * 5000, **MODEL)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError):
        ai.embeddings.create(input="x", model="any")
