"""Linear layers as other machines run them: AVX2 alone, AVX-512 without VNNI, more cores.

Code for fewer features runs on this machine too, so the numbers are checked and not only compiled.
"""

from __future__ import annotations

import pytest
from linear_functions import awq, dense, group4
from tvm.target import Target

from mlc_bridge.compiler.target import cpu_features, host_options
from tir_schedules.cpu.awq_gemv import Split

INT16_ROWS = 5e-5
AVX2 = ["+avx2", "+fma", "+f16c"]
AVX2_VNNI = [*AVX2, "+avxvnni"]
AVX512 = [*AVX2, "+avx512f", "+avx512bw", "+avx512dq", "+avx512vl"]
MACHINES = {"avx2": AVX2, "avxvnni": AVX2_VNNI, "avx512": AVX512}


def narrow(features: list[str]) -> Target:
    missing = {f[1:] for f in features} - set(cpu_features())
    if missing:
        pytest.skip(f"this CPU has no {', '.join(sorted(missing))}")
    return Target({**host_options(), "mcpu": "x86-64", "mattr": features})


@pytest.mark.parametrize("features", MACHINES.values(), ids=MACHINES)
@pytest.mark.parametrize("m", [1, 5, 40])
def test_older_machines(features: list[str], m: int) -> None:
    target = narrow(features)
    assert awq(m, 264, 384, 128, out_dtype="float32").error(target) < INT16_ROWS
    assert group4(m, 136, 384, 32, out_dtype="float32").error(target) < INT16_ROWS
    assert dense(m, 72, 264, "float16", out_dtype="float32").error(target) < 3e-6


@pytest.mark.parametrize("cores", [1, 5, 96])
@pytest.mark.parametrize("m", [1, 3])
def test_any_number_of_cores(cores: int, m: int) -> None:
    target = Target({**host_options(), "num-cores": cores})
    assert awq(m, 1032, 1152, 128, out_dtype="float32").error(target) < INT16_ROWS


@pytest.mark.parametrize("blocks", [1, 7, 16, 43])
@pytest.mark.parametrize("vectors", [1, 16, 172])
@pytest.mark.parametrize("tasks", [1, 2, 12, 64])
def test_split_covers_the_layer(blocks: int, vectors: int, tasks: int) -> None:
    split = Split.choose(blocks, vectors, tasks, widest=32)
    assert split.deep * split.blocks >= blocks
    assert split.wide * split.vectors >= vectors
    assert split.vectors <= 32
    work = -(-split.deep * split.wide // tasks) * split.blocks * split.vectors
    assert work * tasks <= 2 * blocks * vectors or work <= max(blocks, vectors)


@pytest.mark.parametrize(("blocks", "vectors"), [(86, 32), (44, 16), (16, 88), (32, 96)])
def test_split_keeps_rows_whole(blocks: int, vectors: int) -> None:
    """The layers of the 1B and 7B models: half rows read at two thirds of the speed."""
    assert Split.choose(blocks, vectors, tasks=4, widest=128).wide == 1
