"""Make ``msmodelslim.npz``: msModelSlim's scaling methods m1 to m6 before W8A8 of its tiny Llama.

    python make_msmodelslim.py [method ...]

The model, the tokens and what must be installed: ``../sources/make_msmodelslim.py``, whose other
cases the quantizers are held against as they are. ``<method>/<tensor>`` is every tensor of the file
that the tool wrote, in ascendV1.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file

HOME = Path(__file__).parent
sys.path.insert(0, str(HOME.parent / "sources"))
from make_msmodelslim import SAMPLES, STATIC, tiny  # noqa: E402
from msmodelslim.pytorch.llm_ptq.anti_outlier import AntiOutlier, AntiOutlierConfig  # noqa: E402
from msmodelslim.pytorch.llm_ptq.llm_ptq_tools import Calibrator, QuantConfig  # noqa: E402

# What quant_llama.py gives AntiOutlierConfig beside the method.
MORE: dict[str, dict[str, Any]] = {
    "m3": {"w_bit": 8, "a_bit": 8, "w_sym": True},
    "m6": {"flex_config": {}, "disable_anti_names": ["model.layers.0.self_attn.o_proj"]},
}


def make(method: str) -> dict[str, np.ndarray]:
    model = tiny(32, "float16")
    torch.manual_seed(7)
    tokens = [torch.randint(0, 16, (1, 24)) for _ in range(SAMPLES)]
    data = [[t, torch.ones_like(t)] for t in tokens]
    anti = AntiOutlierConfig(anti_method=method, **MORE.get(method, {}))
    AntiOutlier(model, calib_data=data, cfg=anti).process()
    config = QuantConfig(dev_type="cpu", disable_names=[], **STATIC)
    calibrator = Calibrator(model, config, calib_data=data, disable_level="L0")
    calibrator.run()
    with TemporaryDirectory() as home:
        calibrator.save(home, save_type=["ascendV1"])
        found = load_file(next(Path(home).glob("*.safetensors")))
    return {f"{method}/{name}": array for name, array in found.items()
            if "embed" not in name and "lm_head" not in name}  # fmt: skip


if __name__ == "__main__":
    made: dict[str, np.ndarray] = {}
    for wanted in sys.argv[1:] or [f"m{i}" for i in range(1, 7)]:
        try:
            made |= make(wanted)
        except Exception as error:
            print(wanted, "failed:", error)
    np.savez_compressed(HOME / "msmodelslim.npz", **made)
