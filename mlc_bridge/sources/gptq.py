"""GPTQ as AutoGPTQ and GPTQModel write it, versions 1 and 2, with 2, 4 or 8 bits.

    W[n, k] = (code[n, k] - zero[n, g]) * scale[n, g]        g = g_idx[k]

=========  =======  ====================  ====================================================
tensor     dtype    shape                 layout (w = 32 / bits codes a word)
=========  =======  ====================  ====================================================
qweight    int32    [k/w, n]              w input channels a word, natural order
qzeros     int32    [groups, n/w]         w output channels a word, natural order
scales     float16  [groups, n]
g_idx      int32    [k]                   group of each input channel; may be absent where
                                          ``desc_act`` is false
=========  =======  ====================  ====================================================

Version 1 stores every zero less 1, subtracted from the whole word: a zero of 0 borrows from its
neighbour, so only the whole-word addition (modulo 2^32) restores both. With ``desc_act`` the
columns of a group are scattered over k; the QTensor stores them group by group and keeps ``perm``.

Origin: GPTQModel 7.3 nn_modules/qlinear and utils/model.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from mlc_bridge.errors import SourceError
from mlc_bridge.packing import Array, PackedArray, Packing
from mlc_bridge.qtensor import QTensor, group_order, reorder
from mlc_bridge.sources.checkpoint import Checkpoint
from mlc_bridge.sources.source import Evidence, Source, check_float, read_float, sound_scale

WORDS = (np.int32, np.int64, np.int16, np.int8)
FORMATS = ("gptq", "gptq_v2")


class GPTQ(Source):
    name = "gptq"

    def evidence(self, ckpt: Checkpoint) -> Evidence:
        settings = ckpt.quantization
        method = settings.get("quant_method", settings.get("method"))
        supports, against = [], []
        if method == "gptq":
            supports.append("the config says quant_method 'gptq'")
        elif method is not None or "bits" not in settings:
            against.append(f"the config says quant_method {method!r}")
        if _format(settings) not in FORMATS:
            against.append(f"the config says checkpoint_format {_format(settings)!r}")
        layers = [x for x in self.layers(ckpt) if f"{x}.qzeros" in ckpt]
        if layers:
            supports.append(f"{len(layers)} layers have .qweight and .qzeros")
        else:
            against.append("no layer has .qweight and .qzeros")
        return Evidence(tuple(supports), tuple(against))

    def layers(self, ckpt: Checkpoint) -> tuple[str, ...]:
        return ckpt.layers("qweight")

    def parts(self, ckpt: Checkpoint, layer: str) -> tuple[str, ...]:
        if f"{layer}.qweight" not in ckpt:
            return (f"{layer}.weight",)
        names = tuple(f"{layer}.{part}" for part in ("qweight", "qzeros", "scales", "g_idx"))
        return names if names[-1] in ckpt else names[:-1]

    def check(self, ckpt: Checkpoint, layer: str, shape: tuple[int, int]) -> None:
        if f"{layer}.qweight" not in ckpt:
            return check_float(ckpt, layer, shape)
        codes, _, group = self._layout(ckpt, layer)
        n, k = shape
        ckpt.require(f"{layer}.qweight", codes.words_shape(n, k), *WORDS)
        ckpt.require(f"{layer}.scales", (-(-k // group), n))
        return None

    def read(self, ckpt: Checkpoint, layer: str) -> QTensor | Array:
        if f"{layer}.qweight" not in ckpt:
            return read_float(ckpt, layer)
        packing, zero_packing, group = self._layout(ckpt, layer)
        qweight, qzeros, scales = (
            ckpt.tensor(f"{layer}.{part}") for part in ("qweight", "qzeros", "scales")
        )
        groups, n = scales.shape
        k = qweight.shape[0] * packing.per_word
        words = _unsigned(qzeros)
        if _format(ckpt.quantization) == "gptq":
            words = words + words.dtype.type(zero_packing.ones)
        perm = self._order(ckpt, layer, group)
        return QTensor(
            codes=reorder(PackedArray(_unsigned(qweight), packing, (n, k)), perm),
            # float16 scales of nearly dead channels round to zero: the tool writes such files.
            scale=sound_scale(scales, f"{layer}.scales", zero_allowed=True).T,
            zero=PackedArray(words, zero_packing, (n, groups)),
            block=(1, group),
            perm=perm,
        )

    def _order(self, ckpt: Checkpoint, layer: str, group: int) -> Array | None:
        name = f"{layer}.g_idx"
        if name not in ckpt:  # then desc_act is false, see _layout
            return None
        try:
            return group_order(ckpt.tensor(name), group)
        except ValueError as error:
            raise SourceError(str(error), where=name) from None

    def _layout(self, ckpt: Checkpoint, layer: str) -> tuple[Packing, Packing, int]:
        """Packing of codes and of zeros, and the group; all parts are held against each other."""
        settings, qweight = _settings(ckpt.quantization, layer), f"{layer}.qweight"
        bits, asked = settings.get("bits"), settings.get("group_size", -1)
        if bits not in (2, 4, 8):
            raise SourceError(
                "GPTQ codes of this width are laid out in other ways", where=qweight,
                found=f"bits {bits!r} in the config", expected="2, 4 or 8",
            )  # fmt: skip
        ckpt.require(qweight, None, *WORDS)
        ckpt.require(f"{layer}.scales", None, np.float16, ml_dtypes.bfloat16, np.float32)
        if len(ckpt.shape(qweight)) != 2 or len(ckpt.shape(f"{layer}.scales")) != 2:
            raise SourceError("not a matrix", where=qweight, found=ckpt.shape(qweight))
        word_bits = 8 * ckpt.dtype(qweight).itemsize
        codes = Packing(bits, "k", transposed=True, word_bits=word_bits)
        zeros = Packing(bits, "n", transposed=True, word_bits=word_bits)
        n, k = ckpt.shape(qweight)[1], ckpt.shape(qweight)[0] * codes.per_word
        group = k if asked in (-1, None) else asked
        if type(group) is not int or group <= 0:
            raise SourceError("not a group size", where=qweight, found=f"group_size {asked!r}")
        groups = -(-k // group)
        ckpt.require(f"{layer}.scales", (groups, n))
        ckpt.require(f"{layer}.qzeros", zeros.words_shape(n, groups), ckpt.dtype(qweight))
        if f"{layer}.g_idx" in ckpt:
            ckpt.require(f"{layer}.g_idx", (k,), np.int32, np.int64)
        elif settings.get("desc_act") and groups > 1:
            raise SourceError(
                "desc_act says that the columns of a group are scattered, and the tensor that says "
                "where is missing", where=f"{layer}.g_idx",
                todo="Fetch the checkpoint again, or set desc_act to false if its groups do lie in "
                "order",
            )  # fmt: skip
        return codes, zeros, group


def _format(settings: Mapping[str, Any]) -> str:
    return str(settings.get("checkpoint_format") or settings.get("format") or "gptq")


def _settings(settings: Mapping[str, Any], layer: str) -> dict[str, Any]:
    """The settings with the first ``dynamic`` override whose pattern matches the layer's name."""
    dynamic = settings.get("dynamic")
    for pattern, override in dynamic.items() if isinstance(dynamic, dict) else ():
        try:
            hit = not pattern.startswith("-:") and re.match(pattern.removeprefix("+:"), layer)
        except re.error as error:
            raise SourceError(
                "a dynamic pattern is no regular expression", where=pattern, found=error
            ) from None
        if hit:
            return {**settings, **(override if isinstance(override, dict) else {})}
    return dict(settings)


def _unsigned(words: Array) -> Array:
    return words.view(np.dtype(f"uint{8 * words.itemsize}"))
