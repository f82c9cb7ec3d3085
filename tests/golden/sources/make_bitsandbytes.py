"""Make the ``bitsandbytes/*`` cases: transformers saves a tiny Llama quantized by bitsandbytes.

    python make_bitsandbytes.py [case ...]

Needs bitsandbytes 0.50 (its CPU library), transformers 5.17 and torch 2.13 for the CPU. The model
is ``make_llm_compressor.py``'s. ``expected.safetensors``: bitsandbytes' own ``dequantize_4bit`` in
float32, of int8 layers the code times SCB / 127.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from bitsandbytes.functional import dequantize_4bit
from make_llm_compressor import KEPT, model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

HOME = Path(__file__).parent / "bitsandbytes"
FOUR = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "bfloat16"}
CASES = {
    "nf4": FOUR,
    "nf4-double": {**FOUR, "bnb_4bit_use_double_quant": True},
    "int8": {"load_in_8bit": True},
}


def make(case: str) -> None:
    target = HOME / case
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    with TemporaryDirectory() as folder:
        model().save_pretrained(folder)
        settings = BitsAndBytesConfig(**CASES[case])
        made = AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=settings, device_map="cpu", dtype=torch.bfloat16
        )
    made.save_pretrained(target)
    (target / "generation_config.json").unlink(missing_ok=True)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    linears = {n: m for n, m in made.named_modules() if n.endswith(KEPT)}
    exact = {f"{n}.weight": dequantized(m).contiguous() for n, m in linears.items()}
    save_file(exact, target / "expected.safetensors")


def dequantized(layer: torch.nn.Module) -> torch.Tensor:
    weight = layer.weight
    if weight.dtype == torch.int8:
        return weight.float() * (weight.SCB.float() / 127)[:, None]
    state = weight.quant_state
    state.dtype = torch.float32
    return dequantize_4bit(weight.data, state)


if __name__ == "__main__":
    for wanted in sys.argv[1:] or CASES:
        make(wanted)
