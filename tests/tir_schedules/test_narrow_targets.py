"""Linear layers as older machines run them: AVX2 alone, and AVX-512 without VNNI.

Code for fewer features runs on this machine too, so the numbers are checked and not only compiled.
"""

from __future__ import annotations

import pytest
from linear_functions import awq, dense, group4
from tvm.target import Target

from mlc_bridge.compiler.target import cpu_features, host_options

INT16_ROWS = 5e-5
AVX2 = ["+avx2", "+fma", "+f16c"]
AVX512 = [*AVX2, "+avx512f", "+avx512bw", "+avx512dq", "+avx512vl"]


def narrow(features: list[str]) -> Target:
    missing = {f[1:] for f in features} - set(cpu_features())
    if missing:
        pytest.skip(f"this CPU has no {', '.join(sorted(missing))}")
    return Target({**host_options(), "mcpu": "x86-64", "mattr": features})


@pytest.mark.parametrize("features", [AVX2, AVX512], ids=["avx2", "avx512"])
@pytest.mark.parametrize("m", [1, 5, 40])
def test_older_machines(features: list[str], m: int) -> None:
    target = narrow(features)
    assert awq(m, 264, 384, 128, out_dtype="float32").error(target) < INT16_ROWS
    assert group4(m, 136, 384, 32, out_dtype="float32").error(target) < INT16_ROWS
    assert dense(m, 72, 264, "float16", out_dtype="float32").error(target) < 3e-6
