"""What is known of a linear layer's input x ``[tokens, k]``: sums and extremes, so it can be added.

    gram = sum x^T x    mean|x| = sum |x| / tokens    max|x|, max x, min x by channel
    ranges: min and max of each sample;  score = max|x| / std(x - shift), see ``keep.py``

Scaling the channels of x scales the statistics (``scaled``): one pass through the model serves all
the edits of a layer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mlc_bridge.quantizers.extra import torch_here

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Stats:
    """Channels ``[k]``; ``gram`` ``[k, k]``; ``ranges`` one (min, max) for each sample."""

    gram: Tensor
    total: Tensor
    largest: Tensor
    top: Tensor
    bottom: Tensor
    tokens: int = 0
    ranges: list[tuple[float, float]] = field(default_factory=list)
    first_mean: Tensor | None = None

    @classmethod
    def empty(cls, k: int) -> Stats:
        torch = torch_here()
        zero, inf = torch.zeros(k), torch.full((k,), torch.inf)
        return cls(torch.zeros(k, k), zero, zero, -inf, inf)

    def add(self, x: Tensor) -> None:
        """``x`` is ``[samples, tokens, k]``."""
        torch = torch_here()
        rows = x.reshape(-1, x.shape[-1])
        magnitude = rows.abs()
        self.gram.addmm_(rows.T, rows)
        self.total = self.total + magnitude.sum(0)
        self.largest = torch.maximum(self.largest, magnitude.amax(0))
        self.top = torch.maximum(self.top, rows.amax(0))
        self.bottom = torch.minimum(self.bottom, rows.amin(0))
        self.tokens += len(rows)
        self.ranges += [(float(s.min()), float(s.max())) for s in x]
        if self.first_mean is None:
            self.first_mean = x[0].abs().mean(0)

    @property
    def mean(self) -> Tensor:
        return self.total / max(self.tokens, 1)

    def scaled(self, by: Tensor) -> Stats:
        """Of ``x * by``, ``by`` ``[k]`` above zero; the ranges of samples are no longer known."""
        return Stats(
            self.gram * by[:, None] * by,
            self.total * by,
            self.largest * by,
            self.top * by,
            self.bottom * by,
            self.tokens,
            [],
            None if self.first_mean is None else self.first_mean * by,
        )
