"""8-bit weights with zero points, float activations (W8A16): ``q8f16_1_gk`` and its group sizes.

    W[n, k] = (code[n, k] - zero[n, k // g]) * scale[n, k // g]              codes 0..255

============  ==============  =========  ========================================================
parameter     shape           dtype      layout
============  ==============  =========  ========================================================
``q_weight``  [n, k]          uint8      one code a byte
``q_zero``    [n, ceil(k/g)]  float16    an integer 0..256 (float16 holds them exactly)
``q_scale``   [n, ceil(k/g)]  float16
============  ==============  =========  ========================================================

Symmetric and asymmetric sources of up to 8 bits (GPTQ, compressed-tensors, msModelSlim W8A16)
land exactly; so do the weights of W8A8 models, whose activations then stay float. Rows: ``_gk``
(one group per channel), ``_g128``, ``_g32``; ours, not MLC's. (MLC's own kind of 8-bit layout,
symmetric and without zeros, is ``q8f16_1`` in ``group_quant.py``.) A float checkpoint gets scale
= max|w| / 127 and zero 127. Embedding, head and router stay float.
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
from mlc_bridge.schemes.group_rounding import round_groups
from mlc_bridge.schemes.matmul import Dequantize, dequantized_matmul, dequantized_rows
from mlc_bridge.schemes.regroup import narrow_scale, regroup
from mlc_bridge.schemes.scheme import Role, Spec

if TYPE_CHECKING:
    from tvm.relax.frontend import nn

_SUFFIXES = ("q_weight", "q_zero", "q_scale")
_KINDS = tuple(f"uint{bits}" for bits in range(8, 0, -1))


@dataclass(frozen=True)
class Int8:
    """One row of the family; ``group`` None means one group per channel."""

    name: str
    group: int | None
    model_dtype: str = "float16"

    def quantizes(self, role: Role) -> bool:
        return role == "linear"

    def params(self, n: int, k: int) -> dict[str, Spec]:
        grid = (n, -(-k // (self.group or k)))
        return {
            "q_weight": Spec((n, k), "uint8"),
            "q_zero": Spec(grid, self.model_dtype),
            "q_scale": Spec(grid, self.model_dtype),
        }

    def quantize(self, w: Array) -> QTensor:
        """Symmetric: scale = max|w| / 127 in float16, code = round(w / scale) + 127."""
        g = self.group or w.shape[1]
        codes, scale = round_groups(w, g, 8, self.model_dtype, wide=True)
        zero = PackedArray(np.full(scale.shape, 127, np.uint8), PLAIN, scale.shape)
        return QTensor(PackedArray(codes, PLAIN, codes.shape), scale, zero, (1, g))

    def align(self, parts: Sequence[QTensor], layer: str) -> tuple[list[QTensor], tuple[str, ...]]:
        """Layers to be fused; nothing moves, and what static activation scales say is left out."""
        return share_input_scale(parts), ()

    def encode(self, q: QTensor, layer: str = "weight") -> dict[str, Array]:
        """Exact, or CannotExpress; a static activation scale is left out, see the module."""
        g = self.group or q.shape[1]
        zero = np.zeros(q.grid, np.uint8) if q.zero is None else q.zero.unpack()
        reason = misfit(q, _KINDS, g, static=True)
        if int(zero.max(initial=0)) > 256:
            reason = f"a zero point is {int(zero.max())}, the scheme's reach 256"
        if reason:
            raise CannotExpress(layer, self.name, reason)
        scale = narrow_scale(q, self.model_dtype, layer, self.name)
        return {
            "q_weight": q.codes.unpack(),
            "q_zero": regroup(zero, q, g).astype(np.float16),
            "q_scale": regroup(scale, q, g),
        }

    def decode(self, p: Mapping[str, Array]) -> QTensor:
        """Zeros as uint16, since GPTQ's run to 256."""
        (n, k), groups = p["q_weight"].shape, p["q_scale"].shape[1]
        return QTensor(
            codes=PackedArray(p["q_weight"], PLAIN, (n, k)),
            scale=p["q_scale"],
            zero=PackedArray(p["q_zero"].astype(np.uint16), PLAIN, (n, groups)),
            block=(1, self.group or k),
        )

    def linear(self, x: nn.Tensor, p: Mapping[str, nn.Tensor], out_dtype: str) -> nn.Tensor:
        stored = [p[key] for key in _SUFFIXES]
        return dequantized_matmul(x, stored, self.dequantize(x.shape[-1]), out_dtype)

    def embedding(
        self, ids: nn.Tensor, p: Mapping[str, nn.Tensor], k: int, out_dtype: str
    ) -> nn.Tensor:
        return dequantized_rows(ids, [p[key] for key in _SUFFIXES], self.dequantize(k), out_dtype)

    def dequantize(self, k: int) -> Dequantize:
        g = self.group or k

        def dequantize(q_weight: Any, q_zero: Any, q_scale: Any) -> Any:
            from tvm import te

            return te.compute(
                (q_weight.shape[0], k),
                lambda i, j: (
                    (q_weight[i, j].astype(self.model_dtype) - q_zero[i, j // g])
                    * q_scale[i, j // g]
                ),
                name="dequantize",
            )

        return dequantize


# From coarse to fine: ``auto`` takes the first that fits.
ROWS = (Int8("q8f16_1_gk", None), Int8("q8f16_1_g128", 128), Int8("q8f16_1_g32", 32))
