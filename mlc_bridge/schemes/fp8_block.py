"""Float8 weights with one scale for each 128 x 128 block: MLC's ``fp8_e4m3fn_bf16_block_scale``.

    W[i, j] = e4m3 weight[i, j] * weight_scale_inv[i / 128, j / 128]

=====================  ==========================  =============
parameter              shape                       dtype
=====================  ==========================  =============
``weight``             [n, k]                      float8_e4m3fn
``weight_scale_inv``   [ceil(n/128), ceil(k/128)]  float32
=====================  ==========================  =============

Names and layout are those of Hugging Face's block-scaled float8 checkpoints, so that they pass
through untouched. Activations stay bfloat16: the checkpoints' scheme quantizes them while running,
which only a float8 matrix unit gains from. MLC does so for prefill and, as here, not for decode.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mlc_bridge.errors import CannotExpress
from mlc_bridge.packing import PLAIN, Array, PackedArray
from mlc_bridge.qtensor import QTensor
from mlc_bridge.schemes.fit import misfit
from mlc_bridge.schemes.float8 import E4M3
from mlc_bridge.schemes.matmul import Dequantize, dequantized_matmul
from mlc_bridge.schemes.scheme import Role, Spec

if TYPE_CHECKING:
    from tvm.relax.frontend import nn

BLOCK = 128


@dataclass(frozen=True)
class BlockScale:
    """See the module docstring."""

    name: str
    model_dtype: str = "bfloat16"

    def quantizes(self, role: Role) -> bool:
        return role == "linear"

    def params(self, n: int, k: int) -> dict[str, Spec]:
        return {
            "weight": Spec((n, k), E4M3.name),
            "weight_scale_inv": Spec((-(-n // BLOCK), -(-k // BLOCK)), "float32"),
        }

    def quantize(self, w: Array) -> QTensor:
        """Nearest codes of ``w`` ``[n, k]`` under the scale max|block| / 448."""
        n, k = w.shape
        down, across = -(-n // BLOCK), -(-k // BLOCK)
        padded = np.zeros((down * BLOCK, across * BLOCK), np.float32)
        padded[:n, :k] = w
        blocks = padded.reshape(down, BLOCK, across, BLOCK)
        scale = np.maximum(np.abs(blocks).max(axis=(1, 3)) / E4M3.largest, np.float32(1e-12))
        codes = E4M3.round(blocks / scale[:, None, :, None]).reshape(padded.shape)[:n, :k]
        words = np.ascontiguousarray(codes)
        return QTensor(PackedArray(words, PLAIN, (n, k)), scale, None, (BLOCK, BLOCK))

    def encode(self, q: QTensor, layer: str = "weight") -> dict[str, Array]:
        """Fused layers bring a scale for each row; equal ones of 128 rows become one again."""
        words, (rows, columns) = q.codes.words, q.block
        step = BLOCK // rows if rows in (1, BLOCK) else 0
        scale = q.scale[::step] if step else q.scale
        reason = misfit(q, (E4M3.name,), zeros=False)
        if not reason and (columns != BLOCK or not step):
            reason = f"its scale blocks are {q.block}, the scheme's ({BLOCK}, {BLOCK})"
        elif not reason and not _same_rows(scale, step, q.scale):
            reason = f"its layers do not fill whole blocks of {BLOCK} rows"
        if reason:
            raise CannotExpress(layer, self.name, reason)
        return {"weight": words, "weight_scale_inv": scale.astype(np.float32)}

    def decode(self, p: Mapping[str, Array]) -> QTensor:
        codes = PackedArray(p["weight"], PLAIN, p["weight"].shape)
        return QTensor(codes, p["weight_scale_inv"], None, (BLOCK, BLOCK))

    def linear(self, x: nn.Tensor, p: Mapping[str, nn.Tensor], out_dtype: str) -> nn.Tensor:
        stored = [p["weight"], p["weight_scale_inv"]]
        return dequantized_matmul(x, stored, self._dequantize, out_dtype)

    def embedding(
        self, ids: nn.Tensor, p: Mapping[str, nn.Tensor], k: int, out_dtype: str
    ) -> nn.Tensor:
        raise TypeError(f"{self.name} keeps the embedding float")

    def dequantize(self, k: int) -> Dequantize:
        return self._dequantize

    def _dequantize(self, weight: Any, scale: Any) -> Any:
        from tvm import te

        def value(i: Any, j: Any) -> Any:
            exact = E4M3.value(weight[i, j], "float32") * scale[i // BLOCK, j // BLOCK]
            return exact.astype(self.model_dtype)

        return te.compute(weight.shape, value, name="dequantize")


def _same_rows(scale: Array, step: int, every: Array) -> bool:
    """Whether ``every`` row of scales is that of its block."""
    return np.array_equal(np.repeat(scale, step, axis=0)[: len(every)], every)


ROWS = (BlockScale("fp8_e4m3fn_bf16_block_scale"),)
