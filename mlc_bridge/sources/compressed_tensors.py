"""compressed-tensors, as llm-compressor writes it; also LLMC's vllm-style exports.

    W[n, k] = (q[n, k] - zero[n, g]) * scale[n, g]

What the tensors of a layer are decides how it is read; the config adds bits, block and symmetry.

================  =====================  =====================================================
tensor            shape                  layout
================  =====================  =====================================================
weight_packed     int32 [n, k/w]         w = 32 / bits input channels a word, natural order,
                                         q + 2^(bits-1); uint8: 4-bit floats (``float4.py``)
weight_global_..  [1]                    divides the scales of 4-bit floats (NVFP4)
weight            int8 or float8 [n, k]  one code each, of fewer than 8 bits too (LLMC: int32)
weight_scale      [1], [n, 1], [n, k/g]  per tensor, channel, group; [n/r, k/c] per block
weight_zero_point int32 [n/w, k/g]       w *output* channels a word, + 2^(bits-1); int8 as they
                                         are beside an int8 weight, and before 0.9.3, which
                                         also left them out where all are zero
weight_g_idx      int32 [k]              group of each input channel (0.18 and older)
weight_shape      int64 [2]              n and k; LLMC leaves it out
input_scale       [1]                    static activations
================  =====================  =====================================================

Signed integers become unsigned codes 2^(bits-1) higher, and so do their zeros. Settings that a
config leaves out take the package's defaults.

Origin: compressed-tensors 0.18 to 0.20, compressors/ and quantization/.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from mlc_bridge.errors import SourceError
from mlc_bridge.packing import PLAIN, Array, PackedArray, Packing, from_signed, pack
from mlc_bridge.qtensor import QTensor, constant_zero, group_order, reorder
from mlc_bridge.sources import float4
from mlc_bridge.sources.checkpoint import Checkpoint
from mlc_bridge.sources.foreign import INSTEAD
from mlc_bridge.sources.patterns import matches
from mlc_bridge.sources.source import (
    AT_RUN_TIME_TOLD,
    FLOATS,
    Evidence,
    Source,
    activation_scale,
    activation_zero,
    check_float,
    method_said,
    read_float,
    sound_scale,
)

FLOAT8 = (ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2)
INTS = (np.int8, np.int32)
FLOAT4 = ("nvfp4-pack-quantized", "mxfp4-pack-quantized")
FORMATS = (
    "pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "dense", *FLOAT4,
)  # fmt: skip
# Words for "the columns of a group are not neighbours"; "weight" and "static" leave them so.
SCATTERED = ("group", "dynamic", "true")
PARTS = (
    "weight_packed", "weight", "weight_scale", "weight_zero_point", "weight_g_idx", "weight_shape",
    "weight_global_scale", "input_scale", "input_zero_point", "input_global_scale",
)  # fmt: skip


class CompressedTensors(Source):
    name = "compressed-tensors"

    def evidence(self, ckpt: Checkpoint) -> Evidence:
        settings = ckpt.settings
        supports: list[str] = []
        against: list[str] = []
        own = settings.get("quant_method") == "compressed-tensors"
        (supports if own else against).append(method_said(ckpt))
        layers = ckpt.layers("weight_scale")
        if layers:
            supports.append(f"{len(layers)} layers have .weight_scale")
        else:
            against.append("no layer has .weight_scale")
        return Evidence(tuple(supports), tuple(against))

    def layers(self, ckpt: Checkpoint) -> tuple[str, ...]:
        return tuple(x for x in ckpt.layers("weight_scale") if not _is_float(ckpt, x))

    def parts(self, ckpt: Checkpoint, layer: str) -> tuple[str, ...]:
        if _is_float(ckpt, layer):
            return (f"{layer}.weight",)
        return tuple(f"{layer}.{part}" for part in PARTS if f"{layer}.{part}" in ckpt)

    def check(self, ckpt: Checkpoint, layer: str, shape: tuple[int, int]) -> None:
        if _is_float(ckpt, layer):
            return check_float(ckpt, layer, shape)
        if _is_float4(ckpt, layer):
            _weights(ckpt, layer)
            return float4.check(ckpt, *_float4_names(layer), shape)
        if f"{layer}.weight_packed" in ckpt:
            packing = Packing(_bits(layer, _weights(ckpt, layer)), "k")
            ckpt.require(f"{layer}.weight_packed", packing.words_shape(*shape), np.int32)
        else:
            ckpt.require(f"{layer}.weight", shape, *INTS, *FLOAT8)
        if (found := _shape(ckpt, layer)) != shape:
            raise SourceError("wrong shape", where=layer, found=found, expected=shape)
        block = self._block(ckpt, layer, shape)
        _check_present(ckpt, layer, grouped=block[1] < shape[1])
        return None

    def read(self, ckpt: Checkpoint, layer: str) -> QTensor | Array:
        if _is_float(ckpt, layer):
            return read_float(ckpt, layer)
        if _is_float4(ckpt, layer):
            return _read_float4(ckpt, layer)
        shape = _shape(ckpt, layer)
        self.check(ckpt, layer, shape)
        block = self._block(ckpt, layer, shape)
        codes, zero = _codes(ckpt, layer, shape), None
        grid = (-(-shape[0] // block[0]), -(-shape[1] // block[1]))
        if codes.words.dtype not in FLOAT8:
            zero = _zero(ckpt, layer, grid, codes.packing)
        perm = _order(ckpt, layer, shape[1], block[1])
        scale = sound_scale(ckpt.tensor(f"{layer}.weight_scale"), f"{layer}.weight_scale")
        return QTensor(
            codes=reorder(codes, perm),
            scale=scale.reshape(grid),
            zero=zero,
            block=block,
            perm=perm,
            input_scale=activation_scale(ckpt, f"{layer}.input_scale"),
            input_zero=activation_zero(ckpt, f"{layer}.input_zero_point"),
        )

    def findings(self, ckpt: Checkpoint) -> tuple[str, ...]:
        return (*super().findings(ckpt), *_unused_inputs(ckpt), *self._zeros_told(ckpt))

    def _zeros_told(self, ckpt: Checkpoint) -> tuple[str, ...]:
        asymmetric = [x for x in self.layers(ckpt) if not _weights(ckpt, x).get("symmetric", True)]
        left = [x for x in asymmetric if f"{x}.weight_zero_point" not in ckpt]
        if not left or ckpt.dtype(f"{left[0]}.{_code_part(ckpt, left[0])}") in FLOAT8:
            return ()
        return (
            f"{len(left)} asymmetric layers have no zero points, which version "
            f"{ckpt.settings['version']} of compressed-tensors left out where all are zero: read "
            f"as zero; the first is {left[0]}",
        )

    def _block(self, ckpt: Checkpoint, layer: str, shape: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns per scale, held against the scale's own shape."""
        args, (n, k), name = _weights(ckpt, layer), shape, f"{layer}.weight_scale"
        group, structure = args.get("group_size"), args.get("block_structure") or [0, 0]
        by_group = "tensor" if group is None else "channel" if group == -1 else "group"
        strategy = args.get("strategy") or by_group
        sizes: Any = {
            "tensor": [n, k],
            "channel": [1, k],
            "group": [1, group],
            "block": structure,
        }.get(str(strategy), [])
        fits = isinstance(sizes, list) and [type(s) is int and s > 0 for s in sizes] == [True, True]
        if not fits or (strategy == "group" and k % sizes[1]):
            raise SourceError(
                "the quantization blocks do not fit this layer", where=name,
                found=f"strategy {strategy!r}, group_size {group!r}, block {structure!r}",
                expected=f"blocks of whole columns of a weight {list(shape)}",
            )  # fmt: skip
        block = (sizes[0], sizes[1])
        if strategy == "block" and any(s & (s - 1) for s in sizes):  # else others would fit as well
            raise SourceError("block sizes are powers of two", where=name, found=sizes)
        grid = (-(-n // block[0]), -(-k // block[1]))
        found = ckpt.shape(name)
        if strategy in ("tensor", "channel") and found in ((1,), ()):
            block = (n, k)  # LLMC says "channel" of one scale as well
        elif found != grid and not (strategy == "channel" and found == (n,)):
            raise SourceError(
                "wrong shape", where=name, found=found, expected=grid,
                todo="strategy or group_size in the config is of another checkpoint",
            )  # fmt: skip
        ckpt.require(name, None, *FLOATS)
        return block


def _is_float(ckpt: Checkpoint, layer: str) -> bool:
    weight = f"{layer}.weight"
    return weight in ckpt and ckpt.dtype(weight) in FLOATS


def _is_float4(ckpt: Checkpoint, layer: str) -> bool:
    packed = f"{layer}.weight_packed"
    return packed in ckpt and ckpt.dtype(packed) == np.uint8


def _float4_names(layer: str) -> tuple[str, str]:
    return f"{layer}.weight_packed", f"{layer}.weight_scale"


def _read_float4(ckpt: Checkpoint, layer: str) -> QTensor:
    codes, scale = _float4_names(layer)
    outer, divisor = f"{layer}.weight_global_scale", None
    float4.check(ckpt, codes, scale, float4.shape(ckpt, codes))
    if ckpt.dtype(scale) == float4.E4M3:  # the tool divides by it
        divisor = np.float32(1) / float4.one_number(ckpt, outer)
    return float4.e2m1(ckpt.tensor(codes), ckpt.tensor(scale), scale, divisor)


def _unused_inputs(ckpt: Checkpoint) -> tuple[str, ...]:
    """What the config says of the activations, where it is more than a static scale."""
    told, layers = [], ckpt.layers("input_global_scale")
    if layers:
        told.append(
            f"{len(layers)} layers ask for activations in 4-bit floats: theirs stay float; the "
            f"first is {layers[0]}"
        )
    groups = ckpt.settings.get("config_groups")
    each = groups.values() if isinstance(groups, dict) else ()
    inputs = [g.get("input_activations") for g in each if isinstance(g, dict)]
    if any(isinstance(a, dict) and (a.get("num_bits"), a.get("type"), a.get("dynamic")) ==
           (8, "int", True) for a in inputs):  # fmt: skip
        told.append(f"the config asks for activations in 8 bits at run time: {AT_RUN_TIME_TOLD}")
    return tuple(told)


def _weights(ckpt: Checkpoint, layer: str) -> Mapping[str, Any]:
    """The weight settings of the config group whose targets name the layer.

    A layer's own name wins over a pattern (``re:``), a pattern over a class such as ``Linear``.
    """
    settings = ckpt.settings
    groups = settings.get("config_groups")
    if not isinstance(groups, dict) or not all(isinstance(g, dict) for g in groups.values()):
        raise SourceError("config_groups is no mapping of groups", where=layer, found=groups)
    _refuse_extras(settings, layer)
    best: tuple[int, Mapping[str, Any]] | None = None
    for group in groups.values():
        targets = group.get("targets")
        targets = targets if isinstance(targets, list) else [targets]
        called = (layer, ckpt.stored(layer))
        rank = max((_rank(str(t), name) for t in targets for name in called), default=0)
        if rank and (best is None or rank > best[0]):
            best = rank, group
    if best is None or not isinstance(best[1].get("weights"), dict):
        raise SourceError(
            "the layer is stored quantized, but no config group describes its weights",
            where=layer,
            found=f"config groups for {[g.get('targets') for g in groups.values()]}",
        )
    form = best[1].get("format") or settings.get("format")
    if form not in (None, "mixed-precision", *FORMATS):
        raise SourceError(
            "this form of compressed-tensors is not read", where=layer, found=repr(form),
            expected=", ".join(FORMATS), todo=INSTEAD,
        )  # fmt: skip
    if (
        form is not None
        and form != "mixed-precision"
        and (form in FLOAT4) != _is_float4(ckpt, layer)
    ):
        raise SourceError(
            "the config and the codes are of two formats", where=layer, found=repr(form),
            expected=f"a format of codes in {ckpt.dtype(f'{layer}.{_code_part(ckpt, layer)}')}",
        )  # fmt: skip
    return dict(best[1]["weights"])


def _refuse_extras(settings: Mapping[str, Any], layer: str) -> None:
    sparse = settings.get("sparsity_config")
    if isinstance(sparse, dict) and sparse.get("format", "dense") != "dense":
        raise SourceError(
            "sparse weights are not read", where=layer, found=sparse.get("format"), todo=INSTEAD
        )
    text = json.dumps(settings.get("transform_config") or {})
    places = re.findall(r'"location": "([^"]*)"', text)
    online = [p for p in places if not p.startswith("weight_")]
    if online:
        raise SourceError(
            "rotations that run at run time have no place in MLC's graph", where=layer,
            found=f"transform_config with locations {', '.join(online)}",
            todo=INSTEAD,
        )  # fmt: skip


def _rank(target: str, layer: str) -> int:
    if target.startswith("re:"):
        return 2 if matches(target[3:], layer) else 0
    if target == layer or layer.endswith(f".{target}"):
        return 3
    if target == "Embedding":
        return int("embed" in layer.rpartition(".")[2])
    return int(target.endswith("Linear"))  # the class of every other layer


def _check_present(ckpt: Checkpoint, layer: str, grouped: bool) -> None:
    """What the settings speak of is there; a missing part must not read as an empty one."""
    args, codes = _weights(ckpt, layer), ckpt.dtype(f"{layer}.{_code_part(ckpt, layer)}")
    zero, order = f"{layer}.weight_zero_point", f"{layer}.weight_g_idx"
    if args.get("type") not in (None, "float" if codes in FLOAT8 else "int"):
        raise SourceError(
            "the config and the codes are of two types", where=layer,
            found=f"codes in {codes} and type {args['type']!r}",
            todo="The quantization settings are of another checkpoint",
        )  # fmt: skip
    wanted = not args.get("symmetric", True) and codes not in FLOAT8
    if wanted and zero not in ckpt and not _zeros_left_out(ckpt):
        raise SourceError("asymmetric weights without their zero points", where=zero)
    if grouped and str(args.get("actorder")).lower() in SCATTERED and order not in ckpt:
        raise SourceError(
            "actorder says that the columns of a group are scattered, and the tensor that says "
            "where is missing", where=order, todo="Fetch the checkpoint again",
        )  # fmt: skip


def _zeros_left_out(ckpt: Checkpoint) -> bool:
    """Before 0.9.3 the package stored no zero points that are all zero; then no layer has any."""
    version = re.match(r"(\d+)\.(\d+)\.(\d+)", str(ckpt.settings.get("version")))
    old = version is not None and tuple(map(int, version.groups())) < (0, 9, 3)
    return old and not ckpt.layers("weight_zero_point")


def _code_part(ckpt: Checkpoint, layer: str) -> str:
    return "weight_packed" if f"{layer}.weight_packed" in ckpt else "weight"


def _bits(layer: str, args: Mapping[str, Any]) -> int:
    bits = args.get("num_bits", 8)
    if bits not in (1, 2, 4, 8):
        raise SourceError(
            "codes of this width straddle words", where=f"{layer}.weight_packed",
            found=f"num_bits {bits}", expected="1, 2, 4 or 8", todo=INSTEAD,
        )  # fmt: skip
    return int(bits)


def _shape(ckpt: Checkpoint, layer: str) -> tuple[int, int]:
    """n and k: as stored, or from the words where every word is full."""
    if f"{layer}.weight_shape" in ckpt:
        ckpt.require(f"{layer}.weight_shape", (2,), np.int64, np.int32)
        n, k = (int(x) for x in ckpt.tensor(f"{layer}.weight_shape"))
        return n, k
    packed = _code_part(ckpt, layer) == "weight_packed"
    found = ckpt.shape(f"{layer}.{_code_part(ckpt, layer)}")
    if len(found) != 2:
        raise SourceError("not a matrix", where=layer, found=found)
    per_word = Packing(_bits(layer, _weights(ckpt, layer)), "k").per_word if packed else 1
    return found[0], found[1] * per_word


def _codes(ckpt: Checkpoint, layer: str, shape: tuple[int, int]) -> PackedArray:
    if f"{layer}.weight_packed" in ckpt:
        packing = Packing(_bits(layer, _weights(ckpt, layer)), "k")
        words = ckpt.tensor(f"{layer}.weight_packed").view(np.uint32)
        return PackedArray(words, packing, shape)
    name = f"{layer}.weight"
    weight, bits = ckpt.tensor(name), _bits(layer, _weights(ckpt, layer))
    if weight.dtype in FLOAT8:
        return PackedArray(weight, PLAIN, shape)
    if weight.dtype == np.int8 and bits == 8:
        return from_signed(weight, PLAIN, shape)
    return _packed(weight, Packing(bits, "k", word_bits=max(8, bits)), name, "code")


def _zero(ckpt: Checkpoint, layer: str, grid: tuple[int, int], codes: Packing) -> PackedArray:
    name, half = f"{layer}.weight_zero_point", 1 << (codes.bits - 1)
    if name not in ckpt:
        return constant_zero(half, grid, Packing(codes.bits, "n"))
    packed = f"{layer}.weight_packed" in ckpt
    if ckpt.dtype(name) == np.int8 and (packed or codes.bits < 8):
        ckpt.require(name, grid)
        return _packed(ckpt.tensor(name), Packing(codes.bits, "n"), name, "zero point")
    if packed:
        packing = Packing(codes.bits, "n")
        ckpt.require(name, packing.words_shape(*grid), np.int32)
        return PackedArray(ckpt.tensor(name).view(np.uint32), packing, grid)
    ckpt.require(name, None, np.int8)
    return from_signed(ckpt.tensor(name).reshape(grid), PLAIN, grid)


def _packed(signed: Array, packing: Packing, name: str, what: str) -> PackedArray:
    """Signed codes or zero points of ``packing.bits`` bits that are stored in wider integers."""
    half = 1 << (packing.bits - 1)
    if (outside := (signed < -half) | (signed >= half)).any():
        raise SourceError(
            f"a {what} beyond {packing.bits} bits", where=name, found=int(signed[outside][0]),
            expected=f"{-half} to {half - 1}, by the config",
        )  # fmt: skip
    return pack((signed + signed.dtype.type(half)).astype(np.uint8), packing)


def _order(ckpt: Checkpoint, layer: str, k: int, group: int) -> Array | None:
    name = f"{layer}.weight_g_idx"
    if name not in ckpt:
        return None
    ckpt.require(name, (k,), np.int32, np.int64)
    g_idx = ckpt.tensor(name)
    if np.all(g_idx == -1):  # what older writers leave where no order was chosen
        return None
    try:
        return group_order(g_idx, group)
    except ValueError as error:
        raise SourceError(str(error), where=name) from None
