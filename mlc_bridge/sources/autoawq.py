"""AutoAWQ ``version: gemm``, also what LLMC's autoawq and mlcllm exports hold.

=========  =======  ===========  =============================================================
tensor     dtype    shape        layout
=========  =======  ===========  =============================================================
qweight    int32    [k, n/8]     eight output channels a word, order 0 2 4 6 1 3 5 7; with 8 bits
                                 [k, n/4], order 0 2 1 3
qzeros     int32    [k/g, n/8]   the same
scales     float16  [k/g, n]
=========  =======  ===========  =============================================================

This is also MLC's ``q4f16_autoawq``, so the words pass through as they are. LLMC's packer does not
clamp: a code that left 0..15 spoils its neighbours, and ``findings`` says where that shows.

Origin: awq/modules/linear/gemm.py and awq/utils/packing_utils.py, AutoAWQ 0.2.9.
"""

from __future__ import annotations

import numpy as np

from mlc_bridge.errors import SourceError
from mlc_bridge.packing import AWQ, AWQ8, PackedArray, Packing, overrun
from mlc_bridge.qtensor import QTensor
from mlc_bridge.sources.awq import SCALES, AwqVersion
from mlc_bridge.sources.checkpoint import Checkpoint
from mlc_bridge.sources.source import sound_scale


class AutoAWQ(AwqVersion):
    name = "autoawq"
    version = "gemm"

    def layout(self, ckpt: Checkpoint, layer: str) -> tuple[int, int, int]:
        k, words = self.words_shape(ckpt, layer)
        groups, n = ckpt.matrix(f"{layer}.scales", *SCALES)
        packing = _packing(f"{layer}.qweight", words, n)
        self.agree_on_bits(ckpt, layer, packing.bits)
        ckpt.require(f"{layer}.qzeros", packing.words_shape(n, groups), np.int32)
        return n, k, self.group(ckpt, layer, k, groups)

    def read_packed(self, ckpt: Checkpoint, layer: str, n: int, k: int, group: int) -> QTensor:
        codes, zero = self._words(ckpt, layer, n)
        scales = f"{layer}.scales"
        return QTensor(codes, sound_scale(ckpt.tensor(scales), scales).T, zero, (1, group))

    def _words(self, ckpt: Checkpoint, layer: str, n: int) -> tuple[PackedArray, PackedArray]:
        """Codes and zeros: views of the file."""
        words = [ckpt.tensor(f"{layer}.{x}").view(np.uint32) for x in ("qweight", "qzeros")]
        packing = _packing(f"{layer}.qweight", words[0].shape[1], n)
        codes, zero = (PackedArray(w, packing, (n, len(w))) for w in words)
        return codes, zero

    def findings(self, ckpt: Checkpoint) -> tuple[str, ...]:
        """Traces of codes that ran over their neighbours; a few words more than chance explains."""
        counts = {layer: self._overrun(ckpt, layer) for layer in self.layers(ckpt)}
        found, chance = (sum(c[i] for c in counts.values()) for i in (0, 1))
        if found < 2 or found < 4 * chance:
            return super().findings(ckpt)
        worst = max(counts, key=lambda layer: counts[layer][0])
        return (
            *super().findings(ckpt),
            f"{found:.0f} words look as if a code of -1 had run over its neighbours ({chance:.1f} "
            f"would by chance), most of them in {worst}: LightCompress does not clamp its codes",
        )

    def _overrun(self, ckpt: Checkpoint, layer: str) -> tuple[float, float]:
        codes, zero = self._words(ckpt, layer, ckpt.shape(f"{layer}.scales")[1])
        return overrun(codes, zero) if codes.packing == AWQ else (0.0, 0.0)


def _packing(name: str, words: int, n: int) -> Packing:
    """How ``words`` a row hold ``n`` output channels."""
    for packing in (AWQ, AWQ8):
        if words * packing.per_word == n:
            return packing
    raise SourceError(
        "codes and scales are of different numbers of output channels", where=name,
        found=f"{words} words a row", expected=f"{n // 8} words of 4-bit codes or {n // 4} of 8",
    )  # fmt: skip
