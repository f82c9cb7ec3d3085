"""What the engine adds to a decode step: scheduling, sampling, text, queue.

    python benchmarks/engine.py MODEL_DIR [--steps 512] [--batch 1 4]

The same compiled calls are timed twice in one process, alternating: bare (a loop that decodes and
takes the largest logit) and through ``MLCEngine`` (streaming, greedy and sampled). Both generate
from the same prompt, so that attention costs the same; the difference per step is the engine's own.
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlc_bridge.engine import EngineConfig, MLCEngine, Runtime
from mlc_bridge.engine.threads import start_pool

PROMPT = [5] * 16


def bare(runtime: Runtime, batch: int, steps: int) -> float:
    """Milliseconds of one decode step without an engine."""
    sequences = list(range(batch))
    for sequence in sequences:
        runtime.add(sequence)
    tokens = runtime.prefill(sequences, [PROMPT] * batch).argmax(-1).tolist()
    start = time.perf_counter()
    for _ in range(steps):
        tokens = runtime.decode(sequences, tokens).argmax(-1).tolist()
    passed = time.perf_counter() - start
    runtime.clear()
    return 1e3 * passed / steps


def through(engine: MLCEngine, batch: int, steps: int, **options: Any) -> float:
    """Milliseconds of one decode step as a streaming client sees them."""
    chunks = engine.completions.create(
        prompt=PROMPT,
        n=batch,
        max_tokens=steps + 1,
        stream=True,
        debug_config={"ignore_eos": True},
        **options,
    )
    next(chunks)
    start = time.perf_counter()
    for _ in chunks:
        pass
    return 1e3 * (time.perf_counter() - start) / steps


class Bare(threading.Thread):
    """A second runtime with its own pool, idle while the engine is measured."""

    def __init__(self, model: Path, config: EngineConfig) -> None:
        super().__init__(daemon=True)
        self._open = lambda: Runtime.open(model, config=config)
        self._work: list[Callable[[Runtime], float]] = []
        self._ready, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self.start()

    def run(self) -> None:
        start_pool()
        runtime = self._open()
        while True:
            self._ready.acquire()
            self.result = self._work.pop()(runtime)
            self._done.release()

    def measure(self, batch: int, steps: int) -> float:
        self._work.append(lambda runtime: bare(runtime, batch, steps))
        self._ready.release()
        self._done.acquire()
        return self.result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--steps", type=int, default=512)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()

    config = EngineConfig(max_num_sequence=max(args.batch))
    alone = Bare(args.model, config)
    kinds = {
        "greedy": {"temperature": 0.0},
        "sampled": {"temperature": 1.0, "top_p": 0.95, "seed": 1},
    }
    with MLCEngine(args.model, engine_config=config) as engine:
        print(
            f"{args.model.name}: {engine.threads} threads, {args.steps} steps, ms per decode step"
        )
        print(f"{'batch':>5} {'':8} {'bare':>20} {'engine':>20} {'added':>8}")
        for batch in args.batch:
            for name, options in kinds.items():
                pairs = [
                    (
                        alone.measure(batch, args.steps),
                        through(engine, batch, args.steps, **options),
                    )
                    for _ in range(args.repeat)
                ]
                low, high = ([pair[i] for pair in pairs] for i in (0, 1))
                added = statistics.median(b - a for a, b in pairs)
                print(f"{batch:>5} {name:8} {spread(low):>20} {spread(high):>20} {added:>8.3f}")


def spread(values: list[float]) -> str:
    """min / median / max"""
    return f"{min(values):.3f}/{statistics.median(values):.3f}/{max(values):.3f}"


if __name__ == "__main__":
    main()
