"""A server process: listen, load, answer, and end in order."""

from __future__ import annotations

import socket
from collections.abc import Callable

import uvicorn

from mlc_bridge.engine.async_engine import AsyncMLCEngine
from mlc_bridge.engine.server.app import app
from mlc_bridge.engine.server.settings import Settings
from mlc_bridge.errors import EngineError


def serve(
    open_engine: Callable[[], AsyncMLCEngine],
    host: str = "127.0.0.1",
    port: int = 8000,
    settings: Settings | None = None,
    listening: Callable[[str], None] | None = None,
) -> None:
    """Serve until interrupted, then end the engine; ``listening`` gets the URL in place of stdout.

    ``/health`` answers while the engine loads. After SIGTERM or Ctrl-C nothing new is taken, and
    what runs has ``settings.drain_seconds`` to end. Raises EngineError for an address that is
    taken, and what ``open_engine`` raises.
    """
    settings = settings or Settings()

    def loaded() -> None:
        if application.state.served.error is not None:
            server.should_exit = True

    application = app(open_engine, settings, loaded=loaded)
    config = uvicorn.Config(
        application, log_level="info", timeout_graceful_shutdown=settings.drain_seconds
    )
    server = uvicorn.Server(config)
    with _listening(host, port) as sock:
        (listening or _printed)(f"http://{host}:{sock.getsockname()[1]}")
        server.run([sock])
    if application.state.served.error is not None:
        raise application.state.served.error


def _printed(url: str) -> None:
    print(url, flush=True)


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except OSError as problem:
        sock.close()
        raise EngineError(
            "cannot listen there", where=f"{host}:{port}", found=problem.strerror
        ) from None
    sock.listen(2048)
    return sock
