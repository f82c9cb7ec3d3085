"""Make the ``mxfp4`` case: experts as gpt-oss holds them, by transformers' own dequantization.

    python make_mxfp4.py

Needs transformers 5.17 and torch. Seeded random codes and exponents of two experts, as tensors of
their own (``experts.<e>.down_proj.weight_blocks``); ``expected.safetensors`` is what
``convert_moe_packed_tensors`` makes of them, in bfloat16, which holds every value.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

HOME = Path(__file__).parent / "mxfp4" / "gpt-oss-experts"
COUNT, ROWS, GROUPS = 2, 48, 2

if __name__ == "__main__":
    draw = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 256, (COUNT, ROWS, GROUPS, 16), generator=draw, dtype=torch.uint8)
    scales = torch.randint(112, 130, (COUNT, ROWS, GROUPS), generator=draw, dtype=torch.uint8)
    exact = convert_moe_packed_tensors(blocks, scales).transpose(1, 2).float()  # [e, n, k]
    tensors, expected = {}, {}
    for e in range(COUNT):
        layer = f"model.layers.0.mlp.experts.{e}.down_proj"
        tensors[f"{layer}.weight_blocks"] = blocks[e].clone()
        tensors[f"{layer}.weight_scales"] = scales[e].clone()
        expected[f"{layer}.weight"] = exact[e].contiguous()
    HOME.mkdir(parents=True, exist_ok=True)
    save_file(tensors, HOME / "model.safetensors")
    save_file(expected, HOME / "expected.safetensors")
    config = {"model_type": "gpt_oss", "quantization_config": {"quant_method": "mxfp4"}}
    (HOME / "config.json").write_text(json.dumps(config, indent=1) + "\n")
