"""bitsandbytes: NF4, its scales plain or quantized once more, and LLM.int8().

    W[n, k] = nf4[code[n, k]] * absmax[block]              a block is 64 (or more) codes in a row
    absmax  = nested_quant_map[byte] * nested_absmax[byte's block] + nested_offset
    W[n, k] = q[n, k] * SCB[n] / 127                       LLM.int8()

===============================================  =============================================
tensor                                           what it holds
===============================================  =============================================
weight                                           uint8 [n k/2, 1]: two codes to a byte, the
                                                 first in the *high* nibble; int8 [n, k]
weight.absmax                                    float32, or uint8 under double quantization
weight.quant_map                                 float32 [16]: NF4's values
weight.nested_absmax, weight.nested_quant_map    float32: scale and table of the absmax bytes
weight.quant_state.bitsandbytes__nf4             JSON in bytes: shape, blocksize, nested_offset
SCB, weight_format                               float32 [n]; a name's number, not needed
===============================================  =============================================

Double quantization is undone in float32, as the tool does before it multiplies. FP4, its other
table, is refused by name.

Origin: bitsandbytes 0.50 functional.py (QuantState) and transformers' saver.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from mlc_bridge.errors import SourceError
from mlc_bridge.packing import FLOAT4, NIBBLES4, PLAIN, Array, PackedArray, from_signed
from mlc_bridge.qtensor import QTensor, constant_zero
from mlc_bridge.sources.checkpoint import Checkpoint
from mlc_bridge.sources.source import (
    Evidence,
    Source,
    check_float,
    method_said,
    read_float,
    sound_scale,
)

STATE = "weight.quant_state.bitsandbytes__nf4"
PARTS = ("weight", "weight.absmax", "weight.quant_map", "weight.nested_absmax",
         "weight.nested_quant_map", STATE, "SCB", "weight_format")  # fmt: skip


class BitsAndBytes(Source):
    name = "bitsandbytes"

    def evidence(self, ckpt: Checkpoint) -> Evidence:
        supports: list[str] = []
        against: list[str] = []
        own = ckpt.settings.get("quant_method") == self.name
        (supports if own else against).append(method_said(ckpt))
        if layers := self.layers(ckpt):
            supports.append(f"{len(layers)} layers have .{STATE} or .SCB")
        else:
            against.append(f"no layer has .{STATE} or .SCB")
        return Evidence(tuple(supports), tuple(against))

    def layers(self, ckpt: Checkpoint) -> tuple[str, ...]:
        return (*ckpt.layers(STATE), *ckpt.layers("SCB"))

    def parts(self, ckpt: Checkpoint, layer: str) -> tuple[str, ...]:
        return tuple(f"{layer}.{part}" for part in PARTS if f"{layer}.{part}" in ckpt)

    def check(self, ckpt: Checkpoint, layer: str, shape: tuple[int, int]) -> None:
        if f"{layer}.SCB" in ckpt:
            ckpt.require(f"{layer}.weight", shape, np.int8)
            ckpt.require(f"{layer}.SCB", shape[:1], np.float32)
        elif f"{layer}.{STATE}" in ckpt:
            self._check_nf4(ckpt, layer, shape)
        else:
            check_float(ckpt, layer, shape)

    def _check_nf4(self, ckpt: Checkpoint, layer: str, shape: tuple[int, int]) -> None:
        n, k = shape
        found, block = _state(ckpt, layer)
        if found != shape or k % block:
            raise SourceError(
                "wrong shape", where=f"{layer}.{STATE}", found=f"{found} in blocks of {block}",
                expected=f"{shape}, whole blocks in every row",
            )  # fmt: skip
        ckpt.require(f"{layer}.weight", (n * k // 2, 1), np.uint8)
        ckpt.require(f"{layer}.weight.absmax", (n * k // block,), np.float32, np.uint8)
        ckpt.require(f"{layer}.weight.quant_map", (16,), np.float32)

    def read(self, ckpt: Checkpoint, layer: str) -> QTensor | Array:
        if f"{layer}.SCB" in ckpt:
            return _int8(ckpt, layer)
        if f"{layer}.{STATE}" not in ckpt:
            return read_float(ckpt, layer)
        (n, k), block = _state(ckpt, layer)
        self.check(ckpt, layer, (n, k))
        values = ckpt.tensor(f"{layer}.weight.quant_map")
        if not np.array_equal(values, np.array(FLOAT4["nf4"], np.float32)):
            raise SourceError("another table than NF4's", where=f"{layer}.weight.quant_map")
        words = ckpt.tensor(f"{layer}.weight").reshape(n, k // 2)
        words = (words << np.uint8(4)) | (words >> np.uint8(4))
        name = f"{layer}.weight.absmax"
        scale = sound_scale(_absmax(ckpt, layer), name, zero_allowed=True)
        codes = PackedArray(words, NIBBLES4, (n, k), "nf4")
        return QTensor(codes, scale.reshape(n, k // block), None, (1, block))


def _int8(ckpt: Checkpoint, layer: str) -> QTensor:
    weight = ckpt.tensor(f"{layer}.weight")
    ckpt.require(f"{layer}.weight", None, np.int8)
    ckpt.require(f"{layer}.SCB", weight.shape[:1], np.float32)
    scale = ckpt.tensor(f"{layer}.SCB") / np.float32(127)
    scale = sound_scale(scale, f"{layer}.SCB", zero_allowed=True)[:, None]
    codes = from_signed(weight, PLAIN, weight.shape)
    return QTensor(codes, scale, constant_zero(128, scale.shape, PLAIN), (1, weight.shape[1]))


def _state(ckpt: Checkpoint, layer: str) -> tuple[tuple[int, int], int]:
    """Shape [n, k] and block of the layer, as its JSON says."""
    state = _json(ckpt, layer)
    shape, block = state.get("shape"), state.get("blocksize")
    sizes = [*shape, block] if isinstance(shape, list) else []
    if len(sizes) != 3 or not all(type(x) is int and x > 0 for x in sizes):
        raise SourceError(
            "not a shape and a block", where=f"{layer}.{STATE}", found=f"{shape}, {block}"
        )
    return (sizes[0], sizes[1]), sizes[2]


def _json(ckpt: Checkpoint, layer: str) -> dict[str, Any]:
    name = f"{layer}.{STATE}"
    ckpt.require(name, None, np.uint8)
    try:
        found = json.loads(ckpt.tensor(name).tobytes())
    except ValueError as error:
        raise SourceError("not the JSON of a quantized weight", where=name) from error
    if not isinstance(found, dict):
        raise SourceError("not the JSON of a quantized weight", where=name)
    return found


def _absmax(ckpt: Checkpoint, layer: str) -> Array:
    """The blocks' scales, float32."""
    absmax = ckpt.tensor(f"{layer}.weight.absmax")
    if absmax.dtype != np.uint8:
        return absmax
    state, nested = _json(ckpt, layer), f"{layer}.weight.nested_absmax"
    block, offset = state.get("nested_blocksize"), state.get("nested_offset")
    if type(block) is not int or block <= 0 or not isinstance(offset, int | float):
        raise SourceError(
            "no block and offset of the nested scales", where=f"{layer}.{STATE}",
            found=f"{block}, {offset}",
        )  # fmt: skip
    ckpt.require(nested, (-(-absmax.size // block),), np.float32)
    ckpt.require(f"{layer}.weight.nested_quant_map", (256,), np.float32)
    outer = np.repeat(ckpt.tensor(nested), block)[: absmax.size]
    inner = ckpt.tensor(f"{layer}.weight.nested_quant_map")[absmax]
    return inner * outer + np.float32(offset)
