"""``--quantization auto``: the scheme that keeps the checkpoint as it is.

A float checkpoint keeps its dtype (``q0f16``, ``q0bf16``, ``q0f32``). A quantized one lands in the
first scheme of ``SCHEMES`` that leaves the embedding float and expresses one layer of every kind
exactly; that all layers fit is the conversion's own check.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from mlc_bridge.errors import CannotExpress, ConfigError
from mlc_bridge.models import Weight
from mlc_bridge.qtensor import QTensor
from mlc_bridge.schemes import SCHEMES, Scheme
from mlc_bridge.sources import Checkpoint, Source

FLOAT_SCHEMES = {"float16": "q0f16", "bfloat16": "q0bf16", "float32": "q0f32"}


def choose_scheme(ckpt: Checkpoint, source: Source, weights: Sequence[Weight]) -> Scheme:
    """The scheme for ``auto``. Raises ``ConfigError`` with each scheme's reason when none fits."""
    layers = samples(ckpt, source)
    if not layers:
        return SCHEMES[_float_scheme(ckpt, weights)]
    reasons = {}
    for scheme in SCHEMES.values():
        if scheme.quantizes("embedding") or not scheme.quantizes("linear"):
            continue
        reasons[scheme.name] = why_not(scheme, layers)
        if reasons[scheme.name] is None:
            return scheme
    raise ConfigError(
        f"no scheme holds this {source.name} checkpoint exactly",
        where=ckpt.path,
        found="; ".join(f"{name}: {reason}" for name, reason in reasons.items()),
        todo="Name a scheme with --quantization and allow rounding with --requantize",
    )


def samples(ckpt: Checkpoint, source: Source) -> dict[str, QTensor]:
    """One quantized layer of every kind: names that differ in numbers alone are one kind."""
    first: dict[str, str] = {}
    for layer in source.layers(ckpt):
        first.setdefault(re.sub(r"\d+", "*", layer), layer)
    read = {layer: source.read(ckpt, layer) for layer in first.values()}
    return {layer: tensor for layer, tensor in read.items() if isinstance(tensor, QTensor)}


def why_not(scheme: Scheme, layers: Mapping[str, QTensor]) -> str | None:
    """Why ``scheme`` cannot hold one of these layers exactly; None when it holds them all."""
    for layer, tensor in layers.items():
        try:
            scheme.encode(tensor, layer)
        except CannotExpress as error:
            return error.reason
    return None


def _float_scheme(ckpt: Checkpoint, weights: Sequence[Weight]) -> str:
    name = f"{weights[0].sources[0]}.weight"
    dtype = str(ckpt.dtype(name))
    if dtype not in FLOAT_SCHEMES:
        raise ConfigError(
            "no scheme keeps this dtype",
            where=name,
            found=dtype,
            expected=", ".join(FLOAT_SCHEMES),
            todo="Name a scheme with --quantization",
        )
    return FLOAT_SCHEMES[dtype]
