"""Quantized inputs of linear layers: stored ranges, and what they do while the model is measured.

    dynamic   s = max|x| / 127 for every token, zero 0
    static    s = (max - min) / 255, z = -128 - round(min / s); the range holds 0

Stored ranges: the mean over samples of each sample's extremes (method 1).
Origin: compressed-tensors' dynamic token strategy; msModelSlim's StatMinMaxObserver.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mlc_bridge.quantizers.block import Block
from mlc_bridge.quantizers.outputs import Rounded, Static
from mlc_bridge.quantizers.recipe import Recipe
from mlc_bridge.quantizers.stats import Stats

if TYPE_CHECKING:
    from torch import Tensor


def observed(recipe: Recipe, stats: Stats | None) -> Static | None:
    """The stored scale of an input; None where none is stored."""
    if recipe.inputs.kind not in ("static", "mixed"):
        return None
    assert stats is not None
    low = sum(a for a, _ in stats.ranges) / len(stats.ranges)
    high = sum(b for _, b in stats.ranges) / len(stats.ranges)
    return static(low, high, recipe.inputs.symmetric)


def static(low: float, high: float, symmetric: bool) -> Static:
    """Scale and zero (of codes 0 .. 255) of a range."""
    if symmetric:
        return Static(max(abs(low), abs(high), 1e-5) / 127, 128)
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max(high - low, 1e-5) / 255
    return Static(scale, round(-low / scale))


def nearest(x: Tensor, static: Static | None) -> Tensor:
    """What a quantized input means; one scale a token without stored ones."""
    if static is None:
        scale = x.abs().amax(-1, keepdim=True).clamp(min=1e-5) / 127
        return (x / scale).round().clamp(-128, 127) * scale
    codes = ((x / static.scale).round() + static.zero).clamp(0, 255)
    return (codes - static.zero) * static.scale


@contextmanager
def quantized_inputs(block: Block, recipe: Recipe, found: Mapping[str, Rounded]) -> Iterator[None]:
    """The block's quantized layers see quantized inputs, as the recipe asks."""
    kind = recipe.inputs.kind
    hooks = []
    for name, rounded in found.items() if kind != "float" else ():
        hook = _hook(rounded.inputs if kind == "static" else None)
        hooks.append(block.module(name).register_forward_pre_hook(hook))
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


def _hook(static: Static | None) -> Callable[[Any, Any], Any]:
    def hook(_: Any, args: Any) -> Any:
        return (nearest(args[0], static), *args[1:])

    return hook
