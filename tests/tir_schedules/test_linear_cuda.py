"""AWQ and float layers compile for every CUDA architecture we name; nothing here runs them."""

from __future__ import annotations

import pytest
import tvm
from linear_functions import awq, dense
from tvm.s_tir import dlight

from tir_schedules import RULES


@pytest.mark.parametrize("arch", ["sm_80", "sm_86", "sm_89", "sm_90a"])
@pytest.mark.parametrize("m", [1, 64])
@pytest.mark.parametrize("layer", ["awq", "dense"])
def test_cross_compiles(arch: str, m: int, layer: str) -> None:
    made = (
        awq(m, 256, 256, 128, static=True)
        if layer == "awq"
        else dense(m, 256, 256, "float16", static=True)
    )
    target = tvm.target.Target({"kind": "cuda", "arch": arch, "host": {"kind": "llvm"}})
    module = tvm.IRModule({"main": made.func.with_attr("global_symbol", "main")})
    with target:
        module = dlight.ApplyDefaultSchedule(*RULES(target))(module)
    lowered = module.script()
    assert 'thread="blockIdx.x"' in lowered
    library = tvm.compile(module, target=target)
    device = (getattr(library, "mod", library)).imports
    assert any("__global__" in part.inspect_source() for part in device)
