"""Edits of a block by name: each finds its scales and folds them in (``Block.scale``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mlc_bridge.quantizers.awq import awq
from mlc_bridge.quantizers.block import Block
from mlc_bridge.quantizers.recipe import Awq, Recipe
from mlc_bridge.quantizers.skeleton import Skeleton

if TYPE_CHECKING:
    pass

Store = Callable[[Any], Any]


def apply(edit: Any, block: Block, recipe: Recipe, store: Store) -> None:
    """One edit of the recipe on every pair of the block that it concerns."""
    EDITS[type(edit)](edit, block, recipe, store)


def rotation(recipe: Recipe, skeleton: Skeleton) -> Any:
    """The rotation of the whole model; None where the recipe has none."""
    return None


def _awq(edit: Awq, block: Block, recipe: Recipe, store: Store) -> None:
    for pair in block.wiring.pairs:
        weights = [block.weight(n) for n in pair.linears]
        stats = block.stats[pair.linears[0]]
        s = awq(weights, stats, recipe.weights, edit, store, block.loss_of(pair))
        block.scale(pair, s, store)


EDITS: dict[type, Callable[[Any, Block, Recipe, Store], None]] = {Awq: _awq}
