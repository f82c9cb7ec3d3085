"""The tiny model once, and calibration text."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.quantizers.tiny import checkpoint

pytest.importorskip("torch")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def calibration(goldens: Path) -> Path:
    return goldens / "fp8/calibration_sharegpt.json"
