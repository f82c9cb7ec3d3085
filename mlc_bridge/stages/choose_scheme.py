"""``--quantization auto``: the scheme that keeps the checkpoint as it is.

A float checkpoint keeps its dtype (``q0f16``, ``q0bf16``, ``q0f32``). A quantized one lands in the
first scheme of ``SCHEMES`` that expresses one layer of every kind exactly; that all layers fit is
the conversion's own check.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mlc_bridge.errors import CannotExpress, ConfigError
from mlc_bridge.models import Weight
from mlc_bridge.qtensor import QTensor
from mlc_bridge.schemes import SCHEMES, Scheme
from mlc_bridge.sources import Checkpoint, Source

FLOAT_SCHEMES = {"float16": "q0f16", "bfloat16": "q0bf16", "float32": "q0f32"}


def choose_scheme(ckpt: Checkpoint, source: Source, weights: Sequence[Weight]) -> Scheme:
    """The scheme for ``auto``. Raises ``ConfigError`` with each scheme's reason when none fits."""
    samples = list(_samples(ckpt, source, weights))
    if not samples:
        return SCHEMES[_float_scheme(ckpt, weights)]
    reasons = []
    for scheme in SCHEMES.values():
        if not scheme.quantizes("linear"):
            continue
        reason = _why_not(scheme, samples)
        if reason is None:
            return scheme
        reasons.append(f"{scheme.name}: {reason}")
    raise ConfigError(
        f"no scheme holds this {source.name} checkpoint exactly",
        where=ckpt.path,
        found="; ".join(reasons),
        todo="Name a scheme with --quantization and allow rounding with --requantize",
    )


def _samples(
    ckpt: Checkpoint, source: Source, weights: Sequence[Weight]
) -> Iterator[tuple[str, QTensor]]:
    """One quantized layer of every kind (the same shapes under the same last names)."""
    quantized = set(source.layers(ckpt))
    kinds = set()
    for weight in weights:
        for layer in weight.sources:
            kind = (layer.rpartition(".")[2], weight.rows, weight.k)
            if layer in quantized and kind not in kinds:
                kinds.add(kind)
                read = source.read(ckpt, layer)
                if isinstance(read, QTensor):
                    yield layer, read


def _why_not(scheme: Scheme, samples: Sequence[tuple[str, QTensor]]) -> str | None:
    for layer, tensor in samples:
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
