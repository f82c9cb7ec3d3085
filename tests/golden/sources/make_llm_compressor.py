"""Make the ``compressed-tensors/llmc-oneshot-*`` cases: llm-compressor quantizes a tiny Llama.

    python make_llm_compressor.py [case ...]

Needs llm-compressor 0.14.0.1 (compressed-tensors 0.19.0) and torch 2.13 for the CPU. One layer of
seeded random weights with a few large rows and columns; ``oneshot`` with a preset for each group of
layers, on two short rows of random tokens where activations need them. ``expected.safetensors`` has
three layers as compressed-tensors' own ``unpack`` and ``dequantize`` give them in float32.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from compressed_tensors.compressors.mx_utils import decompress_mx_scale
from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import dequantize
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import QuantizationModifier
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HOME = Path(__file__).parent / "compressed-tensors"
MLP, ATTENTION = ["re:.*mlp.*"], ["re:.*self_attn.*"]
CASES: dict[str, dict[str, list[str]]] = {
    "nvfp4a16": {"NVFP4A16": ["Linear"]},
    "nvfp4": {"NVFP4": ["Linear"]},
    "mxfp4a16": {"MXFP4A16": ["Linear"]},
    "mixed-nvfp4-fp8": {"NVFP4A16": MLP, "FP8_DYNAMIC": ATTENTION},
    "mixed-w4-w8": {"W4A16": MLP, "W8A16": ATTENTION},
}
KEPT = ("q_proj", "v_proj", "down_proj")


def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256, hidden_size=128, intermediate_size=256, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, head_dim=64, max_position_embeddings=128,
        tie_word_embeddings=False, dtype="bfloat16",
    )  # fmt: skip
    made = LlamaForCausalLM(config).to(torch.bfloat16)
    for name, parameter in made.named_parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.1)
            parameter.data[:: parameter.shape[0] // 3] *= 4
            parameter.data[:, :: parameter.shape[1] // 5] *= 3
        else:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
        assert name
    return made


def rows() -> Dataset:
    ids = torch.randint(0, 256, (2, 32), generator=torch.Generator().manual_seed(1)).tolist()
    return Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * 32] * 2})


def make(name: str, groups: dict[str, list[str]]) -> None:
    with TemporaryDirectory() as folder:
        recipe = QuantizationModifier(scheme=groups, ignore=["lm_head"])
        start = Path(folder) / "float"
        model().save_pretrained(start)
        PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE())).save_pretrained(start)
        oneshot(model=str(start), recipe=recipe, dataset=rows(), output_dir=folder,
                num_calibration_samples=2, max_seq_length=32)  # fmt: skip
        made, target = Path(folder), HOME / f"oneshot-{name}"
        target.mkdir(exist_ok=True)
        tensors = load_file(made / "model.safetensors")
        config = json.loads((made / "config.json").read_text())
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    (target / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    layers = [n.rpartition(".")[0] for n in tensors if n.endswith("weight_scale")]
    save_file(
        {f"{x}.weight": exact(tensors, x, config) for x in layers if x.endswith(KEPT)},
        target / "expected.safetensors",
    )


def exact(tensors: dict[str, torch.Tensor], layer: str, config: dict[str, Any]) -> torch.Tensor:
    """The layer's weight in float32."""
    part = {n.rpartition(".")[2]: t for n, t in tensors.items() if n.startswith(f"{layer}.")}
    scale = part["weight_scale"]
    if "weight_packed" not in part:
        return part["weight"].float() * scale.float()
    if part["weight_packed"].dtype == torch.int32:
        return integers(part)
    n, half = part["weight_packed"].shape
    values = unpack_fp4_from_uint8(part["weight_packed"], n, half * 2, dtype=torch.float32)
    groups = config["quantization_config"]["config_groups"].values()
    args = next(g["weights"] for g in groups if g["weights"]["num_bits"] == 4)
    scale = decompress_mx_scale(scale) if scale.dtype == torch.uint8 else scale
    outer = part.get("weight_global_scale")
    return dequantize(
        x_q=values, scale=scale.float(), args=QuantizationArgs(**args), global_scale=outer,
        dtype=torch.float32,
    )  # fmt: skip


def integers(part: dict[str, torch.Tensor]) -> torch.Tensor:
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

    shape, scale = part["weight_shape"], part["weight_scale"].float()
    bits = 32 * part["weight_packed"].shape[1] // int(shape[1])
    codes = unpack_from_int32(part["weight_packed"], bits, torch.Size(shape.tolist())).float()
    return codes * scale.repeat_interleave(int(shape[1]) // scale.shape[1], dim=1)


if __name__ == "__main__":
    for case in sys.argv[1:] or CASES:
        make(case, CASES[case])
