"""AutoAWQ ``version: gemv_fast``: four rows interleaved for llm-awq's second kernel.

=========  =======  ===========  =============================================================
tensor     dtype    shape        layout
=========  =======  ===========  =============================================================
qweight    int16    [n/4, k]     see ``packing.from_gemv_fast``
qzeros     float16  [z, n]       -(scale * zero), rounded; rows from k/g on are padding (zeros)
scales     float16  [z, n]       z is k/g padded for the kernel
=========  =======  ===========  =============================================================

The zero is recovered as the whole number nearest to ``-qzeros / scales``.

Origin: awq/modules/linear/gemv_fast.py, AutoAWQ 0.2.9.
"""

from __future__ import annotations

import numpy as np

from mlc_bridge.errors import SourceError
from mlc_bridge.packing import from_gemv_fast
from mlc_bridge.qtensor import QTensor, zero_of_product
from mlc_bridge.sources.awq import SCALES, AwqVersion, filled_groups
from mlc_bridge.sources.checkpoint import Checkpoint
from mlc_bridge.sources.source import sound_scale


class AutoAWQGemvFast(AwqVersion):
    name = "autoawq-gemv-fast"
    version = "gemv_fast"
    words = np.int16

    def layout(self, ckpt: Checkpoint, layer: str) -> tuple[int, int, int]:
        rows, k = self.words_shape(ckpt, layer)
        n, scales = 4 * rows, f"{layer}.scales"
        self.agree_on_bits(ckpt, layer, 4)
        if k % 64:
            raise SourceError(
                "wrong shape", where=f"{layer}.qweight", found=(rows, k),
                expected="a multiple of 64 columns",
            )  # fmt: skip
        padded = ckpt.matrix(scales, *SCALES)[0]
        ckpt.require(scales, (padded, n))
        ckpt.require(f"{layer}.qzeros", (padded, n), *SCALES)
        groups = filled_groups(ckpt.tensor(scales), axis=0)
        return n, k, self.group(ckpt, layer, k, groups)

    def read_packed(self, ckpt: Checkpoint, layer: str, n: int, k: int, group: int) -> QTensor:
        qweight, qzeros, scales = (ckpt.tensor(name) for name in self.parts(ckpt, layer))
        scale = sound_scale(scales[: k // group], f"{layer}.scales").T
        try:
            zero = zero_of_product(qzeros[: k // group].T, scale, 4)
        except ValueError as error:
            raise SourceError(str(error), where=f"{layer}.qzeros") from None
        return QTensor(from_gemv_fast(qweight.view(np.uint16)), scale, zero, (1, group))
