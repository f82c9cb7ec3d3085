"""``--quantization``: the scheme that keeps the checkpoint as it is, or the one that was named.

``auto``: a float checkpoint keeps its dtype (``q0f16``, ``q0bf16``, ``q0f32``). A quantized one
lands in the first scheme of ``SCHEMES`` that leaves a float embedding float and holds every
quantized layer exactly. A named scheme is held against the same layers, so that what conversion
would refuse is refused before anything is written. How every layer is looked at: ``kinds.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

from mlc_bridge.artifact.tensor_cache import dtype_of
from mlc_bridge.errors import CannotExpress, ConfigError
from mlc_bridge.models import Weight
from mlc_bridge.schemes import SCHEMES, Scheme, Spec, for_role
from mlc_bridge.schemes.dense import BY_DTYPE
from mlc_bridge.sources import Checkpoint, Source
from mlc_bridge.stages.kinds import Kind
from mlc_bridge.stages.requantize import Requantize

AUTO = "auto"


def form_of(weight: Weight, scheme: Scheme, *, quantized: bool = True) -> Scheme:
    """The scheme in whose form ``weight`` lies: its own for the role, or the model dtype's."""
    if not quantized or weight.role == "norm" or weight.role == "plain":
        return BY_DTYPE[scheme.model_dtype]
    stored = scheme.quantizes(weight.role)
    return for_role(scheme, weight.role) if stored else BY_DTYPE[scheme.model_dtype]


@dataclass(frozen=True)
class Choice:
    """The scheme, and the fused layers (MLC paths) that it holds only part by part."""

    scheme: Scheme
    split: tuple[str, ...] = ()


def choose_scheme(
    ckpt: Checkpoint,
    source: Source,
    weights: Sequence[Weight],
    kinds: Sequence[Kind],
    quantization: str,
    requantize: Requantize,
) -> Choice:
    """The scheme; raises CannotExpress or ConfigError where a layer does not fit exactly.

    Layers that ``requantize`` covers may be rounded, so they do not count. ``auto`` takes a scheme
    that needs layers to stand apart only where no other holds the file.
    """
    exact = [kind for kind in kinds if not all(requantize.covers(m.weight) for m in kind.matrices)]
    if quantization != AUTO:
        scheme = SCHEMES[quantization]
        if refused := refusal(scheme, exact):
            raise _named(refused, scheme, exact)
        return Choice(scheme, _split(scheme, exact, requantize))
    if not source.layers(ckpt):
        return Choice(SCHEMES[_float_scheme(ckpt, weights)])
    nearest: tuple[int, CannotExpress | None] = -1, None
    for apart in (False, True):
        for scheme in candidates():
            held, refused = _held(scheme, exact, apart=apart)
            if refused is None and _waits_for_calibration(scheme, exact):
                continue
            if refused is None:
                return Choice(scheme, _split(scheme, exact, requantize))
            nearest = max(nearest, (held, refused), key=lambda one: one[0])
    raise _none(ckpt, source, nearest[1], exact)


def _split(scheme: Scheme, kinds: Iterable[Kind], requantize: Requantize) -> tuple[str, ...]:
    """Fused weights that are held only part by part."""
    wide = (k for k in kinds if k.why_not(form_of(k.first.weight, scheme)))
    found = (m.weight for kind in wide for m in kind.matrices)
    return tuple(dict.fromkeys(w.path for w in found if not requantize.covers(w)))


def candidates() -> Iterable[Scheme]:
    """Schemes that quantize linears and leave the embedding alone, as checkpoints do."""
    every = SCHEMES.values()
    return (s for s in every if s.quantizes("linear") and not s.quantizes("embedding"))


def _waits_for_calibration(scheme: Scheme, kinds: Iterable[Kind]) -> bool:
    """Whether the model could not run yet: activation scales that these files do not bring.

    Layers in float8 with dynamic activations fit such a scheme, but also one that needs no data.
    """
    if getattr(scheme, "observing", False):
        return True
    for kind in kinds:
        specs = scheme.params(kind.first.weight.n, kind.first.weight.k).values()
        scales = [getattr(part, "input_scale", None) for part in kind.parts]
        if any(spec.filled_by == "calibrate" for spec in specs) and None in scales:
            return True
    return False


def refusal(scheme: Scheme, kinds: Iterable[Kind]) -> CannotExpress | None:
    """Why ``scheme`` cannot hold one of these kinds exactly; None when it holds them all.

    Fused layers may stand apart.
    """
    return _held(scheme, kinds, apart=True)[1]


def _held(
    scheme: Scheme, kinds: Iterable[Kind], *, apart: bool
) -> tuple[int, CannotExpress | None]:
    """How many kinds the scheme holds before the first that it does not, and why not that one."""
    held = 0
    for held, kind in enumerate(kinds):
        if why := kind.why_not(form_of(kind.first.weight, scheme), apart=apart):
            return held, why
    return held + 1, None


def widened(scheme: Scheme, kinds: Iterable[Kind]) -> str | None:
    """What it costs that one scheme holds all layers: codes that are stored wider, in words."""
    wide: list[Kind] = []
    more = bits = 0
    for kind in kinds:
        weight = kind.first.weight
        form = form_of(weight, scheme)
        sizes = {s: nbytes_of(spec) for s, spec in form.params(weight.n, weight.k).items()}
        stored = max(sizes.values()) * 8 // (weight.n * weight.k)
        if stored > kind.bits:
            wide.append(kind)
            bits = max(bits, stored)
            more += sum(sizes.values()) * len(kind.matrices) - kind.nbytes
    if not wide:
        return None
    count, first = sum(len(kind.matrices) for kind in wide), wide[0].first.path
    return (
        f"{count} layers with codes of {wide[0].bits} bits (the first is {first}) are stored in "
        f"{bits} bits, as {scheme.name} holds all layers in one form: {more / 1e6:.2f} MB more "
        "than in the checkpoint"
    )


def nbytes_of(spec: Spec) -> int:
    """Bytes of one parameter."""
    return dtype_of(spec.dtype).itemsize * prod(spec.shape)


def _named(why: CannotExpress, scheme: Scheme, kinds: Sequence[Kind]) -> CannotExpress:
    todo = f"{_way_out(kinds)}; --requantize allows rounding"
    return CannotExpress(why.tensor, scheme.name, why.reason, todo=todo)


def _none(
    ckpt: Checkpoint, source: Source, nearest: CannotExpress | None, kinds: Sequence[Kind]
) -> ConfigError:
    return ConfigError(
        f"no quantization scheme holds every layer of this {source.name} checkpoint exactly",
        where=ckpt.path,
        found=nearest and f"in {nearest.tensor}, for {nearest.scheme}: {nearest.reason}",
        todo=f"{_way_out(kinds)}; --requantize with a scheme named allows rounding, and inspect "
        "says what each scheme lacks",
    )


def _way_out(kinds: Sequence[Kind]) -> str:
    """The schemes that hold all of these and leave the embedding as it is."""
    found = [
        name
        for name, scheme in SCHEMES.items()
        if not scheme.quantizes("embedding") and refusal(scheme, kinds) is None
    ]
    if not found:
        return "No scheme keeps every layer as it is"
    return f"--quantization {' or '.join(found[:3])} keeps every layer as it is"


def _float_scheme(ckpt: Checkpoint, weights: Sequence[Weight]) -> str:
    name = f"{weights[0].sources[0]}.weight"
    by_dtype = {dtype: scheme.name for dtype, scheme in BY_DTYPE.items()}
    dtype = str(ckpt.dtype(name))
    if dtype not in by_dtype:
        raise ConfigError(
            "no scheme keeps this dtype",
            where=name,
            found=dtype,
            expected=", ".join(by_dtype),
            todo="Name a scheme with --quantization",
        )
    return by_dtype[dtype]
