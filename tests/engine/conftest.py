"""The example model, built once per session for the tests of this room."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mlc_bridge import (
    CompileJob,
    ConvertJob,
    GenConfigJob,
    compile_model,
    convert_weight,
    gen_config,
)
from mlc_bridge.engine import AsyncMLCEngine, EngineConfig, MLCEngine

EXAMPLES = Path(__file__).parents[2] / "examples" / "models"
MODEL = EXAMPLES / "stdlib-llama-7m"


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The float32 artifact of the example model with its ``lib.so``."""
    out = tmp_path_factory.mktemp("q0f32")
    gen_config(GenConfigJob(MODEL, out, quantization="q0f32"))
    convert_weight(ConvertJob(MODEL, out, quantization="q0f32"))
    compile_model(CompileJob(out, out / "lib.so", device="cpu"))
    return out


@pytest.fixture(scope="session")
def engine(artifact: Path) -> Iterator[MLCEngine]:
    with MLCEngine(artifact) as engine:
        yield engine


@pytest.fixture(scope="session")
def served(artifact: Path) -> AsyncMLCEngine:
    """What ``client`` talks to."""
    return AsyncMLCEngine(artifact, engine_config=EngineConfig(context_window_size=512))


@pytest.fixture(scope="session")
def client(served: AsyncMLCEngine) -> Iterator[Any]:
    """The REST interface in this process; what the server breaks on comes back as a 500."""
    pytest.importorskip("uvicorn", reason="needs the extra serve")
    pytest.importorskip("prometheus_client", reason="needs the extra serve")
    pytest.importorskip("httpx", reason="starlette's test client needs httpx")
    from starlette.testclient import TestClient

    from mlc_bridge.engine.server import app

    with TestClient(app(served), "http://localhost", raise_server_exceptions=False) as client:
        yield client
    assert not served.alive  # the application ended its engine


@pytest.fixture(scope="session")
def url(client: Any, served: AsyncMLCEngine) -> Iterator[str]:
    """A real port for programs that want one; ``client`` ends the engine."""
    import uvicorn

    from mlc_bridge.engine.server import app

    config = uvicorn.Config(app(served), port=0, log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture
def copy_of(artifact: Path, tmp_path: Path) -> Callable[[], Path]:
    """A directory of links to the artifact, whose files a test may replace."""

    def make() -> Path:
        for file in artifact.iterdir():
            (tmp_path / file.name).symlink_to(file)
        return tmp_path

    return make
