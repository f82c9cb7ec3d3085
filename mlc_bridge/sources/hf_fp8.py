"""Hugging Face ``quant_method: fp8`` (DeepSeek style), and LLMC's fp8 exports.

    W[n, k] = weight[n, k] * scale[n // bn, k // bk]        the scale multiplies, "inv" or not

================  =================  =========================================================
tensor            dtype              shape
================  =================  =========================================================
weight            float8             [n, k]
weight_scale_inv  float32, bfloat16  [ceil(n/bn), ceil(k/bk)] under ``weight_block_size``, else
                  or float8_e8m0     one number; some writers call it ``weight_scale``
activation_scale  float32            one number, static activations only; or ``input_scale``
================  =================  =========================================================

A layer whose ``.weight`` is not float8 is float; writers leave out layers that are no multiple of
the block as well as those in ``modules_to_not_convert`` or ``ignored_layers``.

Origin: transformers 5.23 integrations/finegrained_fp8.py and quantizer_finegrained_fp8.py.
"""

from __future__ import annotations

import ml_dtypes

from mlc_bridge.errors import SourceError
from mlc_bridge.packing import PLAIN, Array, PackedArray
from mlc_bridge.qtensor import QTensor
from mlc_bridge.sources.checkpoint import Checkpoint
from mlc_bridge.sources.source import (
    FLOATS,
    Evidence,
    Source,
    activation_scale,
    check_float,
    read_float,
    sound_scale,
)

FLOAT8 = (ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2)
SCALES = ("weight_scale_inv", "weight_scale")
INPUT_SCALES = ("activation_scale", "input_scale")


class HFFP8(Source):
    name = "hf-fp8"

    def evidence(self, ckpt: Checkpoint) -> Evidence:
        method = ckpt.quantization.get("quant_method")
        supports, against = [], []
        if method == "fp8":
            supports.append("the config says quant_method 'fp8'")
        else:
            against.append(f"the config says quant_method {method!r}")
        layers = self.layers(ckpt)
        if layers:
            supports.append(f"{len(layers)} layers have a float8 .weight")
        else:
            against.append("no layer has a float8 .weight")
        return Evidence(tuple(supports), tuple(against))

    def layers(self, ckpt: Checkpoint) -> tuple[str, ...]:
        return tuple(x for x in ckpt.layers("weight") if ckpt.dtype(f"{x}.weight") in FLOAT8)

    def parts(self, ckpt: Checkpoint, layer: str) -> tuple[str, ...]:
        names = tuple(f"{layer}.{part}" for part in ("weight", *SCALES, *INPUT_SCALES))
        return names[:1] + tuple(name for name in names[1:] if name in ckpt)

    def check(self, ckpt: Checkpoint, layer: str, shape: tuple[int, int]) -> None:
        if ckpt.dtype(f"{layer}.weight") in FLOATS:
            return check_float(ckpt, layer, shape)
        ckpt.require(f"{layer}.weight", shape, *FLOAT8)
        self._scale(ckpt, layer, shape)
        return None

    def read(self, ckpt: Checkpoint, layer: str) -> QTensor | Array:
        if ckpt.dtype(f"{layer}.weight") in FLOATS:
            return read_float(ckpt, layer)
        ckpt.require(f"{layer}.weight", None, *FLOAT8)
        weight = ckpt.tensor(f"{layer}.weight")
        if weight.ndim != 2:
            raise SourceError("not a matrix", where=f"{layer}.weight", found=weight.shape)
        n, k = weight.shape
        name, block = self._scale(ckpt, layer, (n, k))
        grid = (-(-n // block[0]), -(-k // block[1]))
        inputs = [activation_scale(ckpt, f"{layer}.{part}") for part in INPUT_SCALES]
        return QTensor(
            codes=PackedArray(weight, PLAIN, (n, k)),
            scale=sound_scale(ckpt.tensor(name), name).reshape(grid),
            zero=None,
            block=block,
            input_scale=next((x for x in inputs if x is not None), None),
        )

    def _scale(
        self, ckpt: Checkpoint, layer: str, shape: tuple[int, int]
    ) -> tuple[str, tuple[int, int]]:
        """Name of the layer's scale, and the rows and columns that share one."""
        name = next(
            (f"{layer}.{s}" for s in SCALES if f"{layer}.{s}" in ckpt), f"{layer}.{SCALES[0]}"
        )
        ckpt.require(name, None, *FLOATS, ml_dtypes.float8_e8m0fnu)
        if ckpt.shape(name) in ((), (1,)):
            return name, shape
        n, k = shape
        sizes = ckpt.quantization.get("weight_block_size")
        if ckpt.shape(name) == (n, 1) and not sizes:
            return name, (1, k)
        if (
            not isinstance(sizes, list)
            or len(sizes) != 2
            or not all(type(s) is int and s > 0 for s in sizes)
        ):
            raise SourceError(
                "scales by block, but no block size", where=name,
                found=f"weight_block_size {sizes} in the config", expected="[rows, columns]",
            )  # fmt: skip
        ckpt.require(name, (-(-n // sizes[0]), -(-k // sizes[1])))
        return name, (sizes[0], sizes[1])
