"""The engine that a server has, or is about to have."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.requests import Request

from mlc_bridge.engine.async_engine import AsyncMLCEngine
from mlc_bridge.engine.server.settings import Settings
from mlc_bridge.errors import BridgeError


class NotReady(Exception):
    """The engine is loading, or has ended."""


@dataclass
class Served:
    """``open`` loads the engine; until it has, ``status`` is "loading"."""

    open: Callable[[], AsyncMLCEngine]
    settings: Settings
    name: str
    started: int = field(default_factory=lambda: int(time.time()))
    error: BaseException | None = None
    _engine: AsyncMLCEngine | None = None

    async def load(self) -> None:
        """Open the engine in a thread; ``error`` holds what went wrong."""
        try:
            self.take(await asyncio.to_thread(self.open))
        except BridgeError as error:
            self.error = error

    def take(self, engine: AsyncMLCEngine) -> None:
        """Serve this engine from now on."""
        if self.settings.max_prompt_tokens is not None:
            engine.longest_prompt = min(engine.longest_prompt, self.settings.max_prompt_tokens)
        self._engine = engine

    @property
    def status(self) -> str:
        if self._engine is None:
            return "loading" if self.error is None else "failed"
        return "ok" if self._engine.alive else "ended"

    @property
    def engine(self) -> AsyncMLCEngine:
        """Raises NotReady."""
        if self._engine is None or not self._engine.alive:
            raise NotReady(self.status)
        return self._engine

    def end(self) -> None:
        if self._engine is not None:
            self._engine.terminate()


def served(request: Request) -> Served:
    found = request.app.state.served
    assert isinstance(found, Served)
    return found
