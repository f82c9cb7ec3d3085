"""Experts joined to one tensor convert to the bytes of the same experts apart; MTP is left out."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from recognise_cases import GOLDEN as ROOT
from recognise_cases import write

from mlc_bridge import ConvertJob, InspectJob, convert_weight, inspect_checkpoint
from mlc_bridge.errors import SourceError
from mlc_bridge.models import MODELS
from mlc_bridge.sources import Checkpoint, detect
from mlc_bridge.stages.recognise import open_checkpoint

Tensors = dict[str, np.ndarray]
GOLDEN = ROOT / "sources"
HIDDEN, INNER, COUNT = 256, 128, 4
EXPERTS = "model.layers.0.mlp.experts"
FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}


CONFIG = {
    "model_type": "qwen3_moe", "hidden_size": HIDDEN, "intermediate_size": 384, "vocab_size": 4096,
    "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
    "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "rope_theta": 10000,
    "tie_word_embeddings": False, "num_experts": COUNT, "num_experts_per_tok": 2,
    "moe_intermediate_size": INNER, "norm_topk_prob": True,
}  # fmt: skip


@cache
def apart() -> Tensors:
    """A float model of one layer, by the names of its weight table."""
    rng = np.random.default_rng(0)
    arch = MODELS["qwen3_moe"]
    tensors: Tensors = {}
    for weight in arch.weights(arch.config(CONFIG)):
        rows = weight.rows * max(weight.experts, 1)
        for source, n in zip(weight.sources, rows, strict=True):
            shape = (n, weight.k) if weight.k else (n,)
            tensors[f"{source}.weight"] = rng.normal(size=shape).astype(np.float16) / 8
    return tensors


def fp8(tensors: Tensors) -> Tensors:
    """Every expert in blocks of 128 x 128, a scale each."""
    found: Tensors = {}
    for name, w in tensors.items():
        if f"{EXPERTS}." not in name:
            found[name] = w
            continue
        n, k = (size // 128 for size in w.shape)
        scale = np.abs(w.reshape(n, 128, k, 128)).max(axis=(1, 3)).astype(np.float32) / 448
        wide = np.kron(scale, np.ones((128, 128), np.float32))
        found[name] = (w / wide).astype(ml_dtypes.float8_e4m3fn)
        found[f"{name}_scale_inv"] = scale
    return found


def joined(tensors: Tensors, *, transposed: bool = False) -> Tensors:
    """As transformers 5 holds them; as Qwen3-VL's files do where ``transposed``."""
    rest = {name: w for name, w in tensors.items() if f"{EXPERTS}." not in name}
    for end in {n.split(".weight")[1] for n in tensors if f"{EXPERTS}." in n}:
        each = {x: [tensors[f"{EXPERTS}.{e}.{x}_proj.weight{end}"] for e in range(COUNT)]
                for x in ("gate", "up", "down")}  # fmt: skip
        both = np.stack([np.concatenate(p) for p in zip(each["gate"], each["up"], strict=True)])
        for name, w in ((f"gate_up_proj{end}", both), (f"down_proj{end}", np.stack(each["down"]))):
            rest[f"{EXPERTS}.{name}"] = w.transpose(0, 2, 1) if transposed else w
    return rest


def converted(home: Path, tensors: Tensors, settings: dict[str, Any] | None = None) -> bytes:
    more = {"quantization_config": settings} if settings else {}
    model = write(home / "model", tensors, {**CONFIG, **more})
    convert_weight(ConvertJob(model, home / "out", "auto" if settings else "q4f16_1"))
    return b"".join(p.read_bytes() for p in sorted((home / "out").glob("params_shard_*.bin")))


@pytest.mark.parametrize("transposed", [False, True])
def test_float(transposed: bool, tmp_path: Path) -> None:
    wanted = converted(tmp_path / "apart", apart())
    got = converted(tmp_path / "joined", joined(apart(), transposed=transposed))
    assert got == wanted


@pytest.mark.parametrize("transposed", [False, True])
def test_float8_blocks(transposed: bool, tmp_path: Path) -> None:
    wanted = converted(tmp_path / "apart", fp8(apart()), FP8)
    got = converted(tmp_path / "joined", joined(fp8(apart()), transposed=transposed), FP8)
    assert got == wanted


def test_gate_and_up_in_turn(tmp_path: Path) -> None:
    """gpt-oss: transposed, with gate and up of a channel side by side, biases too."""
    tensors = joined(apart(), transposed=True)
    both = tensors[f"{EXPERTS}.gate_up_proj"]
    turns = np.stack(np.split(both, 2, axis=2), axis=-1).reshape(both.shape)
    bias = np.arange(COUNT * 2 * INNER, dtype=np.float16).reshape(COUNT, -1)
    tensors |= {f"{EXPERTS}.gate_up_proj": turns, f"{EXPERTS}.gate_up_proj_bias": bias}
    view = open_checkpoint(write(tmp_path / "m", tensors, {**CONFIG, "model_type": "gpt_oss"}))
    for name, wanted in apart().items():
        assert np.array_equal(view.tensor(name), wanted)
    assert np.array_equal(view.tensor(f"{EXPERTS}.2.up_proj.bias"), bias[2, 1::2])


def test_granites_names(tmp_path: Path) -> None:
    tensors = joined(apart())
    home = "model.layers.0.block_sparse_moe"
    for ours, theirs in (("gate_up_proj", "input_linear"), ("down_proj", "output_linear")):
        tensors[f"{home}.{theirs}.weight"] = tensors.pop(f"{EXPERTS}.{ours}")
    view = open_checkpoint(write(tmp_path / "m", tensors, {**CONFIG, "model_type": "granitemoe"}))
    for name, wanted in apart().items():
        assert np.array_equal(view.tensor(name.replace(EXPERTS, f"{home}.experts")), wanted)


@pytest.mark.parametrize("name", ["gate_up_proj", "down_proj"])
def test_shapes_that_do_not_fit(name: str, tmp_path: Path) -> None:
    tensors = joined(apart())
    tensors[f"{EXPERTS}.{name}"] = tensors[f"{EXPERTS}.{name}"][:, :-2]
    with pytest.raises(SourceError, match="joined experts of these shapes"):
        open_checkpoint(write(tmp_path / "m", tensors, CONFIG))
    del tensors[f"{EXPERTS}.{name}"]
    with pytest.raises(SourceError, match="joined experts of these shapes"):
        open_checkpoint(write(tmp_path / "n", tensors, CONFIG))


def test_layers_that_guess_ahead_are_left_out(tmp_path: Path) -> None:
    tail = {n.replace("layers.0", "layers.1"): w for n, w in apart().items() if "layers.0" in n}
    extra = {**tail, "mtp.fc.weight": np.ones((4, 4), np.float16)}
    model = write(tmp_path / "m", {**apart(), **extra}, {**CONFIG, "num_nextn_predict_layers": 1})
    report = convert_weight(ConvertJob(model, tmp_path / "out", "q4f16_1"))
    said = f"left out are {len(extra)} tensors of the layers that predict several tokens ahead"
    assert any(said in finding for finding in report.findings)
    assert any(said in finding for finding in inspect_checkpoint(InspectJob(model)).findings)
    uncounted = {**CONFIG, "num_nextn_predict_layers": 0}
    (model / "config.json").write_text(json.dumps(uncounted))
    with pytest.raises(SourceError, match=r"no place for these tensors.*layers\.1"):
        convert_weight(ConvertJob(model, tmp_path / "other", "q4f16_1"))


def test_mxfp4_of_gpt_oss(tmp_path: Path) -> None:
    """Gate and up in turn, row by row, blocks and exponents; down as it is."""
    golden = Checkpoint.open(GOLDEN / "mxfp4" / "gpt-oss-experts")
    exact = Checkpoint.open(golden.path / "expected.safetensors")
    experts = [f"model.layers.0.mlp.experts.{e}" for e in range(2)]
    tensors = {
        f"{EXPERTS}.{layer}_{part}": np.stack(
            [golden.tensor(f"{x}.down_proj.weight_{part}") for x in experts]
        )
        for layer in ("gate_up_proj", "down_proj")
        for part in ("blocks", "scales")
    }
    config = {"model_type": "gpt_oss", "quantization_config": {"quant_method": "mxfp4"}}
    ckpt = open_checkpoint(write(tmp_path / "model", tensors, {**CONFIG, **config}))
    source = detect(ckpt)
    for x in experts:
        rows = exact.tensor(f"{x}.down_proj.weight")
        parts = {"down_proj": rows, "gate_proj": rows[::2], "up_proj": rows[1::2]}
        for part, wanted in parts.items():
            found = source.read(ckpt, f"{x}.{part}")
            assert np.array_equal(found.dequantize(), wanted)  # type: ignore[union-attr]
