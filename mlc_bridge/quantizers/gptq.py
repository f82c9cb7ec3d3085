"""GPTQ: columns are rounded one after the other, and those to come make good for the error.

    H = 2 X X^T + damping mean(diag H) I        U = upper Cholesky factor of H^-1
    q_i = Q(w_i)      e = (w_i - q_i) / U_ii      w_j -= e U_ij for j > i

in blocks of columns, the rest of the matrix after each block. A channel that is always zero gets
weight 0. With ``order`` columns come by falling diag H; ``static_groups`` takes the scales of every
group from the weights before any update, so groups stay contiguous; without them a group's scale is
taken when its first column is reached, and with ``order`` its columns are scattered (``perm``).

The scale of H has no influence, so the Gram matrix does. Origin: LLMC's GPTQ, arXiv 2210.17323.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlc_bridge.errors import SourceError
from mlc_bridge.quantizers.extra import torch_here
from mlc_bridge.quantizers.grid import Affine, Store, fit
from mlc_bridge.quantizers.recipe import Gptq, Grid
from mlc_bridge.quantizers.stats import Stats

if TYPE_CHECKING:
    from torch import Tensor


def gptq(
    w: Tensor, stats: Stats, grid: Grid, how: Gptq, store: Store
) -> tuple[Tensor, Affine, Tensor | None]:
    """Codes ``[n, k]``, their grid, and the input column of each stored one where that moved."""
    torch = torch_here()
    h, w = stats.gram.clone(), w.clone()
    dead = h.diagonal() == 0
    h.diagonal()[dead] = 1
    w[:, dead] = 0
    static = fit(w, grid, store) if how.static_groups or grid.granularity != "group" else None
    perm = torch.argsort(h.diagonal(), descending=True) if how.order else None
    if perm is not None:
        w, h = w[:, perm], h[perm][:, perm]
    pass_ = _Pass(w, _factor(h, how.damping), grid, store, static, perm)
    codes = pass_.run(min(how.block, CACHED))
    if perm is None:
        return codes, pass_.affine(), None
    if static is None:
        return codes, pass_.affine(), perm
    return codes[:, torch.argsort(perm)], static, None


def _factor(h: Tensor, damping: float) -> Tensor:
    torch = torch_here()
    h.diagonal().add_(damping * h.diagonal().mean())
    try:
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(h))
        factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    except torch.linalg.LinAlgError as error:
        raise SourceError(
            "the Hessian of this layer cannot be inverted", where="gptq", found=str(error)[:120],
            todo="Give more calibration text, or a larger damping",
        ) from error  # fmt: skip
    return factor


CACHED = 32  # columns of one block: more would leave the cache, and only the order of sums differs


class _Pass:
    """One pass over the columns of ``w`` (in processing order)."""

    def __init__(
        self, w: Tensor, u: Tensor, grid: Grid, store: Store,
        static: Affine | None, perm: Tensor | None,
    ) -> None:  # fmt: skip
        self.w, self.u, self.grid, self.store = w, u, grid, store
        self.static, self.perm = static, perm
        self.found: list[Affine] = []

    def run(self, block: int) -> Tensor:
        torch = torch_here()
        codes = torch.empty_like(self.w)
        k = self.w.shape[1]
        for first in range(0, k, block):
            last = min(first + block, k)
            errors = torch.zeros_like(self.w[:, first:last])
            for i in range(first, last):
                at = self._affine_at(i, first, last, errors)
                column = self.w[:, i : i + 1]
                codes[:, i : i + 1] = at.encode(column)
                wrong = (column - at.decode(codes[:, i : i + 1])) / self.u[i, i]
                self.w[:, i:last] -= wrong * self.u[i, i:last]
                errors[:, i - first : i - first + 1] = wrong
            self.w[:, last:] -= errors @ self.u[first:last, last:]
        return codes

    def _affine_at(self, i: int, first: int, last: int, errors: Tensor) -> Affine:
        """The grid of column ``i``, from ``static`` or from the weights as they are now."""
        width = self.grid.width(self.w.shape[1])
        if self.static is not None:
            return self.static.column(i if self.perm is None else int(self.perm[i]))
        if i % width == 0:
            group = self.w[:, i : i + width].clone()
            if i + width > last:  # columns beyond the block still lack its errors
                group[:, last - i :] -= errors[:, : i - first] @ self.u[first:i, last : i + width]
            self.found.append(fit(group, self.grid, self.store))
        return self.found[-1].column(0)

    def affine(self) -> Affine:
        torch = torch_here()
        if self.static is not None:
            return self.static
        scale = torch.cat([a.scale for a in self.found], 1)
        return Affine(scale, torch.cat([a.zero for a in self.found], 1), self.grid)
