"""``--quantization``: the scheme that keeps the checkpoint as it is, or the one that was named.

``auto``: a float checkpoint keeps its dtype (``q0f16``, ``q0bf16``, ``q0f32``). A quantized one
lands in the first scheme of ``SCHEMES`` that leaves a float embedding float and holds every
quantized layer exactly; where that takes more room than the checkpoint (``WASTE``) or does not
exist, every layer gets a scheme of its own, all of one model dtype. Named schemes are held against
the same layers, so that what conversion would refuse is refused before anything is written. How
every layer is looked at: ``kinds.py``; how schemes are named: ``scheme_map.py``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

from mlc_bridge.artifact.tensor_cache import dtype_of
from mlc_bridge.errors import CannotExpress, ConfigError
from mlc_bridge.models import Weight
from mlc_bridge.models.arch import own_scheme
from mlc_bridge.schemes import SCHEMES, Scheme, Spec, for_role
from mlc_bridge.schemes.dense import BY_DTYPE
from mlc_bridge.sources import Checkpoint, Source
from mlc_bridge.stages.kinds import Kind
from mlc_bridge.stages.requantize import Requantize
from mlc_bridge.stages.scheme_map import AUTO, SchemeMap

WASTE = 1.02
"""Times the checkpoint's bytes that one scheme for all layers may take."""


def form_of(weight: Weight, scheme: Scheme) -> Scheme:
    """The form in which ``weight`` lies under ``scheme``: its own, or the model dtype's."""
    return own_scheme(weight, scheme) or BY_DTYPE[scheme.model_dtype]


@dataclass(frozen=True)
class Choice:
    """The model's scheme, the layers (MLC paths) of another one, and the fused layers that must
    fall into their parts; where ``scheme`` is None that must happen before it can be chosen.
    """

    scheme: Scheme | None
    own: Mapping[str, Scheme] = field(default_factory=dict)
    split: tuple[str, ...] = ()


@dataclass
class Group:
    """Weights that no scheme can tell apart; the experts of a stack may be of several kinds."""

    kinds: tuple[Kind, ...]
    weights: list[Weight] = field(default_factory=list)

    @property
    def first(self) -> Weight:
        return self.weights[0]

    def why_not(self, form: Scheme, *, apart: bool = False) -> CannotExpress | None:
        """Why ``form`` cannot hold these weights exactly; None where it can."""
        found = (kind.why_not(form, apart=apart) for kind in self.kinds)
        return next((why for why in found if why), None)

    def holding(self, *, apart: bool = False) -> Iterator[Scheme]:
        """Candidates that hold these weights, as the layers' own scheme."""
        for scheme in candidates():
            form = for_role(scheme, self.first.role)
            if not self.why_not(form, apart=apart) and not self.waits_for_calibration(scheme):
                yield scheme

    def waits_for_calibration(self, scheme: Scheme) -> bool:
        """Whether these could not run yet: activation scales that the files do not bring.

        Layers in float8 with dynamic activations fit such a scheme, but also one that needs none.
        """
        if getattr(scheme, "observing", False):
            return True
        specs = scheme.params(self.first.n, self.first.k).values()
        scales = [getattr(part, "input_scale", None) for kind in self.kinds for part in kind.parts]
        return any(spec.filled_by == "calibrate" for spec in specs) and None in scales

    def nbytes(self, form: Scheme) -> int:
        """What these weights take in ``form``."""
        return nbytes_in(form, self.first) * sum(max(w.experts, 1) for w in self.weights)


def choose_scheme(
    ckpt: Checkpoint,
    source: Source,
    weights: Sequence[Weight],
    kinds: Sequence[Kind],
    wish: SchemeMap,
    requantize: Requantize,
) -> Choice:
    """The schemes; raises CannotExpress or ConfigError where a layer does not fit exactly.

    Layers that ``requantize`` covers may be rounded, so they do not count.
    """
    if divided := tuple(w.path for w in weights if wish.divides(w)):
        return Choice(None, split=divided)
    named = {w.path: scheme for w in weights if (scheme := wish.of_weight(w))}
    groups = _groups(kinds, requantize, named)
    free = [g for g in groups if g.first.path not in named]
    if wish.first != AUTO:
        choice = Choice(SCHEMES[wish.first])
    elif not source.layers(ckpt):
        choice = Choice(SCHEMES[_float_scheme(ckpt, weights)])
    else:
        found = _auto(free)
        if found is None:
            raise _none(ckpt, source, [kind for g in free for kind in g.kinds])
        choice = found
    if choice.scheme is None:
        return choice
    own = {**choice.own, **named}
    _one_dtype(choice.scheme, own)
    split: list[str] = []
    for group in groups:
        form = own.get(group.first.path) or form_of(group.first, choice.scheme)
        if refused := group.why_not(form, apart=True):
            raise _named(refused, form, [kind for g in groups for kind in g.kinds])
        if group.why_not(form):
            split += [w.path for w in group.weights]
    return Choice(choice.scheme, own, tuple(split))


def candidates() -> Iterable[Scheme]:
    """Schemes that quantize linears and leave the embedding alone, as checkpoints do."""
    every = SCHEMES.values()
    return (s for s in every if s.quantizes("linear") and not s.quantizes("embedding"))


def refusal(scheme: Scheme, kinds: Iterable[Kind]) -> CannotExpress | None:
    """Why ``scheme`` cannot hold one of these kinds exactly; None when it holds them all.

    Fused layers may stand apart.
    """
    found = (kind.why_not(form_of(kind.first.weight, scheme), apart=True) for kind in kinds)
    return next((why for why in found if why), None)


def _groups(
    kinds: Sequence[Kind], requantize: Requantize, named: Mapping[str, Scheme]
) -> list[Group]:
    """Quantized weights that may not be rounded, those of the same kinds and wishes together."""
    by_path: dict[str, tuple[Weight, list[int]]] = {}
    for number, kind in enumerate(kinds):
        for weight in {m.weight.path: m.weight for m in kind.matrices}.values():
            if not requantize.covers(weight):
                by_path.setdefault(weight.path, (weight, []))[1].append(number)
    found: dict[Hashable, Group] = {}
    for path, (weight, numbers) in by_path.items():
        wish = named[path].name if path in named else None
        group = found.setdefault((*numbers, wish), Group(tuple(kinds[i] for i in numbers)))
        group.weights.append(weight)
    return list(found.values())


def _auto(groups: Sequence[Group]) -> Choice | None:
    """One scheme for all or one for each; None where a group fits nowhere."""
    one = _one_for_all(groups)

    def room(form: Callable[[Group], Scheme]) -> int:
        return sum(group.nbytes(form(group)) for group in groups)

    def alike(group: Group) -> Scheme:
        assert one is not None
        return form_of(group.first, one)

    stored = sum(kind.nbytes for kind in {id(k): k for g in groups for k in g.kinds}.values())
    if one and room(alike) <= WASTE * stored:
        return Choice(one)
    fused = [g for g in groups if len(g.first.rows) > 1 and not any(g.holding())]
    if fused and all(any(g.holding(apart=True)) for g in fused):
        return Choice(None, split=tuple(w.path for g in fused for w in g.weights))
    each = _one_for_each(groups)
    several = each is not None and len({scheme.name for scheme in each.values()}) > 1
    if each and not (
        one and (not several or room(alike) <= WASTE * room(lambda g: each[g.first.path]))
    ):
        return _mixed(groups, each)
    return Choice(one) if one else None


def _one_for_all(groups: Sequence[Group]) -> Scheme | None:
    """The first scheme that holds all; one that needs layers to stand apart only where no other."""
    for apart in (False, True):
        for scheme in candidates():
            held = all(not g.why_not(form_of(g.first, scheme), apart=apart) for g in groups)
            if held and not any(g.waits_for_calibration(scheme) for g in groups):
                return scheme
    return None


def _one_for_each(groups: Sequence[Group]) -> dict[str, Scheme] | None:
    """MLC path of a group's first weight -> its scheme; all of the first model dtype that can.

    Of the schemes within ``WASTE`` of the smallest, the one that suits most groups.
    """
    holding = [list(group.holding()) for group in groups]
    for dtype in dict.fromkeys(s.model_dtype for held in holding for s in held):
        fitting = [[s for s in held if s.model_dtype == dtype] for held in holding]
        if all(fitting):
            lean = [_leanest(group, held) for group, held in zip(groups, fitting, strict=True)]
            uses = Counter(scheme.name for held in lean for scheme in held)
            best = [max(held, key=lambda s: uses[s.name]) for held in lean]
            return {g.first.path: s for g, s in zip(groups, best, strict=True)}
    return None


def _leanest(group: Group, schemes: Sequence[Scheme]) -> list[Scheme]:
    least = min(map(group.nbytes, schemes))
    return [scheme for scheme in schemes if group.nbytes(scheme) <= WASTE * least]


def _mixed(groups: Sequence[Group], each: Mapping[str, Scheme]) -> Choice:
    """The scheme of most bytes is the model's."""
    size: dict[str, int] = {}
    for group in groups:
        name = each[group.first.path].name
        size[name] = size.get(name, 0) + group.nbytes(SCHEMES[name])
    own = {w.path: each[g.first.path] for g in groups for w in g.weights}
    return Choice(SCHEMES[max(size, key=lambda name: size[name])], own)


def _one_dtype(scheme: Scheme, own: Mapping[str, Scheme]) -> None:
    for path, other in own.items():
        if other.model_dtype != scheme.model_dtype:
            raise ConfigError(
                "the schemes of one model need one model dtype", where=path,
                found=f"{other.name} of {other.model_dtype}, beside {scheme.name} of "
                f"{scheme.model_dtype}",
            )  # fmt: skip


def widened(form: Callable[[Weight], Scheme], kinds: Iterable[Kind]) -> str | None:
    """What it costs where codes are stored wider than in the checkpoint, in words."""
    wide: list[Kind] = []
    more = bits = 0
    for kind in kinds:
        weight = kind.first.weight
        stored = code_bits(form(weight), weight)
        if stored > kind.bits:
            wide.append(kind)
            bits = max(bits, stored)
            more += nbytes_in(form(weight), weight) * len(kind.matrices) - kind.nbytes
    if not wide:
        return None
    count, first = sum(len(kind.matrices) for kind in wide), wide[0].first.path
    return (
        f"{count} layers with codes of {wide[0].bits} bits (the first is {first}) are stored in "
        f"{bits} bits, as {form(wide[0].first.weight).name} does: {more / 1e6:.2f} MB more than in "
        "the checkpoint"
    )


def code_bits(form: Scheme, weight: Weight) -> int:
    """Bits of one code in ``form``."""
    sizes = [nbytes_of(spec) for spec in form.params(weight.n, weight.k).values()]
    return max(sizes) * 8 // (weight.n * weight.k)


def nbytes_in(form: Scheme, weight: Weight) -> int:
    """Bytes of the weight (of one expert) in ``form``, without its bias."""
    return sum(map(nbytes_of, form.params(weight.n, weight.k).values()))


def nbytes_of(spec: Spec) -> int:
    """Bytes of one parameter."""
    return dtype_of(spec.dtype).itemsize * prod(spec.shape)


def _named(why: CannotExpress, scheme: Scheme, kinds: Sequence[Kind]) -> CannotExpress:
    todo = f"{_way_out(kinds)}; --requantize allows rounding"
    return CannotExpress(why.tensor, scheme.name, why.reason, todo=todo)


def _none(ckpt: Checkpoint, source: Source, kinds: Sequence[Kind]) -> ConfigError:
    nearest = max((_nearest(scheme, kinds) for scheme in candidates()), key=lambda one: one[0])[1]
    return ConfigError(
        f"no quantization scheme holds every layer of this {source.name} checkpoint exactly",
        where=ckpt.path,
        found=nearest and f"in {nearest.tensor}, for {nearest.scheme}: {nearest.reason}",
        todo=f"{_way_out(kinds)}; --requantize with a scheme named allows rounding, and inspect "
        "says what each scheme lacks",
    )


def _nearest(scheme: Scheme, kinds: Sequence[Kind]) -> tuple[int, CannotExpress | None]:
    """How many kinds the scheme holds before the first that it does not, and why not that one."""
    for held, kind in enumerate(kinds):
        if why := kind.why_not(form_of(kind.first.weight, scheme), apart=True):
            return held, why
    return len(kinds), None


def _way_out(kinds: Sequence[Kind]) -> str:
    """The schemes that hold all of these and leave the embedding as it is."""
    found = [
        name
        for name, scheme in SCHEMES.items()
        if not scheme.quantizes("embedding") and refusal(scheme, kinds) is None
    ]
    if not found and all(any(Group((k,), [k.first.weight]).holding(apart=True)) for k in kinds):
        return "--quantization auto keeps every layer as it is, each in a scheme of its own"
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
