"""One decoder layer at work: what its modules see, how it is edited, what its linears become.

A ``Block`` holds the layer in float32, lets batches through and collects what a method asks for:
statistics of the inputs of linear layers, or whole inputs of attention and MLP. Edits change the
weights in place and keep the function (to float32); rounding replaces a weight by what its codes
mean, so that later layers see what a reader of the file will see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mlc_bridge.errors import ConfigError
from mlc_bridge.quantizers.extra import torch_here
from mlc_bridge.quantizers.stats import Stats
from mlc_bridge.quantizers.wiring import Pair, Wiring

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

Loss = Callable[..., float]
Batches = Callable[[], Iterator[Any]]


@dataclass
class Block:
    """``name``: the layer's checkpoint name; ``batches()`` gives its inputs afresh each time."""

    name: str
    layer: Module
    wiring: Wiring
    arguments: Callable[[int], dict[str, Any]]
    batches: Batches
    stats: dict[str, Stats] = field(default_factory=dict)
    edited: set[str] = field(default_factory=set)

    def __call__(self, x: Tensor) -> Tensor:
        out = self.layer(x, **self.arguments(x.shape[1]))
        return out[0] if isinstance(out, tuple) else out

    def module(self, name: str) -> Any:
        return self.layer.get_submodule(name)

    def weight(self, linear: str) -> Tensor:
        """``[n, k]``, the tensor itself."""
        weight: Tensor = self.module(linear).weight.data
        return weight

    def bias(self, linear: str) -> Any:
        """``[n]`` as an array; None without one."""
        bias = self.module(linear).bias
        return None if bias is None else bias.data.numpy()

    def watch(self, groups: Iterable[Sequence[str]]) -> None:
        """Statistics of the inputs of these linear layers, one run through the layer."""
        torch = torch_here()
        hooks = []
        for group in groups:
            seen = Stats.empty(self.module(group[0]).in_features)
            self.stats.update(dict.fromkeys(group, seen))
            hook = _adding(seen)
            hooks.append(self.module(group[0]).register_forward_pre_hook(hook))
        try:
            with torch.no_grad():
                for x in self.batches():
                    self(x)
        finally:
            for handle in hooks:
                handle.remove()
        for group in groups:
            if not bool(torch.isfinite(self.stats[group[0]].total).all()):
                raise ConfigError(
                    "the calibration text makes this layer's input NaN or infinite",
                    where=f"{self.name}.{group[0]}",
                    todo="The checkpoint is damaged, or overflows on this text; try other text",
                )

    def calls(self, name: str) -> list[tuple[tuple[Any, ...], dict[str, Any], Tensor]]:
        """Arguments and output of module ``name`` for every batch."""
        torch = torch_here()
        found: list[tuple[tuple[Any, ...], dict[str, Any], Tensor]] = []

        def note(_: Any, args: Any, kwargs: Any, out: Any) -> None:
            found.append((args, kwargs, _first(out)))

        handle = self.module(name).register_forward_hook(note, with_kwargs=True)
        try:
            with torch.no_grad():
                for x in self.batches():
                    self(x)
        finally:
            handle.remove()
        return found

    def inputs_of(self, linear: str) -> list[Tensor]:
        """What this linear layer sees, ``[samples, tokens, k]`` for every batch."""
        return [args[0] for args, _, _ in self.calls(linear)]

    def loss_of(self, pair: Pair) -> Loss:
        """How far the module that holds a pair's layers is off with other weights, and with inputs
        of these layers that were changed.
        """
        torch = torch_here()
        module = self.module(pair.inside)
        calls = self.calls(pair.inside)

        def loss(weights: Sequence[Tensor], change: Callable[[Any], Any] | None = None) -> float:
            new = dict(zip(pair.linears, weights, strict=True))
            with torch.no_grad(), self.replaced(new), self._changed(pair.linears, change):
                return sum(
                    float((_first(module(*args, **kwargs)) - out).square().sum())
                    for args, kwargs, out in calls
                )

        return loss

    @contextmanager
    def _changed(self, names: Sequence[str], change: Callable[[Any], Any] | None) -> Iterator[None]:
        """These linear layers with changed inputs."""
        hooks = [
            self.module(n).register_forward_pre_hook(lambda _, args: (change(args[0]), *args[1:]))
            for n in names
            if change is not None
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def replaced(self, weights: dict[str, Tensor]) -> Iterator[None]:
        """These linear layers with other weights."""
        before = {name: self.module(name).weight.data for name in weights}
        for name, weight in weights.items():
            self.module(name).weight.data = weight
        try:
            yield
        finally:
            for name, weight in before.items():
                self.module(name).weight.data = weight

    def scale(self, pair: Pair, s: Tensor, store: Callable[[Tensor], Tensor]) -> None:
        """Divide what feeds the pair by ``s`` ``[k]`` and multiply the columns it meets.

        A norm's gain is stored in the file's dtype: what its rounding takes, the columns give back.
        """
        feeder = self.module(pair.feeder)
        if pair.rows is None:
            offset = gain_offset(feeder)
            gain = feeder.weight.data + offset
            feeder.weight.data = store(gain / s - offset)
            new = feeder.weight.data + offset
            s = torch_here().where(new == 0, s, gain / new)
        else:
            rows = slice(*pair.rows)
            feeder.weight.data[rows] /= pair.of_feeder(s)[:, None]
        if getattr(feeder, "bias", None) is not None:
            part = slice(None) if pair.rows is None else slice(*pair.rows)
            feeder.bias.data[part] /= pair.of_feeder(s)
        for name in pair.linears:
            self.weight(name).mul_(s)
            if name in self.stats:
                self.stats[name] = self.stats[name].scaled(1 / s)
        self.edited |= {pair.feeder, *pair.linears}


def gain_offset(norm: Module) -> float:
    """1 where a norm multiplies by 1 + weight (Gemma), else 0: asked of the norm itself."""
    torch = torch_here()
    weight: Any = norm.weight
    with torch.no_grad():
        ones = torch.ones(1, weight.shape[0])
        out = torch.func.functional_call(norm, {"weight": torch.zeros_like(weight)}, (ones,))
    return 1.0 if bool((out != 0).any()) else 0.0


def _adding(seen: Stats) -> Callable[[Any, Any], None]:
    def hook(_: Any, args: Any) -> None:
        seen.add(args[0])

    return hook


def _first(out: Any) -> Any:
    return out[0] if isinstance(out, tuple) else out
