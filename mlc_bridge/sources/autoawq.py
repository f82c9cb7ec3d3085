"""AutoAWQ ``version: gemm``, also what LLMC's autoawq and mlcllm exports hold.

    W[n, k] = (code[n, k] - zero[n, k // g]) * scale[n, k // g]        zero stored as it is

=========  =======  ===========  =============================================================
tensor     dtype    shape        layout
=========  =======  ===========  =============================================================
qweight    int32    [k, n/8]     eight output channels a word, order 0 2 4 6 1 3 5 7
qzeros     int32    [k/g, n/8]   the same
scales     float16  [k/g, n]
=========  =======  ===========  =============================================================

One group per channel appears as ``group_size: -1`` or as ``group_size`` equal to k, so both
are read as such. A layer that has ``.weight`` is float, wherever it occurs: LLMC's mixed precision
leaves ``modules_to_not_convert`` empty.

Origin: awq/modules/linear/gemm.py and awq/utils/packing_utils.py, AutoAWQ 0.2.9.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np

from mlc_bridge.errors import SourceError
from mlc_bridge.packing import AWQ, Array, PackedArray
from mlc_bridge.qtensor import QTensor
from mlc_bridge.sources.checkpoint import Checkpoint
from mlc_bridge.sources.source import Evidence, Source, check_float, read_float, sound_scale

PARTS = ("qweight", "qzeros", "scales")


class AutoAWQ(Source):
    name = "autoawq"

    def evidence(self, ckpt: Checkpoint) -> Evidence:
        settings = ckpt.quantization
        method, version = settings.get("quant_method"), str(settings.get("version", "gemm")).lower()
        supports, against = [], []
        if method == "awq" or (method is None and "w_bit" in settings):
            supports.append("the config says quant_method 'awq'")
        else:
            against.append(f"the config says quant_method {method!r}")
        if version != "gemm":
            against.append(f"the config says version {version!r}")
        layers = self.layers(ckpt)
        if layers:
            supports.append(f"{len(layers)} layers have int32 .qweight")
        else:
            against.append("no layer has an int32 .qweight")
        return Evidence(tuple(supports), tuple(against))

    def layers(self, ckpt: Checkpoint) -> tuple[str, ...]:
        return tuple(
            layer
            for layer in ckpt.layers("qweight")
            if ckpt.dtype(f"{layer}.qweight") == np.int32 and not self._is_float(ckpt, layer)
        )

    def parts(self, ckpt: Checkpoint, layer: str) -> tuple[str, ...]:
        if self._is_float(ckpt, layer):
            return (f"{layer}.weight",)
        return tuple(f"{layer}.{part}" for part in PARTS)

    def check(self, ckpt: Checkpoint, layer: str, shape: tuple[int, int]) -> None:
        if self._is_float(ckpt, layer):
            return check_float(ckpt, layer, shape)
        n, k = shape
        ckpt.require(f"{layer}.qweight", AWQ.words_shape(n, k), np.int32)
        self._group(ckpt, layer)
        return None

    def read(self, ckpt: Checkpoint, layer: str) -> QTensor | Array:
        if self._is_float(ckpt, layer):
            return read_float(ckpt, layer)
        group = self._group(ckpt, layer)
        qweight, qzeros, scales = (ckpt.tensor(f"{layer}.{part}") for part in PARTS)
        k, n = qweight.shape[0], scales.shape[1]
        return QTensor(
            codes=PackedArray(qweight.view(np.uint32), AWQ, (n, k)),
            scale=sound_scale(scales, f"{layer}.scales").T,
            zero=PackedArray(qzeros.view(np.uint32), AWQ, (n, k // group)),
            block=(1, group),
        )

    def _is_float(self, ckpt: Checkpoint, layer: str) -> bool:
        """Decided by what is on disk; the config's list (substrings) only where both are there."""
        weight, packed = f"{layer}.weight" in ckpt, f"{layer}.qweight" in ckpt
        if weight and packed:
            listed = ckpt.quantization.get("modules_to_not_convert") or ()
            return any(str(part) in layer for part in listed)
        return weight

    def _group(self, ckpt: Checkpoint, layer: str) -> int:
        """Columns of k per scale, after all parts were held against each other and the config."""
        settings, qweight = ckpt.quantization, f"{layer}.qweight"
        bits = settings.get("bits", settings.get("w_bit", 4))
        if bits != 4:
            raise SourceError(
                "AutoAWQ's GEMM layout holds 4-bit codes", where=qweight,
                found=f"bits {bits} in the config", expected="bits 4",
            )  # fmt: skip
        ckpt.require(qweight, None, np.int32)
        if len(ckpt.shape(qweight)) != 2:
            raise SourceError("not a matrix", where=qweight, found=ckpt.shape(qweight))
        k, n = ckpt.shape(qweight)[0], ckpt.shape(qweight)[1] * AWQ.per_word
        asked = settings.get("group_size", settings.get("q_group_size", -1))
        group = k if asked in (-1, None) else asked
        if not isinstance(group, int) or group <= 0 or k % group:
            raise SourceError(
                "the group size does not divide the layer's input width", where=qweight,
                found=f"group_size {asked} and {k} input channels",
            )  # fmt: skip
        ckpt.require(f"{layer}.qzeros", AWQ.words_shape(n, k // group), np.int32)
        ckpt.require(f"{layer}.scales", (k // group, n), np.float16, ml_dtypes.bfloat16, np.float32)
        return group
