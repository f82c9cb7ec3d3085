"""AutoAWQ ``version: gemv``: rows of natural order, groups padded for its kernel.

=========  =======  ===========  =============================================================
tensor     dtype    shape        layout
=========  =======  ===========  =============================================================
qweight    int32    [n, k/8]     eight input channels a word, natural order
qzeros     int32    [n, z]       eight groups a word, natural order; z words hold at least k/g
scales     float16  [n, 8 z]     columns from k/g on are padding: zeros, which tell the group
=========  =======  ===========  =============================================================

Origin: awq/modules/linear/gemv.py, AutoAWQ 0.2.9.
"""

from __future__ import annotations

import numpy as np

from mlc_bridge.errors import SourceError
from mlc_bridge.packing import NK4, PackedArray
from mlc_bridge.qtensor import QTensor
from mlc_bridge.sources.awq import SCALES, AwqVersion, filled_groups
from mlc_bridge.sources.checkpoint import Checkpoint
from mlc_bridge.sources.source import sound_scale


class AutoAWQGemv(AwqVersion):
    name = "autoawq-gemv"
    version = "gemv"

    def layout(self, ckpt: Checkpoint, layer: str) -> tuple[int, int, int]:
        n, words = self.words_shape(ckpt, layer)
        k, scales = words * NK4.per_word, f"{layer}.scales"
        self.agree_on_bits(ckpt, layer, NK4.bits)
        padded = ckpt.matrix(scales, *SCALES)[1]
        if padded % NK4.per_word:
            raise SourceError(
                "wrong shape", where=scales, found=ckpt.shape(scales),
                expected=f"[{n}, a multiple of 8]",
            )  # fmt: skip
        ckpt.require(scales, (n, padded))
        ckpt.require(f"{layer}.qzeros", (n, padded // NK4.per_word), np.int32)
        groups = filled_groups(ckpt.tensor(scales), axis=1)
        return n, k, self.group(ckpt, layer, k, groups)

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
