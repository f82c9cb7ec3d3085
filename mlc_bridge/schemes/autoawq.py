"""AutoAWQ's GEMM layout under MLC's name ``q4f16_autoawq``, and its other group sizes.

    W[n, k] = (code[n, k] - zero[n, k // g]) * scale[n, k // g]          codes and zeros 0..15

==========  =============  =========  ======================================================
parameter   shape          dtype      layout
==========  =============  =========  ======================================================
``qweight``  [k, n/8]      uint32     nibble i of word c is row 8c + (0 2 4 6 1 3 5 7)[i] of W
``qzeros``   [k/g, n/8]    uint32     the same order, zeros as they are
``scales``   [k/g, n]      float16
==========  =============  =========  ======================================================

Rows: ``q4f16_autoawq`` (g = 128, MLC's own), ``_g64``, ``_g32``, and ``_gk`` (one group per
channel, g = k). A source with this packing passes its words through untouched. A coarser group
(128, or one per channel) is the same tensor in a finer scheme: scales and zeros are repeated.
Symmetric sources have their constant zero. Scales of a wider type (bfloat16, float32) round to
float16, at most 2^-11 of their value; outside float16's normal range that bound fails and the
tensor cannot be expressed. Embedding, head and router stay float, as in MLC.

Device expression: the stage ``dequantize`` of ``matmul.py``, in one compute, float16::

    s(i) = 4 * (i % 8 % 2 * 4 + i % 8 / 2)
    code(word, i) = float16(word >> s(i) & 15)
    dequantize[i, j] = (code(qweight[j, i/8], i) - code(qzeros[j/g, i/8], i)) * scales[j/g, i]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mlc_bridge.errors import CannotExpress
from mlc_bridge.packing import AWQ, Array, PackedArray, pack, repack
from mlc_bridge.qtensor import QTensor, constant_zero
from mlc_bridge.schemes.fit import misfit
from mlc_bridge.schemes.group_rounding import round_asymmetric
from mlc_bridge.schemes.matmul import Dequantize, dequantized_matmul, dequantized_rows
from mlc_bridge.schemes.regroup import narrow_scale, regroup
from mlc_bridge.schemes.scheme import Role, Spec

if TYPE_CHECKING:
    from tvm.relax.frontend import nn

_SUFFIXES = ("qweight", "qzeros", "scales")


@dataclass(frozen=True)
class AutoAWQ:
    """One row of the family; ``group`` None means one group per channel."""

    name: str
    group: int | None
    model_dtype: str = "float16"

    def quantizes(self, role: Role) -> bool:
        return role == "linear"

    def params(self, n: int, k: int) -> dict[str, Spec]:
        g = self.group or k
        if n % 8 or k % g:
            raise CannotExpress(
                f"a weight [{n}, {k}]", self.name, f"needs n % 8 == 0 and k % {g} == 0"
            )
        return {
            "qweight": Spec((k, n // 8), "uint32"),
            "qzeros": Spec((k // g, n // 8), "uint32"),
            "scales": Spec((k // g, n), "float16"),
        }

    def quantize(self, w: Array) -> QTensor:
        """AutoAWQ's asymmetric min/max rounding of ``w`` ``[n, k]``; see ``group_rounding.py``."""
        n, k = w.shape
        self.params(n, k)
        g = self.group or k
        codes, scale, zero = round_asymmetric(w, g)
        scale = np.ascontiguousarray(scale.T).T
        return QTensor(pack(codes, AWQ), scale, pack(zero, AWQ), (1, g))

    def encode(self, q: QTensor, layer: str = "weight") -> dict[str, Array]:
        """Exact, or CannotExpress; words of this packing are passed through as they are."""
        self._check(q, layer)
        g = self.group or q.shape[1]
        scale = narrow_scale(q, "float16", layer, self.name)
        return {
            "qweight": repack(q.codes, AWQ).words,
            "qzeros": self._zeros(q, g, layer),
            "scales": regroup(scale, q, g).T,
        }

    def decode(self, p: Mapping[str, Array]) -> QTensor:
        (k, words), groups = p["qweight"].shape, p["scales"].shape[0]
        n = words * AWQ.per_word
        return QTensor(
            codes=PackedArray(p["qweight"], AWQ, (n, k)),
            scale=p["scales"].T,
            zero=PackedArray(p["qzeros"], AWQ, (n, groups)),
            block=(1, k // groups),
        )

    def linear(self, x: nn.Tensor, p: Mapping[str, nn.Tensor], out_dtype: str) -> nn.Tensor:
        stored = [p[key] for key in _SUFFIXES]
        return dequantized_matmul(x, stored, self.dequantize(x.shape[-1]), out_dtype)

    def embedding(
        self, ids: nn.Tensor, p: Mapping[str, nn.Tensor], k: int, out_dtype: str
    ) -> nn.Tensor:
        return dequantized_rows(ids, [p[key] for key in _SUFFIXES], self.dequantize(k), out_dtype)

    def dequantize(self, k: int) -> Dequantize:
        return _dequantize

    def _check(self, q: QTensor, layer: str) -> None:
        (n, k), g = q.shape, self.group or q.shape[1]
        reason = misfit(q, ("uint4",), g)
        if n % 8 or k % g:
            reason = f"shape [{n}, {k}] needs n % 8 == 0 and k % {g} == 0"
        if reason:
            raise CannotExpress(layer, self.name, reason)

    def _zeros(self, q: QTensor, group: int, layer: str) -> Array:
        zero = constant_zero(0, q.grid, AWQ) if q.zero is None else q.zero
        if zero.packing == AWQ and q.block == (1, group):
            return zero.words
        codes = regroup(zero.unpack(), q, group)
        if int(codes.max(initial=0)) > 15:
            raise CannotExpress(layer, self.name, "a zero point lies outside 0..15")
        return pack(codes, AWQ).words


def _dequantize(qweight: Any, qzeros: Any, scales: Any) -> Any:
    from tvm import te, tirx

    k, n = qweight.shape[0], scales.shape[1]
    g = k // scales.shape[0]

    def code(words: Any, row: Any, i: Any) -> Any:
        shift = (i % 8 % 2 * 4 + i % 8 // 2) * 4
        word = tirx.shift_right(words[row, i // 8], shift.astype("uint32"))
        return tirx.bitwise_and(word, tirx.const(15, "uint32")).astype(scales.dtype)

    return te.compute(
        (n, k),
        lambda i, j: (code(qweight, j, i) - code(qzeros, j // g, i)) * scales[j // g, i],
        name="dequantize",
    )


ROWS = (
    AutoAWQ("q4f16_autoawq", 128),
    AutoAWQ("q4f16_autoawq_g64", 64),
    AutoAWQ("q4f16_autoawq_g32", 32),
    AutoAWQ("q4f16_autoawq_gk", None),
)
