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

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from mlc_bridge.errors import SourceError
from mlc_bridge.packing import Array, PackedArray, Packing
from mlc_bridge.qtensor import QTensor, group_order, reorder
from mlc_bridge.sources.checkpoint import Checkpoint
from mlc_bridge.sources.foreign import INSTEAD
from mlc_bridge.sources.patterns import matches
from mlc_bridge.sources.source import (
    Evidence,
    Source,
    check_float,
    method_said,
    read_float,
    said,
    sound_scale,
)

WORDS = (np.int32, np.int64, np.int16, np.int8)
FORMATS = {"gptq", "gptq_v2"}
BITS = (2, 4, 8)


class GPTQ(Source):
    name = "gptq"

    def evidence(self, ckpt: Checkpoint) -> Evidence:
        settings = ckpt.settings
        method = settings.get("quant_method", settings.get("method"))
        supports, against = [], []
        if method == "gptq":
            supports.append(method_said(ckpt))
        elif method is not None or "bits" not in settings:
            against.append(method_said(ckpt))
        if not (forms := _formats(settings)) <= FORMATS or len(forms) > 1:
            against.append(f"the config says checkpoint_format {' and '.join(sorted(forms))}")
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
        if _formats(ckpt.settings) == {"gptq"}:
            words = words + words.dtype.type(zero_packing.ones)
        zero = PackedArray(words, zero_packing, (n, groups))
        self._check_symmetric(ckpt, layer, zero)
        perm = self._order(ckpt, layer, group)
        return QTensor(
            codes=reorder(PackedArray(_unsigned(qweight), packing, (n, k)), perm),
            # float16 scales of nearly dead channels round to zero: the tool writes such files.
            scale=sound_scale(scales, f"{layer}.scales", zero_allowed=True).T,
            zero=zero,
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

    def findings(self, ckpt: Checkpoint) -> tuple[str, ...]:
        silent = [key for key in ("bits", "group_size") if said(ckpt.settings, (key,)) is None]
        told = f"the config does not say {', '.join(silent)}: taken from the shapes of the tensors"
        unsaid = ckpt.settings.get("desc_act") is None and not ckpt.layers("g_idx")
        order = "neither desc_act nor a g_idx says otherwise: the columns of a group lie together"
        return (
            *super().findings(ckpt),
            *([told] if silent else []),
            *([order] if unsaid else []),
        )

    def _check_symmetric(self, ckpt: Checkpoint, layer: str, zero: PackedArray) -> None:
        """With ``sym`` every zero is half the range: here version 1 is told from version 2.

        Zeros that differ are an asymmetric layer whatever ``sym`` says, and read as they are.
        """
        if _settings(ckpt.settings, ckpt.stored(layer)).get("sym") is not True:
            return
        half, found = 1 << (zero.packing.bits - 1), zero.unpack()
        if found.min() == found.max() != half:
            raise SourceError(
                "the config says sym true, and the zero points are not in the middle",
                where=f"{layer}.qzeros", found=int(found.min()), expected=half,
                todo="checkpoint_format or sym in the config is of another file: version 1 (gptq) "
                "stores zeros less 1, version 2 (gptq_v2) as they are",
            )  # fmt: skip

    def _layout(self, ckpt: Checkpoint, layer: str) -> tuple[Packing, Packing, int]:
        """Packing of codes and of zeros, and the group; all parts are held against each other."""
        settings, qweight = _settings(ckpt.settings, ckpt.stored(layer)), f"{layer}.qweight"
        rows, n = ckpt.matrix(qweight, *WORDS)
        groups = ckpt.matrix(f"{layer}.scales", np.float16, ml_dtypes.bfloat16, np.float32)[0]
        bits = self._bits(ckpt, layer, said(settings, ("bits",)), n)
        word_bits = 8 * ckpt.dtype(qweight).itemsize
        codes = Packing(bits, "k", transposed=True, word_bits=word_bits)
        zeros = Packing(bits, "n", transposed=True, word_bits=word_bits)
        k = rows * codes.per_word
        group = self._group(ckpt, layer, k, groups, said(settings, ("group_size",)))
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

    def _bits(self, ckpt: Checkpoint, layer: str, asked: Any, n: int) -> int:
        """The config's bits, which the words of the zeros must confirm; or theirs alone."""
        word_bits = 8 * ckpt.dtype(f"{layer}.qweight").itemsize
        words = ckpt.matrix(f"{layer}.qzeros", *WORDS)[1]
        if asked in (3, 5, 6, 7):
            raise SourceError(
                f"GPTQ's {asked}-bit codes straddle words and are not read",
                where=f"{layer}.qweight", todo=INSTEAD,
            )  # fmt: skip
        stored = [b for b in BITS if -(-n // (word_bits // b)) == words]
        if type(asked) is int and asked in stored:
            return asked
        if asked is None and len(stored) == 1:
            return stored[0]
        raise SourceError(
            "the bits and the zero points disagree", where=f"{layer}.qweight",
            found=f"bits {asked!r} in the config and {words} words for {n} zero points",
            expected=f"bits {' or '.join(map(str, stored or BITS))}",
        )  # fmt: skip

    def _group(self, ckpt: Checkpoint, layer: str, k: int, groups: int, asked: Any) -> int:
        """The config's group, which the number of scales must confirm; or theirs alone.

        The last group may be smaller where g_idx says so; without it the groups fill k.
        """
        whole = k // groups if k % groups == 0 else 0
        group = whole if asked is None else k if asked == -1 else asked
        exact = group == whole or f"{layer}.g_idx" in ckpt
        if type(group) is not int or group <= 0 or -(-k // group) != groups or not exact:
            raise SourceError(
                "the group size and the number of scales disagree", where=f"{layer}.scales",
                found=f"group_size {asked!r} in the config and {groups} groups of {k} input "
                "channels in the file",
                todo="The quantization settings are of another checkpoint, or the file is damaged",
            )  # fmt: skip
        return group


def _formats(settings: Mapping[str, Any]) -> set[str]:
    """What the config calls the format, by every key that does; version 1 where it is silent."""
    words = {str(settings[key]) for key in ("checkpoint_format", "format") if settings.get(key)}
    return words or {"gptq"}


def _settings(settings: Mapping[str, Any], layer: str) -> dict[str, Any]:
    """The settings with the first ``dynamic`` override whose pattern matches the layer's name."""
    dynamic = settings.get("dynamic")
    for pattern, override in dynamic.items() if isinstance(dynamic, dict) else ():
        if not pattern.startswith("-:") and matches(pattern.removeprefix("+:"), layer):
            return {**settings, **(override if isinstance(override, dict) else {})}
    return dict(settings)


def _unsigned(words: Array) -> Array:
    return words.view(np.dtype(f"uint{8 * words.itemsize}"))
