"""An MLP in activation order is the same MLP: folding gives back the artifact without any order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from tool_layouts import gptq_v2, settings

from mlc_bridge.qtensor import QTensor, take_rows
from mlc_bridge.sources import SOURCES, Checkpoint
from mlc_bridge.sources.activation_order import FoldedOrder, folded

EXAMPLE = Path(__file__).parents[2] / "examples" / "models" / "stdlib-llama-7m-awq"
MLP = "model.layers.0.mlp"


def scattered(home: Path, *, fused: bool = False, down_only: bool = False) -> tuple[Any, Any]:
    """The example's first MLP as GPTQ in activation order, and the perm it was given."""
    ckpt, source = Checkpoint.open(EXAMPLE), SOURCES["autoawq"]
    read = {x: source.read(ckpt, f"{MLP}.{x}_proj") for x in ("gate", "up", "down")}
    # Columns ascend within a group, as a stable sort of g_idx gives them back.
    perm = np.sort(np.random.default_rng(4).permutation(768).reshape(-1, 128)).reshape(-1)
    back = np.argsort(perm)
    tensors: dict[str, np.ndarray] = {}

    def add(name: str, parts: list[QTensor]) -> None:
        codes = np.concatenate([p.codes.unpack() for p in parts])
        zeros = np.concatenate([p.zero.unpack() for p in parts])
        scales = np.concatenate([p.scale for p in parts])
        tensors.update({f"{MLP}.{name}.{s}": a for s, a in gptq_v2(codes, zeros, scales).items()})

    makers = [take_rows(read[x], back) for x in ("gate", "up")]
    if fused:
        add("gate_up_proj", makers)
    elif not down_only:
        add("gate_proj", makers[:1])
        add("up_proj", makers[1:])
        tensors[f"{MLP}.up_proj.bias"] = np.arange(768, dtype=np.float16)[back]
    add("down_proj", [read["down"]])
    down = {s: tensors.pop(f"{MLP}.down_proj.{s}") for s in ("qweight", "g_idx")}
    codes = read["down"].codes.unpack()[:, back]
    zeros, scales = read["down"].zero.unpack(), read["down"].scale
    tensors[f"{MLP}.down_proj.qweight"] = gptq_v2(codes, zeros, scales)["qweight"]
    tensors[f"{MLP}.down_proj.g_idx"] = down["g_idx"][back]
    home.mkdir(exist_ok=True)
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, home / "model.safetensors")
    config = {"model_type": "llama", "quantization_config": settings("gptq v2", 128)}
    (home / "config.json").write_text(json.dumps(config))
    return Checkpoint.open(home), read


@pytest.mark.parametrize("fused", [False, True])
def test_gated_mlp_folds(tmp_path: Path, fused: bool) -> None:
    ckpt, wanted = scattered(tmp_path, fused=fused)
    source = folded(SOURCES["gptq"], ckpt)
    assert isinstance(source, FoldedOrder)
    assert SOURCES["gptq"].read(ckpt, f"{MLP}.down_proj").perm is not None
    down = source.read(ckpt, f"{MLP}.down_proj")
    assert down.perm is None
    assert np.array_equal(down.dequantize(), wanted["down"].dequantize())
    if fused:
        got = source.read(ckpt, f"{MLP}.gate_up_proj").dequantize()
        both = [wanted[x].dequantize() for x in ("gate", "up")]
        assert np.array_equal(got, np.concatenate(both))
        return
    for x in ("gate", "up"):
        assert np.array_equal(
            source.read(ckpt, f"{MLP}.{x}_proj").dequantize(), wanted[x].dequantize()
        )
    assert np.array_equal(source.bias(ckpt, f"{MLP}.up_proj"), np.arange(768))
    assert source.bias(ckpt, f"{MLP}.gate_proj") is None


def test_the_mlp_computes_the_same(tmp_path: Path) -> None:
    """Against the weights as GPTQ itself means them, in the input's own order."""
    ckpt, _ = scattered(tmp_path)
    x = np.random.default_rng(1).normal(size=(3, 256)).astype(np.float32)

    def mlp(source: Any) -> np.ndarray:
        gate, up, down = (
            source.read(ckpt, f"{MLP}.{n}_proj").dequantize() for n in ("gate", "up", "down")
        )
        return (np.tanh(x @ gate.T) * (x @ up.T)) @ down.T

    ours, gptq = mlp(folded(SOURCES["gptq"], ckpt)), mlp(SOURCES["gptq"])
    assert np.abs(ours - gptq).max() <= 1e-5 * np.abs(gptq).max()


def test_order_that_cannot_fold_stays(tmp_path: Path) -> None:
    ckpt, _ = scattered(tmp_path, down_only=True)
    assert folded(SOURCES["gptq"], ckpt).read(ckpt, f"{MLP}.down_proj").perm is not None
    golden = Path(__file__).parents[1] / "golden" / "sources" / "gptq" / "w4-g32-sym-v1-desc-act"
    ckpt = Checkpoint.open(golden)
    q = folded(SOURCES["gptq"], ckpt).read(ckpt, "model.layers.0.self_attn.q_proj")
    assert q.perm is not None


def test_without_any_order_nothing_is_wrapped() -> None:
    assert folded(SOURCES["autoawq"], Checkpoint.open(EXAMPLE)) is SOURCES["autoawq"]


@pytest.mark.parametrize("case", ["autoawq/w4-g32", "autoawq-gemv/w4-g32", "gptq/w4-g32-sym-v2"])
def test_take_rows(case: str) -> None:
    name = case.partition("/")[0]
    ckpt = Checkpoint.open(Path(__file__).parents[1] / "golden" / "sources" / case)
    q = SOURCES[name].read(ckpt, "model.layers.0.self_attn.q_proj")
    rows = np.random.default_rng(0).permutation(64)
    assert np.array_equal(take_rows(q, rows).dequantize(), q.dequantize()[rows])
