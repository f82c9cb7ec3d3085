"""msModelSlim (Ascend), versions 0 and 1: a description file gives every tensor a type.

    W[n, k] = (q[n, k] - weight_offset[n, g]) * weight_scale[n, g]

==============  ============================================================================
type            what differs
==============  ============================================================================
W8A16           ``weight`` int8 [n, k]; scale and offset float32 [n, 1] or [n, k/g]
W4A16           the same with 4 bits; packed two to a byte since version 1.0.0: two rows
                [n/2, k] under groups, two columns [n, k/2] under channels
W8A8, W8A8S     static: weight_scale = deq_scale / input_scale where it is not stored;
                ``deq_scale`` may be int64 whose low half is the float32; bias inside
                ``quant_bias`` = round(bias / deq_scale - input_offset * sum_k q)
W8A8_DYNAMIC    weight_scale, weight_offset [n, 1]
W8A8_MIX        the union of the two
W4A8_DYNAMIC    ``weight`` [n/2, k] two rows to a byte; version 0 in two levels:
                weight_scale [n, 1] times weight_scale_second [n, k/g]
==============  ============================================================================

A file's own ``.bias`` is the layer's bias; ``quant_bias`` contains it already. Scales of the KV
cache and of attention have no use in MLC, whose cache is 16 bit: they are carried, and said so.

Origin: msModelSlim (3de0a3c), save/ and core/quantizer/, and vllm-ascend's readers.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mlc_bridge.errors import SourceError
from mlc_bridge.packing import (
    NK4,
    PLAIN,
    Array,
    PackedArray,
    Packing,
    float32_bits,
    from_signed,
    pack,
)
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

BITS = {
    "W8A16": 8, "W4A16": 4, "W8A8": 8, "W8A8S": 8, "W8A8_DYNAMIC": 8, "W8A8_MIX": 8,
    "W4A8_DYNAMIC": 4,
}  # fmt: skip
REFUSED = {
    "W8A8SC": "its weights went through the Ascend compressor, whose format is not public",
    "NF4": "its codes stand for the 16 NormalFloat values, which no integer scheme holds",
    "MXFP": "its microscaling floats have no scheme here",
    "W4A4": "its activations are rotated at run time",
    "W8A8_TIMESTEP": "its scales depend on the diffusion step",
    "WFP8AFP8": "its float8 layout is not known here",
}
PARTS = (
    "weight", "weight_scale", "weight_offset", "weight_scale_second", "weight_offset_second",
    "scale_bias", "deq_scale", "quant_bias", "input_scale", "input_offset",
)  # fmt: skip
TWO_ROWS = Packing(4, "n", word_bits=8)
TWO_COLUMNS = Packing(4, "k", word_bits=8)


class MsModelSlim(Source):
    name = "msmodelslim"

    def evidence(self, ckpt: Checkpoint) -> Evidence:
        types = _types(ckpt)
        if not types:
            return Evidence((), ("there is no quant_model_description.json",))
        layers = self.layers(ckpt)
        supports = (f"its description calls {len(layers)} weights quantized",) if layers else ()
        return Evidence(supports, () if layers else ("its description calls every weight FLOAT",))

    def layers(self, ckpt: Checkpoint) -> tuple[str, ...]:
        return tuple(x for x in ckpt.layers("weight") if not _is_float(ckpt, x))

    def parts(self, ckpt: Checkpoint, layer: str) -> tuple[str, ...]:
        if _is_float(ckpt, layer):
            return (f"{layer}.weight",)
        return tuple(f"{layer}.{part}" for part in PARTS if f"{layer}.{part}" in ckpt)

    def check(self, ckpt: Checkpoint, layer: str, shape: tuple[int, int]) -> None:
        if _is_float(ckpt, layer):
            return check_float(ckpt, layer, shape)
        found = _shape(ckpt, layer)
        if found != shape:
            raise SourceError(
                "wrong shape", where=f"{layer}.weight", found=f"a weight {list(found)}",
                expected=f"a weight {list(shape)}",
                todo="The weights do not fit config.json or their description",
            )  # fmt: skip
        return None

    def read(self, ckpt: Checkpoint, layer: str) -> QTensor | Array:
        if _is_float(ckpt, layer):
            return read_float(ckpt, layer)
        shape = _shape(ckpt, layer)
        codes = _codes(ckpt, layer, shape)
        scale, offset = _scale(ckpt, layer, shape[0])
        groups = scale.shape[1]
        inputs = f"{layer}.input_offset"
        symmetric = inputs not in ckpt or not np.any(ckpt.tensor(inputs))
        return QTensor(
            codes=codes,
            scale=scale,
            zero=_zero(offset, codes.packing.bits, f"{layer}.weight_offset"),
            block=(1, shape[1] // groups),
            # With an offset the scale alone does not describe the activations.
            input_scale=activation_scale(ckpt, f"{layer}.input_scale") if symmetric else None,
        )

    def bias(self, ckpt: Checkpoint, layer: str) -> Array | None:
        if f"{layer}.bias" in ckpt or f"{layer}.quant_bias" not in ckpt:
            return super().bias(ckpt, layer)
        step = _deq_scale(ckpt, layer).reshape(-1)
        ckpt.require(f"{layer}.quant_bias", step.shape, np.int32)
        sums = ckpt.tensor(f"{layer}.weight").sum(axis=1, dtype=np.int64)
        offset = ckpt.tensor(f"{layer}.input_offset").astype(np.float64)
        steps = ckpt.tensor(f"{layer}.quant_bias") + offset * sums
        if np.abs(steps).max() <= 0.5:  # nothing but the rounding of the offset's part
            return None
        return (steps * step).astype(np.float32)


def _types(ckpt: Checkpoint) -> dict[str, Any]:
    return ckpt.json("quant_model_description*.json")


def _is_float(ckpt: Checkpoint, layer: str) -> bool:
    weight = f"{layer}.weight"
    return weight in ckpt and ckpt.dtype(weight) in FLOATS


def _bits(ckpt: Checkpoint, layer: str) -> int:
    name = f"{layer}.weight"
    kind = str(_types(ckpt).get(name))
    if kind in BITS:
        return BITS[kind]
    why = next((text for word, text in REFUSED.items() if word in kind), "this type is not known")
    raise SourceError(
        f"msModelSlim's type {kind} cannot be read: {why}", where=name, expected=", ".join(BITS),
        todo="Quantize the model to one of these types",
    )  # fmt: skip


def _shape(ckpt: Checkpoint, layer: str) -> tuple[int, int]:
    """n and k of the weight, from the shapes of its parts."""
    name, bits = f"{layer}.weight", _bits(ckpt, layer)
    ckpt.require(name, None, np.int8)
    n, groups = _grid(ckpt, layer)
    found = ckpt.shape(name)
    rows, k = found if len(found) == 2 else (0, 0)
    if bits == 4 and n == 2 * rows:
        rows = n
    elif bits == 4 and groups == 1 and _packed(ckpt):
        k *= 2
    if n != rows or not n or not groups or k % groups:
        raise SourceError(
            "wrong shape", where=name, found=found, expected=f"{n} rows, groups by {groups}",
            todo="Weight and scales are of different layers; fetch the checkpoint again",
        )  # fmt: skip
    return n, k


def _grid(ckpt: Checkpoint, layer: str) -> tuple[int, int]:
    """Rows and groups of the layer's innermost scale."""
    names = (f"{layer}.{s}" for s in ("weight_scale_second", "weight_scale", "deq_scale"))
    name = next((x for x in names if x in ckpt), f"{layer}.weight_scale")
    shape = ckpt.shape(name)
    if len(shape) not in (1, 2):
        raise SourceError("wrong shape", where=name, found=shape, expected="[n] or [n, groups]")
    return shape[0], shape[1] if len(shape) == 2 else 1


def _packed(ckpt: Checkpoint) -> bool:
    return "version" in _types(ckpt)


def _codes(ckpt: Checkpoint, layer: str, shape: tuple[int, int]) -> PackedArray:
    words = ckpt.tensor(f"{layer}.weight")
    if _bits(ckpt, layer) == 8:
        return from_signed(words, PLAIN, shape)
    if words.shape[0] < shape[0]:
        return from_signed(words, TWO_ROWS, shape)
    if words.shape[1] < shape[1]:
        return from_signed(words, TWO_COLUMNS, shape)
    return pack((words + 8).view(np.uint8), NK4)


def _scale(ckpt: Checkpoint, layer: str, n: int) -> tuple[Array, Array]:
    """Scale and offset as float32 [n, groups]."""
    name = f"{layer}.weight_scale"
    if name not in ckpt:
        scale = _deq_scale(ckpt, layer) / ckpt.tensor(f"{layer}.input_scale").astype(np.float32)
        return sound_scale(scale.reshape(n, 1), f"{layer}.deq_scale"), np.zeros((n, 1), np.float32)
    second, grid = f"{layer}.weight_scale_second", _grid(ckpt, layer)
    outer = (n, 1) if second in ckpt else grid
    scale = sound_scale(_floats(ckpt, name, outer), name)
    offset = _floats(ckpt, f"{layer}.weight_offset", outer)
    if second not in ckpt:
        return scale, offset
    if np.any(offset):
        raise SourceError(
            "an offset on the outer level is not read", where=f"{layer}.weight_offset"
        )
    inner = sound_scale(_floats(ckpt, second, grid), second)
    return scale * inner, _floats(ckpt, f"{layer}.weight_offset_second", grid)


def _floats(ckpt: Checkpoint, name: str, grid: tuple[int, int]) -> Array:
    """A scale or an offset as float32 ``grid``; an offset that is not there is zero."""
    if name not in ckpt and "offset" in name:
        return np.zeros(grid, np.float32)
    ckpt.require(name, grid if len(ckpt.shape(name)) == 2 else grid[:1], *FLOATS)
    return ckpt.tensor(name).astype(np.float32).reshape(grid)


def _deq_scale(ckpt: Checkpoint, layer: str) -> Array:
    name = f"{layer}.deq_scale"
    ckpt.require(name, None, np.int64, np.float32)
    stored = ckpt.tensor(name)
    return float32_bits(stored) if stored.dtype == np.int64 else stored


def _zero(offset: Array, bits: int, name: str) -> PackedArray:
    """Unsigned zeros: the offset, 2^(bits-1) higher; it must be a whole number of ``bits`` bits."""
    zero = offset + np.float32(1 << (bits - 1))
    whole = (zero == np.rint(zero)) & (zero >= 0) & (zero < 1 << bits)
    if not whole.all():
        raise SourceError(
            f"an offset is no whole number of {bits} bits", where=name,
            found=float(offset[~whole][0]),
        )  # fmt: skip
    return pack(zero.astype(np.uint8), Packing(bits, "n", word_bits=max(8, bits)))
