"""Float8 weights and activations with one scale a tensor: MLC's ``e4m3_e4m3_f16`` family.

    x8 = e4m3(x / q_calibration_scale)
    y  = (x8 @ q_weight^T) * q_calibration_scale * q_scale

========================  =======  ==============  ================================================
parameter                 shape    dtype           value
========================  =======  ==============  ================================================
``q_weight``              [n, k]   float8          e4m3(W / q_scale); of e5m2 rows: e5m2(W)
``q_scale``               [1]      float32         max(max|W| / 448, 1 / (448 * 512)) in float16
``q_calibration_scale``   [1]      float32         max|x| / 448 on calibration data, NaN before
========================  =======  ==============  ================================================

Rows: ``e4m3_e4m3_f16``; ``e4m3_e4m3_f16_max_calibrate``, the same weights without activation
scale, whose graph keeps x in float16 and shows it to an observer; ``e5m2_e5m2_f16``, whose range is
wide enough to have no scales at all. Embedding and head stay float16.

A fused layer has one scale. Layers that a checkpoint brings with scales of their own are another
scheme's (``fp8_row.py``); who asks for re-quantizing gets them brought to the largest scale by
``align``, which says what that cost. Codes are multiplied as float8 values in
float16 (each is one exactly) and summed in float32, scales come after the sum: the arithmetic of a
float8 tensor core, on any target (CUDA keeps x8 in one byte from sm_89 on). MLC divides x by
a float16 copy of the scale, which is zero for layers whose inputs stay below 1e-5; here the
quotient is float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mlc_bridge.errors import CannotExpress
from mlc_bridge.packing import PLAIN, Array, PackedArray
from mlc_bridge.qtensor import QTensor, share_input_scale
from mlc_bridge.schemes.fit import misfit
from mlc_bridge.schemes.float8 import E4M3, E5M2, Float8, on_cuda
from mlc_bridge.schemes.matmul import Dequantize, dequantized_matmul
from mlc_bridge.schemes.scheme import Role, Spec

if TYPE_CHECKING:
    from tvm.relax.frontend import nn

OBSERVE = "mlc_bridge.observe"
"""Packed function a calibration lib calls: (layer path, x, out); it must copy x into out."""


@dataclass(frozen=True)
class PerTensor:
    """One row of the family; see the module docstring."""

    name: str
    float8: Float8
    scaled: bool = True
    observing: bool = False
    model_dtype: str = "float16"

    def quantizes(self, role: Role) -> bool:
        return role == "linear"

    def params(self, n: int, k: int) -> dict[str, Spec]:
        specs = {"q_weight": Spec((n, k), self.float8.name)}
        if self.scaled:
            specs["q_scale"] = Spec((1,), "float32")
        if self.scaled and not self.observing:
            specs["q_calibration_scale"] = Spec((1,), "float32", filled_by="calibrate")
        return specs

    def quantize(self, w: Array) -> QTensor:
        """MLC's rounding of ``w`` ``[n, k]``, bytes included (see ``Float8.round_like_mlc``)."""
        w = w.astype(self.model_dtype)
        scale = np.ones((1, 1), np.float32)
        largest = np.abs(w).max(initial=0)
        if not np.isfinite(largest):  # a cast alone would make a number of NaN
            reason = f"a weight is infinite, NaN or too large for {self.model_dtype}"
            raise CannotExpress("weight", self.name, reason)
        if self.scaled:
            part = largest / np.float16(self.float8.largest)
            scale[:] = max(part, np.float16(1 / (self.float8.largest * 512)))
        codes = self.float8.round_like_mlc(w / scale)
        return QTensor(PackedArray(codes, PLAIN, w.shape), scale, None, w.shape)

    def align(self, parts: Sequence[QTensor], layer: str) -> tuple[list[QTensor], tuple[str, ...]]:
        """Layers to be fused, with one weight scale and one activation scale; says what it cost.

        Parts that are not float8 with one scale each come back as they are: ``encode`` judges.
        """
        ours = all(p.scale.size == 1 and p.kind == self.float8.name for p in parts)
        if not ours or not self.scaled:
            return list(parts), ()
        scale = max((np.float32(p.scale.max()) for p in parts), key=abs)
        moved = [self._rescaled(p, scale) for p in share_input_scale(parts)]
        if all(np.float32(p.scale.max()) == scale for p in parts):
            return moved, ()
        worst = max(
            _largest(b.dequantize() - a.dequantize()) for a, b in zip(parts, moved, strict=True)
        )
        whole = max(_largest(p.dequantize()) for p in parts)
        scales = ", ".join(f"{float(p.scale.max()):.4g}" for p in parts)
        cost = f"weights move by up to {worst:.3g} ({worst / (whole or 1):.2%} of the largest)"
        return moved, (f"{layer}: scales {scales} brought to the largest; {cost}",)

    def encode(self, q: QTensor, layer: str = "weight") -> dict[str, Array]:
        self._check(q, layer)
        params = {"q_weight": q.codes.words}
        if self.scaled:
            params["q_scale"] = q.scale.reshape(-1)[:1].astype(np.float32)
        if self.scaled and not self.observing:
            given = np.nan if q.input_scale is None else q.input_scale
            params["q_calibration_scale"] = np.float32(given).reshape(1)
        return params

    def decode(self, p: Mapping[str, Array]) -> QTensor:
        codes = PackedArray(p["q_weight"], PLAIN, p["q_weight"].shape)
        scale = p["q_scale"].reshape(1, 1) if self.scaled else np.ones((1, 1), np.float32)
        seen = p.get("q_calibration_scale")
        if seen is not None:
            seen = None if np.isnan(seen).any() else seen.reshape(())
        return QTensor(codes, scale, None, codes.shape, input_scale=seen)

    def linear(self, x: nn.Tensor, p: Mapping[str, nn.Tensor], out_dtype: str) -> nn.Tensor:
        scales = [p[s] for s in ("q_calibration_scale", "q_scale") if s in p]
        if not self.observing:
            x = self._quantized(x, *scales[:-1])
        y = dequantized_matmul(x, [p["q_weight"]], self._values, "float32")
        for scale in scales:  # elementwise after the matmul, so they end in its kernel
            y = y * scale
        return y.astype(out_dtype)

    def embedding(
        self, ids: nn.Tensor, p: Mapping[str, nn.Tensor], k: int, out_dtype: str
    ) -> nn.Tensor:
        raise TypeError(f"{self.name} keeps the embedding float")

    def dequantize(self, k: int) -> Dequantize:
        raise CannotExpress(
            "the experts", self.name, "it has one scale for weight and input, experts many",
            todo="Choose another scheme for this model",
        )  # fmt: skip

    def observe(self, x: nn.Tensor, layer: str) -> nn.Tensor:
        """Device: ``x`` as it is; a calibration lib shows it to ``OBSERVE`` on the way."""
        from tvm.relax.frontend import nn

        if not self.observing:
            return x
        return nn.op.extern(OBSERVE, [layer, x], out=nn.Tensor.placeholder(x.shape, x.dtype))

    def _rescaled(self, q: QTensor, scale: Any) -> QTensor:
        if np.float32(q.scale.max()) == scale:
            return q
        words = self.float8.round(q.dequantize() / scale)
        return replace(q, codes=PackedArray(words, PLAIN, q.shape), scale=np.full((1, 1), scale))

    def _check(self, q: QTensor, layer: str) -> None:
        """Refuses what one scale and this float8 cannot hold."""
        reason = misfit(q, (self.float8.name,), zeros=False, static=self.scaled)
        scales = np.unique(q.scale)
        if not reason and len(scales) > 1:
            reason = f"it has {len(scales)} different scales, the scheme one"
        elif not reason and not self.scaled and scales[0] != 1:
            reason = f"it has a scale of {float(scales[0]):.4g}, the scheme has none"
        if reason:
            raise CannotExpress(layer, self.name, reason)

    def _quantized(self, x: nn.Tensor, *scale: nn.Tensor) -> nn.Tensor:
        from tvm import te
        from tvm.relax.frontend.nn import op

        # one byte where the machine converts it; else the model's type, which holds it as well
        stored = self.float8.name if on_cuda(oldest=89) else x.dtype

        def quantize_x(x: te.Tensor, *scale: te.Tensor) -> te.Tensor:
            def code(*i: Any) -> Any:
                value = x(*i).astype("float32")
                return self.float8.rounded(value / scale[0][0] if scale else value).astype(stored)

            return te.compute(x.shape, code, name="quantize_x")

        return op.tensor_expr_op(quantize_x, "quantize_x", [x, *scale])

    def _values(self, weight: Any) -> Any:
        from tvm import te

        def value(i: Any, j: Any) -> Any:
            return self.float8.value(weight[i, j], self.model_dtype)

        return te.compute(weight.shape, value, name="dequantize")


def _largest(w: Array) -> float:
    return float(np.abs(w).max())


ROWS = (
    PerTensor("e4m3_e4m3_f16", E4M3),
    PerTensor("e4m3_e4m3_f16_max_calibrate", E4M3, observing=True),
    PerTensor("e5m2_e5m2_f16", E5M2, scaled=False),
)
