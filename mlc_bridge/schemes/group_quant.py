"""MLC's symmetric group quantization: ``q3f16_*``, ``q4f16_*``, ``q4bf16_*``, ``q4f32_1``, 8 bit.

    W[n, k] = (code[n, k] - m) * scale[n, k // g]                 m = 2^(bits-1) - 1

============  ===================  ===================  ============================
parameter     ``_1``, ``_2`` (NK)  ``_0`` (KN)          layout
============  ===================  ===================  ============================
``q_weight``  [n, words]           [words, n]           uint32, natural order along k,
                                                        unused bits zero
``q_scale``   [n, ceil(k/g)]       [ceil(k/g), n]       model dtype
============  ===================  ===================  ============================

g is 32, for 3 bits 40 (ten codes a word); every group fills whole words, so words = ceil(k/g) times
words a group. Embedding and head are quantized too, except under ``q4f16_2`` and ``q8f16_1``; an
embedding is NK under every name. Routers stay float. ``q8f16_1`` is ours: MLC has no such row, but
its class reads the layout (``int8``, group 32, NK); sources with zero points go to ``int8.py``.

MLC's rounding uses codes 0 .. 2m; the layout holds one more at the top, m + 1 above zero. So a
source is expressed exactly when code - zero lies in -m .. m+1, group by group; symmetric sources
with -m-1 (GPTQ's 8 below zero) land with code and scale negated: (c - z) s = (z - c)(-s).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mlc_bridge.errors import CannotExpress
from mlc_bridge.packing import PLAIN, Array, PackedArray, Packing, pack
from mlc_bridge.qtensor import QTensor, constant_zero
from mlc_bridge.schemes.fit import misfit
from mlc_bridge.schemes.group_rounding import round_groups
from mlc_bridge.schemes.matmul import Dequantize, dequantized_matmul, dequantized_rows
from mlc_bridge.schemes.regroup import extremes, narrow_scale, regroup, spread
from mlc_bridge.schemes.scheme import Role, Spec

if TYPE_CHECKING:
    from tvm.relax.frontend import nn


@dataclass(frozen=True)
class GroupQuant:
    """One row of the family; ``transposed`` is MLC's KN layout."""

    name: str
    bits: int
    group: int
    model_dtype: str
    transposed: bool = False
    embedding_too: bool = True

    @property
    def middle(self) -> int:
        """The code of 0."""
        return 2 ** (self.bits - 1) - 1

    @property
    def packing(self) -> Packing:
        return Packing(self.bits, "k", transposed=self.transposed)

    def quantizes(self, role: Role) -> bool:
        return role == "linear" or (role in ("embedding", "lm_head") and self.embedding_too)

    def for_role(self, role: Role) -> GroupQuant:
        """An embedding is read row by row, so its layout is NK under every name."""
        return replace(self, transposed=False) if role == "embedding" else self

    def params(self, n: int, k: int) -> dict[str, Spec]:
        groups = -(-k // self.group)
        words = groups * self.group // self.packing.per_word
        weight, scale = (n, words), (n, groups)
        if self.transposed:
            weight, scale = weight[::-1], scale[::-1]
        return {
            "q_weight": Spec(weight, "uint32"),
            "q_scale": Spec(scale, self.model_dtype),
        }

    def quantize(self, w: Array) -> QTensor:
        """MLC's own rounding of ``w`` ``[n, k]``; see ``group_rounding.py``."""
        wide = self.transposed and self.model_dtype == "bfloat16"
        codes, scale = round_groups(w, self.group, self.bits, self.model_dtype, wide_scale=wide)
        zero = constant_zero(self.middle, scale.shape, PLAIN)
        return QTensor(
            pack(codes, replace(self.packing, transposed=False)), scale, zero, (1, self.group)
        )

    def encode(self, q: QTensor, layer: str = "weight") -> dict[str, Array]:
        """Exact, or CannotExpress; see the module docstring for what fits."""
        reason = misfit(q, (f"uint{self.bits}",), self.group)
        if reason:
            raise CannotExpress(layer, self.name, reason)
        words, sign = self._words(q, layer)
        scale = narrow_scale(q, self.model_dtype, layer, self.name)
        if sign is not None:
            scale = scale * sign.astype(scale.dtype)
        scale = regroup(scale, q, self.group)
        declared = replace(self, transposed=False).params(*q.shape)["q_weight"].shape
        if words.shape != declared:
            words = np.pad(words, ((0, 0), (0, declared[1] - words.shape[1])))
        if self.transposed:
            words, scale = words.T, scale.T
        return {"q_weight": words, "q_scale": scale}

    def decode(self, p: Mapping[str, Array]) -> QTensor:
        """``[n, groups * g]``: columns beyond the layer's k, if any, decode to -m * scale."""
        words, scale = p["q_weight"], p["q_scale"]
        if self.transposed:
            words, scale = words.T, scale.T
        n, groups = scale.shape
        return QTensor(
            codes=PackedArray(words, Packing(self.bits, "k"), (n, groups * self.group)),
            scale=scale,
            zero=constant_zero(self.middle, (n, groups), PLAIN),
            block=(1, self.group),
        )

    def linear(self, x: nn.Tensor, p: Mapping[str, nn.Tensor], out_dtype: str) -> nn.Tensor:
        stored = [p["q_weight"], p["q_scale"]]
        return dequantized_matmul(x, stored, self.dequantize(x.shape[-1]), out_dtype)

    def embedding(
        self, ids: nn.Tensor, p: Mapping[str, nn.Tensor], k: int, out_dtype: str
    ) -> nn.Tensor:
        stored = [p["q_weight"], p["q_scale"]]
        return dequantized_rows(ids, stored, self.dequantize(k), out_dtype)

    def dequantize(self, k: int) -> Dequantize:
        from tvm import te, tirx

        bits, per_word, group = self.bits, self.packing.per_word, self.group

        def dequantize(q_weight: Any, q_scale: Any) -> Any:
            def at(stored: Any, row: Any, column: Any) -> Any:
                return stored[column, row] if self.transposed else stored[row, column]

            def code(i: Any, j: Any) -> Any:
                shift = (j % per_word * bits).astype("uint32")
                word = tirx.shift_right(at(q_weight, i, j // per_word), shift)
                mask = tirx.const((1 << bits) - 1, "uint32")
                return tirx.bitwise_and(word, mask).astype(self.model_dtype)

            middle = tirx.const(self.middle, self.model_dtype)
            n = q_scale.shape[1 if self.transposed else 0]
            return te.compute(
                (n, k),
                lambda i, j: (code(i, j) - middle) * at(q_scale, i, j // group),
                name="dequantize",
            )

        return dequantize

    def _words(self, q: QTensor, layer: str) -> tuple[Array, Array | None]:
        """NK words with zero moved to the middle, and -1 for each block that had to be negated."""
        zero = np.zeros(q.grid, np.uint8) if q.zero is None else q.zero.unpack()
        zero = np.minimum(zero.astype(np.int32), 1 << 10).astype(np.int16)  # too far stays too far
        nk = Packing(self.bits, "k")
        if q.codes.packing == nk and (zero == self.middle).all():
            return q.codes.words, None
        steps = q.codes.unpack().astype(np.int16) - spread(zero, q)
        low, high = extremes(steps, q)
        negate = low < -self.middle
        top, bottom = np.where(negate, -low, high), np.where(negate, -high, low)
        bad = (top > self.middle + 1) | (bottom < -self.middle)
        if bad.any():
            at = tuple(np.argwhere(bad)[0])
            raise CannotExpress(
                layer,
                self.name,
                f"code - zero runs from {low[at]} to {high[at]} in one group, the scheme holds "
                f"{-self.middle} to {self.middle + 1}",
            )
        sign = np.where(negate, np.int16(-1), np.int16(1))
        steps *= spread(sign, q)
        steps += self.middle
        return pack(steps.astype(np.uint8), nk).words, sign if negate.any() else None


ROWS = (
    GroupQuant("q3f16_0", 3, 40, "float16", transposed=True),
    GroupQuant("q3f16_1", 3, 40, "float16"),
    GroupQuant("q4f16_0", 4, 32, "float16", transposed=True),
    GroupQuant("q4f16_1", 4, 32, "float16"),
    GroupQuant("q4f16_2", 4, 32, "float16", embedding_too=False),
    GroupQuant("q4bf16_0", 4, 32, "bfloat16", transposed=True),
    GroupQuant("q4bf16_1", 4, 32, "bfloat16"),
    GroupQuant("q4f32_1", 4, 32, "float32"),
    GroupQuant("q8f16_1", 8, 32, "float16", embedding_too=False),
)
