"""Paths that every room's tests use; nothing here needs a network, a GPU or a compiler."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session", autouse=True)
def _cache_of_this_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compiled libraries of earlier runs must not decide what is tested now; workers share them."""
    before = os.environ.get("XDG_CACHE_HOME")
    run = tmp_path_factory.getbasetemp()
    run = run.parent if "PYTEST_XDIST_WORKER" in os.environ else run
    os.environ["XDG_CACHE_HOME"] = str(run / "cache")
    yield
    if before is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = before


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_means_ctrl_c() -> None:
    """A shell's background jobs are born with SIGINT ignored, and so are their children."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def example_float() -> Path:
    """The example model in float16."""
    return REPOSITORY / "examples/models/stdlib-llama-7m"


@pytest.fixture(scope="session")
def example_awq() -> Path:
    """The example model in AutoAWQ form."""
    return REPOSITORY / "examples/models/stdlib-llama-7m-awq"


@pytest.fixture(scope="session")
def goldens() -> Path:
    return REPOSITORY / "tests/golden"
