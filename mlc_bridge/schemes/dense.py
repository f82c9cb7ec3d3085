"""Unquantized weights under MLC's names: ``q0f16``, ``q0bf16``, ``q0f32``.

One parameter, ``weight`` ``[n, k]`` in the model dtype; on the device ``y = x @
permute_dims(weight)``. A quantized source lands here only where every product ``(code - zero) *
scale`` fits the dtype exactly: always in float32 (codes of up to 8 bits times float16 or
bfloat16 scales), rarely in float16.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from mlc_bridge.errors import CannotExpress
from mlc_bridge.packing import Array
from mlc_bridge.qtensor import QTensor
from mlc_bridge.schemes.matmul import Dequantize, dequantized_rows, nt_matmul
from mlc_bridge.schemes.model_dtype import NUMPY_DTYPES
from mlc_bridge.schemes.scheme import Role, Spec

if TYPE_CHECKING:
    from tvm.relax.frontend import nn

ModelDtype = Literal["float16", "bfloat16", "float32"]


@dataclass(frozen=True)
class Dense:
    """Weights stored as they are, in ``model_dtype``."""

    name: str
    model_dtype: ModelDtype

    def quantizes(self, role: Role) -> bool:
        return False

    def params(self, n: int, k: int) -> dict[str, Spec]:
        return {"weight": Spec((n, k), self.model_dtype)}

    def quantize(self, w: Array) -> QTensor:
        raise TypeError(f"{self.name} does not quantize")

    def encode(self, q: QTensor, layer: str = "weight") -> dict[str, Array]:
        """The dequantized weight where the dtype holds it exactly, else ``CannotExpress``."""
        exact = q.dequantize()
        with np.errstate(over="ignore"):
            weight = exact.astype(NUMPY_DTYPES[self.model_dtype])
        if not np.array_equal(weight.astype(np.float32), exact):
            reason = f"dequantized weights do not all fit {self.model_dtype}"
            raise CannotExpress(layer, self.name, reason)
        return {"weight": weight}

    def decode(self, p: Mapping[str, Array]) -> QTensor:
        raise TypeError(f"{self.name} stores floats; read p['weight']")

    def linear(self, x: nn.Tensor, p: Mapping[str, nn.Tensor], out_dtype: str) -> nn.Tensor:
        return nt_matmul(x, p["weight"], out_dtype)

    def embedding(
        self, ids: nn.Tensor, p: Mapping[str, nn.Tensor], k: int, out_dtype: str
    ) -> nn.Tensor:
        return dequantized_rows(ids, [p["weight"]], self.dequantize(k), out_dtype)

    def dequantize(self, k: int) -> Dequantize:
        return lambda weight: weight


Q0F16 = Dense("q0f16", "float16")
Q0BF16 = Dense("q0bf16", "bfloat16")
Q0F32 = Dense("q0f32", "float32")
BY_DTYPE: dict[str, Dense] = {row.model_dtype: row for row in (Q0F16, Q0BF16, Q0F32)}
