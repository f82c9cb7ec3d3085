"""CUDA kernels compile for every architecture we name, without spilled registers."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import tvm
from cuda_on_cpu import cuda_source, cuda_target
from linear_functions import awq, dense, group4
from tvm.s_tir import dlight

from tir_schedules import RULES
from tir_schedules.gpu.attention_decode import decode
from tir_schedules.gpu.attention_function import Heads
from tir_schedules.gpu.attention_prefill import prefill_paged, prefill_ragged

LAYERS = {
    "awq": awq(4, 4096, 4096, 128, epilogue="residual"),
    "awq_one_row": awq(1, 12288, 4096, 128, "bfloat16", static=True, epilogue="bias"),
    "dense": dense(4, 4096, 4096, "bfloat16", epilogue="bias"),
    "group": group4(4, 4096, 4096),
    "float8": dense(4, 4096, 4096, "float8_e4m3fn", out_dtype="float16"),
    "float8_rows": dense(4, 4096, 4096, "bfloat16", epilogue="bias", stored="float8_e4m3fn"),
}
WIDE = Heads(8, 4, 256, "bfloat16", window=4096, cap=50.0)  # gemma2
LONG = Heads(32, 8, 128, "float16")
ATTENTION = {"decode": decode(LONG), "ragged": prefill_ragged(LONG), "wide": prefill_paged(WIDE)}
LAUNCH = r"__launch_bounds__\((\d+)\) (\w+)"


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs NVIDIA's compiler")
@pytest.mark.parametrize(
    ("arch", "layers"),
    [
        ("sm_80", ["awq", "awq_one_row", "group", "float8_rows"]),
        ("sm_86", ["awq"]),
        ("sm_89", ["awq", "float8"]),
        ("sm_90a", ["awq", "awq_one_row", "dense", "float8", "float8_rows"]),
    ],
)
def test_no_spills(arch: str, layers: list[str], tmp_path: Path) -> None:
    target = cuda_target(arch)
    functions = {n: LAYERS[n].func.with_attr("global_symbol", n) for n in layers}
    with target:
        module = dlight.ApplyDefaultSchedule(*RULES(target))(tvm.IRModule(functions))
    check(module, target, tmp_path)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs NVIDIA's compiler")
@pytest.mark.parametrize(("arch", "names"), [("sm_80", ["wide"]), ("sm_90a", ["decode", "ragged"])])
def test_attention_does_not_spill(arch: str, names: list[str], tmp_path: Path) -> None:
    functions = {n: ATTENTION[n].with_attr("global_symbol", n) for n in names}
    check(tvm.IRModule(functions), cuda_target(arch), tmp_path)


def check(module: tvm.IRModule, target: tvm.target.Target, tmp_path: Path) -> None:
    """Nothing spills, and the registers leave room for what the kernel's latencies need."""
    arch, layers = target.attrs["arch"], {v.name_hint for v in module.get_global_vars()}
    source = tmp_path / "layers.cu"
    source.write_text(cuda_source(module, target))
    command = ["nvcc", "-w", f"-arch={arch}", "-cubin", "-Xptxas", "-v", "-o", tmp_path / "cubin"]
    done = subprocess.run([*command, source], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kernels = re.findall(r"Function properties for (\w+)\n(.*?)\n.*?Used (\d+) reg", done.stderr)
    assert {re.sub(r"_kernel.*", "", name) for name, *_ in kernels} == layers
    threads = {name: int(count) for count, name in re.findall(LAUNCH, source.read_text())}
    for name, memory, registers in kernels:
        assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in memory, name
        assert int(registers) * threads[name] <= 40 << 10, name  # of 64 Ki in a multiprocessor


@pytest.mark.parametrize(
    ("arch", "instruction"), [("sm_80", "f16"), ("sm_89", "e4m3"), ("sm_90a", "f16")]
)
def test_float8_products_only_where_the_machine_has_them(arch: str, instruction: str) -> None:
    target = cuda_target(arch)
    func = LAYERS["float8"].func.with_attr("global_symbol", "float8")
    with target:
        module = dlight.ApplyDefaultSchedule(*RULES(target))(tvm.IRModule({"float8": func}))
    calls = set(re.findall(r'"(mma_\w+)"', module.script()))
    assert calls == {f"mma_{instruction}"}
