"""Float8 activations by token, against the equation with ml_dtypes' own rounding."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import tvm
from tvm import relax
from tvm.relax.frontend import nn
from tvm.s_tir import dlight

from mlc_bridge.compiler.target import host_target
from mlc_bridge.schemes import SCHEMES
from mlc_bridge.sources import Checkpoint, detect
from tir_schedules import RULES

CASE = Path(__file__).parents[1] / "golden/sources/compressed-tensors/float-fp8-dynamic-channel"
SCHEME = SCHEMES["fp8_e4m3fn_f16_row_scale_dynamic"]


class Layer(nn.Module):
    def __init__(self, n: int, k: int) -> None:
        for suffix, spec in SCHEME.params(n, k).items():
            setattr(self, suffix, nn.Parameter(spec.shape, spec.dtype))

    def forward(self, x: nn.Tensor) -> nn.Tensor:
        return SCHEME.linear(x, {"q_weight": self.q_weight, "q_scale": self.q_scale}, "float32")


def test_the_files_layer_and_its_own_forward() -> None:
    ckpt, expected = Checkpoint.open(CASE), Checkpoint.open(CASE / "expected.safetensors")
    (layer,) = expected.layers("output")
    stored = SCHEME.encode(detect(ckpt).read(ckpt, layer))  # type: ignore[arg-type]
    n, k = stored["q_weight"].shape
    x = expected.tensor(f"{layer}.input").astype(np.float16)
    x = np.concatenate([x, np.zeros_like(x[:1])])
    module, params = Layer(n, k).export_tvm(
        {"forward": {"x": nn.spec.Tensor([1, "m", k], "float16")}}
    )
    with host_target() as target:
        module = relax.transform.LegalizeOps()(module)
        module = dlight.ApplyDefaultSchedule(*RULES(target))(module)
    vm = relax.VirtualMachine(relax.build(module, target), tvm.cpu())
    arrays = [tvm.runtime.tensor(a) for a in (x[None], *(stored[name] for name, _ in params))]
    got = vm["forward"](*arrays).numpy()[0]
    largest = np.abs(x.astype(np.float32)).max(axis=1, keepdims=True)
    step = np.where(largest > 0, largest / np.float32(448), np.float32(1))
    rounded = (x / step).astype(ml_dtypes.float8_e4m3fn).astype(np.float64)
    wanted = rounded @ stored["q_weight"].astype(np.float64).T * (step * stored["q_scale"])
    assert np.abs(got - wanted).max() < 1e-5 * np.abs(wanted).max()
    bias = detect(ckpt).bias(ckpt, layer)
    theirs = expected.tensor(f"{layer}.output") - (0 if bias is None else bias.astype(np.float32))
    # Its forward runs in bfloat16, whose scale moves many codes to their neighbour.
    assert np.abs(got[:-1] - theirs).max() < 0.05 * np.abs(theirs).max()
