"""MXFP4 as gpt-oss holds its experts: E2M1 in blocks of 32 columns with an exponent each.

    W[n, k] = e2m1[code[n, k]] * 2^(weight_scales[n, k // 32] - 127)

===============  ===================  ==========================================================
tensor           shape                layout
===============  ===================  ==========================================================
weight_blocks    uint8 [n, k/32, 16]  two columns to a byte, the even one in the low nibble
weight_scales    uint8 [n, k/32]      e8m0
bias             [n]
===============  ===================  ==========================================================

In the file all experts of a layer are one tensor (``gate_up_proj_blocks`` ``[e, n, k/32, 16]``),
cut apart before (``stages/joined_experts.py``). All other layers are float.

Origin: transformers 5.17 integrations/mxfp4.py.
"""

from __future__ import annotations

import numpy as np

from mlc_bridge.errors import SourceError
from mlc_bridge.packing import Array
from mlc_bridge.qtensor import QTensor
from mlc_bridge.sources import float4
from mlc_bridge.sources.checkpoint import Checkpoint
from mlc_bridge.sources.source import Evidence, Source, check_float, method_said, read_float


class MXFP4(Source):
    name = "mxfp4"

    def evidence(self, ckpt: Checkpoint) -> Evidence:
        supports: list[str] = []
        against: list[str] = []
        own = ckpt.settings.get("quant_method") == self.name
        (supports if own else against).append(method_said(ckpt))
        if layers := self.layers(ckpt):
            supports.append(f"{len(layers)} layers have .weight_blocks")
        else:
            against.append("no layer has .weight_blocks")
        return Evidence(tuple(supports), tuple(against))

    def layers(self, ckpt: Checkpoint) -> tuple[str, ...]:
        return ckpt.layers("weight_blocks")

    def parts(self, ckpt: Checkpoint, layer: str) -> tuple[str, ...]:
        if f"{layer}.weight_blocks" not in ckpt:
            return (f"{layer}.weight",)
        return f"{layer}.weight_blocks", f"{layer}.weight_scales"

    def check(self, ckpt: Checkpoint, layer: str, shape: tuple[int, int]) -> None:
        if f"{layer}.weight_blocks" not in ckpt:
            return check_float(ckpt, layer, shape)
        n, k = shape
        if k % 32:
            raise SourceError("no whole blocks of 32 columns", where=layer, found=f"k {k}")
        blocks, scales = self.parts(ckpt, layer)
        ckpt.require(blocks, (n, k // 32, 16), np.uint8)
        ckpt.require(scales, (n, k // 32), np.uint8)
        return None

    def read(self, ckpt: Checkpoint, layer: str) -> QTensor | Array:
        if f"{layer}.weight_blocks" not in ckpt:
            return read_float(ckpt, layer)
        blocks, scales = self.parts(ckpt, layer)
        n, groups = ckpt.matrix(scales, np.uint8)
        self.check(ckpt, layer, (n, groups * 32))
        codes = ckpt.tensor(blocks).reshape(n, groups * 16)
        return float4.e2m1(codes, ckpt.tensor(scales), scales)
