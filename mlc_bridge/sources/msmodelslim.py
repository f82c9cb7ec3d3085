"""msModelSlim (Ascend), versions 0 and 1: a description file gives every tensor a type.

    W[n, k] = (q[n, k] - weight_offset[n, g]) * weight_scale[n, g]

================  ==========================================================================
type              what differs
================  ==========================================================================
W8A16             ``weight`` int8 [n, k]; scale and offset float32 [n, 1] or [n, k/g]
W4A16             the same with 4 bits; packed two to a byte since version 1.0.0: two rows
                  [n/2, k] under groups, two columns [n, k/2] under channels
W8A8, W8A8S       static: weight_scale = deq_scale / input_scale where it is not stored;
                  ``deq_scale`` may be int64 whose low half is the float32; bias inside
                  ``quant_bias`` = round(bias / deq_scale - input_offset * sum_k q)
W8A8_DYNAMIC      weight_scale, weight_offset [n, 1]
W8A8_MIX          the union of the two
W4A8_DYNAMIC      ``weight`` [n/2, k] two rows to a byte; version 0 in two levels:
                  weight_scale [n, 1] times weight_scale_second [n, k/g], a whole number
WFP8AFP8_DYNAMIC  ``weight`` float8_e4m3fn [n, k], weight_scale [n, 1], offsets of zero
================  ==========================================================================

A scale of one number holds for the whole weight (``mm_tensor``). Where tensor parallelism was
simulated, ``<layer>.tp_list.<i>`` are slices along k, each with scales of its own: the layer is
their join, and one slice is one group of columns at least.

A file's own ``.bias`` is the layer's bias; ``quant_bias`` contains it already. Scales of the KV
cache and of attention have no use in MLC, whose cache is 16 bit: they are carried, and said so.
Norms that an anti-outlier method changed may be stored twice, as ``<norm>.module.weight`` too.

The description lists every tensor, so what it lists and the file lacks was lost: refused.

Origin: msModelSlim 26.1.0 and 3de0a3c, save/ and core/quantizer/, and vllm-ascend's readers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count, takewhile
from typing import Any

import ml_dtypes
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
    AT_RUN_TIME_TOLD,
    FLOATS,
    Evidence,
    Source,
    activation_scale,
    activation_zero,
    check_float,
    read_float,
    sound_scale,
)

BITS = {
    "W8A16": 8, "W4A16": 4, "W8A8": 8, "W8A8S": 8, "W8A8_DYNAMIC": 8, "W8A8_MIX": 8,
    "W4A8_DYNAMIC": 4, "WFP8AFP8_DYNAMIC": 8,
}  # fmt: skip
FLOAT8 = "WFP8AFP8_DYNAMIC"
REFUSED = {
    "FLOAT": "the file stores no float tensor under this name",
    "W8A8SC": "its weights went through the Ascend compressor, whose format is not public",
    "NF4": "the file holds the 4-bit codes alone: the scale of each block was not saved",
    "MXFP": "its microscaling floats have no scheme here",
    "FLATQUANT": "its activations are rotated at run time",
    "SVD": "its weights are a low-rank part and a quantized rest",
    "W4A4": "its activations have 4 bits and are rotated at run time",
    "W8A8_TIMESTEP": "its scales depend on the diffusion step",
}
PARTS = (
    "weight", "weight_scale", "weight_offset", "weight_scale_second", "weight_offset_second",
    "scale_bias", "deq_scale", "quant_bias", "input_scale", "input_offset",
)  # fmt: skip
# What a run on several devices needs to add its int8 partial sums.
REDUCTIONS = ("gather_scale", "reduce_scale")
AT_RUN_TIME = {
    ".heads_rotation": "QuaRot's online rotation",
    ".kronecker_rotation_m": "QuaRot's online rotation",
    ".div.mul_scale": "a smoothing scale that no norm took up",
    ".svd_lowrank_l1": "a low-rank part beside the weight",
    ".left_trans": "FlatQuant's transform",
}
NORM_COPY = ".module.weight"
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
        joined = dict.fromkeys(x.partition(".tp_list.")[0] for x in ckpt.layers("weight"))
        return tuple(x for x in joined if not _is_float(ckpt, x))

    def parts(self, ckpt: Checkpoint, layer: str) -> tuple[str, ...]:
        slices = _slices(ckpt, layer)
        names = [f"{x}.{part}" for x in dict.fromkeys((layer, *slices)) for part in PARTS]
        if slices != (layer,):
            names += [f"{layer}.{part}" for part in REDUCTIONS]
            names += [f"{layer}.reduce_scale.{i}" for i in range(len(slices))]
        return tuple(name for name in names if name in ckpt)

    def check_whole(self, ckpt: Checkpoint) -> None:
        lost = [x for x in _types(ckpt) if "." in x and x not in ckpt and not x.endswith("_type")]
        if lost:
            raise _lost(lost[0], f"and {len(lost) - 1} more" if len(lost) > 1 else None)
        for name in ckpt.names:
            what = next((AT_RUN_TIME[x] for x in AT_RUN_TIME if name.endswith(x)), None)
            if what:
                raise SourceError(
                    f"this msModelSlim model computes with {what}, which MLC has no place for",
                    where=name, todo="Quantize the model again without it",
                )  # fmt: skip

    def check(self, ckpt: Checkpoint, layer: str, shape: tuple[int, int]) -> None:
        slices = _slices(ckpt, layer)
        if _is_float(ckpt, layer):
            for part in slices:
                check_float(ckpt, part, (shape[0], shape[1] // len(slices)))
            return
        stored = _stored(ckpt, layer)
        found = stored[0].n, sum(x.k for x in stored)
        if found != shape:
            raise SourceError(
                "wrong shape", where=f"{layer}.weight", found=f"a weight {list(found)}",
                expected=f"a weight {list(shape)}",
                todo="The weights do not fit config.json or their description",
            )  # fmt: skip

    def read(self, ckpt: Checkpoint, layer: str) -> QTensor | Array:
        slices = _slices(ckpt, layer)
        if _is_float(ckpt, layer):
            parts = [read_float(ckpt, part) for part in slices]
            return parts[0] if len(parts) == 1 else np.hstack(parts)
        stored = _stored(ckpt, layer)
        codes = _codes(ckpt, layer, stored)
        planes = zip(*(_scale(ckpt, x) for x in stored), strict=True)
        scale, offset = (np.hstack(plane) for plane in planes)
        return QTensor(
            codes=codes,
            scale=scale,
            zero=_zero(offset, stored[0].kind, f"{layer}.weight_offset"),
            block=(1, codes.shape[1] // scale.shape[1]),
            input_scale=activation_scale(ckpt, f"{layer}.input_scale"),
            input_zero=activation_zero(ckpt, f"{layer}.input_offset"),
        )

    def bias(self, ckpt: Checkpoint, layer: str) -> Array | None:
        if f"{layer}.bias" in ckpt or f"{layer}.quant_bias" not in ckpt:
            return super().bias(ckpt, layer)
        weight = ckpt.tensor(f"{layer}.weight")
        ckpt.require(f"{layer}.quant_bias", weight.shape[:1], np.int32)
        step = _deq_scale(ckpt, layer).reshape(-1)
        sums = weight.sum(axis=1, dtype=np.int64)
        offset = ckpt.tensor(f"{layer}.input_offset").astype(np.float64)
        steps = ckpt.tensor(f"{layer}.quant_bias") + offset * sums
        if np.abs(steps).max() <= 0.5:  # nothing but the rounding of the offset's part
            return None
        return (steps * step).astype(np.float32)

    def copies(self, ckpt: Checkpoint) -> Mapping[str, str]:
        return {
            name: name.removesuffix(NORM_COPY) + ".weight"
            for name in ckpt.names
            if name.endswith(NORM_COPY)
        }

    def findings(self, ckpt: Checkpoint) -> tuple[str, ...]:
        told = list(super().findings(ckpt))
        layers = self.layers(ckpt)
        dynamic = [x for x in layers if _kind(ckpt, x).endswith(("_DYNAMIC", "_MIX"))]
        if dynamic:
            told.append(
                f"{len(dynamic)} layers ask for activations quantized at run time "
                f"({_kind(ckpt, dynamic[0])}): {AT_RUN_TIME_TOLD}; the first is {dynamic[0]}"
            )
        sliced = [x for x in layers if _slices(ckpt, x) != (x,)]
        if sliced:
            told.append(
                f"{len(sliced)} layers were quantized in slices for tensor parallelism: they are "
                f"joined, scales of their int8 sums are not used; the first is {sliced[0]}"
            )
        return tuple(told)


def _types(ckpt: Checkpoint) -> dict[str, Any]:
    return ckpt.described("quant_model_description*.json")


def _slices(ckpt: Checkpoint, layer: str) -> tuple[str, ...]:
    """The layer itself, or its slices along k where tensor parallelism was simulated."""
    numbered = (f"{layer}.tp_list.{i}" for i in count())
    return tuple(takewhile(lambda x: f"{x}.weight" in ckpt, numbered)) or (layer,)


def _is_float(ckpt: Checkpoint, layer: str) -> bool:
    weight = f"{_slices(ckpt, layer)[0]}.weight"
    return weight in ckpt and ckpt.dtype(weight) in FLOATS


def _kind(ckpt: Checkpoint, layer: str) -> str:
    """The layer's type, one that can be read; all its parts are listed with it and are there."""
    types, slices = _types(ckpt), _slices(ckpt, layer)
    name = f"{slices[0]}.weight"
    kind = str(types.get(name))
    if kind not in BITS:
        reasons = (text for word, text in REFUSED.items() if word in kind)
        raise SourceError(
            f"msModelSlim's type {kind} cannot be read: {next(reasons, 'this type is not known')}",
            where=name, expected=", ".join(BITS), todo="Quantize the model to one of these types",
        )  # fmt: skip
    for part in (f"{x}.{p}" for x in dict.fromkeys((layer, *slices)) for p in PARTS):
        if part in types and part not in ckpt:
            raise _lost(part)
        if types.get(part, kind) != kind:
            raise SourceError(
                "the description gives the parts of one layer different types", where=part,
                found=types[part], expected=f"{kind}, the type of its weight",
                todo="The description is damaged; fetch it again",
            )  # fmt: skip
    return kind


def _lost(name: str, found: str | None = None) -> SourceError:
    return SourceError(
        "the checkpoint lacks this tensor, which its description lists", where=name, found=found,
        todo="Fetch the weights and the description again, both of one checkpoint",
    )  # fmt: skip


@dataclass(frozen=True)
class Slice:
    """One stored matrix, a layer or its part along k: ``[n, k]`` in ``groups`` of columns."""

    name: str
    kind: str
    n: int
    k: int
    groups: int


def _stored(ckpt: Checkpoint, layer: str) -> tuple[Slice, ...]:
    """The layer's slices, side by side along k."""
    kind = _kind(ckpt, layer)
    slices = tuple(_slice(ckpt, name, kind) for name in _slices(ckpt, layer))
    if len({(x.n, x.k, x.groups) for x in slices}) != 1:
        raise SourceError(
            "the slices of a layer differ in shape", where=f"{layer}.tp_list",
            found=[[x.n, x.k, x.groups] for x in slices],
        )  # fmt: skip
    return slices


def _slice(ckpt: Checkpoint, layer: str, kind: str) -> Slice:
    """Rows, columns and groups of one stored matrix, from the shapes of its parts."""
    name = f"{layer}.weight"
    ckpt.require(name, None, ml_dtypes.float8_e4m3fn if kind == FLOAT8 else np.int8)
    found = ckpt.shape(name)
    rows, k = found if len(found) == 2 else (0, 0)
    n, groups = _grid(ckpt, layer) or (rows, 1)
    if BITS[kind] == 4 and n == 2 * rows:
        rows = n
    elif BITS[kind] == 4 and groups == 1 and "version" in _types(ckpt):
        k *= 2
    if n != rows or not n or not groups or k % groups:
        raise SourceError(
            "wrong shape", where=name, found=found, expected=f"{n} rows, groups by {groups}",
            todo="Weight and scales are of different layers; fetch the checkpoint again",
        )  # fmt: skip
    return Slice(layer, kind, n, k, groups)


def _grid(ckpt: Checkpoint, layer: str) -> tuple[int, int] | None:
    """Rows and groups of the layer's innermost scale; None for one scale of the whole weight."""
    names = (f"{layer}.{s}" for s in ("weight_scale_second", "weight_scale", "deq_scale"))
    name = next((x for x in names if x in ckpt), f"{layer}.weight_scale")
    shape = ckpt.shape(name)
    if shape in ((), (1,), (1, 1)):
        return None
    if len(shape) not in (1, 2):
        raise SourceError("wrong shape", where=name, found=shape, expected="[n] or [n, groups]")
    return shape[0], shape[1] if len(shape) == 2 else 1


def _codes(ckpt: Checkpoint, layer: str, slices: tuple[Slice, ...]) -> PackedArray:
    stored = [ckpt.tensor(f"{x.name}.weight") for x in slices]
    words = stored[0] if len(stored) == 1 else np.hstack(stored)
    whole = f"{layer}.weight"
    if whole in ckpt and not np.array_equal(ckpt.tensor(whole), words):
        raise SourceError("the whole weight differs from its slices in tp_list", where=whole)
    kind, n, k = slices[0].kind, slices[0].n, sum(x.k for x in slices)
    if kind == FLOAT8:
        return PackedArray(words, PLAIN, (n, k))
    if BITS[kind] == 8:
        return from_signed(words, PLAIN, (n, k))
    if words.shape[0] < n:
        return from_signed(words, TWO_ROWS, (n, k))
    if words.shape[1] < k:
        return from_signed(words, TWO_COLUMNS, (n, k))
    if words.min() < -8 or words.max() > 7:
        raise SourceError(
            "codes of more than 4 bits", where=whole, expected=f"-8 to 7, as {kind} says",
            found=f"{words.min()} to {words.max()}",
        )  # fmt: skip
    return pack((words + 8).view(np.uint8), NK4)


def _scale(ckpt: Checkpoint, x: Slice) -> tuple[Array, Array]:
    """Scale and offset of a slice as float32 [n, groups]."""
    name, grid = f"{x.name}.weight_scale", (x.n, x.groups)
    if name not in ckpt:
        scale = _deq_scale(ckpt, x.name) / ckpt.tensor(f"{x.name}.input_scale").astype(np.float32)
        scale = sound_scale(scale.reshape(-1, 1), f"{x.name}.deq_scale")
        return np.broadcast_to(scale, grid), np.zeros(grid, np.float32)
    second = f"{x.name}.weight_scale_second"
    outer = (x.n, 1) if second in ckpt else grid
    scale = sound_scale(_floats(ckpt, name, outer), name)
    offset = _floats(ckpt, f"{x.name}.weight_offset", outer)
    if second not in ckpt:
        return scale, offset
    if np.any(offset):
        raise SourceError(
            "an offset on the outer level is not read", where=f"{x.name}.weight_offset"
        )
    inner = sound_scale(_floats(ckpt, second, grid), second)
    return scale * inner, _floats(ckpt, f"{x.name}.weight_offset_second", grid)


def _floats(ckpt: Checkpoint, name: str, grid: tuple[int, int]) -> Array:
    """A scale or an offset as float32 ``grid``; an offset that is neither listed nor there is zero.

    The offsets of the second level are int64.
    """
    offset = "offset" in name
    if offset and name not in ckpt and name not in _types(ckpt):
        return np.zeros(grid, np.float32)
    shape = ckpt.shape(name)
    if shape not in ((), (1,), (1, 1)):
        ckpt.require(name, grid if len(shape) == 2 else grid[:1])
    ckpt.require(name, None, *FLOATS, *((np.int64,) if offset else ()))
    values = ckpt.tensor(name).astype(np.float32)
    return np.broadcast_to(values.reshape(-1, shape[1] if len(shape) == 2 else 1), grid)


def _deq_scale(ckpt: Checkpoint, layer: str) -> Array:
    name = f"{layer}.deq_scale"
    ckpt.require(name, None, np.int64, np.float32)
    stored = ckpt.tensor(name)
    return float32_bits(stored) if stored.dtype == np.int64 else stored


def _zero(offset: Array, kind: str, name: str) -> PackedArray | None:
    """Unsigned zeros: the offset, 2^(bits-1) higher; it must be a whole number of ``bits`` bits."""
    bits = BITS[kind]
    zero = offset + np.float32(1 << (bits - 1))
    fits = (zero == np.rint(zero)) & (zero >= 0) & (zero < 1 << bits)
    if kind == FLOAT8:
        fits = offset == 0
    if not fits.all():
        what = "is not zero" if kind == FLOAT8 else f"is no whole number of {bits} bits"
        raise SourceError(f"an offset {what}", where=name, found=float(offset[~fits][0]))
    if kind == FLOAT8:
        return None
    return pack(zero.astype(np.uint8), Packing(bits, "n", word_bits=max(8, bits)))
