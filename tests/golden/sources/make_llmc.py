"""Make the ``*/llmc-rtn-*`` cases: LightCompress quantizes and writes a tiny Llama for vLLM.

    python make_llmc.py LIGHTCOMPRESS [case ...]

LIGHTCOMPRESS: a checkout of 9701d03, in which every ``'cuda'`` reads ``'cpu'``, every ``.cuda()``
``.cpu()``, and the ``__init__.py`` of ``llmc``'s packages are empty (they import all models).
Needs torch 2.13 for the CPU, transformers 4.46.3, easydict, loguru, qtorch and ninja.

RTN, then ``deploy('vllm_quant')``, ``save_model`` and ``update_vllm_quant_config``, as its main
does. ``expected.safetensors`` is the model after ``deploy('fake_quant')``, which LightCompress
itself evaluates: float16 arithmetic. One thing is helped: three layers share a static input scale,
which safetensors refuses to save, so each gets its own copy.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from easydict import EasyDict
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HOME = Path(__file__).parent
INT8 = {"bit": 8, "symmetric": True, "granularity": "per_channel"}
INT4 = {**INT8, "bit": 4}
FP8 = {**INT8, "quant_type": "float-quant", "bit": "e4m3", "use_qtorch": True}
G32 = {"granularity": "per_group", "group_size": 32}
TENSOR = {"granularity": "per_tensor"}
TOKEN = {"granularity": "per_token"}
STATIC = {**TENSOR, "static": True, "calib_algo": "static_minmax"}
CASES: dict[str, dict[str, Any]] = {
    "compressed-tensors/llmc-rtn-w8a16": {"weight": INT8},
    "compressed-tensors/llmc-rtn-w8a16-packed": {"weight": {**INT8, "need_pack": True}},
    "compressed-tensors/llmc-rtn-w4a16-g32": {"weight": {**INT4, **G32, "need_pack": True}},
    "compressed-tensors/llmc-rtn-w4a8-g32": {"weight": {**INT4, **G32}, "act": {**INT8, **TOKEN}},
    "compressed-tensors/llmc-rtn-w8a8-tensor": {
        "weight": {**INT8, **TENSOR}, "act": {**INT8, **TOKEN},
    },
    "compressed-tensors/llmc-rtn-w8a8-static": {"weight": INT8, "act": {**INT8, **STATIC}},
    "compressed-tensors/llmc-rtn-fp8": {"weight": FP8},
    "hf-fp8/llmc-rtn-static": {"weight": {**FP8, **TENSOR}, "act": {**FP8, **STATIC}},
    "hf-fp8/llmc-rtn-dynamic": {
        "weight": {**FP8, "block_size": 128}, "act": {**FP8, **TOKEN},
    },
    "hf-fp8/llmc-rtn-block": {
        "weight": {**FP8, "granularity": "per_block", "block_size": 32}, "act": {**FP8, **G32},
    },
}  # fmt: skip
KEPT = ("q_proj.weight", "v_proj.weight", "down_proj.weight")


def source(home: Path) -> None:
    """A Llama of one layer of seeded random weights with a few large rows and columns."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, vocab_size=16, max_position_embeddings=64,
    )  # fmt: skip
    model = LlamaForCausalLM(config).half()
    for name, parameter in model.named_parameters():
        if name.endswith("proj.weight"):
            parameter.data[:, ::13] *= 4
            parameter.data[::11] *= 3
    model.save_pretrained(home)
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE())).save_pretrained(home)


def quantized(home: Path, settings: dict[str, Any]) -> tuple[Any, EasyDict]:
    """The model after RTN, and its config; random tokens where activations are calibrated."""
    from llmc.compression.quantization.rtn import RTN
    from llmc.models.llama import Llama

    config = EasyDict(
        base={"seed": 0},
        model={"type": "Llama", "path": str(home), "tokenizer_mode": "fast",
               "torch_dtype": "torch.float16"},
        calib={"name": "custom", "n_samples": 4, "bs": 1, "seq_len": 16, "seed": 0,
               "padding": False},
        quant={"method": "RTN", "modality": "language", **settings},
    )  # fmt: skip
    model = Llama(config)
    torch.manual_seed(1)
    model.collect_first_block_input(
        [{"input_ids": torch.randint(0, 16, (1, 16))} for _ in range(4)], None
    )
    method = RTN(model, config.quant, model.get_first_block_input(), None, config)
    method.run_block_loop()
    return method, config


def make(case: str, model_home: Path) -> None:
    from llmc.utils.export_vllm import update_vllm_quant_config

    out = HOME / case
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    fake, _ = quantized(model_home, CASES[case])
    fake.deploy("fake_quant")
    expected = fake.model.model.state_dict()
    method, config = quantized(model_home, CASES[case])
    method.deploy("vllm_quant")
    for module in method.model.model.modules():
        if getattr(module, "input_scale", None) is not None:
            module.input_scale = module.input_scale.clone()
    method.save_model(str(out))
    update_vllm_quant_config(method.model, config, str(out))
    for file in out.iterdir():
        if file.name not in ("config.json", "model.safetensors"):
            file.unlink()
    kept = {n: t.detach().contiguous() for n, t in expected.items() if n.endswith(KEPT)}
    save_file(kept, out / "expected.safetensors")


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    os.environ.update(RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="29511")
    torch.distributed.init_process_group("gloo")
    with TemporaryDirectory() as temporary:
        source(Path(temporary))
        for wanted in sys.argv[2:] or CASES:
            make(wanted, Path(temporary))
