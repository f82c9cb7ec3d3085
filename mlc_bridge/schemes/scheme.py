"""The contract of a scheme: ``QTensor`` in, MLC parameters out, and their device expressions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from mlc_bridge.packing import Array
from mlc_bridge.qtensor import QTensor
from mlc_bridge.schemes.matmul import Dequantize

if TYPE_CHECKING:
    from tvm.relax.frontend import nn

Role = Literal["linear", "embedding", "lm_head", "router"]


@dataclass(frozen=True)
class Spec:
    """One parameter of a layer: shape, MLC dtype name, and the stage that fills it."""

    shape: tuple[int, ...]
    dtype: str
    filled_by: Literal["convert", "calibrate"] = "convert"


class Scheme(Protocol):
    """One quantization scheme under MLC's own name.

    ``params(n, k)`` is the crossing: the shard writer and ``QLinear`` both read it, so names,
    shapes and dtypes cannot drift apart. Keys are suffixes inside the layer (``weight``,
    ``qweight``, ...).
    """

    @property
    def name(self) -> str: ...

    @property
    def model_dtype(self) -> str:
        """dtype of activations, norms, biases and float weights: float16, bfloat16, float32."""
        ...

    def quantizes(self, role: Role) -> bool:
        """Whether weights of this role are stored quantized (else as ``weight`` in model_dtype)."""
        ...

    def params(self, n: int, k: int) -> dict[str, Spec]: ...

    def quantize(self, w: Array) -> QTensor:
        """Quantize a float weight ``[n, k]`` by the scheme's own rounding."""
        ...

    def encode(self, q: QTensor, layer: str = "weight") -> dict[str, Array]:
        """The layer's parameters: the same codes and zeros, or CannotExpress naming ``layer``.

        Scales of another dtype than the scheme's round once, by half a unit in the last place at
        most (``regroup.narrow_scale``); conversion counts them (``ConvertReport.scales_rounded``).
        """
        ...

    def decode(self, p: Mapping[str, Array]) -> QTensor:
        """Inverse of ``encode``: the reference for tests, verify and inspect."""
        ...

    def linear(self, x: nn.Tensor, p: Mapping[str, nn.Tensor], out_dtype: str) -> nn.Tensor:
        """Device expression of ``x @ W^T`` for ``x`` ``[..., k]``; imports tvm when called."""
        ...

    def embedding(
        self, ids: nn.Tensor, p: Mapping[str, nn.Tensor], k: int, out_dtype: str
    ) -> nn.Tensor:
        """Device expression of the rows ``ids`` (int32 ``[s]``) of the weight: ``[s, k]``."""
        ...

    def dequantize(self, k: int) -> Dequantize:
        """TE function: parameters in the order of ``params`` -> the weight ``[n, k]``.

        It uses ``shape``, ``dtype`` and ``[i, j]`` of its arguments only, so that views of a
        stack of experts do as well.
        """
        ...


def for_role(scheme: Scheme, role: Role | Literal["norm", "plain"]) -> Scheme:
    """The scheme in whose layout weights of ``role`` lie, where a family has two of them.

    Such a scheme has a method ``for_role(role)``: MLC's KN schemes keep the embedding NK.
    """
    other = getattr(scheme, "for_role", None)
    return other(role) if other is not None else scheme
