"""Phases are printable lists; export publishes whole files; TVM's failures become one paragraph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax, tirx
from tvm.relax.frontend import nn

from mlc_bridge.compiler import pipeline
from mlc_bridge.compiler.kv_cache import CacheLayout
from mlc_bridge.compiler.target import host_target, make_target
from mlc_bridge.errors import CompileError
from mlc_bridge.models.decoder import KVPages, Rope

LAYOUT = CacheLayout(1, "float32", KVPages(2, 1, 16, Rope(1e4)))


class Doubler(nn.Module):
    def embed(self, x: nn.Tensor) -> nn.Tensor:
        return x + x


def unit() -> pipeline.Unit:
    spec = {"embed": {"x": nn.spec.Tensor(["n", 8], "float32")}}
    mod, _ = Doubler().export_tvm(spec)[:2]
    return pipeline.Unit(mod, LAYOUT, None, {}, chunk=4, vocab=8, bounds={"n": 4})


@pytest.fixture(scope="module")
def executable() -> Any:
    target = host_target()
    with target:
        mod = tvm.ir.transform.Sequential([*pipeline.fuse(), *pipeline.schedule(target)])(
            unit().mod
        )
        steps = [*pipeline.plan_memory(), *pipeline.lower(target)]
        return relax.build(tvm.ir.transform.Sequential(steps)(mod), target, relax_pipeline=None)


@pytest.mark.parametrize("kind", ["llvm", "cuda"])
def test_phases_are_lists_of_named_passes(kind: str) -> None:
    target = make_target({"kind": kind, **({"arch": "sm_80"} if kind == "cuda" else {})})
    found = pipeline.phases(unit(), target)
    assert list(found) == ["attach", "fuse", "schedule", "plan", "lower"]
    for sequence in found.values():
        assert type(sequence) is list
        names = [step.info.name for step in sequence]
        assert names
        assert "sequential" not in {name.lower() for name in names}
    graphs = "RewriteCUDAGraph" in [step.info.name for step in found["lower"]]
    assert graphs == (kind == "cuda")
    assert "RewriteCUDAGraph" not in [step.info.name for step in pipeline.lower(target, False)]


def test_tvms_tensor_core_rule_stays_out() -> None:
    """It crashes the process on float16 layers that our rule leaves to it."""
    target = make_target({"kind": "cuda", "arch": "sm_80"})
    first = pipeline.schedule(target)[0]
    func = tirx.PrimFunc([], tirx.Evaluate(0))
    assert first(tvm.IRModule({"f": func}))["f"].attrs["dlight.do_not_tensorize"]


def test_export_publishes_a_whole_library(executable: Any, tmp_path: Path) -> None:
    output = tmp_path / "new" / "lib.so"
    pipeline.export(executable, output)
    assert [p.name for p in output.parent.iterdir()] == ["lib.so"]
    vm = relax.VirtualMachine(tvm.runtime.load_module(str(output)), tvm.cpu())
    ones = tvm.runtime.tensor(np.ones((1, 8), "float32"), tvm.cpu())
    assert vm["embed"](ones).numpy().tolist() == [[2.0] * 8]


def test_failed_link_leaves_nothing(
    executable: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool, out = tmp_path / "g++", tmp_path / "out"
    tool.write_text("#!/bin/sh\necho broken >&2\nexit 1\n")
    tool.chmod(0o755)
    out.mkdir()
    (out / "lib.so").write_bytes(b"the library before")
    monkeypatch.setenv("CXX", str(tool))
    with pytest.raises(CompileError, match="broken"):
        pipeline.export(executable, out / "lib.so")
    assert [p.read_bytes() for p in out.iterdir()] == [b"the library before"]


@pytest.mark.parametrize("what", [{"window": 8}, {"score_cap": 30.0}])
def test_attention_that_cuda_kernels_lack(what: dict[str, float]) -> None:
    from dataclasses import replace

    target = make_target({"kind": "cuda", "arch": "sm_80"})
    pages = replace(LAYOUT.pages, score_cap=what.get("score_cap"))
    local = replace(unit(), cache=replace(LAYOUT, pages=pages, window=what.get("window")))
    with pytest.raises(CompileError, match=next(iter(what))):
        pipeline.compile_module(local, target)


def test_failure_of_tvm_is_one_paragraph(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(mod: tvm.IRModule) -> tvm.IRModule:
        raise ValueError("Check failed: (a == b) is false: one of many\nlines of source\n^^^^")

    broken = [pipeline.passes.module_pass("Broken", fail)]
    monkeypatch.setattr(pipeline, "fuse", lambda: broken)
    with pytest.raises(CompileError) as told:
        pipeline.compile_module(unit(), host_target())
    assert "Check failed: (a == b)" in str(told.value)
    assert "\n" not in str(told.value)


def test_what_is_called_between_passes_may_end_the_compilation() -> None:
    calls = []

    def between() -> None:
        calls.append(len(calls))
        if len(calls) == 5:
            raise KeyboardInterrupt

    with pytest.raises(CompileError):  # what it raised comes out as TVM's failures do
        pipeline.compile_module(unit(), host_target(), between=between)
    assert len(calls) == 5
