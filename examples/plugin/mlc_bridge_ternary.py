"""``q2f16_ternary``: W[n, k] = (code[n, k] - 1) * scale[n, k // 64], codes 0, 1, 2.

=============  =================  ========  =====================================================
parameter      shape              dtype     layout
=============  =================  ========  =====================================================
``q_weight``   [n, k/16]          uint32    sixteen codes a word, natural order along k
``q_scale``    [n, k/64]          float16
=============  =================  ========  =====================================================

Scale is the mean of |w| over the group, as in "absmean" ternary networks; what rounds to more than
one step is clipped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from mlc_bridge.errors import CannotExpress
from mlc_bridge.packing import PLAIN, Array, PackedArray, Packing, pack, repack
from mlc_bridge.qtensor import QTensor, constant_zero
from mlc_bridge.schemes.matmul import Dequantize, dequantized_matmul, dequantized_rows
from mlc_bridge.schemes.scheme import Role, Spec

if TYPE_CHECKING:
    from tvm.relax.frontend import nn

GROUP = 64
PACKING = Packing(bits=2, axis="k")


class Ternary:
    name = "q2f16_ternary"
    model_dtype = "float16"

    def quantizes(self, role: Role) -> bool:
        return role == "linear"

    def params(self, n: int, k: int) -> dict[str, Spec]:
        if k % GROUP:
            raise CannotExpress(f"a weight [{n}, {k}]", self.name, f"k must divide by {GROUP}")
        return {
            "q_weight": Spec((n, k // PACKING.per_word), "uint32"),
            "q_scale": Spec((n, k // GROUP), "float16"),
        }

    def quantize(self, w: Array) -> QTensor:
        n, k = w.shape
        groups = np.asarray(w, np.float32).reshape(n, k // GROUP, GROUP)
        scale = np.abs(groups).mean(axis=2).astype(np.float16)
        step = np.maximum(scale.astype(np.float32), np.float32(1e-7))[..., None]
        codes = np.clip(np.rint(groups / step), -1, 1) + 1
        words = pack(codes.reshape(n, k).astype(np.uint8), PACKING)
        return QTensor(words, scale, constant_zero(1, scale.shape, PLAIN), (1, GROUP))

    def encode(self, q: QTensor, layer: str = "weight") -> dict[str, Array]:
        one = q.zero is not None and (q.zero.unpack() == 1).all()
        if q.bits != 2 or not one or q.block != (1, GROUP) or q.perm is not None:
            raise CannotExpress(layer, self.name, "only ternary weights in groups of 64 fit")
        return {"q_weight": repack(q.codes, PACKING).words, "q_scale": q.scale.astype(np.float16)}

    def decode(self, p: Mapping[str, Array]) -> QTensor:
        n, groups = p["q_scale"].shape
        return QTensor(
            codes=PackedArray(p["q_weight"], PACKING, (n, groups * GROUP)),
            scale=p["q_scale"],
            zero=constant_zero(1, (n, groups), PLAIN),
            block=(1, GROUP),
        )

    def linear(self, x: nn.Tensor, p: Mapping[str, nn.Tensor], out_dtype: str) -> nn.Tensor:
        return dequantized_matmul(x, list(p.values()), self.dequantize(x.shape[-1]), out_dtype)

    def embedding(
        self, ids: nn.Tensor, p: Mapping[str, nn.Tensor], k: int, out_dtype: str
    ) -> nn.Tensor:
        return dequantized_rows(ids, list(p.values()), self.dequantize(k), out_dtype)

    def dequantize(self, k: int) -> Dequantize:
        from tvm import te, tirx

        def dequantize(q_weight: Any, q_scale: Any) -> Any:
            def code(i: Any, j: Any) -> Any:
                word = tirx.shift_right(q_weight[i, j // 16], (j % 16 * 2).astype("uint32"))
                return tirx.bitwise_and(word, tirx.const(3, "uint32")).astype("float16")

            one = tirx.const(1, "float16")
            return te.compute(
                (q_weight.shape[0], k),
                lambda i, j: (code(i, j) - one) * q_scale[i, j // GROUP],
                name="dequantize",
            )

        return dequantize


TERNARY = Ternary()
