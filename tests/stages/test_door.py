"""Names that no file system holds are the user's error at every stage, not a traceback."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlc_bridge import (
    BuildJob,
    CalibrateJob,
    CompileJob,
    ConvertJob,
    GenConfigJob,
    build,
    calibrate,
    compile_model,
    convert_weight,
    gen_config,
)
from mlc_bridge.errors import BridgeError
from mlc_bridge.stages.bench import BenchJob, bench
from mlc_bridge.stages.inspect_artifact import CheckJob, check_artifact
from mlc_bridge.stages.inspect_checkpoint import InspectJob, inspect_checkpoint
from mlc_bridge.stages.verify import VerifyJob, verify

Call = Callable[[Path, str, Path], Any]
CALLS: dict[str, Call] = {
    "gen_config": lambda model, bad, out: gen_config(GenConfigJob(bad, out)),
    "gen_config output": lambda model, bad, out: gen_config(GenConfigJob(model, bad)),
    "gen_config source": lambda model, bad, out: gen_config(GenConfigJob(model, out, source=bad)),
    "convert output": lambda model, bad, out: convert_weight(ConvertJob(model, bad)),
    "convert source": lambda model, bad, out: convert_weight(ConvertJob(model, out, source=bad)),
    "build output": lambda model, bad, out: build(BuildJob(model, bad)),
    "compile": lambda model, bad, out: compile_model(CompileJob(bad)),
    "compile output": lambda model, bad, out: compile_model(CompileJob(out, f"{bad}.so")),
    "calibrate": lambda model, bad, out: calibrate(CalibrateJob(bad, out, dataset=bad)),
    "check": lambda model, bad, out: check_artifact(CheckJob(bad)),
    "inspect": lambda model, bad, out: inspect_checkpoint(InspectJob(bad)),
    "verify": lambda model, bad, out: verify(VerifyJob(bad, checkpoint=model)),
    "bench": lambda model, bad, out: bench(BenchJob(bad)),
    "recipe": lambda model, bad, out: BuildJob.from_recipe(bad),
}


@pytest.mark.parametrize(
    "bad", ["x" * 5000, "y" * 300 + "/z", "a\0b"], ids=["long", "part", "null"]
)
@pytest.mark.parametrize("call", CALLS)
def test_impossible_names(call: str, bad: str, example_awq: Path, tmp_path: Path) -> None:
    with pytest.raises(BridgeError):
        CALLS[call](example_awq, bad, tmp_path / "out")
    assert not (tmp_path / "out").exists()
