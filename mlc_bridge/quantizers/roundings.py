"""A block's linear layers, each by the recipe's rounding; the table of methods.

``Format`` is the recipe and the dtype in which scales are stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mlc_bridge.quantizers.block import Block
from mlc_bridge.quantizers.clip import clipped, is_clipped
from mlc_bridge.quantizers.extra import float32
from mlc_bridge.quantizers.gptq import gptq
from mlc_bridge.quantizers.grid import Affine, check_fits, qtensor
from mlc_bridge.quantizers.inputs import observed
from mlc_bridge.quantizers.outputs import Rounded
from mlc_bridge.quantizers.recipe import Gptq, NoRounding, Recipe
from mlc_bridge.quantizers.rtn import rtn
from mlc_bridge.quantizers.stats import Stats

if TYPE_CHECKING:
    from torch import Tensor

Targets = Callable[[], Iterator[Any]]


@dataclass(frozen=True)
class Format:
    recipe: Recipe
    dtype: np.dtype[Any]

    def store(self, scale: Tensor) -> Tensor:
        """A scale as a reader of the file sees it."""
        return float32(scale.numpy().astype(self.dtype))


def is_rounded(recipe: Recipe) -> bool:
    return not isinstance(recipe.rounding, NoRounding)


def round_block(
    block: Block, names: Sequence[str], form: Format, targets: Targets | None
) -> dict[str, Rounded]:
    """Round the layers ``names``; their weights in the block become what the codes mean."""
    recipe = form.recipe
    for name in names:
        check_fits(recipe.weights, f"{block.name}.{name}", tuple(block.weight(name).shape))
    if recipe.inputs.kind in ("static", "mixed") and recipe.scalings:
        block.watch(block.wiring.linears)  # ranges of the edited inputs
    found: dict[str, Rounded] = {}
    for group in block.wiring.linears:
        chosen = [n for n in group if n in names]
        if not chosen:
            continue
        if recipe.sequential and recipe.needs_data:
            block.watch([group])
        for name in chosen:
            codes, affine, perm = round_one(name, block.weight(name), block.stats.get(name), form)
            order = None if perm is None else perm.numpy()
            q = qtensor(codes, affine, form.dtype, order)
            found[name] = Rounded(q, observed(recipe, block.stats.get(name)))
            block.module(name).weight.data = float32(q.dequantize())
    return found


def round_one(
    name: str, w: Tensor, stats: Stats | None, form: Format
) -> tuple[Tensor, Affine, Tensor | None]:
    """Codes ``[n, k]``, their grid, and the order of columns where it is another."""
    recipe = form.recipe
    grid, how = recipe.weights, recipe.rounding
    if isinstance(how, Gptq):
        assert stats is not None
        return gptq(w, stats, grid, how, form.store)
    if recipe.clip and is_clipped(name):
        assert stats is not None
        w = clipped(w, stats, grid, form.store)
    codes, affine = rtn(w, grid, form.store)
    return codes, affine, None
