"""NVIDIA ModelOpt's NVFP4, MXFP4 and mixed precision; also Quark's MXFP4, whose tensors are alike.

    W[n, k] = e2m1[code[n, k]] * weight_scale[n, k // 16] * weight_scale_2

==============  =============  =================================================================
tensor          dtype          shape
==============  =============  =================================================================
weight          uint8          [n, k/2]: 4-bit floats (``float4.py``); float8: a layer of ``FP8``
weight_scale    float8_e4m3fn  [n, k/16]; MXFP4: uint8 [n, k/32]; of FP8 layers one number
weight_scale_2  float32        one number (NVFP4)
input_scale     float32        one number: activations in 4-bit floats, or in float8
==============  =============  =================================================================

The tensors of a layer say what it is, so MIXED_PRECISION needs no list of layers; one that is float
is stored float. FP8 layers are read as hf-fp8 reads them. Settings lie in ``config.json`` or in
``hf_quant_config.json``.

Origin: ModelOpt 0.47 export/quant_utils.py; Quark 0.10's Hugging Face export.
"""

from __future__ import annotations

import numpy as np

from mlc_bridge.packing import Array
from mlc_bridge.qtensor import QTensor
from mlc_bridge.sources import float4
from mlc_bridge.sources.checkpoint import Checkpoint
from mlc_bridge.sources.hf_fp8 import HFFP8
from mlc_bridge.sources.source import Evidence, method_said

OUTER = "weight_scale_2"


class ModelOpt(HFFP8):
    name = "modelopt"

    def evidence(self, ckpt: Checkpoint) -> Evidence:
        supports: list[str] = []
        against: list[str] = []
        own = ckpt.settings.get("quant_method") == self.name
        (supports if own else against).append(method_said(ckpt))
        layers = [x for x in ckpt.layers("weight") if _is_float4(ckpt, x)]
        if layers:
            supports.append(f"{len(layers)} layers have a uint8 .weight with .weight_scale")
        else:
            against.append("no layer has a uint8 .weight with .weight_scale")
        return Evidence(tuple(supports), tuple(against))

    def layers(self, ckpt: Checkpoint) -> tuple[str, ...]:
        eight = set(super().layers(ckpt))
        return tuple(x for x in ckpt.layers("weight") if x in eight or _is_float4(ckpt, x))

    def parts(self, ckpt: Checkpoint, layer: str) -> tuple[str, ...]:
        more = (f"{layer}.{OUTER}",) if _is_float4(ckpt, layer) else ()
        return super().parts(ckpt, layer) + tuple(name for name in more if name in ckpt)

    def check(self, ckpt: Checkpoint, layer: str, shape: tuple[int, int]) -> None:
        if not _is_float4(ckpt, layer):
            return super().check(ckpt, layer, shape)
        float4.check(ckpt, f"{layer}.weight", f"{layer}.weight_scale", shape)
        if ckpt.dtype(f"{layer}.weight_scale") == float4.E4M3:
            ckpt.require(f"{layer}.{OUTER}", None, np.float32)
        return None

    def read(self, ckpt: Checkpoint, layer: str) -> QTensor | Array:
        if not _is_float4(ckpt, layer):
            return super().read(ckpt, layer)
        codes, scale, outer = (f"{layer}.{x}" for x in ("weight", "weight_scale", OUTER))
        self.check(ckpt, layer, float4.shape(ckpt, codes))
        twice = float4.one_number(ckpt, outer) if outer in ckpt else None
        return float4.e2m1(ckpt.tensor(codes), ckpt.tensor(scale), scale, twice)

    def findings(self, ckpt: Checkpoint) -> tuple[str, ...]:
        told = super().findings(ckpt)
        four = [x for x in ckpt.layers("input_scale") if _is_float4(ckpt, x)]
        if four:
            told += (
                f"{len(four)} layers ask for activations in 4-bit floats: theirs stay float; the "
                f"first is {four[0]}",
            )
        return told


def _is_float4(ckpt: Checkpoint, layer: str) -> bool:
    weight = f"{layer}.weight"
    packed = weight in ckpt and ckpt.dtype(weight) == np.uint8
    return packed and f"{layer}.weight_scale" in ckpt
