"""Hugging Face ``quant_method: fp8`` (DeepSeek style), LLMC's fp8 exports, and FP8 of ModelOpt,
FBGEMM and Quark, whose tensors are the same.

    W[n, k] = weight[n, k] * scale[n // bn, k // bk]        the scale multiplies, "inv" or not

================  =================  =========================================================
tensor            dtype              shape
================  =================  =========================================================
weight            float8             [n, k]
weight_scale_inv  float32, bfloat16  [ceil(n/bn), ceil(k/bk)] under ``weight_block_size``, else
                  or float8_e8m0     one number, or [n] or [n, 1] for a scale per row; some
                                     writers call it ``weight_scale``
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
    method_said,
    read_float,
    sound_scale,
)

FLOAT8 = (ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2)
SCALES = ("weight_scale_inv", "weight_scale")
INPUT_SCALES = ("activation_scale", "input_scale")
BOUND = "input_scale_ub"  # fbgemm's bound of its dynamic activation scales; one for all layers


class HFFP8(Source):
    name = "hf-fp8"

    def evidence(self, ckpt: Checkpoint) -> Evidence:
        supports: list[str] = []
        against: list[str] = []
        said_so = supports if ckpt.settings.get("quant_method") == "fp8" else against
        said_so.append(method_said(ckpt))
        layers = self.layers(ckpt)
        if layers:
            supports.append(f"{len(layers)} layers have a float8 .weight")
        else:
            against.append("no layer has a float8 .weight")
        return Evidence(tuple(supports), tuple(against))

    def layers(self, ckpt: Checkpoint) -> tuple[str, ...]:
        return tuple(x for x in ckpt.layers("weight") if ckpt.dtype(f"{x}.weight") in FLOAT8)

    def parts(self, ckpt: Checkpoint, layer: str) -> tuple[str, ...]:
        names = tuple(f"{layer}.{part}" for part in ("weight", *SCALES, *INPUT_SCALES, BOUND))
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

    def findings(self, ckpt: Checkpoint) -> tuple[str, ...]:
        told = super().findings(ckpt)
        grids = [x for x in HFFP8.layers(self, ckpt) if self._by_block(ckpt, x)]
        if grids and "weight_block_size" not in ckpt.settings:
            told += ("the config does not say weight_block_size: taken from the scales' shapes",)
        return told

    def _scale(
        self, ckpt: Checkpoint, layer: str, shape: tuple[int, int]
    ) -> tuple[str, tuple[int, int]]:
        """Name of the layer's scale, and the rows and columns that share one."""
        name, (n, k), settings = _scale_name(ckpt, layer), shape, ckpt.settings
        ckpt.require(name, None, *FLOATS, ml_dtypes.float8_e8m0fnu)
        found = ckpt.shape(name)
        if found in ((), (1,)):
            return name, shape
        # LLMC says weight_block_size of scales by row as well; its scales by block are "_inv".
        by_row = name.endswith(".weight_scale") or not settings.get("weight_block_size")
        if found in ((n, 1), (n,)) and by_row:
            return name, (1, k)
        silent = "weight_block_size" not in settings
        sizes = _block_of(shape, found) if silent else settings["weight_block_size"]
        if not isinstance(sizes, list) or len(sizes) != 2 or not all(map(_power_of_two, sizes)):
            raise SourceError(
                "scales by block, but no block size", where=name,
                found=f"scales {list(found)}, weight_block_size {settings.get('weight_block_size')}"
                " in the config",
                expected="[rows, columns], each a power of two",
            )  # fmt: skip
        ckpt.require(name, (-(-n // sizes[0]), -(-k // sizes[1])))
        return name, (sizes[0], sizes[1])

    def _by_block(self, ckpt: Checkpoint, layer: str) -> bool:
        found = ckpt.shape(_scale_name(ckpt, layer))
        return len(found) == 2 and found != (ckpt.shape(f"{layer}.weight")[0], 1)


def _scale_name(ckpt: Checkpoint, layer: str) -> str:
    names = (f"{layer}.{s}" for s in SCALES)
    return next((name for name in names if name in ckpt), f"{layer}.{SCALES[0]}")


def _power_of_two(size: object) -> bool:
    """Every tool's blocks are; and of the powers of two only one fits a given number of blocks."""
    return type(size) is int and size > 0 and size & (size - 1) == 0


def _block_of(shape: tuple[int, int], grid: tuple[int, ...]) -> list[int] | None:
    """The block that cuts ``shape`` into ``grid``; None where no power of two does."""
    if len(grid) != 2:
        return None
    sizes = [
        next((s for i in range(31) if -(-length // (s := 1 << i)) == blocks), 0)
        for length, blocks in zip(shape, grid, strict=True)
    ]
    return sizes if all(sizes) else None
