"""Make the ``modelopt/*`` cases: NVIDIA ModelOpt quantizes a tiny Llama and exports it.

    python make_modelopt.py [case ...]

Needs nvidia-modelopt 0.47 and torch 2.13 for the CPU. The model is ``make_llm_compressor.py``'s.
``expected.safetensors`` has three layers of the exported file by ModelOpt's own ``NVFP4QTensor``
(float32), of FP8 layers the code times its scale.
"""

from __future__ import annotations

import copy
import json
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import modelopt.torch.quantization as mtq
import torch
from make_llm_compressor import KEPT, model
from modelopt.torch.export import export_hf_checkpoint
from modelopt.torch.quantization.qtensor import NVFP4QTensor
from safetensors.torch import load_file, save_file

HOME = Path(__file__).parent / "modelopt"
CASES = ("nvfp4", "w4a16-nvfp4", "mixed-fp8-nvfp4")


def config(case: str) -> dict[str, Any]:
    if case == "w4a16-nvfp4":
        return copy.deepcopy(mtq.W4A16_NVFP4_CFG)
    made = copy.deepcopy(mtq.NVFP4_DEFAULT_CFG)
    if case == "mixed-fp8-nvfp4":
        eight = {"num_bits": (4, 3), "axis": None}
        for quantizer in ("weight", "input"):
            made["quant_cfg"].append(
                {"quantizer_name": f"*self_attn*{quantizer}_quantizer", "cfg": eight}
            )
    return made


def make(case: str) -> None:
    float_model = model()
    float_model.config.architectures = ["LlamaForCausalLM"]  # which only saving would set
    ids = torch.randint(0, 256, (2, 32), generator=torch.Generator().manual_seed(1))
    made = mtq.quantize(float_model, config(case), lambda m: m(ids))
    target = HOME / case
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    with TemporaryDirectory() as folder:
        export_hf_checkpoint(made, export_dir=folder)
        for name in ("config.json", "hf_quant_config.json"):
            found = json.loads((Path(folder) / name).read_text())
            (target / name).write_text(json.dumps(found, indent=1) + "\n")
        tensors = load_file(Path(folder) / "model.safetensors")
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    layers = [n.removesuffix(".weight_scale") for n in tensors if n.endswith(".weight_scale")]
    exact = {f"{x}.weight": dequantized(tensors, x) for x in layers if x.endswith(KEPT)}
    save_file(exact, target / "expected.safetensors")


def dequantized(tensors: dict[str, torch.Tensor], layer: str) -> torch.Tensor:
    weight, scale = tensors[f"{layer}.weight"], tensors[f"{layer}.weight_scale"]
    if weight.dtype != torch.uint8:
        return weight.float() * scale.float()
    shape = torch.Size((weight.shape[0], 2 * weight.shape[1]))
    outer = tensors[f"{layer}.weight_scale_2"]
    packed = NVFP4QTensor(shape, torch.float32, weight)
    return packed.dequantize(scale=scale, double_scale=outer, block_sizes={-1: 16}).contiguous()


if __name__ == "__main__":
    for wanted in sys.argv[1:] or CASES:
        make(wanted)
