"""Float8 weights, activations rounded to float8 by token: ``fp8_e4m3fn_f16_row_scale_dynamic``.

    sx[t]   = max_k |x[t, k]| / 448,    xq[t, k] = e4m3(x[t, k] / sx[t])
    y[t, n] = sx[t] q_scale[n] sum_k xq[t, k] code[n, k]

What checkpoints with dynamic activations ask for (compressed-tensors FP8_DYNAMIC, fbgemm_fp8,
msModelSlim WFP8AFP8_DYNAMIC). Parameters and bytes are those of ``fp8_e4m3fn_f16_row_scale``
(``fp8_row.py``). Rounded activations are stored as float16, which holds every float8 value, so the
kernels of float16 layers multiply them; sums run in float32. By name only: the weight-only scheme
is more accurate. fbgemm's upper bound of sx (``input_scale_ub``) is not applied.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mlc_bridge.schemes.float8 import E4M3
from mlc_bridge.schemes.fp8_row import RowScale
from mlc_bridge.schemes.int8_inputs import OPAQUE, row_scale
from mlc_bridge.schemes.matmul import dequantized_matmul

if TYPE_CHECKING:
    from tvm.relax.frontend import nn


class DynamicRowScale(RowScale):
    """``RowScale`` with another device expression."""

    def linear(self, x: nn.Tensor, p: Mapping[str, nn.Tensor], out_dtype: str) -> nn.Tensor:
        from tvm.relax.frontend.nn import op

        def token_scale(x: Any) -> Any:
            return row_scale(x, E4M3.largest)

        step = op.tensor_expr_op(token_scale, "row_scale", [x], attrs=OPAQUE)
        rounded = op.tensor_expr_op(_rounded_rows, "float8_rows", [x, step], attrs=OPAQUE)
        y = dequantized_matmul(rounded, [p["q_weight"]], self._codes, "float32")
        return (y * (step * p["q_scale"])).astype(out_dtype)


def _rounded_rows(x: Any, step: Any) -> Any:
    """``x [.., k]`` over its token's scale, as the nearest float8 value in float16."""
    from tvm import te

    def rounded(*i: Any) -> Any:
        return E4M3.rounded(x(*i).astype("float32") / step(*i[:-1], 0)).astype("float16")

    return te.compute(x.shape, rounded, name="float8_rows")


ROWS = (DynamicRowScale("fp8_e4m3fn_f16_row_scale_dynamic", E4M3, "float16"),)
