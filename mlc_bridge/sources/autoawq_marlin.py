"""AutoAWQ ``version: marlin``: symmetric, 16 x 16 tiles permuted for the Marlin kernel.

=========  =======  ============  ============================================================
tensor     dtype    shape         layout
=========  =======  ============  ============================================================
qweight    int32    [k/16, 2 n]   see ``packing.from_marlin``; code 8 is zero
scales     float16  [k/g, n]      see ``packing.marlin_scales``
=========  =======  ============  ============================================================

Origin: awq/modules/linear/marlin.py, AutoAWQ 0.2.9.
"""

from __future__ import annotations

import numpy as np

from mlc_bridge.errors import SourceError
from mlc_bridge.packing import AWQ, from_marlin, marlin_scales
from mlc_bridge.qtensor import QTensor, constant_zero
from mlc_bridge.sources.awq import SCALES, AwqVersion
from mlc_bridge.sources.checkpoint import Checkpoint
from mlc_bridge.sources.source import sound_scale


class AutoAWQMarlin(AwqVersion):
    name = "autoawq-marlin"
    version = "marlin"
    suffixes = ("qweight", "scales")

    def layout(self, ckpt: Checkpoint, layer: str) -> tuple[int, int, int]:
        rows, words = self.words_shape(ckpt, layer)
        n, k = words // 2, rows * 16
        if words % 128:
            raise SourceError(
                "wrong shape", where=f"{layer}.qweight", found=(rows, words),
                expected="a multiple of 128 words a row",
            )  # fmt: skip
        self.agree_on_bits(ckpt, layer, 4)
        groups = ckpt.matrix(f"{layer}.scales", *SCALES)[0]
        ckpt.require(f"{layer}.scales", (groups, n))
        if f"{layer}.qzeros" in ckpt:
            raise SourceError("Marlin files are symmetric", where=f"{layer}.qzeros")
        return n, k, self.group(ckpt, layer, k, groups)

    def read_packed(self, ckpt: Checkpoint, layer: str, n: int, k: int, group: int) -> QTensor:
        qweight, scales = (ckpt.tensor(name) for name in self.parts(ckpt, layer))
        scale = marlin_scales(sound_scale(scales, f"{layer}.scales"), grouped=group < k)
        zero = constant_zero(8, (n, k // group), AWQ)
        return QTensor(from_marlin(qweight.view(np.uint32)), scale.T, zero, (1, group))
