"""OmniQuant's learnable weight clipping: how far each group is clipped is learned by gradient.

    max' = sigmoid(u) max w        min' = sigmoid(l) min w        (symmetric: +- sigmoid(u) max|w|)
    u, l = argmin of the mean squared error of the decoder layer's output

Rounding passes gradients straight through. The layer reads what quantized layers give and shall
say what the float layer says on the float stream; ``second_loss`` adds the float layer on the
quantized stream. AdamW, one step a batch. u and l start at 4 (98 %), or at the logits of the clip
search, in which case q and k, which that search leaves alone, have none.

Origin: LLMC's OmniQuant, arXiv 2308.13137. Its learned scales (LET) are ``awq`` before this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from mlc_bridge.quantizers.block import Block
from mlc_bridge.quantizers.clip import bounds, is_clipped
from mlc_bridge.quantizers.extra import torch_here
from mlc_bridge.quantizers.grid import Affine, Store, from_range, split, unrounded
from mlc_bridge.quantizers.recipe import Grid, OmniQuant

if TYPE_CHECKING:
    from torch import Tensor

START = 4.0
STEP_TOKENS = 2048


def omniquant(
    block: Block,
    names: Sequence[str],
    grid: Grid,
    how: OmniQuant,
    store: Store,
    targets: Callable[[], Iterator[Tensor]],
) -> dict[str, Affine]:
    """The learned grid of each layer; the block's weights stay float."""
    torch = torch_here()
    with torch.enable_grad():
        clips = {name: _Clip(block, name, grid, how) for name in names}
        learned = [p for clip in clips.values() for p in clip.parameters]
        step = torch.optim.AdamW(learned, lr=how.rate, weight_decay=how.decay)
        for _ in range(how.epochs):
            for x, wanted in zip(block.batches(), targets(), strict=True):
                weights = {f"{n}.weight": clip.nearest() for n, clip in clips.items()}
                out = torch.func.functional_call(
                    block.layer, weights, (x,), block.arguments(x.shape[1])
                )
                out = out[0] if isinstance(out, tuple) else out
                loss = (out - wanted).square().mean()
                if how.second_loss:
                    with torch.no_grad():
                        second = block(x)
                    loss = loss + (out - second).square().mean()
                step.zero_grad()
                loss.backward()
                step.step()
    return {name: clip.affine(store) for name, clip in clips.items()}


class _Clip:
    """The two factors of one layer's groups."""

    def __init__(self, block: Block, name: str, grid: Grid, how: OmniQuant) -> None:
        torch = torch_here()
        self.w, self.grid = block.weight(name), grid
        groups = split(self.w, grid)
        self.low, self.high = groups.amin(-1), groups.amax(-1)
        if grid.symmetric:
            self.high = groups.abs().amax(-1)
            self.low = -self.high
        self.parameters: list[Any] = []
        if how.from_clip and not is_clipped(name):
            return
        start = [torch.full_like(self.high, START), torch.full_like(self.high, START)]
        if how.from_clip:
            low, high = bounds(self.w, block.stats[name], grid, unrounded)
            start = [_logit(high / self.high), _logit(low / self.low)]
        self.parameters = [s.clone().requires_grad_() for s in start]

    def range(self) -> tuple[Tensor, Tensor]:
        if not self.parameters:
            return self.low, self.high
        up, low = (p.sigmoid() for p in self.parameters)
        if self.grid.symmetric:
            return -up * self.high, up * self.high
        return low * self.low, up * self.high

    def nearest(self) -> Tensor:
        """The weights as the codes will mean them; gradients pass the rounding."""
        affine = from_range(*self.range(), self.grid)
        groups = split(self.w, self.grid) / affine.scale[..., None]
        rounded = groups + (groups.round() - groups).detach()
        zero = affine.zero.detach()[..., None]
        codes = (rounded + zero).clamp(0, self.grid.top)
        out: Tensor = ((codes - zero) * affine.scale[..., None]).reshape(self.w.shape)
        return out

    def affine(self, store: Store) -> Affine:
        low, high = (x.detach() for x in self.range())
        return from_range(low, high, self.grid, store)


def _logit(kept: Tensor) -> Tensor:
    """The inverse of sigmoid; 1 (nothing clipped) is held where a gradient still moves it."""
    kept = kept.nan_to_num(1.0).clamp(0.05, 1 - 1e-4)
    return (kept / (1 - kept)).log()
