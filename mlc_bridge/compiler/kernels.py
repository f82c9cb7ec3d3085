"""Which kernel computes which layer: what the rules claim of a fused module, as plain data.

A function is asked of the rules as the scheduler asks them, in their order, and the first claim
that holds is written down: the rule, its kernel by the number of rows, and why no better one. The
layer's name comes from the parameters that the graph hands to the function.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tvm import IRModule, relax
    from tvm.target import Target
    from tvm.tirx import PrimFunc

    from tir_schedules import Claim, Rule

KERNEL = "mlc_bridge.kernel"
"""Attribute of a function that the graph brings with its schedule: what to say of it."""
MANY = 1_000_000  # products for one row of x, from which on the last rule is a cliff


@dataclass(frozen=True)
class KernelChoice:
    """What computes one function: ``n`` outputs from ``k`` inputs where it is a linear layer.

    ``layers`` are module paths with ``*`` for numbers. ``kernels``: rows ("up to 16", "more",
    "any") -> kernel. ``products``: multiplications summed for one row by the last rule, else 0.
    """

    function: str
    rule: str
    layers: tuple[str, ...] = ()
    n: int | None = None
    k: int | None = None
    kernels: Mapping[str, str] = field(default_factory=dict)
    why_not: tuple[str, ...] = ()
    products: int = 0

    @classmethod
    def read(cls, written: Mapping[str, Any]) -> KernelChoice:
        """From JSON, which knows no tuples."""
        lists = {name: tuple(value) for name, value in written.items() if isinstance(value, list)}
        return cls(**{**written, **lists})


def cliffs(choices: Iterable[KernelChoice]) -> tuple[str, ...]:
    """A note for each layer whose products the last rule computes, where they are many."""
    found: dict[tuple[tuple[str, ...], int, str, tuple[str, ...]], list[str]] = defaultdict(list)
    for c in choices:
        if c.products > MANY:
            found[c.layers, c.products, c.rule, c.why_not].append(c.function)
    return tuple(
        f"no kernel fits {', '.join(layers or functions)}: {products:,} products a row are left to "
        f"{rule} ({', '.join(functions)}; {'; '.join(why)})"
        for (layers, products, rule, why), functions in found.items()
    )


def explain(
    mod: IRModule, target: Target, rules: Sequence[Rule], params: Sequence[str]
) -> list[KernelChoice]:
    """A choice for every function that the rules schedule, by name of layer.

    ``params``: names in the order of ``packed_params``.
    """
    from tvm import tirx

    layers = _layers(mod, params)
    choices = [
        _choice(var.name_hint, func, target, rules, tuple(sorted(layers[var.name_hint])))
        for var, func in mod.functions_items()
        if isinstance(func, tirx.PrimFunc) and not func.attrs.get("tirx.is_scheduled")
    ]
    choices += [
        KernelChoice(var.name_hint, "the graph's own", kernels={"any": str(func.attrs[KERNEL])})
        for var, func in mod.functions_items()
        if isinstance(func, tirx.PrimFunc) and KERNEL in func.attrs
    ]
    return sorted(choices, key=lambda c: (c.layers, c.function))


def _choice(
    function: str, func: PrimFunc, target: Target, rules: Sequence[Rule], layers: tuple[str, ...]
) -> KernelChoice:
    from tir_schedules import claim_of
    from tir_schedules.contraction import products

    against: list[str] = []
    for rule in rules:
        name, claim = type(rule).__name__, claim_of(rule, func, target)
        if not claim.applies:
            against += [f"{name}: {reason}" for reason in claim.contradicts]
            continue
        last = rule is rules[-1]
        return KernelChoice(
            function=function,
            rule=name,
            layers=layers,
            n=claim.layer.n if claim.layer else None,
            k=claim.layer.k if claim.layer else None,
            kernels=_by_rows(claim),
            why_not=tuple(against) if last else claim.passed_over,
            products=products(func) if last else 0,
        )
    return KernelChoice(function, "none", layers, why_not=tuple(against), products=products(func))


def _by_rows(claim: Claim) -> dict[str, str]:
    """Neighbours of one name taken together."""
    found: dict[str, int | None] = {}
    for most, kernel in claim.kernels:
        found[kernel.name] = most
    rows = claim.layer.fixed_rows() if claim.layer else None
    if rows is not None:  # of a function for so many rows the first that fits is there
        fits = [k.name for most, k in claim.kernels if most is None or rows <= most]
        return {str(rows): fits[0]} if fits else {}
    rest = "more" if len(found) > 1 else "any"
    return {rest if most is None else f"up to {most}": name for name, most in found.items()}


def _layers(mod: IRModule, params: Sequence[str]) -> dict[str, set[str]]:
    """Function -> paths of the layers whose parameters it is called with."""
    from tvm import relax

    found: dict[str, set[str]] = defaultdict(set)
    for _, func in mod.functions_items():
        if isinstance(func, relax.Function):
            weights: dict[Any, str] = {}
            for var, value in _bindings(func):
                if isinstance(value, relax.TupleGetItem) and _is_packed(value.tuple_value):
                    weights[var] = _path(params[value.index])
                elif isinstance(value, relax.Call) and value.op.name == "relax.call_tir":
                    used = {weights[a] for a in value.args[1].fields if a in weights}
                    found[value.args[0].name_hint] |= used
    return found


def _bindings(func: relax.Function) -> Iterator[tuple[Any, Any]]:
    for block in func.body.blocks:
        for binding in block.bindings:
            yield binding.var, binding.value


def _is_packed(value: Any) -> bool:
    return getattr(value, "name", "") == "packed_params"


def _path(parameter: str) -> str:
    """The parameter's module, any number of it."""
    path = parameter.rpartition(".")[0]
    return ".".join("*" if part.isdigit() else part for part in path.split("."))
