"""Libs are compiled once per session and shared by all tests that ask for the same model."""

from __future__ import annotations

from pathlib import Path

import pytest
from built import Build, Built, Checkpoints, build
from tiny import save

EXAMPLES = Path(__file__).parents[2] / "examples" / "models"


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """``built(checkpoint, scheme, **limits)``, remembered for the session."""
    done: dict[tuple[object, ...], Built] = {}

    def once(checkpoint: Path, scheme: str, without: tuple[str, ...] = (), **limits: int) -> Built:
        key = (checkpoint, scheme, without, *sorted(limits.items()))
        if key not in done:
            out = tmp_path_factory.mktemp(scheme)
            done[key] = build(checkpoint, out, scheme, without, **limits)
        return done[key]

    return once


@pytest.fixture(scope="session")
def examples() -> Path:
    return EXAMPLES


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    """``checkpoints(name)``: the directory of a tiny random model."""
    done: dict[str, Path] = {}

    def once(name: str) -> Path:
        if name not in done:
            done[name] = save(name, tmp_path_factory.mktemp(name))
        return done[name]

    return once
