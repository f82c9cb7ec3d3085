"""The router's choice against transformers' own routers: who is chosen, and with what share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import tvm
from transformers.models.deepseek_v2 import modeling_deepseek_v2 as deepseek_v2
from transformers.models.ernie4_5_moe import modeling_ernie4_5_moe as ernie
from transformers.models.glm4_moe import modeling_glm4_moe as glm
from transformers.models.gpt_oss import modeling_gpt_oss as gpt_oss
from transformers.models.lfm2_moe import modeling_lfm2_moe as lfm2
from transformers.models.qwen2_moe import modeling_qwen2_moe as qwen2
from tvm import te

from mlc_bridge.models.decoder.choice import route
from mlc_bridge.models.decoder.router import Router

TOKENS, COUNT, CHOSEN = 33, 16, 3
CORRECTION = ("correction", "correction")
GROUPS = {"n_group": 4, "topk_group": 2}
SCALED = {"routed_scaling_factor": 2.5}
# Router of transformers, its config beyond the sizes, and ours.
ROUTERS: dict[str, tuple[type, dict[str, Any], Router]] = {
    "qwen2_moe": (qwen2.Qwen2MoeTopKRouter, {"norm_topk_prob": False}, Router(CHOSEN, False)),
    "qwen2_moe, to 1": (qwen2.Qwen2MoeTopKRouter, {"norm_topk_prob": True}, Router(CHOSEN, True)),
    "gpt_oss": (gpt_oss.GptOssTopKRouter, {}, Router(CHOSEN, True)),
    "ernie4_5_moe": (
        ernie.Ernie4_5_MoeTopKRouter,
        {"moe_norm_min": 1e-12},
        Router(CHOSEN, True, correction=CORRECTION),
    ),
    "glm4_moe": (
        glm.Glm4MoeTopkRouter,
        {**GROUPS, **SCALED, "norm_topk_prob": True},
        Router(CHOSEN, True, "sigmoid", 2.5, 1e-20, 4, 2, correction=CORRECTION),
    ),
    "lfm2_moe": (
        lfm2.Lfm2MoeTopKRouter,
        {**SCALED, "norm_topk_prob": True, "use_expert_bias": True},
        Router(CHOSEN, True, "sigmoid", 2.5, 1e-6, correction=CORRECTION),
    ),
    "deepseek_v2": (
        deepseek_v2.DeepseekV2TopkRouter,
        {**GROUPS, **SCALED, "topk_method": "group_limited_greedy"},
        Router(CHOSEN, False, scale=2.5, groups=4, best_groups=2, top=1),
    ),
}


@pytest.mark.parametrize("name", ROUTERS)
def test_choice(name: str) -> None:
    theirs, settings, ours = ROUTERS[name]
    torch.manual_seed(0)
    router = theirs(_config(settings))
    for tensor in (*router.parameters(), *router.buffers()):
        torch.nn.init.normal_(tensor)
    x = torch.randn(TOKENS, COUNT)
    correction = torch.randn(COUNT)
    given = [correction] if name == "lfm2_moe" else []
    for tensor in (t for n, t in router.state_dict().items() if "correction" in n):
        tensor.copy_(correction.reshape(tensor.shape))
    with torch.no_grad():
        scores, share, chosen = router(x, *given)
    got, shares = _ours(ours, scores.numpy(), correction.numpy())
    order, mine = chosen.numpy().argsort(1), got.argsort(1)
    np.testing.assert_array_equal(
        np.take_along_axis(got, mine, 1), np.take_along_axis(chosen.numpy(), order, 1)
    )
    np.testing.assert_allclose(
        np.take_along_axis(shares, mine, 1),
        np.take_along_axis(share.numpy(), order, 1),
        atol=1e-6,
    )


def test_equal_scores() -> None:
    """Each expert once, the earlier first."""
    chosen, share = _ours(Router(CHOSEN, True), np.zeros((2, COUNT), "float32"), None)
    np.testing.assert_array_equal(chosen, [range(CHOSEN)] * 2)
    np.testing.assert_allclose(share, 1 / CHOSEN, rtol=1e-6)


def test_not_a_number_reads_no_foreign_memory() -> None:
    chosen, _ = _ours(Router(CHOSEN, True), np.full((2, COUNT), np.nan, "float32"), None)
    assert chosen.min() >= 0
    assert chosen.max() < COUNT


def _config(settings: dict[str, Any]) -> Any:
    sizes = {
        "hidden_size": COUNT,
        "num_experts_per_tok": CHOSEN,
        "num_experts": COUNT,
        "num_local_experts": COUNT,
    }
    return type("Config", (), {**sizes, **settings})()


def _ours(router: Router, scores: np.ndarray, correction: np.ndarray | None) -> tuple[Any, Any]:
    args = [te.placeholder(scores.shape, "float32", "scores")]
    values = [scores]
    if router.correction is not None:
        assert correction is not None
        args.append(te.placeholder((COUNT,), "float32", "correction"))
        values.append(correction)
    outputs = route(router, *args)
    lib = tvm.compile(te.create_prim_func([*args, *outputs]), target="llvm")
    shape = scores.shape[0], router.chosen
    made = [tvm.runtime.tensor(np.zeros(shape, kind)) for kind in ("int32", "float32")]
    lib(*map(tvm.runtime.tensor, values), *made)
    return made[0].numpy(), made[1].numpy()
