"""AutoAWQ ``version: gemv``: rows of natural order, groups padded for its kernel.

=========  =======  ===========  =============================================================
tensor     dtype    shape        layout
=========  =======  ===========  =============================================================
qweight    int32    [n, k/8]     eight input channels a word, natural order
qzeros     int32    [n, z]       eight groups a word, natural order; z words hold at least k/g
scales     float16  [n, 8 z]     columns from k/g on are padding
=========  =======  ===========  =============================================================

Origin: awq/modules/linear/gemv.py, AutoAWQ 0.2.9.
"""

from __future__ import annotations

import numpy as np

from mlc_bridge.errors import SourceError
from mlc_bridge.packing import NK4, PackedArray
from mlc_bridge.qtensor import QTensor
from mlc_bridge.sources.awq import SCALES, AwqVersion
from mlc_bridge.sources.checkpoint import Checkpoint
from mlc_bridge.sources.source import sound_scale


class AutoAWQGemv(AwqVersion):
    name = "autoawq-gemv"
    version = "gemv"

    def layout(self, ckpt: Checkpoint, layer: str) -> tuple[int, int, int]:
        n, words = self.words_shape(ckpt, layer)
        k = words * NK4.per_word
        group, scales = self.group(ckpt, layer, k), f"{layer}.scales"
        ckpt.require(scales, None, *SCALES)
        padded = ckpt.shape(scales)[-1] if len(ckpt.shape(scales)) == 2 else 0
        if padded < k // group or padded % NK4.per_word:
            raise SourceError(
                "wrong shape", where=scales, found=ckpt.shape(scales),
                expected=f"[{n}, a multiple of 8 from {k // group} on]",
            )  # fmt: skip
        ckpt.require(scales, (n, padded))
        ckpt.require(f"{layer}.qzeros", (n, padded // NK4.per_word), np.int32)
        return n, k, group

    def read_packed(self, ckpt: Checkpoint, layer: str, n: int, k: int, group: int) -> QTensor:
        qweight, qzeros, scales = (ckpt.tensor(name) for name in self.parts(ckpt, layer))
        groups = k // group
        words = qzeros[:, : NK4.words_shape(n, groups)[1]]
        return QTensor(
            codes=PackedArray(qweight.view(np.uint32), NK4, (n, k)),
            scale=sound_scale(scales[:, :groups], f"{layer}.scales"),
            zero=PackedArray(words.view(np.uint32), NK4, (n, groups)),
            block=(1, group),
        )
