"""``/metrics``: what the engine has done, for Prometheus."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from mlc_bridge.engine.server.served import NotReady, Served

T = TypeVar("T")
PATHS = frozenset(
    ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/v1/models",
     "/tokenize", "/detokenize", "/health", "/version", "/metrics", "/")
)  # fmt: skip
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """One registry for each application."""

    def __init__(self, served: Served) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_Engine(served))
        named: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter(
            "mlc_bridge_requests", "Requests answered", ("path", "status"), **named
        )
        self.first = Histogram(
            "mlc_bridge_first_part_seconds", "From request to first text", buckets=SECONDS, **named
        )
        self.whole = Histogram(
            "mlc_bridge_answer_seconds",
            "From request to end",
            buckets=SECONDS,
            **named,
        )

    def counted(self, path: str, status: int) -> None:
        """One more answer; what was asked for outside the routes goes under one name."""
        known = path if path in PATHS else "other"
        self.requests.labels(known, str(status)).inc()

    async def observed(self, parts: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
        """The same parts, timed."""
        began, first = time.perf_counter(), True
        try:
            async with aclosing(parts):
                async for part in parts:
                    if first:
                        self.first.observe(time.perf_counter() - began)
                        first = False
                    yield part
        finally:
            self.whole.observe(time.perf_counter() - began)


class _Engine:
    """Reads the engine's own counts when somebody asks."""

    def __init__(self, served: Served) -> None:
        self._served = served

    def collect(self) -> Iterator[Any]:
        try:
            engine = self._served.engine
        except NotReady:
            return
        counts, load = engine.counts, engine.load
        for name, text, value in (
            ("prompt_tokens", "Tokens prefilled", counts.prefilled),
            ("prefix_cache_tokens", "Prompt tokens taken from the prefix cache", counts.reused),
            ("generated_tokens", "Tokens drawn", counts.drawn),
            ("preemptions", "Sequences sent back for want of pages", counts.preempted),
        ):
            yield CounterMetricFamily(f"mlc_bridge_{name}", text, value=value)
        for name, text, value in (
            ("running", "Sequences running", load.running),
            ("waiting", "Sequences waiting", load.waiting),
            ("free_pages", "Free pages of the KV cache", load.free_pages),
        ):
            yield GaugeMetricFamily(f"mlc_bridge_{name}", text, value=value)
