"""Make ``llmc.npz``: LightCompress quantizes the tiny Llama of tests/quantizers/tiny.py.

    python make_llmc.py LIGHTCOMPRESS MODEL_DIR

LIGHTCOMPRESS: a checkout of 9701d03, in which every ``'cuda'`` reads ``'cpu'``, every ``.cuda()``
``.cpu()``, and the ``__init__.py`` of ``llmc``'s packages are empty (they import all models).
``org_sd = {k: v.cpu() ...`` needs a ``.clone()`` there: on a GPU it is a copy, on a CPU the weights
themselves, which the search then scales over and over. MODEL_DIR: ``tiny.checkpoint(MODEL_DIR)``.
Needs torch 2.13 for the CPU, transformers 4.46.3, easydict, loguru, qtorch and ninja.

Everything runs in float32 on seeded random tokens. ``<case>/<tensor>`` is the weight after
``deploy('fake_quant')``: what the tool's codes, scales and zeros mean; norms show the scales that
were folded into them.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from easydict import EasyDict

HOME = Path(__file__).parent
G32 = {"bit": 4, "symmetric": False, "granularity": "per_group", "group_size": 32}
AWQ = {"trans": True, "weight_clip": True}
GPTQ = {"percdamp": 0.01, "blocksize": 128, "true_sequential": True}
W8 = {"bit": 8, "symmetric": True, "granularity": "per_channel"}
A8 = {"bit": 8, "symmetric": True, "granularity": "per_token"}
LWC = {
    "aug_loss": False, "lwc": True, "let": False, "lwc_lr": 0.01, "let_lr": 0.005,
    "use_shift": False, "alpha": 0.5, "deactive_amp": True, "epochs": 2, "wd": 0,
}  # fmt: skip
# Class, module, and the quant block of the YAML.
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "rtn": ("RTN", "rtn", {"weight": G32}),
    "rtn-sym": ("RTN", "rtn", {"weight": {**G32, "symmetric": True}}),
    "awq-v1": ("Awq", "awq", {"weight": G32, "special": {**AWQ, "trans_version": "v1"}}),
    "awq-v2": ("Awq", "awq", {"weight": G32, "special": {**AWQ, "trans_version": "v2"}}),
    "awq-v2-sym": (
        "Awq", "awq",
        {"weight": {**G32, "symmetric": True}, "special": {**AWQ, "trans_version": "v2"}},
    ),
    "gptq": (
        "GPTQ", "gptq",
        {"weight": G32, "special": {**GPTQ, "actorder": True, "static_groups": True}},
    ),
    "gptq-no-order": (
        "GPTQ", "gptq",
        {"weight": G32, "special": {
            **GPTQ, "actorder": False, "static_groups": False, "blocksize": 32}},
    ),
    "smoothquant": (
        "SmoothQuant", "smoothquant", {"weight": W8, "act": A8, "special": {"alpha": 0.7}},
    ),
    "osplus": ("OsPlus", "osplus", {"weight": W8, "act": A8}),
    "omniquant": ("OmniQuant", "omniq", {
        "weight": {**G32, "calib_algo": "learnable", "ste": True},
        "special": {**LWC, "search_clip_init": False}}),
}  # fmt: skip
KEPT = ("q_proj.weight", "v_proj.weight", "down_proj.weight")


def run(home: Path, module: str, name: str, settings: dict[str, Any]) -> dict[str, np.ndarray]:
    import importlib

    from llmc.models.llama import Llama

    method = getattr(importlib.import_module(f"llmc.compression.quantization.{module}"), name)
    config = EasyDict(
        base={"seed": 0},
        model={"type": "Llama", "path": str(home), "tokenizer_mode": "fast",
               "torch_dtype": "torch.float32"},
        calib={"name": "custom", "n_samples": 4, "bs": -1, "seq_len": 128, "seed": 0,
               "padding": False},
        quant={"method": name, "modality": "language", "quant_out": True, **settings},
        save={"save_trans": False},
    )  # fmt: skip
    torch.manual_seed(0)
    model = Llama(config)
    tokens = np.random.default_rng(1).integers(0, 4096, (4, 32))
    model.collect_first_block_input([{"input_ids": torch.from_numpy(tokens)}], None)
    found = method(model, config.quant, model.get_first_block_input(), None, config)
    found.run_block_loop()
    found.deploy("fake_quant")
    state = dict(model.model.named_parameters())
    state |= dict(model.model.named_buffers())
    kept = {}
    for key, value in state.items():
        if ("layers.1" in key and key.endswith(KEPT)) or "layernorm" in key:
            kept[key] = value.detach().float().numpy()
    return kept


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1",
                      MASTER_PORT="29517")  # fmt: skip
    torch.distributed.init_process_group("gloo")
    torch.cuda.synchronize = torch.cuda.empty_cache = lambda *a: None  # type: ignore[assignment]
    made = {}
    for case in sys.argv[3:] or CASES:
        name, module, settings = CASES[case]
        for key, value in run(Path(sys.argv[2]), module, name, settings).items():
            made[f"{case}/{key}"] = value
    np.savez_compressed(HOME / "llmc.npz", **made)
