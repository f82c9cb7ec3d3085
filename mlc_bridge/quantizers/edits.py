"""Edits of a block by name: each finds the scale of a pair, which ``Block.scale`` folds in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mlc_bridge.quantizers.awq import awq
from mlc_bridge.quantizers.block import Block
from mlc_bridge.quantizers.flex import flex
from mlc_bridge.quantizers.grid import Store
from mlc_bridge.quantizers.inputs import nearest, static
from mlc_bridge.quantizers.os_plus import os_plus
from mlc_bridge.quantizers.outliers import outliers
from mlc_bridge.quantizers.recipe import Awq, Flex, OsPlus, Outliers, Recipe, Smooth
from mlc_bridge.quantizers.rotate import Rotation
from mlc_bridge.quantizers.skeleton import Skeleton
from mlc_bridge.quantizers.smooth import smooth
from mlc_bridge.quantizers.wiring import Pair

if TYPE_CHECKING:
    from torch import Tensor

Find = Callable[[Any, Block, Pair, Recipe, Store], "Tensor | None"]


def apply(edit: Any, block: Block, recipe: Recipe, store: Store) -> None:
    """One edit of the recipe on every pair of the block that it concerns."""
    shared = isinstance(edit, Smooth)
    for pair in (p for p in block.wiring.pairs if shared or p.repeat == 1):
        s = FIND[type(edit)](edit, block, pair, recipe, store)
        if s is not None:
            block.scale(pair, s, store)


def rotation(recipe: Recipe, skeleton: Skeleton) -> Rotation | None:
    """The rotation of the whole model; None where the recipe has none."""
    return Rotation(recipe.rotations[0], skeleton) if recipe.rotations else None


def _weights(block: Block, pair: Pair) -> list[Tensor]:
    return [block.weight(name) for name in pair.linears]


def _awq(edit: Awq, block: Block, pair: Pair, recipe: Recipe, store: Store) -> Tensor | None:
    if edit.first_batch and not pair.is_norm:
        return None
    loss: Any = None if pair.inside in pair.linears else block.loss_of(pair)
    stats = block.stats[pair.linears[0]]
    if edit.first_batch:
        assert stats.first_mean is not None
        stats = replace(stats, total=stats.first_mean * stats.tokens)
        first = block.inputs_of(pair.linears[0])[0][0]
        before = _weights(block, pair)

        def loss(near: Any) -> float:
            pairs = zip(near, before, strict=True)
            return sum(float((first @ (a - b).T).square().mean()) for a, b in pairs)

    return awq(_weights(block, pair), stats, recipe.weights, edit, store, loss)


def _smooth(edit: Smooth, block: Block, pair: Pair, recipe: Recipe, store: Store) -> Tensor | None:
    if not (pair.is_norm or edit.outputs):
        return None
    largest = block.stats[pair.linears[0]].largest
    s = smooth(largest, _weights(block, pair), edit.alpha, edit.beta)
    return pair.shared(s)


def _os_plus(edit: OsPlus, block: Block, pair: Pair, recipe: Recipe, store: Store) -> Tensor | None:
    if not pair.is_norm:
        return None
    module_loss = block.loss_of(pair)

    def loss(weights: Any, s: Tensor) -> float:
        return module_loss(weights, lambda x: nearest(x / s, None))

    stats = block.stats[pair.linears[0]]
    return os_plus(_weights(block, pair), stats, recipe.weights, store, loss)


def _outliers(
    edit: Outliers, block: Block, pair: Pair, recipe: Recipe, store: Store
) -> Tensor | None:
    return outliers(block.stats[pair.linears[0]]) if pair.is_norm else None


def _flex(edit: Flex, block: Block, pair: Pair, recipe: Recipe, store: Store) -> Tensor | None:
    if pair.linears[0].endswith("o_proj"):  # the tool's script leaves these out
        return None
    inputs = block.inputs_of(pair.linears[0])
    weights = _weights(block, pair)

    def loss(s: Tensor) -> float:
        ends = [(float((x / s).min()), float((x / s).max())) for x in inputs]
        whole = static(min(a for a, _ in ends), max(b for _, b in ends), False)
        wrong = total = 0.0
        for x in inputs:
            for w in weights:
                out = x @ w.T
                near = nearest(x / s, whole) @ nearest(w * s, None).T
                wrong += float((near - out).square().sum())
                total += float(out.square().sum())
        return (wrong / max(total, 1e-30)) ** 0.5

    return flex(block.stats[pair.linears[0]].largest, weights, edit, loss)


FIND: dict[type, Find] = {
    Awq: _awq,
    Smooth: _smooth,
    OsPlus: _os_plus,
    Outliers: _outliers,
    Flex: _flex,
}
