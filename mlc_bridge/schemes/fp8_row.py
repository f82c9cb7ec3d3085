"""Float8 weights with one scale for each output row: ``fp8_e4m3fn_f16_row_scale`` and its kin.

    W[n, k] = float8 code[n, k] * q_scale[n]           y[n] = q_scale[n] * sum_k x[k] * code[n, k]

============  ======  ===========================================
parameter     shape   dtype
============  ======  ===========================================
``q_weight``  [n, k]  float8_e4m3fn, in e5m2 rows float8_e5m2
``q_scale``   [n]     float32
============  ======  ===========================================

What most float8 checkpoints are: compressed-tensors' FP8-dynamic, fbgemm_fp8, Quark, msModelSlim's
WFP8AFP8_DYNAMIC. One scale for a whole weight is the same in every row, so the layers of a fused
one (q/k/v, gate/up) keep their own. Scales of float16, bfloat16 and e8m0 are float32 exactly: no
weight moves. Activations stay in the model dtype, in place of the checkpoint's float8 ones, which
only a float8 matrix unit gains from; a static activation scale is left out.

MLC has no such row; the name is in the style of its ``fp8_e4m3fn_bf16_block_scale``. float16 comes
first, as its activations keep three bits more; bfloat16 is for models that leave float16's range.
Embedding and head stay float. The scale comes after the sum: codes are float16 and bfloat16 values
exactly, so matrix units multiply what the checkpoint says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mlc_bridge.errors import CannotExpress
from mlc_bridge.packing import PLAIN, Array, PackedArray
from mlc_bridge.qtensor import QTensor, share_input_scale
from mlc_bridge.schemes.fit import misfit
from mlc_bridge.schemes.float8 import E4M3, E5M2, Float8
from mlc_bridge.schemes.matmul import Dequantize, dequantized_matmul, dequantized_rows
from mlc_bridge.schemes.regroup import narrow_scale
from mlc_bridge.schemes.scheme import Role, Spec

if TYPE_CHECKING:
    from tvm.relax.frontend import nn


@dataclass(frozen=True)
class RowScale:
    """One row of the family; see the module docstring."""

    name: str
    float8: Float8
    model_dtype: str

    def quantizes(self, role: Role) -> bool:
        return role == "linear"

    def params(self, n: int, k: int) -> dict[str, Spec]:
        return {"q_weight": Spec((n, k), self.float8.name), "q_scale": Spec((n,), "float32")}

    def quantize(self, w: Array) -> QTensor:
        """Nearest codes of ``w`` ``[n, k]`` under the scale max|row| / largest float8."""
        w = w.astype(np.float32)
        largest = np.abs(w).max(axis=1, keepdims=True, initial=0)
        scale = np.maximum(largest / np.float32(self.float8.largest), np.float32(1e-12))
        words = self.float8.round(w / scale)
        return QTensor(PackedArray(words, PLAIN, words.shape), scale, None, (1, w.shape[1]))

    def align(self, parts: Sequence[QTensor], layer: str) -> tuple[list[QTensor], tuple[str, ...]]:
        """Layers to be fused; nothing moves, and what static activation scales say is left out."""
        return share_input_scale(parts), ()

    def encode(self, q: QTensor, layer: str = "weight") -> dict[str, Array]:
        """The codes as they are, and each row's scale; CannotExpress where a row has several."""
        reason = misfit(q, (self.float8.name,), zeros=False, static=True)
        if not reason and (q.scale != q.scale[:, :1]).any():
            reason = f"its scales change along a row (blocks of {q.block}), the scheme has one"
        if reason:
            raise CannotExpress(layer, self.name, reason)
        scale = narrow_scale(q, "float32", layer, self.name)[:, 0]
        rows = np.repeat(scale, min(q.block[0], q.shape[0]))[: q.shape[0]]
        return {"q_weight": q.codes.words, "q_scale": rows}

    def decode(self, p: Mapping[str, Array]) -> QTensor:
        codes = PackedArray(p["q_weight"], PLAIN, p["q_weight"].shape)
        return QTensor(codes, p["q_scale"][:, None], None, (1, codes.shape[1]))

    def linear(self, x: nn.Tensor, p: Mapping[str, nn.Tensor], out_dtype: str) -> nn.Tensor:
        y = dequantized_matmul(x, [p["q_weight"]], self._codes, "float32")
        return (y * p["q_scale"]).astype(out_dtype)  # elementwise, so it ends in the same kernel

    def embedding(
        self, ids: nn.Tensor, p: Mapping[str, nn.Tensor], k: int, out_dtype: str
    ) -> nn.Tensor:
        stored = [p["q_weight"], p["q_scale"]]
        return dequantized_rows(ids, stored, self.dequantize(k), out_dtype)

    def dequantize(self, k: int) -> Dequantize:
        """In float32, which holds code times scale but for its last bits; for experts."""

        def dequantize(weight: Any, scale: Any) -> Any:
            from tvm import te

            def value(i: Any, j: Any) -> Any:
                return self.float8.value(weight[i, j], "float32") * scale(i)

            return te.compute(weight.shape, value, name="dequantize")

        return dequantize

    def _codes(self, weight: Any) -> Any:
        from tvm import te

        def value(i: Any, j: Any) -> Any:
            return self.float8.value(weight[i, j], self.model_dtype)

        return te.compute(weight.shape, value, name="dequantize")


ROWS = (
    RowScale("fp8_e4m3fn_f16_row_scale", E4M3, "float16"),
    RowScale("fp8_e4m3fn_bf16_row_scale", E4M3, "bfloat16"),
    RowScale("fp8_e5m2_f16_row_scale", E5M2, "float16"),
    RowScale("fp8_e5m2_bf16_row_scale", E5M2, "bfloat16"),
)
