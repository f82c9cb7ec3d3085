"""Quantized inputs of linear layers: stored ranges, and what they do while the model is measured.

    dynamic   s = max|x| / 127 for every token, zero 0
    static    s = (max - min) / 255, z = -128 - round(min / s); the range holds 0

Stored ranges: the mean over samples of each sample's extremes (method 1), torch's histogram search
(2), or that only where max|x| / std is at most 50 (3).
Origin: compressed-tensors' dynamic token strategy; msModelSlim's StatMinMaxObserver.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from mlc_bridge.quantizers.block import Block
from mlc_bridge.quantizers.observe import histogram_ranges, scored
from mlc_bridge.quantizers.outputs import Rounded, Static
from mlc_bridge.quantizers.recipe import Recipe
from mlc_bridge.quantizers.stats import Stats

if TYPE_CHECKING:
    from torch import Tensor


NARROW = 50.0
Ranges = Mapping[str, tuple[float, float]]


def stored(recipe: Recipe) -> bool:
    """Whether the recipe stores scales of inputs."""
    return recipe.inputs.kind in ("static", "mixed")


def histograms(block: Block, recipe: Recipe, names: Sequence[str]) -> Ranges:
    """Ranges by the histogram search, for the layers that want one (methods 2 and 3)."""
    if not stored(recipe) or recipe.inputs.method == 1:
        return {}
    if recipe.inputs.method == 3:
        scores = scored(block)
        names = [n for n in names if scores[n].level <= NARROW]
    return histogram_ranges(block, names)


def observed(
    recipe: Recipe, stats: Stats | None, ends: tuple[float, float] | None
) -> Static | None:
    """The stored scale of an input; None where none is stored."""
    if not stored(recipe):
        return None
    if ends is not None:
        return static(*ends, recipe.inputs.symmetric)
    assert stats is not None
    low = sum(a for a, _ in stats.ranges) / len(stats.ranges)
    high = sum(b for _, b in stats.ranges) / len(stats.ranges)
    return static(low, high, recipe.inputs.symmetric)


@contextmanager
def settling(block: Block, recipe: Recipe, names: Sequence[str]) -> Iterator[dict[str, Static]]:
    """msModelSlim's calibration: each layer's stored scale follows the samples, one by one, and
    what the layer puts out meanwhile is that of inputs quantized with the scale so far.

    The mapping that it gives is filled by what runs inside.
    """
    found: dict[str, Static] = {}
    seen = dict.fromkeys(names, (0.0, 0.0, 0))

    def hook(name: str) -> Callable[[Any, Any], Any]:
        def before(_: Any, args: Any) -> Any:
            low, high, count = seen[name]
            seen[name] = low, high, count = (
                low + float(args[0].min()), high + float(args[0].max()), count + 1,
            )  # fmt: skip
            found[name] = static(low / count, high / count, recipe.inputs.symmetric)
            return (nearest(args[0], found[name]), *args[1:])

        return before

    hooks = [block.module(n).register_forward_pre_hook(hook(n)) for n in names]
    try:
        yield found
    finally:
        for handle in hooks:
            handle.remove()


def static(low: float, high: float, symmetric: bool) -> Static:
    """Scale and zero (of codes 0 .. 255) of a range."""
    if symmetric:
        return Static(max(abs(low), abs(high), 1e-5) / 127, 128)
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32(max(high - low, 1e-5)) / np.float32(255)
    return Static(float(scale), int(np.rint(np.float32(-low) / scale)))


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
