"""Paths that every room's tests use; nothing here needs a network, a GPU or a compiler."""

from __future__ import annotations

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


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
