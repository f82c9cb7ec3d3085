"""Any float Hugging Face checkpoint as AutoAWQ would save it: GEMM layout, plain rounding.

Written from AutoAWQ's format alone, so that it is a reference for what reads it. Layers whose names
end as ``LINEAR`` says are quantized, as AutoAWQ takes the linears of the blocks and leaves
embedding, head, routers, norms and what is too small.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file
from tool_layouts import WRITERS, settings

Array = np.ndarray[Any, Any]
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
LINEAR = (
    "_proj.weight", "w1.weight", "w2.weight", "w3.weight", "c_fc.weight", "_proj_with_mqa.weight",
    "in_proj_qkv.weight", "in_proj_z.weight", "in_proj_qkvz.weight",
    "shared_mlp.input_linear.weight", "shared_mlp.output_linear.weight",
)  # fmt: skip


def write_awq(source: Path, target: Path, group: int = 128) -> dict[str, Array]:
    """Write ``target`` from the float checkpoint ``source``; returns name -> dequantized weight."""
    target.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Array] = {}
    exact: dict[str, Array] = {}
    for name, array in load_file(source / "model.safetensors").items():
        array = np.asarray(array, np.float16)
        if name.endswith(LINEAR) and array.ndim == 2:
            layer = name.removesuffix(".weight")
            parts, exact[layer] = quantized(array, group)
            tensors |= {f"{layer}.{suffix}": part for suffix, part in parts.items()}
        else:
            tensors[name] = array
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "awq",
        "version": "gemm",
        "bits": 4,
        "group_size": group,
        "zero_point": True,
        "modules_to_not_convert": None,
    }
    (target / "config.json").write_text(json.dumps(config, indent=1))
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return exact


def quantized(w: Array, group: int) -> tuple[dict[str, Array], Array]:
    """qweight, qzeros, scales of ``w`` ``[n, k]``, and the weight they stand for in float32."""
    n, k = w.shape
    groups = w.astype(np.float32).reshape(n, k // group, group)
    low, high = groups.min(2), groups.max(2)
    scale = (np.maximum(high - low, 1e-5) / 15).astype(np.float16).astype(np.float32)
    zero = np.clip(-np.rint(low / scale), 0, 15)
    code = np.clip(np.rint(groups / scale[..., None]) + zero[..., None], 0, 15)
    exact = ((code - zero[..., None]) * scale[..., None]).reshape(n, k)
    parts = {
        "qweight": packed(code.reshape(n, k).T),
        "qzeros": packed(zero.T),
        "scales": np.ascontiguousarray(scale.T).astype(np.float16),
    }
    return parts, exact


def packed(codes: Array) -> Array:
    """``[rows, n]`` codes as int32 ``[rows, n/8]`` in AutoAWQ's order."""
    nibbles = codes.astype(np.uint32).reshape(len(codes), -1, 8)
    words = np.zeros(nibbles.shape[:2], np.uint32)
    for i, j in enumerate(ORDER):
        words |= nibbles[:, :, j] << np.uint32(4 * i)
    return words.view(np.int32)


def unpacked(words: Array) -> Array:
    """What ``packed`` packed."""
    each = [words.view(np.uint32) >> np.uint32(4 * i) & np.uint32(15) for i in np.argsort(ORDER)]
    return np.stack(each, axis=-1).reshape(len(words), -1)


def write_as(tool: str, source: Path, target: Path, group: int) -> Path:
    """The AutoAWQ checkpoint ``source`` in the layout of another tool (``tool_layouts``)."""
    tensors = load_file(source / "model.safetensors")
    for layer in [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]:
        codes, zeros = (unpacked(tensors.pop(f"{layer}.{x}")).T for x in ("qweight", "qzeros"))
        parts = WRITERS[tool](codes, zeros, tensors.pop(f"{layer}.scales").T)
        tensors |= {f"{layer}.{x}": np.ascontiguousarray(array) for x, array in parts.items()}
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = settings(tool, group)
    target.mkdir()
    (target / "config.json").write_text(json.dumps(config))
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return target
