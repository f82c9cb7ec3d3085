"""The engine for event loops: the same answers, waiting that holds nothing, leaving that frees."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from mlc_bridge import AsyncMLCEngine
from mlc_bridge.engine import EngineConfig, MLCEngine
from mlc_bridge.errors import ContextOverflow, EngineError

pytestmark = pytest.mark.slow

CHAT = [{"role": "user", "content": "What does os.path.join do?"}]
GREEDY: dict[str, Any] = {"temperature": 0.0}


def test_answers_are_those_of_the_other_engine(artifact: Path, engine: MLCEngine) -> None:
    prompts = [f"x{i} = " for i in range(10)]
    wanted = [
        engine.completions.create(prompt=p, max_tokens=12, **GREEDY).choices[0].text
        for p in prompts
    ]

    async def work() -> None:
        async with AsyncMLCEngine(artifact) as other:
            whole = await other.chat.completions.create(messages=CHAT, **GREEDY)
            assert whole.choices == engine.chat.completions.create(messages=CHAT, **GREEDY).choices
            stream = await other.chat.completions.create(messages=CHAT, stream=True, **GREEDY)
            text = "".join([c.choices[0].delta.content or "" async for c in stream])
            assert text == whole.choices[0].message.content
            jobs = [other.completions.create(prompt=p, max_tokens=12, **GREEDY) for p in prompts]
            assert [r.choices[0].text for r in await asyncio.gather(*jobs)] == wanted
            with pytest.raises(EngineError, match="frobnicate: unknown argument"):
                await other.completions.create(prompt="x", frobnicate=1)
            with pytest.raises(ContextOverflow):
                await other.completions.create(prompt=[5] * 5000)
        assert not other.alive

    asyncio.run(work())


def test_who_stops_reading_or_waiting_frees_the_place(artifact: Path) -> None:
    async def work() -> None:
        async with AsyncMLCEngine(artifact, mode="interactive") as engine:
            endless: Any = {"prompt": "x", "max_tokens": 2000, "ignore_eos": True}
            stream: Any = await engine.completions.create(stream=True, **endless)
            async for _ in stream:
                break
            await stream.aclose()
            waiting = asyncio.ensure_future(engine.completions.create(**endless))
            await asyncio.sleep(0.2)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            found = await asyncio.wait_for(engine.completions.create(prompt="x", max_tokens=2), 20)
            assert found.usage is not None
            assert (engine.load.waiting, engine.counts.drawn < 1000) == (0, True)

    asyncio.run(work())


def test_a_long_prompt_does_not_hold_the_loop(artifact: Path) -> None:
    async def work() -> None:
        limits = EngineConfig(context_window_size=2048)
        async with AsyncMLCEngine(artifact, engine_config=limits) as engine:
            # As many characters as could still fit: tokenizing them takes its time.
            text = "ab " * (engine.longest_prompt * engine.tokenizer.longest // 3 - 1)
            job = asyncio.ensure_future(engine.completions.create(prompt=text))
            longest, last = 0.0, time.perf_counter()
            while not job.done():
                await asyncio.sleep(0.001)
                now = time.perf_counter()
                longest, last = max(longest, now - last), now
            with pytest.raises(ContextOverflow):
                job.result()
            assert longest < 1

    asyncio.run(work())
