"""4-bit floats: ``nvfp4_*``, ``mxfp4_*`` and ``nf4_*``.

    W[n, k] = value[code[n, k]] * q_scale[n, k // g] (* q_global[n])

==============  ==============  ==================================================================
parameter       shape           layout
==============  ==============  ==================================================================
``q_weight``    [n, k/8]        uint32, natural order along k: the files' bytes, four to a word
``q_scale``     [n, k/g]        nvfp4: float8_e4m3fn, g 16; mxfp4: uint8, an exponent (2^(x-127),
                                e8m0), g 32; nf4: float32, g 64
``q_global``    [n]             nvfp4 only: float32, equal for all rows of a checkpoint layer
==============  ==============  ==================================================================

Values are E2M1 (0, .5, 1, 1.5, 2, 3, 4, 6 and their negatives) or NF4's quantiles. E2M1 times e4m3
or a power of two has at most six bits: a float16 or bfloat16 exactly, so matrix units multiply what
the checkpoint says; a float16 row refuses exponents that leave float16. ``q_global`` comes after
the sum. Activations stay in the model dtype (weight-only), also of files that would round them.

MLC has no such rows. NVFP4: ModelOpt, compressed-tensors; MXFP4: gpt-oss, compressed-tensors,
Quark; NF4: bitsandbytes. Embedding, head and router stay float.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from mlc_bridge.errors import CannotExpress
from mlc_bridge.packing import FLOAT4, NK4, Array, PackedArray, pack, repack
from mlc_bridge.qtensor import QTensor, share_input_scale
from mlc_bridge.schemes.fit import misfit
from mlc_bridge.schemes.float8 import E4M3
from mlc_bridge.schemes.matmul import Dequantize, dequantized_matmul, dequantized_rows
from mlc_bridge.schemes.regroup import extremes, regroup
from mlc_bridge.schemes.scheme import Role, Spec

if TYPE_CHECKING:
    from tvm.relax.frontend import nn

E8M0 = np.dtype(ml_dtypes.float8_e8m0fnu)
STORED = {"float8_e4m3fn": "float8_e4m3fn", "float8_e8m0fnu": "uint8", "float32": "float32"}
DOUBLED = 0xC8643210  # |E2M1| times two, a hexadecimal digit each


@dataclass(frozen=True)
class Float4:
    """One row of the family; ``scale`` is ml_dtypes' name of the scales' format."""

    name: str
    values: str
    group: int
    scale: str
    model_dtype: str

    @property
    def has_global(self) -> bool:
        return self.scale == "float8_e4m3fn"

    @property
    def scale_dtype(self) -> np.dtype[Any]:
        return np.dtype(getattr(ml_dtypes, self.scale, self.scale))

    def quantizes(self, role: Role) -> bool:
        return role == "linear"

    def params(self, n: int, k: int) -> dict[str, Spec]:
        if k % self.group:
            needs = f"needs k % {self.group} == 0"
            raise CannotExpress(f"a weight [{n}, {k}]", self.name, needs)
        specs = {
            "q_weight": Spec((n, k // 8), "uint32"),
            "q_scale": Spec((n, k // self.group), STORED[self.scale]),
        }
        return specs | ({"q_global": Spec((n,), "float32")} if self.has_global else {})

    def quantize(self, w: Array) -> QTensor:
        """Nearest values of ``w`` ``[n, k]``, under the scales that each format's own tool takes.

        nvfp4: global = max|w| / (6 * 448), scale = max|block| / 6 / global; mxfp4: a quarter
        of the largest power of two in max|block|; nf4: max|block|.
        """
        n, k = w.shape
        self.params(n, k)
        blocks = w.astype(np.float32).reshape(n, -1, self.group)
        largest = np.abs(blocks).max(axis=2)
        outer = np.float32(largest.max(initial=0) / (6 * E4M3.largest) or 1)
        if self.scale == "float32":
            scale = largest
        elif self.has_global:
            scale = E4M3.round(largest / 6 / outer)
        else:
            exponent = np.floor(np.log2(np.maximum(largest, np.float32(2.0**-20)))) - 2
            scale = np.exp2(exponent).astype(E8M0)
        step = scale.astype(np.float32) * (outer if self.has_global else np.float32(1))
        codes = self._nearest(blocks / np.where(step == 0, 1, step)[:, :, None]).reshape(n, k)
        packed = PackedArray(pack(codes, NK4).words, NK4, (n, k), self.values)
        rows = np.full(n, outer, np.float32) if self.has_global else None
        return QTensor(packed, scale, None, (1, self.group), outer=rows)

    def align(self, parts: Sequence[QTensor], layer: str) -> tuple[list[QTensor], tuple[str, ...]]:
        """Layers to be fused; nothing moves, and what static activation scales say is left out."""
        return share_input_scale(parts), ()

    def encode(self, q: QTensor, layer: str = "weight") -> dict[str, Array]:
        """The same codes and scales, or CannotExpress."""
        reason = misfit(q, (self.values,), self.group, zeros=False, static=True)
        if not reason and q.shape[1] % self.group:
            reason = f"k {q.shape[1]} is no multiple of {self.group}"
        reason = reason or self._misfit_scale(q)
        if reason:
            raise CannotExpress(layer, self.name, reason)
        scale = regroup(q.scale, q, self.group)
        params = {
            "q_weight": repack(q.codes, NK4).words,
            "q_scale": scale.view(np.uint8) if self.scale_dtype == E8M0 else scale,
        }
        if self.has_global:
            params["q_global"] = np.ones(len(scale), np.float32) if q.outer is None else q.outer
        return params

    def decode(self, p: Mapping[str, Array]) -> QTensor:
        n, words = p["q_weight"].shape
        codes = PackedArray(p["q_weight"], NK4, (n, words * 8), self.values)
        scale = p["q_scale"].view(E8M0) if self.scale_dtype == E8M0 else p["q_scale"]
        return QTensor(codes, scale, None, (1, self.group), outer=p.get("q_global"))

    def linear(self, x: nn.Tensor, p: Mapping[str, nn.Tensor], out_dtype: str) -> nn.Tensor:
        stored = [p["q_weight"], p["q_scale"]]
        weight = self._inner(x.shape[-1], self.model_dtype)
        if not self.has_global:
            return dequantized_matmul(x, stored, weight, out_dtype)
        y = dequantized_matmul(x, stored, weight, "float32")
        return (y * p["q_global"]).astype(out_dtype)  # elementwise, so it ends in the same kernel

    def embedding(
        self, ids: nn.Tensor, p: Mapping[str, nn.Tensor], k: int, out_dtype: str
    ) -> nn.Tensor:
        return dequantized_rows(ids, [*p.values()], self.dequantize(k), out_dtype)

    def dequantize(self, k: int) -> Dequantize:
        """In float32, with the global scale."""

        def dequantize(weight: Any, scale: Any, outer: Any = None) -> Any:
            from tvm import te

            inner = self._element(weight, scale)
            whole = inner if outer is None else lambda i, j: inner(i, j) * outer(i)
            return te.compute((weight.shape[0], k), whole, name="dequantize")

        return dequantize

    def _inner(self, k: int, dtype: str) -> Dequantize:
        """Without the global scale, in the model dtype."""

        def dequantize(weight: Any, scale: Any) -> Any:
            from tvm import te

            inner = self._element(weight, scale)
            return te.compute(
                (weight.shape[0], k), lambda i, j: inner(i, j).astype(dtype), name="dequantize"
            )

        return dequantize

    def _element(self, weight: Any, scale: Any) -> Any:
        from tvm import tirx

        def element(i: Any, j: Any) -> Any:
            word = tirx.shift_right(weight[i, j // 8], (j % 8 * 4).astype("uint32"))
            code = tirx.bitwise_and(word, tirx.const(15, "uint32"))
            value = _e2m1(code) if self.values == "float4_e2m1fn" else _of_table(code, self.values)
            return value * self._scale_of(scale[i, j // self.group])

        return element

    def _scale_of(self, stored: Any) -> Any:
        """Device: a stored scale as float32."""
        from tvm import tirx

        if self.has_global:
            return E4M3.value(stored, "float32")
        if self.scale == "float32":
            return stored
        exponent = tirx.shift_left(stored.astype("uint32"), tirx.const(23, "uint32"))
        return tirx.reinterpret("float32", exponent)

    def _nearest(self, w: Array) -> Array:
        """Codes of the nearest values; E2M1 breaks ties to even."""
        if self.values == "float4_e2m1fn":
            return np.clip(w, -6, 6).astype(ml_dtypes.float4_e2m1fn).view(np.uint8)
        table = np.array(FLOAT4[self.values], np.float32)
        return np.searchsorted((table[1:] + table[:-1]) / 2, w).astype(np.uint8)

    def _misfit_scale(self, q: QTensor) -> str | None:
        if q.outer is not None and not self.has_global:
            return "it has a scale of its scales, the scheme none"
        if q.scale.dtype != self.scale_dtype:
            return f"its scales are {q.scale.dtype}, the scheme's {self.scale}"
        if self.scale_dtype != E8M0:
            return None
        exact = q.scale.astype(np.float32)
        # E2M1 runs from 2^-1 to 1.5 * 2^2; float16 from 2^-24 on, with two bits of mantissa 2^-23.
        low, high = (-22, 13) if self.model_dtype == "float16" else (-125, 125)
        out = (exact < 2.0**low) | (exact > 2.0**high)
        if out.any():
            lowest, highest = extremes(q.codes.values(), q)
            out &= (lowest != 0) | (highest != 0)  # tools give dead groups any exponent
        if out.any():
            return f"a scale of {exact[out][0]:g} leaves {self.model_dtype}"
        return None


def _e2m1(code: Any) -> Any:
    """Device: E2M1 by whole numbers, exact in every floating-point mode."""
    from tvm import tirx

    def u32(value: int) -> Any:
        return tirx.const(value, "uint32")

    size = tirx.bitwise_and(code, u32(7)) * u32(4)
    doubled = tirx.bitwise_and(tirx.shift_right(u32(DOUBLED), size), u32(15)).astype("float32")
    half = tirx.Select(code >= u32(8), tirx.const(-0.5, "float32"), tirx.const(0.5, "float32"))
    return doubled * half


def _of_table(code: Any, name: str) -> Any:
    """Device: one of sixteen constants, by four questions."""
    from tvm import tirx

    found = [tirx.const(value, "float32") for value in FLOAT4[name]]
    for bit in range(4):
        asked = tirx.bitwise_and(code, tirx.const(1 << bit, "uint32")) != tirx.const(0, "uint32")
        found = [tirx.Select(asked, found[i + 1], found[i]) for i in range(0, len(found), 2)]
    return found[0]


def _rows(name: str, values: str, group: int, scale: str) -> tuple[Float4, Float4]:
    return (
        Float4(f"{name}_f16", values, group, scale, "float16"),
        Float4(f"{name}_bf16", values, group, scale, "bfloat16"),
    )


ROWS = (
    *_rows("nvfp4", "float4_e2m1fn", 16, "float8_e4m3fn"),
    *_rows("mxfp4", "float4_e2m1fn", 32, "float8_e8m0fnu"),
    *_rows("nf4", "nf4", 64, "float32"),
)
