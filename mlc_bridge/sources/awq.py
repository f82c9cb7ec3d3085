"""What AutoAWQ's versions share: the config, the names, and which layers are float.

    W[n, k] = (code[n, k] - zero[n, k // g]) * scale[n, k // g]        zero stored as it is

Each version is one file (``autoawq*.py``) and differs in the layout of ``qweight``, ``qzeros`` and
``scales``. A layer that has ``.weight`` is float, wherever it occurs: LLMC's mixed precision leaves
``modules_to_not_convert`` empty. What the config says of version, bits and group must agree with
the shapes; where it is silent the shapes answer, and ``findings`` says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from mlc_bridge.errors import SourceError
from mlc_bridge.packing import Array
from mlc_bridge.qtensor import QTensor
from mlc_bridge.sources.checkpoint import Checkpoint
from mlc_bridge.sources.source import Evidence, Source, check_float, method_said, read_float, said

SCALES = (np.float16, ml_dtypes.bfloat16, np.float32)
# Where tools say the version, and kernels' words for the bytes of a version.
VERSION_KEYS = ("version", "format", "checkpoint_format")
KERNELS = {"exllama": "gemm", "exllamav2": "gemm", "ipex": "gemm"}
BITS, GROUP = ("bits", "w_bit"), ("group_size", "q_group_size")


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
        settings, layers = ckpt.settings, self.layers(ckpt)
        method, versions = settings.get("quant_method"), _versions(settings)
        supports, against = [], []
        if method == "awq" or (method is None and ("w_bit" in settings or versions)):
            supports.append(method_said(ckpt) if method else "the config's words are AutoAWQ's")
        else:
            against.append(method_said(ckpt))
        if layers:
            supports.append(f"{len(layers)} layers have {np.dtype(self.words)} .qweight")
        else:
            against.append(f"no layer has {np.dtype(self.words)} .qweight")
        if versions and versions != {self.version}:
            against.append(f"the config says version {' and '.join(sorted(versions))}")
        elif not versions and layers and not against and not self._fits(ckpt, layers[0]):
            against.append(f"the shapes are not those of version {self.version}")
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

    def findings(self, ckpt: Checkpoint) -> tuple[str, ...]:
        asked = {"version": bool(_versions(ckpt.settings))}
        asked |= {keys[0]: said(ckpt.settings, keys) is not None for keys in (BITS, GROUP)}
        silent = [what for what, said in asked.items() if not said]
        told = f"the config does not say {', '.join(silent)}: taken from the shapes of the tensors"
        return (*super().findings(ckpt), *([told] if silent else []))

    def words_shape(self, ckpt: Checkpoint, layer: str) -> tuple[int, int]:
        """Shape of ``qweight``, which holds codes in words of the version's type."""
        return ckpt.matrix(f"{layer}.qweight", self.words)

    def agree_on_bits(self, ckpt: Checkpoint, layer: str, stored: int) -> None:
        """The config says the bits that are ``stored``, or nothing."""
        bits = said(ckpt.settings, BITS)
        if bits is not None and (type(bits) is not int or bits != stored):
            raise SourceError(
                f"AutoAWQ's {self.version} stores this layer with {stored}-bit codes",
                where=f"{layer}.qweight", found=f"bits {bits!r} in the config",
                expected=f"bits {stored}",
            )  # fmt: skip

    def group(self, ckpt: Checkpoint, layer: str, k: int, groups: int) -> int:
        """Columns of k per scale: what the config says, held against the ``groups`` in the file.

        One group per channel is written as -1 or as k; a config may also say nothing.
        """
        asked = said(ckpt.settings, GROUP)
        stored = k // groups if groups and k % groups == 0 else 0
        group = stored if asked is None else k if asked == -1 else asked
        if type(group) is not int or group != stored or not stored:
            raise SourceError(
                "the group size and the number of scales disagree", where=f"{layer}.scales",
                found=f"group_size {asked!r} in the config and {groups} groups of {k} input "
                "channels in the file",
                todo="The quantization settings are of another checkpoint, or the file is damaged",
            )  # fmt: skip
        return group

    def _fits(self, ckpt: Checkpoint, layer: str) -> bool:
        try:
            self.layout(ckpt, layer)
        except SourceError:
            return False
        return True


def filled_groups(scales: Array, axis: int) -> int:
    """Groups in scales that a kernel wanted padded along ``axis``: up to the first all zero."""
    filled = np.any(scales, axis=1 - axis)
    return int(filled.sum()) if not np.any(filled[1:] & ~filled[:-1]) else 0


def _versions(settings: Mapping[str, Any]) -> set[str]:
    """The version by every key that says one; more than one where they contradict each other."""
    words = (str(settings[key]).lower() for key in VERSION_KEYS if settings.get(key))
    return {KERNELS.get(word, word) for word in words}


def _is_float(ckpt: Checkpoint, layer: str) -> bool:
    """Decided by what is on disk; the config's list (substrings) only where both are there."""
    weight, packed = f"{layer}.weight" in ckpt, f"{layer}.qweight" in ckpt
    if weight and packed:
        listed = ckpt.settings.get("modules_to_not_convert") or ()
        return any(str(part) in layer for part in listed)
    return weight or not any(f"{layer}.{part}" in ckpt for part in ("qweight", "qzeros", "scales"))
