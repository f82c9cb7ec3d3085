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
from mlc_bridge.quantizers.grid import Affine, qtensor
from mlc_bridge.quantizers.inputs import histograms, observed, stored
from mlc_bridge.quantizers.omniquant import omniquant
from mlc_bridge.quantizers.outputs import Rounded
from mlc_bridge.quantizers.progressive import progressive
from mlc_bridge.quantizers.recipe import Gptq, NoRounding, OmniQuant, Progressive, Recipe, Sparse
from mlc_bridge.quantizers.rtn import rtn
from mlc_bridge.quantizers.sparse import sparse
from mlc_bridge.quantizers.stats import Stats

if TYPE_CHECKING:
    from torch import Tensor

Targets = Callable[[], Iterator[Any]]


@dataclass(frozen=True)
class Format:
    recipe: Recipe
    dtype: np.dtype[Any]
    model_dtype: np.dtype[Any]

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
    if stored(recipe) and recipe.scalings:
        block.watch(block.wiring.linears)  # ranges of the edited inputs
    ranges = histograms(block, recipe, names)
    learned: dict[str, Affine] = {}
    if isinstance(recipe.rounding, OmniQuant):
        assert targets is not None
        learned = omniquant(block, names, recipe.weights, recipe.rounding, form.store, targets)
    found: dict[str, Rounded] = {}
    for group in block.wiring.linears:
        chosen = [n for n in group if n in names]
        if not chosen:
            continue
        if recipe.sequential and recipe.needs_data:
            block.watch([group])
        for name in chosen:
            w = block.weight(name)
            if name in learned:
                codes, affine = learned[name].encode(w), learned[name]
                perm, second = None, None
            elif isinstance(recipe.rounding, Progressive):
                codes, affine, first = progressive(w, recipe.weights)
                perm, second = None, first.numpy()
            else:
                second = None
                codes, affine, perm = round_one(name, w, block.stats.get(name), form)
            order = None if perm is None else perm.numpy()
            q = qtensor(codes, affine, form.dtype, order)
            inputs = observed(recipe, block.stats.get(name), ranges.get(name))
            dtype = str(form.model_dtype)
            found[name] = Rounded(q, inputs, block.bias(name), second, dtype)
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
    if isinstance(how, Sparse):
        return (*sparse(w, grid, how), None)
    if recipe.clip and is_clipped(name):
        assert stats is not None
        w = clipped(w, stats, grid, form.store, recipe.clip_steps)
    codes, affine = rtn(w, grid, form.store)
    return codes, affine, None
