"""The example model, built once per session for the tests of this room."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlc_bridge import (
    CompileJob,
    ConvertJob,
    GenConfigJob,
    compile_model,
    convert_weight,
    gen_config,
)
from mlc_bridge.engine import MLCEngine

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


@pytest.fixture
def copy_of(artifact: Path, tmp_path: Path) -> Callable[[], Path]:
    """A directory of links to the artifact, whose files a test may replace."""

    def make() -> Path:
        for file in artifact.iterdir():
            (tmp_path / file.name).symlink_to(file)
        return tmp_path

    return make
