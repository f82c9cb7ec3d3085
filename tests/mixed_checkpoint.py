"""A tiny llama in compressed-tensors' form whose layers are of several widths, made plainly.

Layer 0: q and o in 4 bits by groups of 32, k in float and v in 8 bits, so the fused layer stands
apart; gate and up in 4 bits, down in 8. Layer 1 all in 4 bits. The head has 8 bits.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from mlc_bridge.models import MODELS

Array = np.ndarray[Any, Any]
CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 4096,
    "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64, "rms_norm_eps": 1e-6,
    "max_position_embeddings": 256, "tie_word_embeddings": False, "rope_theta": 10000.0,
    "torch_dtype": "float16", "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
EIGHT = r"(.*layers\.0\.(self_attn\.v|mlp\.down)_proj|lm_head)$"
FLOAT = r".*layers\.0\.self_attn\.k_proj"
ARGS = {"symmetric": True, "type": "int", "dynamic": False}


def settings() -> dict[str, Any]:
    """Two groups of layers; a name's pattern goes before the class."""
    four = {"num_bits": 4, "strategy": "group", "group_size": 32, **ARGS}
    eight = {"num_bits": 8, "strategy": "channel", "group_size": None, **ARGS}
    return {
        "quant_method": "compressed-tensors", "format": "mixed-precision", "version": "0.20.0",
        "quantization_status": "compressed", "ignore": ["re:" + FLOAT],
        "config_groups": {
            "group_0": {"targets": ["Linear"], "weights": four, "format": "pack-quantized"},
            "group_1": {"targets": ["re:" + EIGHT], "weights": eight, "format": "int-quantized"},
        },
    }  # fmt: skip


def mixed(home: Path) -> tuple[Path, dict[str, Array]]:
    """The checkpoint, and its float32 weights by layer."""
    rng, tensors, exact = np.random.default_rng(7), {}, {}
    arch = MODELS["llama"]
    for weight in arch.weights(arch.config(CONFIG)):
        for layer, n in zip(weight.sources, weight.rows, strict=True):
            if weight.role in ("norm", "embedding") or re.match(FLOAT, layer):
                shape = (n, weight.k) if weight.k else (n,)
                tensors[f"{layer}.weight"] = rng.normal(0.1, 0.1, shape).astype(np.float16)
                exact[layer] = tensors[f"{layer}.weight"].astype(np.float32)
                continue
            bits = 8 if re.match(EIGHT, layer) else 4
            group, half = (weight.k, 128) if bits == 8 else (32, 8)
            q = np.clip(np.rint(rng.normal(0, half / 3, (n, weight.k))), 1 - half, half - 1)
            scale = rng.uniform(0.5, 1, (n, weight.k // group)).astype(np.float16)
            scale = (scale / np.float16(half)).astype(np.float16)
            exact[layer] = q.astype(np.float32) * np.repeat(scale.astype(np.float32), group, axis=1)
            tensors[f"{layer}.weight_scale"] = scale
            if bits == 8:
                tensors[f"{layer}.weight"] = q.astype(np.int8)
                continue
            nibbles = (q + 8).astype(np.uint32).reshape(n, -1, 8) << np.arange(0, 32, 4, dtype="u4")
            tensors[f"{layer}.weight_packed"] = nibbles.sum(axis=2, dtype=np.uint32).view(np.int32)
            tensors[f"{layer}.weight_shape"] = np.array([n, weight.k], np.int64)
    home.mkdir(parents=True)
    save_file(tensors, home / "model.safetensors")
    (home / "config.json").write_text(json.dumps({**CONFIG, "quantization_config": settings()}))
    return home, exact
