"""The experts of a mixture on CPUs: every layout against float64, one token, a few, and many."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from linear_functions import TARGET, awq, build, dense, group4
from test_kernel_choice import TARGETS
from tvm.relax.frontend import nn
from tvm.target import Target

from mlc_bridge.models import Weight
from mlc_bridge.models.arch import parameters
from mlc_bridge.models.decoder.mixture import ExpertLinear
from mlc_bridge.schemes import SCHEMES
from tir_schedules.cpu.experts import Experts
from tir_schedules.cpu.linear import Linear

EXPERTS, SLOTS, N, K = 5, 2, 256, 512
# scheme -> largest error in parts of the largest output: what a linear layer of it has
LAYOUTS = {
    "q4f16_autoawq": 2e-3,
    "q4f16_1": 2e-3,
    "q4f16_0": 2e-3,
    "q8f16_1": 2e-3,
    "q0f16": 2e-3,
    "q0f32": 1e-6,
    "q4f32_1": 3e-5,
    "fp8_e4m3fn_f16_row_scale": 2e-3,
    "mxfp4_f16": 2e-3,
    "nvfp4_f16": 2e-3,
}


LINEAR = {
    (scheme, rows): layer(40 if rows is None else rows).func
    for rows in (1, None)
    for scheme, layer in {
        "q4f16_autoawq": lambda m: awq(m, 1024, 1024, 128, static=m == 1),
        "q4f16_1": lambda m: group4(m, 1024, 1024, static=m == 1),
        "q0f16": lambda m: dense(m, 1024, 1024, "float16", static=m == 1),
        "q0bf16": lambda m: dense(m, 1024, 1024, "bfloat16", static=m == 1),
    }.items()
}


def described(n: int, k: int) -> Weight:
    return Weight("experts", tuple(map(str, range(EXPERTS))), (n,), k, experts=EXPERTS)


WEIGHT = described(N, K)


def experts_function(
    scheme: str, tokens: int | str, *, every_slot: bool, sizes: tuple[int, int] = (N, K)
) -> tvm.tirx.PrimFunc:
    """As the graph makes it; `every_slot`: all slots of a token have one x."""
    layer = ExpertLinear(described(*sizes), SCHEMES[scheme])

    class Module(nn.Module):
        def __init__(self) -> None:
            self.layer = layer

        def forward(self, x: nn.Tensor, chosen: nn.Tensor) -> nn.Tensor:
            return self.layer(x, chosen)

    shape = [tokens, sizes[1]] if every_slot else [tokens, SLOTS, sizes[1]]
    x = nn.spec.Tensor(shape, layer.scheme.model_dtype)
    chosen = nn.spec.Tensor([tokens, SLOTS], "int32")
    mod, _ = Module().export_tvm({"forward": {"x": x, "chosen": chosen}})
    return mod["experts"]


def stored(scheme: str) -> tuple[list[np.ndarray], np.ndarray]:
    """The stacks in the parameters' order, and the weights that they stand for in float64."""
    rng, kind = np.random.default_rng(3), SCHEMES[scheme]
    w = rng.normal(size=(EXPERTS, N, K)).astype(np.float32)
    if kind.name.startswith("q0"):
        w = w.astype(kind.model_dtype)
        return [w], w.astype(np.float64)
    made = [kind.encode(kind.quantize(one)) for one in w]
    specs = parameters(WEIGHT, kind)
    exact = np.stack([kind.decode(one).dequantize()[:N, :K] for one in made])
    return [np.stack([one[suffix] for one in made]) for suffix in specs], exact.astype(np.float64)


@pytest.mark.parametrize("scheme", LAYOUTS)
def test_numbers(scheme: str) -> None:
    kind = SCHEMES[scheme]
    stacks, exact = stored(scheme)
    for tokens, every_slot in ((1, True), ("m", False)):
        library = build(experts_function(scheme, tokens, every_slot=every_slot), TARGET)
        for rows in (1,) if tokens == 1 else (3, 40):
            assert error(library, kind, stacks, exact, rows, every_slot) < LAYOUTS[scheme]


def error(
    library: Any, kind: Any, stacks: list[np.ndarray], exact: np.ndarray, rows: int, every: bool
) -> float:
    """Largest difference over largest value. One expert is nobody's, one most tokens' first."""
    rng = np.random.default_rng(rows)
    chosen = np.stack([rng.permutation(EXPERTS - 1)[:SLOTS] for _ in range(rows)]).astype("int32")
    chosen[rows // 2 :, 0], chosen[rows // 2 :, 1] = 1, 3
    x = rng.normal(size=(rows, K) if every else (rows, SLOTS, K)).astype(kind.model_dtype)
    wide = x.astype(np.float64)
    wide = np.repeat(wide[:, None], SLOTS, 1) if every else wide
    expected = np.einsum("tck,tcnk->tcn", wide, exact[chosen])
    out = tvm.runtime.tensor(np.zeros(expected.shape, kind.model_dtype))
    library["main"](*map(tvm.runtime.tensor, (x, chosen, *stacks)), out)
    return float(np.abs(out.numpy().astype(np.float64) - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("target", ["x86-64-v3", "alderlake", "icelake", "zen4", "sapphirerapids"])
@pytest.mark.parametrize("scheme", ["q4f16_autoawq", "q4f16_1", "q0f16", "q0bf16"])
def test_an_expert_has_the_kernels_of_a_linear_layer(scheme: str, target: str) -> None:
    """Those that ``test_kernel_choice`` pins, by number of rows."""
    unit = Target({"kind": "llvm", "num-cores": 2, **TARGETS[target]})
    for tokens, layer in ((1, LINEAR[scheme, 1]), ("m", LINEAR[scheme, None])):
        function = experts_function(scheme, tokens, every_slot=True, sizes=(1024, 1024))
        found, wanted = (
            rule.claim(func, unit) for rule, func in ((Experts(), function), (Linear(), layer))
        )
        assert found.applies
        names = [[(m, kernel.name) for m, kernel in c.kernels] for c in (found, wanted)]
        assert names[0] == names[1]


def test_what_is_no_mixture_is_left() -> None:
    claim = Experts().claim(LINEAR["q0f16", None], TARGET)
    assert not claim.applies
    assert claim.contradicts
