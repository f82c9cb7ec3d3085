"""AutoAWQ ``version: gemm``, also what LLMC's autoawq and mlcllm exports hold.

=========  =======  ===========  =============================================================
tensor     dtype    shape        layout
=========  =======  ===========  =============================================================
qweight    int32    [k, n/8]     eight output channels a word, order 0 2 4 6 1 3 5 7
qzeros     int32    [k/g, n/8]   the same
scales     float16  [k/g, n]
=========  =======  ===========  =============================================================

This is also MLC's ``q4f16_autoawq``, so the words pass through as they are.

Origin: awq/modules/linear/gemm.py and awq/utils/packing_utils.py, AutoAWQ 0.2.9.
"""

from __future__ import annotations

import numpy as np

from mlc_bridge.packing import AWQ, PackedArray
from mlc_bridge.qtensor import QTensor
from mlc_bridge.sources.awq import SCALES, AwqVersion
from mlc_bridge.sources.checkpoint import Checkpoint
from mlc_bridge.sources.source import sound_scale


class AutoAWQ(AwqVersion):
    name = "autoawq"
    version = "gemm"

    def layout(self, ckpt: Checkpoint, layer: str) -> tuple[int, int, int]:
        k, words = self.words_shape(ckpt, layer)
        n, group = words * AWQ.per_word, self.group(ckpt, layer, k)
        ckpt.require(f"{layer}.qzeros", AWQ.words_shape(n, k // group), np.int32)
        ckpt.require(f"{layer}.scales", (k // group, n), *SCALES)
        return n, k, group

    def read_packed(self, ckpt: Checkpoint, layer: str, n: int, k: int, group: int) -> QTensor:
        qweight, qzeros, scales = (ckpt.tensor(name) for name in self.parts(ckpt, layer))
        return QTensor(
            codes=PackedArray(qweight.view(np.uint32), AWQ, (n, k)),
            scale=sound_scale(scales, f"{layer}.scales").T,
            zero=PackedArray(qzeros.view(np.uint32), AWQ, (n, k // group)),
            block=(1, group),
        )
