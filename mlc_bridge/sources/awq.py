"""What AutoAWQ's versions share: the config, the names, and which layers are float.

    W[n, k] = (code[n, k] - zero[n, k // g]) * scale[n, k // g]        zero stored as it is

Each version is one file (``autoawq*.py``) and differs in the layout of ``qweight``, ``qzeros`` and
``scales``. A layer that has ``.weight`` is float, wherever it occurs: LLMC's mixed precision leaves
``modules_to_not_convert`` empty.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from mlc_bridge.errors import SourceError
from mlc_bridge.packing import Array
from mlc_bridge.qtensor import QTensor
from mlc_bridge.sources.checkpoint import Checkpoint
from mlc_bridge.sources.source import Evidence, Source, check_float, read_float

SCALES = (np.float16, ml_dtypes.bfloat16, np.float32)


class AwqVersion(Source):
    """A source whose ``version`` is AutoAWQ's word; ``layout`` and ``read_packed`` are its own."""

    version: str
    suffixes: tuple[str, ...] = ("qweight", "qzeros", "scales")
    words: Any = np.int32

    def layout(self, ckpt: Checkpoint, layer: str) -> tuple[int, int, int]:
        """n, k and the group, after all parts were held against each other and the config."""
        raise NotImplementedError

    def read_packed(self, ckpt: Checkpoint, layer: str, n: int, k: int, group: int) -> QTensor:
        raise NotImplementedError

    def evidence(self, ckpt: Checkpoint) -> Evidence:
        settings = ckpt.quantization
        method = settings.get("quant_method")
        version = str(settings.get("version") or settings.get("format") or "gemm").lower()
        supports, against = [], []
        if method == "awq" or (method is None and "w_bit" in settings):
            supports.append("the config says quant_method 'awq'")
        else:
            against.append(f"the config says quant_method {method!r}")
        if version != self.version:
            against.append(f"the config says version {version!r}")
        layers = self.layers(ckpt)
        if layers:
            supports.append(f"{len(layers)} layers have {np.dtype(self.words)} .qweight")
        else:
            against.append(f"no layer has {np.dtype(self.words)} .qweight")
        return Evidence(tuple(supports), tuple(against))

    def layers(self, ckpt: Checkpoint) -> tuple[str, ...]:
        return tuple(
            layer
            for layer in ckpt.layers("qweight")
            if ckpt.dtype(f"{layer}.qweight") == self.words and not _is_float(ckpt, layer)
        )

    def parts(self, ckpt: Checkpoint, layer: str) -> tuple[str, ...]:
        if _is_float(ckpt, layer):
            return (f"{layer}.weight",)
        return tuple(f"{layer}.{suffix}" for suffix in self.suffixes)

    def check(self, ckpt: Checkpoint, layer: str, shape: tuple[int, int]) -> None:
        if _is_float(ckpt, layer):
            return check_float(ckpt, layer, shape)
        n, k, _ = self.layout(ckpt, layer)
        if (n, k) != shape:
            raise SourceError(
                "wrong shape", where=f"{layer}.qweight",
                found=f"{ckpt.shape(f'{layer}.qweight')}, which is a weight {[n, k]}",
                expected=f"a weight {list(shape)}",
                todo="The weights do not fit config.json, or the quantization settings are wrong",
            )  # fmt: skip
        return None

    def read(self, ckpt: Checkpoint, layer: str) -> QTensor | Array:
        if _is_float(ckpt, layer):
            return read_float(ckpt, layer)
        return self.read_packed(ckpt, layer, *self.layout(ckpt, layer))

    def words_shape(self, ckpt: Checkpoint, layer: str) -> tuple[int, int]:
        """Shape of ``qweight``, which holds 4-bit codes in words of the version's type."""
        settings, name = ckpt.quantization, f"{layer}.qweight"
        bits = settings.get("bits", settings.get("w_bit", 4))
        if bits != 4:
            raise SourceError(
                "AutoAWQ's layouts hold 4-bit codes", where=name,
                found=f"bits {bits!r} in the config", expected="bits 4",
            )  # fmt: skip
        ckpt.require(name, None, self.words)
        if len(ckpt.shape(name)) != 2:
            raise SourceError("not a matrix", where=name, found=ckpt.shape(name))
        rows, cols = ckpt.shape(name)
        return rows, cols

    def group(self, ckpt: Checkpoint, layer: str, k: int) -> int:
        """Columns of k per scale; one group per channel is written as -1 or as k."""
        settings = ckpt.quantization
        asked = settings.get("group_size", settings.get("q_group_size", -1))
        group = k if asked in (-1, None) else asked
        if type(group) is not int or group <= 0 or k % group:
            raise SourceError(
                "the group size does not divide the layer's input width", where=f"{layer}.qweight",
                found=f"group_size {asked!r} and {k} input channels",
            )  # fmt: skip
        return group


def _is_float(ckpt: Checkpoint, layer: str) -> bool:
    """Decided by what is on disk; the config's list (substrings) only where both are there."""
    weight, packed = f"{layer}.weight" in ckpt, f"{layer}.qweight" in ckpt
    if weight and packed:
        listed = ckpt.quantization.get("modules_to_not_convert") or ()
        return any(str(part) in layer for part in listed)
    return weight
