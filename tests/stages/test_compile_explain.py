"""What computes each function of a model: names, shapes, kernels by rows, and the cliffs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from test_compile import write
from tvm.ir.transform import Sequential

import tir_schedules
from mlc_bridge.compiler import pipeline
from mlc_bridge.compiler.kernels import KernelChoice, cliffs, explain
from mlc_bridge.compiler.target import choose_target
from mlc_bridge.stages.compile import CompileJob, make_plan, make_unit

MIXTRAL = {
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_attention_heads": 8,
    "head_dim": 64,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}
EXPERTS = "model.layers.*.moe.e1_e3"


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> list[KernelChoice]:
    directory: Path = write(
        tmp_path_factory.mktemp("mixtral"),
        model_type="mixtral",
        quantization="q4f16_1",
        model_config=MIXTRAL,
    )
    target = choose_target(target="llvm -mcpu=x86-64-v3 -mtriple=x86_64-unknown-linux-gnu")
    unit = make_unit(make_plan(CompileJob(directory)), target)
    params = [param["name"] for param in unit.metadata["params"]]
    with target:
        mod = Sequential([*pipeline.attach(unit, target), *pipeline.fuse()])(unit.mod)
        return explain(mod, target, tir_schedules.RULES(target), params)


def test_linear_layers(mixtral: list[KernelChoice]) -> None:
    found = [c for c in mixtral if c.layers == ("model.layers.*.self_attn.o_proj",)]
    assert {(c.rule, c.n, c.k) for c in found} == {("Linear", 512, 512)}
    few, many = "group4_gemv vpmaddwd x8", "int16_gemm vpmaddwd x8"
    kernels = [dict(c.kernels) for c in found]
    assert {"1": few} in kernels
    assert {"up to 16": few, "more": many} in kernels
    reasons = {reason for c in found for reason in c.why_not}
    assert reasons == {
        "bf16_gemm: the target multiplies no bfloat16",
        "bf16_gemm: float16 would be rounded",
    }


def test_every_function_is_there_once(mixtral: list[KernelChoice]) -> None:
    names = [c.function for c in mixtral]
    assert len(set(names)) == len(names)
    assert {"softmax", "rms_norm", "router"} <= set(names)
    assert not any("none" in c.rule for c in mixtral)
    assert not any(c.products for c in mixtral if c.rule != "Fallback")


def test_experts(mixtral: list[KernelChoice]) -> None:
    """The kernels of a linear layer, and no cliff; the router's few products are none."""
    found = [c for c in mixtral if c.layers == (EXPERTS,)]
    assert {(c.rule, c.n, c.k) for c in found} == {("Experts", 2 * 1024, 512)}
    few, many = "group4_gemv vpmaddwd x8", "int16_gemm vpmaddwd x8"
    assert {"up to 16": few, "more": many} in [dict(c.kernels) for c in found]
    assert {"1": few} in [dict(c.kernels) for c in found]
    assert cliffs(mixtral) == ()


def test_fallback_over_many_products_is_a_note() -> None:
    slow = KernelChoice("f", "Fallback", (EXPERTS,), why_not=("Rows: no",), products=2_000_000)
    few = replace(slow, products=1000)
    assert cliffs([slow, few]) == (
        f"no kernel fits {EXPERTS}: 2,000,000 products a row are left to Fallback (f; Rows: no)",
    )
