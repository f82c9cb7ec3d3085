"""Make the ``msmodelslim/real-*`` cases: the tool itself quantizes and writes a tiny Llama.

    python make_msmodelslim.py [case ...]

Needs msmodelslim 26.1.0 (``--no-deps``, with easydict 1.13, einops, pydantic, wcmatch, bracex,
pygtrie, scipy), torch 2.13 for the CPU and transformers 5.17. The model has one layer of seeded
random weights with a few large columns and rows, and reads seeded random tokens.

``expected.safetensors`` is taken inside the tool, before anything is packed or written: the
integers that its quantizer hands to its writer (``codes``), and the weight that scales and offsets
beside them give, (codes - offset) * scale by each level in turn. Float layers are the model's own.
To keep the files small, layers that are as q_proj are left out where all have one type, and the
codes of the wider model.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msmodelslim.pytorch.llm_ptq.llm_ptq_tools.save.complex_quantifier as writer
import numpy as np
import torch
from msmodelslim import logger
from msmodelslim.core.quant_service.modelslim_v1.save.ascendv1 import AscendV1Config, AscendV1Saver
from msmodelslim.core.quantizer.base import QConfig
from msmodelslim.core.quantizer.linear import LinearQConfig, LinearQuantizer
from msmodelslim.ir.api import dequantize
from msmodelslim.ir.qal import QStorage
from msmodelslim.model import IModel
from msmodelslim.pytorch.llm_ptq.anti_outlier import AntiOutlier, AntiOutlierConfig
from msmodelslim.pytorch.llm_ptq.llm_ptq_tools import Calibrator, QuantConfig
from msmodelslim.pytorch.llm_ptq.llm_ptq_tools.fa_quant import FAQuantizer
from safetensors.numpy import save_file
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama import modeling_llama

HOME = Path(__file__).parent / "msmodelslim"
STATIC = {"w_bit": 8, "a_bit": 8, "mm_tensor": False}
W8A16 = {"w_bit": 8, "a_bit": 16, "mm_tensor": False}
W4A16 = {"w_bit": 4, "a_bit": 16, "w_sym": False, "mm_tensor": False}
W4A8 = {"w_bit": 4, "a_bit": 8, "mm_tensor": False, "is_dynamic": True}
GROUPS = {"is_lowbit": True, "open_outlier": False, "group_size": 32}
SPARSE = {"w_bit": 4, "a_bit": 8, "mm_tensor": False, "fraction": 0.05}
# quant: arguments of QuantConfig, calls: its methods after that; anti: AntiOutlier's method;
# level: disable_level; mix: types by name pattern; data: whether the tool sees tokens; wide: the
# model has rows of two groups.
CASES: dict[str, dict[str, Any]] = {
    "w8a8": {"quant": STATIC},
    "w8a8-histogram": {"quant": {**STATIC, "act_method": 2}},
    "w8a8-bf16": {"quant": STATIC, "dtype": "bfloat16"},
    "w8a8-tensor": {"quant": {**STATIC, "mm_tensor": True}},
    "w8a8-m1": {"quant": STATIC, "anti": "m1"},
    "w8a8-m1-safe-tensor": {"quant": STATIC, "anti": "m1", "save": "safe_tensor"},
    "w8a8-fallback-gate": {"quant": STATIC, "level": "L3"},
    "w8a8-fallback-q-k": {"quant": STATIC, "level": "L6"},
    "w8a8-head": {"quant": {**STATIC, "disable_last_linear": False}},
    "w8a8-kv8": {"quant": {**STATIC, "use_kvcache_quant": True}},
    "w8a8-fa": {"quant": STATIC, "calls": [("fa_quant", {"fa_amp": 0})]},
    "w8a8-mix": {"quant": {**STATIC, "pdmix": True}},
    "w8a8-tp2": {"quant": STATIC, "wide": True, "calls": [("simulate_tp", {"tp_size": 2})]},
    "w8a8-tp2-fallback": {
        "quant": STATIC, "calls": [("simulate_tp", {"tp_size": 2})], "level": "L2",
    },
    "mixed-types": {"quant": STATIC, "mix": {"*q_proj": "w8a16", "*mlp*": "w8a8_dynamic"}},
    "w8a8-dynamic": {"quant": {**STATIC, "is_dynamic": True}, "data": False},
    "w8a16": {"quant": W8A16, "data": False},
    "w8a16-asym-gptq": {"quant": {**W8A16, "w_sym": False, "w_method": "GPTQ"}},
    "w4a16": {"quant": W4A16, "data": False},
    "w4a16-g32": {"quant": {**W4A16, **GROUPS}, "wide": True},
    "w4a16-g32-safe-tensor": {"quant": {**W4A16, **GROUPS}, "save": "safe_tensor"},
    "w4a8-dynamic": {"quant": {**W4A8, **GROUPS}, "wide": True},
    "w4a8-dynamic-safe-tensor": {"quant": {**W4A8, **GROUPS}, "save": "safe_tensor"},
    "w8a8s-co-sparse": {"quant": {**SPARSE, "co_sparse": True}},
    "w8a8s-lowbit": {"quant": {**SPARSE, "is_lowbit": True}},
    "v1-wfp8afp8-dynamic": {"float8": True},
    "nf4": {
        "quant": {"w_bit": 4, "a_bit": 16}, "data": False, "wide": True,
        "calls": [("weight_quant", {"w_method": "NF", "block_size": 64})],
    },
}  # fmt: skip
SAMPLES = 4
AS_Q = tuple(
    f"model.layers.0.{x}_proj." for x in ("self_attn.k", "self_attn.o", "mlp.gate", "mlp.up")
)


def tiny(hidden: int, dtype: str) -> LlamaForCausalLM:
    """A Llama of one layer; in float32, as the tool loads models for a CPU."""
    torch.manual_seed(hidden)
    config = LlamaConfig(
        hidden_size=hidden, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=hidden // 2, vocab_size=16, max_position_embeddings=64,
        dtype=dtype, attn_implementation="eager", architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    model = LlamaForCausalLM(config).float().eval()
    for name, parameter in model.named_parameters():
        if name.endswith("proj.weight"):
            parameter.data[:, ::13] *= 4
            parameter.data[::11] *= 3
    return model


def observe_attention(model: LlamaForCausalLM) -> None:
    """Eager attention with the three calls that the tool's guide adds to a modelling file."""

    def observed(module: Any, q: Any, k: Any, v: Any, *rest: Any, **kw: Any) -> Any:
        for states, name in ((q, "q"), (k, "k"), (v, "v")):
            module.fa_quantizer.quant(states, qkv=name)
        return modeling_llama.eager_attention_forward(module, q, k, v, *rest, **kw)

    ALL_ATTENTION_FUNCTIONS["observed"] = observed
    model.config._attn_implementation = "observed"
    model.model.layers[0].self_attn.fa_quantizer = FAQuantizer(model.config, logger=logger)


@contextmanager
def noted(modules: dict[int, str]) -> Iterator[dict[str, np.ndarray]]:
    """What the tool's quantizer hands to its writer before packing, by the layer's name."""
    original = writer.ComplexQuantifier.get_param_from_quantizer
    expected: dict[str, np.ndarray] = {}

    def noting(self: Any, module: Any) -> Any:
        got = original(self, module)
        codes, _, scales, offsets = got
        if codes is not None:
            name, codes = modules[id(module)], codes.detach().numpy()
            expected[f"{name}.codes"] = codes.astype(np.int8)
            expected[f"{name}.weight"] = product(codes, scales, offsets)
        return got

    writer.ComplexQuantifier.get_param_from_quantizer = noting
    try:
        yield expected
    finally:
        writer.ComplexQuantifier.get_param_from_quantizer = original


def product(codes: np.ndarray, scales: Any, offsets: Any) -> np.ndarray:
    """(codes - offset) * scale, the innermost level first."""
    levels = zip(scales, offsets, strict=True) if isinstance(scales, list) else ((scales, offsets),)
    weight = codes.astype(np.float32)
    for scale, offset in reversed(list(levels)):
        scale = scale.detach().numpy().astype(np.float32).reshape(-1, 1)
        zero = np.zeros_like(scale) if offset is None else offset.numpy().reshape(-1, 1)
        rows = weight.reshape(scale.shape[0], -1)
        weight = ((rows - zero.astype(np.float32)) * scale).reshape(codes.shape)
    return weight


def make(case: str) -> None:
    options = CASES[case]
    home = HOME / f"real-{case}"
    shutil.rmtree(home, ignore_errors=True)
    model = tiny(64 if options.get("wide") else 32, options.get("dtype", "float16"))
    expected = make_float8(home, model) if options.get("float8") else make_int(home, model, options)
    finish(home, model, expected, () if options.get("level") or options.get("mix") else AS_Q)


def make_int(home: Path, model: LlamaForCausalLM, options: dict[str, Any]) -> dict[str, np.ndarray]:
    """Version 0: AntiOutlier, then Calibrator, as the tool's scripts for Llama do."""
    torch.manual_seed(7)
    tokens = [torch.randint(0, 16, (1, 24)) for _ in range(SAMPLES)]
    data = [[t, torch.ones_like(t)] for t in tokens]
    if options.get("anti"):
        anti = AntiOutlierConfig(anti_method=options["anti"])
        AntiOutlier(model, calib_data=data, cfg=anti).process()
    config = QuantConfig(dev_type="cpu", disable_names=[], **options["quant"])
    for call, arguments in options.get("calls", ()):
        config = getattr(config, call)(**arguments)
        if call == "fa_quant":
            observe_attention(model)
    calibrator = Calibrator(
        model, config, calib_data=data if options.get("data", True) else None,
        disable_level=options.get("level", "L0"), mix_cfg=options.get("mix"),
    )  # fmt: skip
    calibrator.run()
    with noted({id(m): n for n, m in calibrator.model.named_modules()}) as expected:
        calibrator.save(str(home), save_type=[options.get("save", "ascendV1")])
    return joined(expected)


class Adapter(IModel):
    """What version 1 asks of a model: the directory whose config it copies."""

    model_path = model_type = trust_remote_code = None


def make_float8(home: Path, model: LlamaForCausalLM) -> dict[str, np.ndarray]:
    """Version 1: each linear layer through LinearQuantizer, the model through AscendV1Saver."""
    expected = {}
    kind = {"dtype": "fp8_e4m3", "symmetric": True, "method": "minmax"}
    config = LinearQConfig(
        act=QConfig(scope="per_token", **kind), weight=QConfig(scope="per_channel", **kind)
    )
    for name, linear in list(model.named_modules()):
        if not name.endswith("_proj"):
            continue
        quantizer = LinearQuantizer(config)
        quantizer.setup(linear)
        quantizer(torch.randn(4, linear.in_features))
        stored = quantizer.weight_quantizer.get_q_storage()
        rounded = stored.value.to(torch.float8_e4m3fn).float()  # the saver rounds, no one before
        weight = dequantize(
            QStorage(stored.dtype, rounded).T, quantizer.weight_quantizer.get_q_param()
        ).T.value
        expected[f"{name}.weight"] = weight.detach().float().numpy()
        model.set_submodule(name, quantizer.deploy())
    with TemporaryDirectory() as source:
        adapter = Adapter()
        adapter.model_path = source
        home.mkdir()
        AscendV1Saver(
            model, AscendV1Config(save_directory=str(home), part_file_size=0), adapter
        ).post_run()
    return expected


def joined(expected: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Slices of simulated tensor parallelism side by side."""
    out: dict[str, np.ndarray] = {}
    for name, array in expected.items():
        layer, _, part = name.partition(".tp_list.")
        whole = f"{layer}.{part.rpartition('.')[2]}" if part else name
        out[whole] = np.hstack([out[whole], array]) if whole in out else array
    return out


def finish(
    home: Path,
    model: LlamaForCausalLM,
    expected: dict[str, np.ndarray],
    left_out: tuple[str, ...],
) -> None:
    """The model's config, the float layers among the expected ones, and writable files."""
    for name, parameter in model.named_parameters():
        if name.endswith("_proj.weight") and name not in expected and parameter.ndim == 2:
            expected[name] = parameter.detach().float().numpy()
    kept = {n: np.ascontiguousarray(a) for n, a in expected.items() if not n.startswith(left_out)}
    if model.config.hidden_size > 32:
        kept = {n: a for n, a in kept.items() if not n.endswith(".codes")}
    if not home.name.endswith("nf4"):
        save_file(kept, home / "expected.safetensors")
    config = json.loads(model.config.to_json_string())
    (home / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    for file in home.iterdir():
        file.chmod(0o644)


if __name__ == "__main__":
    for wanted in sys.argv[1:] or CASES:
        make(wanted)
