"""Claim: after 10,000 requests, in any mixture, no page of the KV cache is lost and memory is flat.

    python benchmarks/soak.py MODEL_DIR [--requests 10000] [--clients 32] [--seed 0]

Requests of the asynchronous engine with a cache far too short for them: prompts that begin alike,
up to three answers, seeds, log probabilities of prompts, schemas; a third is cancelled on the way.
A prompt that fills the cache runs before and after; it makes the engine give up all that it keeps,
so the pages left beside it must be as many.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from contextlib import aclosing
from pathlib import Path
from typing import Any

from mlc_bridge.engine import AsyncMLCEngine, EngineConfig

TOTAL, CONTEXT = 512, 256  # tokens of the cache, of one sequence
STEMS = [[100 + i] * 60 for i in range(6)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--requests", type=int, default=10000)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    limits = EngineConfig(
        max_num_sequence=8, max_total_sequence_length=TOTAL, context_window_size=CONTEXT
    )
    with_limits: dict[str, Any] = {"mode": "server", "engine_config": limits}
    asyncio.run(soak(AsyncMLCEngine(args.model, **with_limits), args))


async def soak(engine: AsyncMLCEngine, args: argparse.Namespace) -> None:
    async with engine:
        start = time.perf_counter()
        pages, memory = [await pages_beside_a_full_cache(engine)], []
        for part in range(4):
            await clients(engine, args.requests // 4, args.clients, args.seed + part)
            pages.append(await pages_beside_a_full_cache(engine))
            memory.append(resident())
        counts, seconds = engine.counts, time.perf_counter() - start
    print(f"{args.requests} requests in {seconds:.0f} s, {args.clients} at once: {counts}")
    print(f"free pages beside a full cache {pages}; resident MiB after each quarter {memory}")
    assert len(set(pages)) == 1, "pages were lost"
    assert min(counts.preempted, counts.reused) > 0, "the mixture was too easy"


async def clients(engine: AsyncMLCEngine, requests: int, count: int, seed: int) -> None:
    left = iter(range(requests))

    async def client(number: int) -> None:
        choose = random.Random(seed * 1000 + number)
        for _ in left:
            await one(engine, choose)

    await asyncio.gather(*(client(number) for number in range(count)))


async def one(engine: AsyncMLCEngine, choose: random.Random) -> None:
    """A random request, read to its end or left in the middle."""
    stem = choose.choice(STEMS)[: choose.randint(1, 60)]
    prompt = [*stem, *choose.choices(range(300, 320), k=choose.randint(0, 20))]
    options: dict[str, Any] = {
        "max_tokens": choose.choice([1, 4, 12, 40]),
        "n": choose.choice([1, 1, 2, 3]),
        "seed": choose.choice([None, None, 1]),
        "temperature": choose.choice([0.0, 1.0]),
        "ignore_eos": True,
    }
    kind = choose.randint(0, 9)
    if kind == 0:
        options |= {"echo": True, "logprobs": 1}
    elif kind == 1:
        options |= {"guided_regex": "[a-z]{1,8}", "ignore_eos": False}
    chunks = await engine.completions.create(prompt=prompt, stream=True, **options)
    leaves = choose.randint(0, 8) if choose.random() < 1 / 3 else None
    async with aclosing(chunks):  # type: ignore[type-var]
        at = 0
        async for _ in chunks:
            at += 1
            if at == leaves:
                break


async def pages_beside_a_full_cache(engine: AsyncMLCEngine) -> int:
    """Free pages once a prompt has taken nearly all of the cache, with nothing else running."""
    while engine.load.running or engine.load.waiting:
        await asyncio.sleep(0.01)
    prompts = [[400 + i] * (CONTEXT - 16) for i in range(TOTAL // CONTEXT)]
    await engine.completions.create(prompt=prompts, max_tokens=2, temperature=0.0)
    while engine.load.running:
        await asyncio.sleep(0.01)
    return engine.load.free_pages


def resident() -> int:
    """Resident memory of this process in MiB."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) // 1024


if __name__ == "__main__":
    main()
