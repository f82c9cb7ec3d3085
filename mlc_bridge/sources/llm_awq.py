"""llm-awq (``--dump_quant``): a torch state dict without any config; group and version by shapes.

=======  ============  ==================  ============================  =====================
version  qweight       zeros               scales                        as in
=======  ============  ==================  ============================  =====================
2        int16         ``scaled_zeros``    float16 or bfloat16 [z, n],   AutoAWQ GEMV_FAST
         [n/4, k]      [z, n], -(s * z)    z is k/g padded
1        int32         ``qzeros`` int32    float16 [n, 8 z]              AutoAWQ GEMV
         [n, k/8]      [n, z]
1, old   int32         ``qzeros`` int32    float16 [k/g, n]              AutoAWQ GEMM
         [k, n/8]      [k/g, n/8]
=======  ============  ==================  ============================  =====================

The kernels pad the groups to 8, 16 or 32 times ``ceil(k / 1024)`` for groups of 128, 64 and 32
columns, so the padded number tells the group.

Origin: awq/quantize/qmodule.py of llm-awq (d6e797a) and its history.
"""

from __future__ import annotations

from typing import Literal

import ml_dtypes
import numpy as np

from mlc_bridge.errors import SourceError
from mlc_bridge.packing import AWQ, NK4, Array, PackedArray, from_gemv_fast
from mlc_bridge.qtensor import QTensor, zero_of_product
from mlc_bridge.sources.checkpoint import Checkpoint
from mlc_bridge.sources.source import Evidence, Source, check_float, read_float, sound_scale

SCALES = (np.float16, ml_dtypes.bfloat16, np.float32)
Version = Literal["2", "1", "1, old"]


class LlmAwq(Source):
    name = "llm-awq"

    def evidence(self, ckpt: Checkpoint) -> Evidence:
        supports, against = [], []
        if ckpt.settings:
            against.append(f"the config says {ckpt.settings.get('quant_method')!r}")
        layers = ckpt.layers("qweight")
        scaled = ckpt.layers("scaled_zeros")
        if scaled:
            supports.append(f"{len(scaled)} layers have .scaled_zeros")
        elif layers:
            supports.append(f"{len(layers)} layers have .qweight and the config says nothing of it")
        else:
            against.append("no layer has .qweight")
        return Evidence(tuple(supports), tuple(against))

    def layers(self, ckpt: Checkpoint) -> tuple[str, ...]:
        return ckpt.layers("qweight")

    def parts(self, ckpt: Checkpoint, layer: str) -> tuple[str, ...]:
        if f"{layer}.qweight" not in ckpt:
            return (f"{layer}.weight",)
        zeros = "scaled_zeros" if f"{layer}.scaled_zeros" in ckpt else "qzeros"
        return tuple(f"{layer}.{part}" for part in ("qweight", zeros, "scales"))

    def check(self, ckpt: Checkpoint, layer: str, shape: tuple[int, int]) -> None:
        if f"{layer}.qweight" not in ckpt:
            return check_float(ckpt, layer, shape)
        _, n, k, _ = self._layout(ckpt, layer)
        if (n, k) != shape:
            raise SourceError(
                "wrong shape", where=f"{layer}.qweight", found=f"a weight {[n, k]}",
                expected=f"a weight {list(shape)}",
            )  # fmt: skip
        return None

    def read(self, ckpt: Checkpoint, layer: str) -> QTensor | Array:
        if f"{layer}.qweight" not in ckpt:
            return read_float(ckpt, layer)
        version, n, k, group = self._layout(ckpt, layer)
        names, groups = self.parts(ckpt, layer), k // group
        qweight, zeros, scales = (ckpt.tensor(name) for name in names)
        if version == "2":
            scale = sound_scale(scales[:groups], names[2]).T
            try:
                zero = zero_of_product(zeros[:groups].T, scale, 4)
            except ValueError as error:
                raise SourceError(str(error), where=names[1]) from None
            return QTensor(from_gemv_fast(qweight.view(np.uint16)), scale, zero, (1, group))
        packing = NK4 if version == "1" else AWQ
        words = zeros[:, : -(-groups // 8)] if version == "1" else zeros
        scale = scales[:, :groups] if version == "1" else scales.T
        return QTensor(
            codes=PackedArray(qweight.view(np.uint32), packing, (n, k)),
            scale=sound_scale(scale, names[2]),
            zero=PackedArray(words.view(np.uint32), packing, (n, groups)),
            block=(1, group),
        )

    def _layout(self, ckpt: Checkpoint, layer: str) -> tuple[Version, int, int, int]:
        """Version, n, k and group, after the parts were held against each other."""
        qweight, zeros, scales = self.parts(ckpt, layer)
        ckpt.require(qweight, None, np.int16, np.int32)
        ckpt.require(scales, None, *SCALES)
        rows, cols = ckpt.matrix(qweight)
        tall, wide = ckpt.matrix(scales)
        if ckpt.dtype(qweight) == np.int16:
            n, k, group = 4 * rows, cols, _group(scales, cols, tall)
            if k % 64:
                raise SourceError("wrong shape", where=qweight, found=(rows, cols))
            ckpt.require(scales, (tall, n))
            ckpt.require(zeros, (tall, n), *SCALES)
            return "2", n, k, group
        if tall == rows and 8 * ckpt.matrix(zeros)[1] == wide:
            ckpt.require(zeros, (rows, wide // 8), np.int32)
            return "1", rows, cols * 8, _group(scales, cols * 8, wide)
        n, k = cols * 8, rows
        ckpt.require(scales, (tall, n))
        ckpt.require(zeros, (tall, cols), np.int32)
        if k % tall:
            raise SourceError("groups do not divide the input width", where=scales, found=tall)
        return "1, old", n, k, k // tall


def _group(name: str, k: int, padded: int) -> int:
    """Columns per group, from the padded number of groups."""
    for group, per_1024 in ((128, 8), (64, 16), (32, 32)):
        if padded == per_1024 * -(-k // 1024) and k % group == 0:
            return group
    raise SourceError(
        "the number of groups is none that llm-awq writes", where=name, found=padded,
        expected=f"8, 16 or 32 times {-(-k // 1024)} for {k} input channels",
    )  # fmt: skip
