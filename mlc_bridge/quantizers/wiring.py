"""Who feeds whom inside a decoder layer: found by watching it run, not by names.

A norm feeds the modules that receive the very tensor it put out. When all of these are linear
layers the norm's gain and their columns can be scaled against each other. Two more places by name:
the values of attention (v_proj -> o_proj) and the linear half of a gated MLP (up_proj ->
down_proj), in fused layers the rows that hold them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlc_bridge.quantizers.extra import torch_here

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module


@dataclass(frozen=True)
class Pair:
    """``feeder`` (a norm, or rows ``[first, last)`` of a linear layer) feeds ``linears``.

    ``inside``: the module whose output tells how well the pair is quantized. ``repeat``: output
    row r of the feeder reaches ``repeat`` channels (query heads that share a value head).
    """

    feeder: str
    linears: tuple[str, ...]
    inside: str
    rows: tuple[int, int] | None = None
    repeat: int = 1
    head: int = 0

    def shared(self, s: Tensor) -> Tensor:
        """``s`` ``[k]``, the mean where query heads of width ``head`` share a value head."""
        if self.repeat == 1:
            return s
        heads = s.reshape(-1, self.repeat, self.head)
        return heads.mean(1, keepdim=True).expand_as(heads).reshape(-1)

    def of_feeder(self, s: Tensor) -> Tensor:
        """A shared ``s`` as the feeder's rows have it."""
        return s if self.repeat == 1 else s.reshape(-1, self.repeat, self.head)[:, 0].reshape(-1)

    @property
    def is_norm(self) -> bool:
        return self.rows is None


@dataclass(frozen=True)
class Wiring:
    """Pairs of one kind of decoder layer, in the order of the data, and groups of one input."""

    pairs: tuple[Pair, ...]
    linears: tuple[tuple[str, ...], ...]
    loose: tuple[str, ...]

    def groups(self) -> tuple[tuple[str, ...], ...]:
        return self.linears


def watch(layer: Module, hidden: int, arguments: dict[str, Any]) -> Wiring:
    """Run the layer on zeros and see; ``loose`` norms feed no linear layer alone."""
    torch = torch_here()
    linear = torch.nn.Linear
    names = {module: name for name, module in layer.named_modules()}
    made: dict[int, tuple[str, Tensor]] = {}
    fed: dict[str, list[Any]] = {}
    order: dict[int, list[str]] = {}
    alive: list[Tensor] = []

    def before(module: Any, args: Any, kwargs: Any) -> None:
        x = next((a for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor)), None)
        if x is None or any(module.children()):
            return
        alive.append(x)
        if id(x) in made:
            fed[made[id(x)][0]].append(module)
        if isinstance(module, linear):
            order.setdefault(id(x), []).append(names[module])

    def after(module: Any, args: Any, out: Any) -> None:
        if _is_norm(module) and isinstance(out, torch.Tensor):
            made[id(out)] = (names[module], out)
            fed.setdefault(names[module], [])

    hooks = [m.register_forward_pre_hook(before, with_kwargs=True) for m in names]
    hooks += [m.register_forward_hook(after) for m in names]
    try:
        with torch.no_grad():
            length = 2
            layer(torch.zeros(1, length, hidden), **arguments)
    finally:
        for hook in hooks:
            hook.remove()
    groups = tuple(tuple(group) for group in order.values())
    norms = [
        Pair(norm, tuple(names[m] for m in users), _owner([names[m] for m in users]))
        for norm, users in fed.items()
        if users and all(isinstance(m, linear) for m in users)
    ]
    found = {p.feeder for p in norms}
    pairs = [*norms, *_outputs(layer, [n for g in groups for n in g])]
    pairs.sort(key=lambda p: next(i for i, g in enumerate(groups) if p.linears[0] in g))
    return Wiring(tuple(pairs), groups, tuple(n for n in fed if n not in found))


def _is_norm(module: Any) -> bool:
    return "norm" in type(module).__name__.lower()


def _owner(names: list[str]) -> str:
    """The module that holds the linear layers: attention or MLP."""
    return names[0].rpartition(".")[0]


def _outputs(layer: Module, linears: list[str]) -> list[Pair]:
    """v_proj -> o_proj and up_proj -> down_proj, where channels stand one for one."""
    pairs = []
    for name in linears:
        owner, _, last = name.rpartition(".")
        feeders = {"o_proj": ("v_proj", "qkv_proj"), "down_proj": ("up_proj", "gate_up_proj")}
        for feeder in (f"{owner}.{x}" for x in feeders.get(last, ())):
            if feeder not in linears:
                continue
            k = layer.get_submodule(name).in_features
            n = layer.get_submodule(feeder).out_features
            whole = (
                (3 * k if "qkv" in feeder else 2 * k) if "_up" in feeder or "qkv" in feeder else k
            )
            if n == whole:
                pairs.append(Pair(feeder, (name,), name, (n - k, n)))
            elif feeder.endswith("v_proj") and k % n == 0:  # value heads are shared
                head = int(getattr(layer.get_submodule(owner), "head_dim", n))
                pairs.append(Pair(feeder, (name,), name, (0, n), k // n, head))
    return pairs
