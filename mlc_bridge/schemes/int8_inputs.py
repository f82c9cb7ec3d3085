"""8-bit weights times activations rounded to 8 bits while running (W8A8): ``i8_i8_f16_*``.

    dynamic   sx[t] = max_k |x[t, k]| / 127,   xq[t, k] = round(x[t, k] / sx[t])          per token
    static    sx, zx from the file,            xq = clamp(round(x / sx) + zx, -128, 127)
    y[t, n] = sx q_scale[n] (sum_k xq[t, k] code[n, k] - q_zero[n] sum_k xq[t, k] - zx q_sum[n])

============  ========  =======  ==================================================
parameter     shape     dtype    of ``i8_i8_f16_static`` only
============  ========  =======  ==================================================
``q_input``   [2]       float32  sx and zx
``q_sum``     [n]       int32    sum_k (code[n, k] - q_zero[n])
============  ========  =======  ==================================================

The other parameters and their bytes are those of ``q8f16_1_gk`` (``int8.py``). Sums are int32 and
exact; rounding is to nearest, ties to even. Any 8-bit file with a scale per row runs dynamically;
static scales are what compressed-tensors' and msModelSlim's W8A8 bring, and layers that round their
input differently are not fused. Embedding, head, router and experts are multiplied as
``q8f16_1_gk`` does, in float.

On CUDA the same whole numbers are multiplied as float16, which holds them, on the tensor cores of
float16 layers, and summed in float32: exact up to 2^24, and within a unit in the last place beyond.

Never chosen by ``auto``: activations in 8 bits cost accuracy (KL .0014 on a small model, the
weights alone .0002). Rejected: sx = max / 127.5 as compressed-tensors' own forward has it; servers
and msModelSlim divide by 127, so that the largest value is a code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mlc_bridge.errors import CannotExpress
from mlc_bridge.packing import Array
from mlc_bridge.qtensor import QTensor
from mlc_bridge.schemes.float8 import on_cuda
from mlc_bridge.schemes.int8 import Int8
from mlc_bridge.schemes.matmul import dequantized_matmul
from mlc_bridge.schemes.scheme import Spec

if TYPE_CHECKING:
    from tvm.relax.frontend import nn

LARGEST = 127.0
OPAQUE = {"op_pattern": 8}
OUT_ELEMENTWISE_FUSABLE = {"op_pattern": 4}


class DynamicInt8(Int8):
    """``q8f16_1_gk`` with another device expression."""

    def linear(self, x: nn.Tensor, p: Mapping[str, nn.Tensor], out_dtype: str) -> nn.Tensor:
        from tvm.relax.frontend.nn import op

        scale = op.tensor_expr_op(row_scale, "row_scale", [x], attrs=OPAQUE)
        rounded = op.tensor_expr_op(_rounded_rows, "rounded_rows", [x], attrs=OPAQUE)
        if on_cuda():
            return _in_float16(rounded, p, scale, out_dtype)
        total = op.tensor_expr_op(_row_total, "row_total", [rounded], attrs=OPAQUE)
        inputs = [rounded, p["q_weight"], scale, total, p["q_zero"], p["q_scale"]]

        def int8_matmul(*given: Any) -> Any:
            x, weight, row, total, zero, scale = given
            return _matmul(out_dtype, x, weight, lambda *t: row(*t, 0), total, zero, scale)

        return op.tensor_expr_op(int8_matmul, "int8_matmul", inputs, attrs=OUT_ELEMENTWISE_FUSABLE)


class StaticInt8(Int8):
    """With the file's scale and zero of the activations."""

    def params(self, n: int, k: int) -> dict[str, Spec]:
        static = {"q_input": Spec((2,), "float32"), "q_sum": Spec((n,), "int32")}
        return super().params(n, k) | static

    def quantize(self, w: Array) -> QTensor:
        raise CannotExpress("a float weight", self.name, "nobody says how its input is rounded")

    def align(self, parts: Sequence[QTensor], layer: str) -> tuple[list[QTensor], tuple[str, ...]]:
        """Fused layers that round their input differently stand apart."""
        return list(parts), ()

    def encode(self, q: QTensor, layer: str = "weight") -> dict[str, Array]:
        params = super().encode(q, layer)
        if q.input_scale is None:
            raise CannotExpress(layer, self.name, "it brings no static activation scale")
        zero = 0.0 if q.input_zero is None else float(q.input_zero)
        steps = params["q_weight"].sum(axis=1, dtype=np.int64)
        steps -= q.shape[1] * params["q_zero"][:, 0].astype(np.int64)
        params["q_input"] = np.array([float(q.input_scale), zero], np.float32)
        params["q_sum"] = steps.astype(np.int32)
        return params

    def decode(self, p: Mapping[str, Array]) -> QTensor:
        scale, zero = p["q_input"]
        inputs = np.array(scale, np.float32), np.array(zero, np.float32) if zero else None
        return replace(super().decode(p), input_scale=inputs[0], input_zero=inputs[1])

    def linear(self, x: nn.Tensor, p: Mapping[str, nn.Tensor], out_dtype: str) -> nn.Tensor:
        from tvm.relax.frontend.nn import op

        rounded = op.tensor_expr_op(_static_rows, "static_rows", [x, p["q_input"]], attrs=OPAQUE)
        if on_cuda():
            return _in_float16(rounded, p, p["q_input"], out_dtype)
        total = op.tensor_expr_op(_row_total, "row_total", [rounded], attrs=OPAQUE)
        names = ("q_weight", "q_zero", "q_scale", "q_input", "q_sum")
        inputs = [rounded, total, *(p[name] for name in names)]

        def int8_matmul(
            x: Any, total: Any, weight: Any, zero: Any, scale: Any, given: Any, steps: Any
        ) -> Any:
            return _matmul(
                out_dtype, x, weight, lambda *_: given(0), total, zero, scale,
                lambda j: given(1).astype("int32") * steps(j),
            )  # fmt: skip

        return op.tensor_expr_op(int8_matmul, "int8_matmul", inputs, attrs=OUT_ELEMENTWISE_FUSABLE)


def _stored(whole: Any, zero: Any = None) -> Any:
    """A rounded activation: int8, or on CUDA float16 and without its zero."""
    if not on_cuda():
        return whole.astype("int32").astype("int8")
    return (whole if zero is None else whole - zero).astype("float16")


def _in_float16(
    x: nn.Tensor, p: Mapping[str, nn.Tensor], row: nn.Tensor, out_dtype: str
) -> nn.Tensor:
    """Whole numbers ``x`` times whole ``code - zero``; ``row`` begins with each token's scale."""
    from tvm.relax.frontend.nn import op

    def dequantize(weight: Any, zero: Any) -> Any:
        from tvm import te

        def code(i: Any, j: Any) -> Any:
            return weight[i, j].astype("float16") - zero[i, 0]

        return te.compute(weight.shape, code, name="dequantize")

    y = dequantized_matmul(x, [p["q_weight"], p["q_zero"]], dequantize, "float32")

    def scaled(y: Any, row: Any, scale: Any) -> Any:
        from tvm import te

        def value(*i: Any) -> Any:
            step = row(0) if len(row.shape) == 1 else row(*i[:-1], 0)
            return (y(*i) * (step * scale(i[-1], 0).astype("float32"))).astype(out_dtype)

        return te.compute(y.shape, value, name="scaled")

    return op.tensor_expr_op(scaled, "scaled", [y, row, p["q_scale"]])


def _static_rows(x: Any, given: Any) -> Any:
    """``x [.., k] -> int8 [.., k]`` by the file's scale and zero."""
    from tvm import te, tirx

    low, high = (tirx.const(v, "float32") for v in (-128.0, 127.0))

    def rounded(*i: Any) -> Any:
        steps = tirx.nearbyint(x(*i).astype("float32") / given(0)) + given(1)
        inside = tirx.max(tirx.min(steps, high), low)
        return _stored(inside, given(1))

    return te.compute(x.shape, rounded, name="static_rows")


def row_scale(x: Any, most: float = LARGEST) -> Any:
    """``x [.., k] -> float32 [.., 1]``: max |x| / ``most``; 1 for a row of zeros."""
    from tvm import te, tirx

    largest = _largest(x)
    zero, one = (tirx.const(v, "float32") for v in (0.0, 1.0))

    def scale(*i: Any) -> Any:
        found = largest(*i[:-1])
        return tirx.Select(found > zero, found / tirx.const(most, "float32"), one)

    return te.compute((*x.shape[:-1], 1), scale, name="row_scale")


def _rounded_rows(x: Any) -> Any:
    """``x [.., k] -> int8 [.., k]``."""
    from tvm import te, tirx

    largest = _largest(x)

    def rounded(*i: Any) -> Any:
        most = tirx.max(largest(*i[:-1]), tirx.const(1e-38, "float32"))
        steps = x(*i).astype("float32") / (most / tirx.const(LARGEST, "float32"))
        return _stored(tirx.nearbyint(steps))

    return te.compute(x.shape, rounded, name="rounded_rows")


def _largest(x: Any) -> Any:
    from tvm import te, tirx

    k = te.reduce_axis((0, x.shape[-1]), name="k")
    return te.compute(
        x.shape[:-1],
        lambda *i: te.max(tirx.abs(x(*i, k).astype("float32")), axis=k),
        name="largest",
    )


def _row_total(x: Any) -> Any:
    """``int8 [.., k] -> int32 [.., 1]``."""
    from tvm import te

    k = te.reduce_axis((0, x.shape[-1]), name="k")
    total = te.compute(
        x.shape[:-1], lambda *i: te.sum(x(*i, k).astype("int32"), axis=k), name="total"
    )
    return te.compute((*x.shape[:-1], 1), lambda *i: total(*i[:-1]), name="row_total")


def _matmul(
    dtype: str, x: Any, weight: Any, row: Any, total: Any, zero: Any, scale: Any,
    shift: Any = None,
) -> Any:  # fmt: skip
    """The sum of products as ``NT_matmul`` int32; zeros and scales come after it.

    ``row(*t)`` is the scale of token t, ``shift(j)`` what a zero of the activations adds to row j.
    """
    from tvm import te

    n, k = weight.shape
    axis = te.reduce_axis((0, k), name="k")

    def product(*i: Any) -> Any:
        a, b = x(*i[:-1], axis).astype("int32"), weight(i[-1], axis).astype("int32")
        return te.sum(a * b, axis=axis)

    y = te.compute((*x.shape[:-1], n), product, name="NT_matmul")

    def finished(*i: Any) -> Any:
        *t, j = i
        exact = y(*i) - zero[j, 0].astype("int32") * total(*t, 0)
        exact = exact if shift is None else exact - shift(j)
        steps = row(*t) * scale[j, 0].astype("float32")
        return (exact.astype("float32") * steps).astype(dtype)

    return te.compute(y.shape, finished, name="cast")


ROWS = (DynamicInt8("i8_i8_f16_dynamic", None), StaticInt8("i8_i8_f16_static", None))
