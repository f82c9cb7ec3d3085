"""Real clients against a running ``mlc-bridge serve``: what each call gives, as docs/clients.md.

    mlc-bridge serve dist/model --port 8000 &
    python docs/client_table.py run http://127.0.0.1:8000 results.json   # in every environment that
                                                                         # has some of the clients
    python docs/client_table.py write results.json docs/clients.md

A call passes when it ends without an error and its own check holds. The model behind it may be the
7M example: what is checked is that requests are understood and answers are read, not what they say.
Clients that are not installed are left out of that run.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

Call = Callable[[str, str], Any]
CLIENTS: dict[str, dict[str, Call]] = {}
ASK = [{"role": "user", "content": "What does os.path.join do?"}]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer",
                   "minimum": 0, "maximum": 120}},
    "required": ["name", "age"], "additionalProperties": False,
}  # fmt: skip
TOOL = {"type": "function", "function": {"name": "describe", "parameters": SCHEMA}}
FORMAT = {"type": "json_schema", "json_schema": {"name": "p", "strict": True, "schema": SCHEMA}}


def call(client: str, what: str) -> Callable[[Call], Call]:
    """Registers a call: takes the base URL (with /v1) and the model's name, raises what fails."""

    def register(function: Call) -> Call:
        CLIENTS.setdefault(client, {})[what] = function
        return function

    return register


def ensure(condition: Any, found: Any = "") -> None:
    if not condition:
        raise AssertionError(f"unexpected: {str(found)[:200]}")


# --- openai ------------------------------------------------------------------------------------


def sdk(base: str) -> Any:
    from openai import OpenAI

    return OpenAI(base_url=base, api_key="none", max_retries=0, timeout=120)


@call("openai", "chat")
def _(base: str, model: str) -> None:
    r = sdk(base).chat.completions.create(model=model, messages=ASK, max_completion_tokens=8)
    ensure(r.choices[0].message.content and r.usage.completion_tokens <= 8, r)


@call("openai", "chat, stream with usage")
def _(base: str, model: str) -> None:
    chunks = list(sdk(base).chat.completions.create(
        model=model, messages=ASK, max_tokens=8, stream=True,
        stream_options={"include_usage": True}))  # fmt: skip
    ensure(chunks[0].choices[0].delta.role == "assistant")
    ensure(chunks[-1].usage.completion_tokens and chunks[-2].choices[0].finish_reason)


@call("openai", "chat, every optional argument")
def _(base: str, model: str) -> None:
    r = sdk(base).chat.completions.create(
        model=model, messages=[{"role": "developer", "content": "Be short."}, *ASK], n=2, seed=1,
        max_completion_tokens=4, temperature=0.5, top_p=0.9, presence_penalty=0.1, stop=["\n\n"],
        frequency_penalty=0.1, logit_bias={"50": -1}, logprobs=True, top_logprobs=3, user="me",
        store=False, metadata={"a": "b"}, service_tier="auto", reasoning_effort="low",
        prompt_cache_key="k", safety_identifier="s", verbosity="low", parallel_tool_calls=True,
        tools=[TOOL], tool_choice="none", response_format={"type": "text"})  # fmt: skip
    ensure(len(r.choices) == 2 and r.choices[0].logprobs.content[0].top_logprobs)


@call("openai", "chat, forced tool")
def _(base: str, model: str) -> None:
    r = sdk(base).chat.completions.create(
        model=model, messages=ASK, tools=[TOOL], max_tokens=200, parallel_tool_calls=False,
        tool_choice={"type": "function", "function": {"name": "describe"}})  # fmt: skip
    ensure(
        set(json.loads(r.choices[0].message.tool_calls[0].function.arguments)) == {"name", "age"}
    )


@call("openai", "chat, forced tool, stream helper")
def _(base: str, model: str) -> None:
    with sdk(base).chat.completions.stream(
        model=model, messages=ASK, tools=[TOOL], tool_choice="required", max_tokens=200,
        parallel_tool_calls=False) as stream:  # fmt: skip
        final = stream.get_final_completion()
    ensure(final.choices[0].message.tool_calls[0].function.name == "describe", final)


@call("openai", "chat, JSON schema")
def _(base: str, model: str) -> None:
    r = sdk(base).chat.completions.create(
        model=model, messages=ASK, response_format=FORMAT, max_tokens=200)  # fmt: skip
    ensure(set(json.loads(r.choices[0].message.content)) == {"name", "age"})


@call("openai", "chat, parse with pydantic")
def _(base: str, model: str) -> None:
    from pydantic import BaseModel

    class Person(BaseModel):
        adult: bool
        number: int

    r = sdk(base).chat.completions.parse(
        model=model, messages=ASK, response_format=Person, max_tokens=200)  # fmt: skip
    ensure(isinstance(r.choices[0].message.parsed, Person))


@call("openai", "chat, tool history and text parts")
def _(base: str, model: str) -> None:
    made = {"id": "c1", "type": "function", "function": {"name": "describe", "arguments": "{}"}}
    history = [
        {"role": "system", "content": [{"type": "text", "text": "Be short."}]},
        {"role": "user", "content": [{"type": "text", "text": "Who?"}], "name": "me"},
        {"role": "assistant", "content": None, "tool_calls": [made], "refusal": None},
        {"role": "tool", "tool_call_id": "c1", "content": "Ada, 36"},
    ]
    r = sdk(base).chat.completions.create(model=model, messages=history, tools=[TOOL], max_tokens=8)
    ensure(r.choices[0].finish_reason in ("stop", "length", "tool_calls"))


@call("openai", "chat, an image is refused")
def _(base: str, model: str) -> None:
    from openai import BadRequestError

    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    try:
        sdk(base).chat.completions.create(
            model=model, messages=[{"role": "user", "content": [image]}]
        )
    except BadRequestError as error:
        ensure("image_url" in error.message and error.param, error)
    else:
        ensure(False)


@call("openai", "completions: texts, ids, echo, logprobs")
def _(base: str, model: str) -> None:
    client = sdk(base)
    r = client.completions.create(model=model, prompt=["a b", "c"], max_tokens=2, logprobs=2)
    ensure([c.index for c in r.choices] == [0, 1] and len(r.choices[0].logprobs.tokens) <= 2)
    r = client.completions.create(
        model=model, prompt=[[5, 6, 7]], max_tokens=0, echo=True, logprobs=1)  # fmt: skip
    ensure(r.choices[0].logprobs.token_logprobs[0] is None and r.usage.completion_tokens == 0)
    r = client.completions.create(model=model, prompt="x", max_tokens=2, n=2, best_of=3)
    ensure(len(r.choices) == 2)


@call("openai", "completions, stream")
def _(base: str, model: str) -> None:
    chunks = list(sdk(base).completions.create(model=model, prompt="x", max_tokens=4, stream=True))
    ensure(chunks[-1].choices[0].finish_reason)


@call("openai", "responses")
def _(base: str, model: str) -> None:
    r = sdk(base).responses.create(
        model=model, input="A list?", instructions="Be short.", max_output_tokens=8)  # fmt: skip
    ensure(r.output_text and r.usage.output_tokens)


@call("openai", "responses, stream")
def _(base: str, model: str) -> None:
    with sdk(base).responses.stream(model=model, input="A list?", max_output_tokens=500) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    ensure(kinds[0] == "response.created" and final.output_text, kinds)


@call("openai", "responses, parse with pydantic")
def _(base: str, model: str) -> None:
    from pydantic import BaseModel

    class Person(BaseModel):
        adult: bool
        number: int

    r = sdk(base).responses.parse(
        model=model, input="x", text_format=Person, max_output_tokens=200)  # fmt: skip
    ensure(isinstance(r.output_parsed, Person))


@call("openai", "responses, function call and its output")
def _(base: str, model: str) -> None:
    tool = {"type": "function", "name": "describe", "parameters": SCHEMA, "strict": True}
    client = sdk(base)
    r = client.responses.create(
        model=model, input="x", tools=[tool], tool_choice="required", max_output_tokens=200,
        parallel_tool_calls=False)  # fmt: skip
    made = r.output[0]
    ensure(made.type == "function_call" and made.name == "describe", r.output)
    back = {"type": "function_call_output", "call_id": made.call_id, "output": "done"}
    history = [{"role": "user", "content": "x"}, made.model_dump(), back]
    r = client.responses.create(model=model, input=history, tools=[tool], max_output_tokens=8)
    ensure(r.status in ("completed", "incomplete"))


@call("openai", "models")
def _(base: str, model: str) -> None:
    client = sdk(base)
    ensure([m.id for m in client.models.list()] == [model])
    ensure(client.models.retrieve(model).id == model)


@call("openai", "embeddings are refused")
def _(base: str, model: str) -> None:
    from openai import BadRequestError

    try:
        sdk(base).embeddings.create(model=model, input="x")
    except BadRequestError as error:
        ensure(error.code == "model_not_supported", error)
    else:
        ensure(False)


@call("openai", "unknown extras through extra_body")
def _(base: str, model: str) -> None:
    extra = {"top_k": 5, "min_p": 0.01, "repetition_penalty": 1.1, "min_tokens": 2, "typical_p": 1,
             "chat_template_kwargs": {"enable_thinking": False}, "ignore_eos": True}  # fmt: skip
    r = sdk(base).chat.completions.create(
        model=model, messages=ASK, max_tokens=4, extra_body=extra)  # fmt: skip
    ensure(r.usage.completion_tokens == 4)


@call("openai", "vLLM's structured outputs and prefix")
def _(base: str, model: str) -> None:
    client = sdk(base)
    for extra in ({"guided_json": SCHEMA}, {"structured_outputs": {"json": SCHEMA}}):
        r = client.chat.completions.create(
            model=model, messages=ASK, max_tokens=200, extra_body=extra)  # fmt: skip
        json.loads(r.choices[0].message.content)
    r = client.chat.completions.create(
        model=model, messages=ASK, extra_body={"guided_choice": ["yes", "no"]})  # fmt: skip
    ensure(r.choices[0].message.content in ("yes", "no"), r)
    begun = [*ASK, {"role": "assistant", "content": "It joins"}]
    r = client.chat.completions.create(
        model=model, messages=begun, max_tokens=4,
        extra_body={"continue_final_message": True, "add_generation_prompt": False})  # fmt: skip
    ensure(not (r.choices[0].message.content or "").startswith("It joins"))


def in_loop(work: Callable[[], Any]) -> Any:
    return asyncio.run(work())


@call("openai (async)", "chat")
def _(base: str, model: str) -> None:
    from openai import AsyncOpenAI

    async def work() -> None:
        async with AsyncOpenAI(base_url=base, api_key="none") as client:
            jobs = [client.chat.completions.create(model=model, messages=ASK, max_tokens=4)
                    for _ in range(8)]  # fmt: skip
            ensure(len(await asyncio.gather(*jobs)) == 8)

    in_loop(work)


@call("openai (async)", "chat, stream left in the middle")
def _(base: str, model: str) -> None:
    from openai import AsyncOpenAI

    async def work() -> None:
        async with AsyncOpenAI(base_url=base, api_key="none") as client:
            async for _ in await client.chat.completions.create(
                model=model, messages=ASK, max_tokens=400, stream=True):  # fmt: skip
                break

    in_loop(work)


# --- frameworks --------------------------------------------------------------------------------


def lang(base: str, model: str, **more: Any) -> Any:
    from langchain_openai import ChatOpenAI

    return ChatOpenAI(base_url=base, api_key="none", model=model, max_tokens=200, **more)


@call("langchain-openai", "invoke")
def _(base: str, model: str) -> None:
    r = lang(base, model).invoke("Hello")
    ensure(r.usage_metadata["output_tokens"], r)


@call("langchain-openai", "stream")
def _(base: str, model: str) -> None:
    ensure(list(lang(base, model, stream_usage=True).stream("Hello")))


@call("langchain-openai", "batch")
def _(base: str, model: str) -> None:
    ensure(len(lang(base, model).batch(["a", "b", "c"])) == 3)


@call("langchain-openai", "structured output, json_schema")
def _(base: str, model: str) -> None:
    schema = {**SCHEMA, "title": "Person", "description": "A person."}
    r = lang(base, model).with_structured_output(schema, method="json_schema").invoke("x")
    ensure(set(r) == {"name", "age"}, r)


@call("langchain-openai", "structured output, function calling")
def _(base: str, model: str) -> None:
    schema = {**SCHEMA, "title": "Person", "description": "A person."}
    chain = lang(base, model).with_structured_output(schema, method="function_calling")
    ensure(set(chain.invoke("x")) == {"name", "age"})


@call("langchain-openai", "bind_tools, required")
def _(base: str, model: str) -> None:
    bound = lang(base, model).bind_tools([TOOL], tool_choice="required", parallel_tool_calls=False)
    ensure(bound.invoke("x").tool_calls[0]["name"] == "describe")


@call("langchain-openai", "responses interface")
def _(base: str, model: str) -> None:
    ensure(lang(base, model, use_responses_api=True).invoke("Hello").content is not None)


@call("langchain-openai", "completions")
def _(base: str, model: str) -> None:
    from langchain_openai import OpenAI

    ensure(OpenAI(base_url=base, api_key="none", model=model, max_tokens=4).invoke("x") is not None)


def lite(base: str, model: str, **more: Any) -> Any:
    import litellm

    return litellm.completion(
        model=f"openai/{model}", api_base=base, api_key="none", messages=ASK, **more)  # fmt: skip


@call("litellm", "completion")
def _(base: str, model: str) -> None:
    ensure(lite(base, model, max_tokens=4).usage.completion_tokens)


@call("litellm", "stream")
def _(base: str, model: str) -> None:
    ensure(
        list(lite(base, model, max_tokens=4, stream=True, stream_options={"include_usage": True}))
    )


@call("litellm", "tools")
def _(base: str, model: str) -> None:
    r = lite(base, model, tools=[TOOL], tool_choice="required", max_tokens=200,
             parallel_tool_calls=False)  # fmt: skip
    ensure(r.choices[0].message.tool_calls)


@call("litellm", "response_format")
def _(base: str, model: str) -> None:
    json.loads(lite(base, model, response_format=FORMAT, max_tokens=200).choices[0].message.content)


@call("litellm", "text_completion")
def _(base: str, model: str) -> None:
    import litellm

    ensure(litellm.text_completion(
        model=f"text-completion-openai/{model}", api_base=base, api_key="none", prompt="x",
        max_tokens=4).choices)  # fmt: skip


@call("litellm", "async stream")
def _(base: str, model: str) -> None:
    import litellm

    async def work() -> None:
        stream = await litellm.acompletion(
            model=f"openai/{model}", api_base=base, api_key="none", messages=ASK, max_tokens=4,
            stream=True)  # fmt: skip
        ensure([chunk async for chunk in stream])

    in_loop(work)


def llama_index(base: str, model: str) -> Any:
    from llama_index.llms.openai_like import OpenAILike

    return OpenAILike(api_base=base, api_key="none", model=model, max_tokens=8, is_chat_model=True)


@call("llama-index", "complete")
def _(base: str, model: str) -> None:
    ensure(llama_index(base, model).complete("x").text is not None)


@call("llama-index", "chat")
def _(base: str, model: str) -> None:
    from llama_index.core.llms import ChatMessage

    ensure(llama_index(base, model).chat([ChatMessage(role="user", content="x")]).message)


@call("llama-index", "stream_chat")
def _(base: str, model: str) -> None:
    from llama_index.core.llms import ChatMessage

    ensure(list(llama_index(base, model).stream_chat([ChatMessage(role="user", content="x")])))


def person() -> Any:
    from pydantic import BaseModel

    class Person(BaseModel):
        adult: bool
        number: int

    return Person


@call("instructor", "mode tools")
def _(base: str, model: str) -> None:
    import instructor

    client = instructor.from_openai(sdk(base), mode=instructor.Mode.TOOLS)
    ensure(client.chat.completions.create(
        model=model, response_model=person(), messages=ASK, max_tokens=300, max_retries=0,
        parallel_tool_calls=False))  # fmt: skip


@call("instructor", "mode json_schema")
def _(base: str, model: str) -> None:
    import instructor

    client = instructor.from_openai(sdk(base), mode=instructor.Mode.JSON_SCHEMA)
    ensure(client.chat.completions.create(
        model=model, response_model=person(), messages=ASK, max_tokens=300,
        max_retries=0))  # fmt: skip


def pydantic_agent(base: str, model: str, **more: Any) -> Any:
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    chat = OpenAIChatModel(model, provider=OpenAIProvider(base_url=base, api_key="none"))
    return Agent(chat, model_settings={"max_tokens": 300}, **more)


@call("pydantic-ai", "run")
def _(base: str, model: str) -> None:
    ensure(pydantic_agent(base, model).run_sync("Hello").output is not None)


@call("pydantic-ai", "structured output by tools")
def _(base: str, model: str) -> None:
    ensure(pydantic_agent(base, model, output_type=person()).run_sync("x").output)


@call("pydantic-ai", "native structured output")
def _(base: str, model: str) -> None:
    from pydantic_ai import NativeOutput

    ensure(pydantic_agent(base, model, output_type=NativeOutput(person())).run_sync("x").output)


@call("pydantic-ai", "stream")
def _(base: str, model: str) -> None:
    async def work() -> None:
        async with pydantic_agent(base, model).run_stream("x") as result:
            ensure(isinstance([text async for text in result.stream_text()], list))

    in_loop(work)


@call("dspy", "LM call")
def _(base: str, model: str) -> None:
    import dspy

    lm = dspy.LM(f"openai/{model}", api_base=base, api_key="none", max_tokens=16, cache=False)
    ensure(lm("Hello"))


@call("dspy", "LM call, text completion")
def _(base: str, model: str) -> None:
    import dspy

    lm = dspy.LM(f"openai/{model}", api_base=base, api_key="none", max_tokens=16, cache=False,
                 model_type="text")  # fmt: skip
    ensure(lm("Hello"))


@call("haystack", "chat generator")
def _(base: str, model: str) -> None:
    from haystack.components.generators.chat import OpenAIChatGenerator
    from haystack.dataclasses import ChatMessage
    from haystack.utils import Secret

    generator = OpenAIChatGenerator(
        api_key=Secret.from_token("none"), model=model, api_base_url=base,
        generation_kwargs={"max_tokens": 8})  # fmt: skip
    ensure(generator.run([ChatMessage.from_user("x")])["replies"])


@call("haystack", "chat generator, streaming callback")
def _(base: str, model: str) -> None:
    from haystack.components.generators.chat import OpenAIChatGenerator
    from haystack.dataclasses import ChatMessage
    from haystack.utils import Secret

    seen: list[Any] = []
    generator = OpenAIChatGenerator(
        api_key=Secret.from_token("none"), model=model, api_base_url=base,
        generation_kwargs={"max_tokens": 8}, streaming_callback=seen.append)  # fmt: skip
    generator.run([ChatMessage.from_user("x")])
    ensure(seen)


@call("aisuite", "chat")
def _(base: str, model: str) -> None:
    import aisuite

    client = aisuite.Client({"openai": {"base_url": base, "api_key": "none"}})
    ensure(
        client.chat.completions.create(model=f"openai:{model}", messages=ASK, max_tokens=8).choices
    )


@call("smolagents", "model call")
def _(base: str, model: str) -> None:
    from smolagents import OpenAIModel

    llm = OpenAIModel(model_id=model, api_base=base, api_key="none", max_tokens=8)
    ensure(llm([{"role": "user", "content": [{"type": "text", "text": "x"}]}]))


@call("smolagents", "model call, stream and stop")
def _(base: str, model: str) -> None:
    from smolagents import OpenAIModel

    llm = OpenAIModel(model_id=model, api_base=base, api_key="none", max_tokens=8)
    ask = [{"role": "user", "content": [{"type": "text", "text": "x"}]}]
    ensure(list(llm.generate_stream(ask, stop_sequences=["\n\n"])) is not None)


@call("semantic-kernel", "chat completion")
def _(base: str, model: str) -> None:
    from openai import AsyncOpenAI
    from semantic_kernel.connectors.ai.open_ai import (
        OpenAIChatCompletion,
        OpenAIChatPromptExecutionSettings,
    )
    from semantic_kernel.contents import ChatHistory

    async def work() -> None:
        service = OpenAIChatCompletion(
            ai_model_id=model, async_client=AsyncOpenAI(base_url=base, api_key="none"))  # fmt: skip
        history = ChatHistory()
        history.add_user_message("x")
        settings = OpenAIChatPromptExecutionSettings(max_tokens=8)
        ensure(await service.get_chat_message_content(history, settings))

    in_loop(work)


@call("openai-agents", "run, chat completions")
def _(base: str, model: str) -> None:
    from agents import Agent, OpenAIChatCompletionsModel, Runner, set_tracing_disabled
    from openai import AsyncOpenAI

    set_tracing_disabled(True)
    chat = OpenAIChatCompletionsModel(model, AsyncOpenAI(base_url=base, api_key="none"))
    ensure(Runner.run_sync(Agent("a", instructions="Be short.", model=chat), "x").final_output
           is not None)  # fmt: skip


@call("openai-agents", "run, responses")
def _(base: str, model: str) -> None:
    from agents import Agent, OpenAIResponsesModel, Runner, set_tracing_disabled
    from openai import AsyncOpenAI

    set_tracing_disabled(True)
    chat = OpenAIResponsesModel(model, AsyncOpenAI(base_url=base, api_key="none"))
    ensure(Runner.run_sync(Agent("a", instructions="Be short.", model=chat), "x").final_output
           is not None)  # fmt: skip


@call("outlines", "JSON")
def _(base: str, model: str) -> None:
    import outlines

    r = outlines.from_openai(sdk(base), model)("x", person(), max_tokens=300)
    person().model_validate_json(r)


@call("agno", "agent run")
def _(base: str, model: str) -> None:
    from agno.agent import Agent
    from agno.models.openai.like import OpenAILike

    agent = Agent(model=OpenAILike(id=model, base_url=base, api_key="none", max_tokens=8))
    ensure(agent.run("x").content is not None)


@call("llm", "prompt")
def _(base: str, model: str) -> None:
    from llm.default_plugins.openai_models import Chat

    chat = Chat("m", model_name=model, api_base=base)
    chat.key = "none"
    ensure(chat.prompt("x", max_tokens=8, stream=False, key="none").text() is not None)


@call("ollama", "its own interface is not OpenAI's: a clear 404")
def _(base: str, model: str) -> None:
    from ollama import Client, ResponseError

    try:
        Client(host=base.removesuffix("/v1")).chat(model=model, messages=ASK)
    except ResponseError as error:
        ensure(error.status_code == 404, error)
    else:
        ensure(False)


@call("lm-eval", "local-completions: loglikelihood and generate")
def _(base: str, model: str) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    lm = LocalCompletionsAPI(
        base_url=f"{base}/completions", model=model, tokenizer_backend="none"
        if not os.environ.get("TOKENIZER") else "huggingface",
        tokenizer=os.environ.get("TOKENIZER"), tokenized_requests=bool(os.environ.get("TOKENIZER")),
        num_concurrent=1, batch_size=4)  # fmt: skip
    jobs = [Instance("loglikelihood", {}, ("import os\nimport ", end), i)
            for i, end in enumerate(("sys\n", "zebra\n"))]  # fmt: skip
    (good, _), (bad, _) = lm.loglikelihood(jobs)
    ensure(good > bad, (good, bad))
    wish = {"max_gen_toks": 8, "until": ["\n\n"], "temperature": 0}
    ensure(lm.generate_until([Instance("generate_until", {}, ("def f(", wish), 0)]))


# --- other languages ---------------------------------------------------------------------------

NODE = """
import OpenAI from "openai";
const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0 });
const model = process.argv[3], messages = [{ role: "user", content: "x" }];
const r = await client.chat.completions.create({ model, messages, max_completion_tokens: 8 });
if (!r.choices[0].message) throw new Error("no message");
let n = 0;
for await (const c of await client.chat.completions.create({ model, messages, max_tokens: 8,
  stream: true, stream_options: { include_usage: true } })) n += 1;
if (n < 2) throw new Error("no chunks");
const f = await client.chat.completions.runTools({ model, messages, max_tokens: 200,
  tool_choice: { type: "function", function: { name: "f" } }, tools: [{ type: "function",
  function: { name: "f", parse: JSON.parse, function: () => "done", parameters: {
  type: "object", properties: { a: { type: "boolean" } }, required: ["a"],
  additionalProperties: false } } }] }).finalMessage();
if (!f) throw new Error("no tool run");
const s = await client.responses.create({ model, input: "x", max_output_tokens: 8 });
if (s.object !== "response") throw new Error("no response");
"""


@call("openai (npm)", "chat, stream, runTools, responses")
def _(base: str, model: str) -> None:
    home = Path(os.environ.get("NODE_HOME", ""))
    if not (home / "node_modules" / "openai").is_dir():
        raise ImportError("NODE_HOME names no directory with node_modules/openai")
    with tempfile.NamedTemporaryFile("w", suffix=".mjs", dir=home) as script:
        script.write(NODE)
        script.flush()
        command = ["node", script.name, base, model]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    ensure(ran.returncode == 0, ran.stderr[-300:])


CURL = {
    "chat": ["-d", json.dumps({"messages": ASK, "max_tokens": 4})],
    "chat, no content type, unknown arguments": [
        "-H", "Content-Type:", "-d", json.dumps({"messages": ASK, "max_tokens": 4, "mirostat": 2})],
}  # fmt: skip
for _name, _arguments in CURL.items():

    @call("curl", _name)
    def _(base: str, model: str, arguments: list[str] = _arguments) -> None:
        command = ["curl", "-sS", f"{base}/chat/completions", *arguments]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
        ensure(json.loads(ran.stdout)["choices"], ran)


# --- running and writing -----------------------------------------------------------------------


def outcome(function: Call, base: str, model: str) -> str | None:
    """None where the client is not installed."""
    found: list[str | None] = ["fails: no end after 180 s"]

    def work() -> None:
        try:
            function(base, model)
            found[0] = "passes"
        except ImportError as missing:
            found[0] = None
            print(f"      {missing}", file=sys.stderr)
        except BaseException as problem:
            text = " ".join(str(problem).split())[:200]
            found[0] = f"fails: {type(problem).__name__}: {text}"

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(180)
    return found[0]


def run(url: str, results: Path, *only: str) -> None:
    import urllib.request

    base = f"{url}/v1"
    with urllib.request.urlopen(f"{base}/models") as answer:
        model = json.load(answer)["data"][0]["id"]
    known = json.loads(results.read_text()) if results.is_file() else {}
    for client, calls in CLIENTS.items():
        if only and client not in only:
            continue
        for what, function in calls.items():
            result = outcome(function, base, model)
            print(f"{client:20} {what:50} {result or 'not installed'}", flush=True)
            if result is not None:
                known.setdefault(client, {"version": version(client), "calls": {}})
                known[client]["calls"][what] = result
                known[client]["version"] = version(client)
    results.write_text(json.dumps(known, indent=1))


def version(client: str) -> str:
    names = {"haystack": "haystack-ai", "pydantic-ai": "pydantic-ai-slim",
             "llama-index": "llama-index-llms-openai-like", "lm-eval": "lm_eval"}  # fmt: skip
    if client == "openai (npm)":
        package = Path(os.environ["NODE_HOME"]) / "node_modules/openai/package.json"
        return str(json.loads(package.read_text())["version"])
    try:
        return importlib.metadata.version(names.get(client, client.partition(" ")[0]))
    except importlib.metadata.PackageNotFoundError:
        return ""


def write(results: Path, table: Path) -> None:
    known = json.loads(results.read_text())
    count = sum(len(entry["calls"]) for entry in known.values())
    lines = [
        "# Clients",
        "",
        f"{len(known)} clients, {count} calls, each against `mlc-bridge serve` with the example",
        "model; made by `python docs/client_table.py`. A call passes when the client's own check",
        "of it holds; what a text model cannot do passes when the client shows the refusal.",
        "",
        "| client | version | call | result |",
        "|---|---|---|---|",
    ]
    for client, entry in known.items():
        for what, result in entry["calls"].items():
            lines.append(f"| {client} | {entry['version']} | {what} | {result.replace('|', '/')} |")
    table.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    if sys.argv[1] == "run":
        run(sys.argv[2].rstrip("/"), Path(sys.argv[3]), *sys.argv[4:])
        os._exit(0)  # some clients leave threads behind
    write(Path(sys.argv[2]), Path(sys.argv[3]))
