"""gpt-oss as it is published: experts in MXFP4, joined, gate and up row by row in turn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from built import Checkpoints
from safetensors.torch import load_file, save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from mlc_bridge.artifact.tensor_cache import read_index
from mlc_bridge.schemes import SCHEMES
from mlc_bridge.stages.convert_weight import ConvertJob, convert_weight

JOINED = ("gate_up_proj", "down_proj")


def write_mxfp4(source: Path, target: Path) -> dict[str, torch.Tensor]:
    """Random blocks and scales for the experts; what transformers reads in them, ``[e, k, n]``."""
    tensors, exact = load_file(source / "model.safetensors"), {}
    draw = torch.Generator().manual_seed(0)
    for name in [n for n in tensors if n.endswith(JOINED)]:
        e, k, n = tensors.pop(name).shape
        shape = (e, n, k // 32, 16)
        blocks = torch.randint(0, 256, shape, generator=draw, dtype=torch.uint8)
        scales = torch.randint(120, 126, shape[:3], generator=draw, dtype=torch.uint8)
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        exact[name] = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    target.mkdir()
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4"}
    (target / "config.json").write_text(json.dumps(config))
    return exact


def test_mxfp4_lands_exactly(checkpoints: Checkpoints, tmp_path: Path) -> None:
    exact = write_mxfp4(checkpoints("gpt_oss"), tmp_path / "mxfp4")
    report = convert_weight(ConvertJob(tmp_path / "mxfp4", tmp_path / "out"))
    assert report.quantization.startswith("mxfp4")
    assert report.requantized == ()
    cache, scheme = read_index(tmp_path / "out"), SCHEMES[report.quantization]
    for name, wanted in exact.items():
        home, _, part = name.rpartition(".experts.")
        path = f"{home}.moe_{part}"
        stack = {s: cache.array(f"{path}.{s}") for s in ("q_weight", "q_scale")}
        for e, matrix in enumerate(wanted.numpy()):
            rows = (
                matrix.T
                if part == "down_proj"
                else np.concatenate([matrix.T[0::2], matrix.T[1::2]])
            )
            got = scheme.decode({s: array[e] for s, array in stack.items()}).dequantize()
            np.testing.assert_array_equal(got, rows)
    biases = load_file(tmp_path / "mxfp4" / "model.safetensors")
    told = biases["model.layers.0.mlp.experts.gate_up_proj_bias"].numpy()
    stored = cache.array("model.layers.0.mlp.moe_gate_up_proj.bias").astype(np.float32)
    np.testing.assert_allclose(stored, np.concatenate([told[:, 0::2], told[:, 1::2]], 1), atol=1e-3)
