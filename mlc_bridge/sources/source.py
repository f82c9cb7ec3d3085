"""The contract of a source format: checkpoint bytes in, ``QTensor`` out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import ml_dtypes
import numpy as np

from mlc_bridge.errors import SourceError
from mlc_bridge.packing import Array
from mlc_bridge.qtensor import QTensor
from mlc_bridge.sources.checkpoint import Checkpoint

FLOATS = (np.float16, ml_dtypes.bfloat16, np.float32)
# Names that compressed-tensors and fp8 writers, and msModelSlim (versions 0 and 1) give them.
CACHE_SCALES = (
    *(f".{part}_{what}" for part in "qkv" for what in ("scale", "zero_point")),
    ".kv_cache_scale",
    ".kv_scale",
    ".kv_cache_scaling_factor",
    *(f".{part}_cache_scale" for part in "kv"),
    ".output_scale",  # of k_proj and v_proj: what goes into the cache
    ".output_zero_point",
    ".prob_output_scale",
    ".kv_cache_offset",
    *(f".fa_{part}.{what}" for part in "qkv" for what in ("scale", "offset")),
)
STATIC_TOLD = "stay float unless --quantization i8_i8_f16_static rounds them too"
AT_RUN_TIME_TOLD = "theirs stay float unless --quantization i8_i8_f16_dynamic rounds them too"
INPUT_ZEROS = (".input_zero_point", ".input_offset")


@dataclass(frozen=True)
class Evidence:
    """What speaks for and against a format; it matches when nothing speaks against it."""

    supports: tuple[str, ...] = ()
    contradicts: tuple[str, ...] = ()

    @property
    def matches(self) -> bool:
        return bool(self.supports) and not self.contradicts


class Source(Protocol):
    """One quantization tool's file format.

    ``layer`` is a module path of the checkpoint such as ``model.layers.0.self_attn.q_proj``.
    Methods with a body here are the rule; a format overrides them where its files differ.
    """

    @property
    def name(self) -> str: ...

    def evidence(self, ckpt: Checkpoint) -> Evidence:
        """Looks at the config and at tensor names and dtypes, never at data."""
        ...

    def matches(self, ckpt: Checkpoint) -> bool:
        return self.evidence(ckpt).matches

    def layers(self, ckpt: Checkpoint) -> tuple[str, ...]:
        """Module paths of the layers stored quantized."""
        ...

    def parts(self, ckpt: Checkpoint, layer: str) -> tuple[str, ...]:
        """Names of the tensors on disk that make the layer's weight (and nothing else)."""
        ...

    def check(self, ckpt: Checkpoint, layer: str, shape: tuple[int, int]) -> None:
        """Headers only: every part is there, with the dtype and shape that [n, k] wants."""
        ...

    def check_whole(self, ckpt: Checkpoint) -> None:
        """Headers only: nothing of the whole checkpoint speaks against reading it; SourceError."""
        return

    def read(self, ckpt: Checkpoint, layer: str) -> QTensor | Array:
        """The layer's weight: a QTensor, or the float array ``[n, k]`` where the layer is float."""
        ...

    def bias(self, ckpt: Checkpoint, layer: str) -> Array | None:
        """The layer's bias ``[n]``, or None."""
        return ckpt.tensor(f"{layer}.bias") if f"{layer}.bias" in ckpt else None

    def aside(self, ckpt: Checkpoint) -> tuple[str, ...]:
        """Tensors that belong to no weight and that MLC does not use: scales of the KV cache.

        They are carried into the artifact as they are, under their own names (MLC's loaders ignore
        parameters that no lib asks for); ``findings`` tells the user about them.
        """
        return tuple(name for name in ckpt.names if name.endswith(CACHE_SCALES))

    def copies(self, ckpt: Checkpoint) -> Mapping[str, str]:
        """Tensors that repeat another: name -> the other; who leaves one out compares the two."""
        return {}

    def findings(self, ckpt: Checkpoint) -> tuple[str, ...]:
        """What the user should know about this checkpoint although it can be read; reads data."""
        told = []
        if left := self.aside(ckpt):
            told.append(
                f"{len(left)} scales of the KV cache or of attention are carried but not used, as "
                f"MLC's cache is 16 bit; the first is {left[0]}"
            )
        offsets = [n for n in ckpt.names if n.endswith(INPUT_ZEROS) and np.any(ckpt.tensor(n))]
        if offsets:
            told.append(
                f"{len(offsets)} layers have static activation scales with zero points: their "
                f"activations {STATIC_TOLD}; the first is {offsets[0]}"
            )
        return tuple(told)


def check_float(ckpt: Checkpoint, layer: str, shape: tuple[int, int]) -> None:
    """The layer's float ``.weight`` is there with shape [n, k]."""
    ckpt.require(f"{layer}.weight", shape, *FLOATS)


def read_float(ckpt: Checkpoint, layer: str) -> Array:
    """The layer's float ``.weight`` (or a norm's ``[n]``), as a view of the file."""
    ckpt.require(f"{layer}.weight", None, *FLOATS)
    return ckpt.tensor(f"{layer}.weight")


def said(settings: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    """The first of these keys that has a value; None where the settings are silent."""
    return next((settings[key] for key in keys if settings.get(key) is not None), None)


def method_said(ckpt: Checkpoint) -> str:
    """The config's quant_method for a sentence, with what it is read as where that differs."""
    theirs, ours = (s.get("quant_method") for s in (ckpt.quantization, ckpt.settings))
    read_as = "" if theirs == ours else f" (read as {ours!r})"
    return f"the config says quant_method {theirs!r}{read_as}"


def sound_scale(scale: Array, name: str, *, zero_allowed: bool = False) -> Array:
    """``scale`` itself, unless a value is NaN, infinite or (where not allowed) zero.

    Below zero is legal: AutoRound's symmetric rule gives the scale the sign that puts a group's
    extreme value at the lowest code, so half of its scales are negative.
    """
    values = scale if scale.dtype.kind == "f" else scale.astype(np.float32)
    bad = ~np.isfinite(values)
    if not zero_allowed:
        bad |= values == 0
    if bad.any():
        at = tuple(int(i) for i in np.argwhere(bad)[0])
        raise SourceError(
            f"{int(bad.sum())} of {bad.size} scales cannot be used",
            where=name,
            found=f"{float(values[at])} at {list(at)}",
            expected="finite numbers" + ("" if zero_allowed else " other than zero"),
            todo="The file is damaged or its quantization failed; quantize the model again",
        )
    return scale


def activation_zero(ckpt: Checkpoint, name: str) -> Array | None:
    """What is added to a rounded activation, float32 ``[]``; None where that is nothing."""
    if name not in ckpt:
        return None
    zero = ckpt.tensor(name).astype(np.float32)
    whole = (
        zero.size == 1 and bool((zero == np.rint(zero)).all()) and bool((abs(zero) <= 128).all())
    )
    if not whole:
        raise SourceError(
            "not one whole number of 8 bits for the whole input", where=name,
            found=zero.reshape(-1)[:4], todo="The file is damaged; fetch it again",
        )  # fmt: skip
    return zero.reshape(()) if zero.any() else None


def activation_scale(ckpt: Checkpoint, name: str) -> Array | None:
    """A static activation scale as float32 of shape ``[]``; None where the layer has none."""
    if name not in ckpt:
        return None
    scale = sound_scale(ckpt.tensor(name), name)
    if scale.size != 1:
        raise SourceError("not one scale for the whole input", where=name, found=scale.shape)
    value = scale.astype(np.float32).reshape(())
    if value < 0:
        raise SourceError("an activation scale below zero", where=name, found=float(value))
    return value
