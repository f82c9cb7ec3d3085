"""SmoothQuant: move part of the activations' range into the weights.

    s = clamp(max|x|^alpha / max|w|^beta, 1e-5)        x / s  and  W s

max|x| over all tokens; max|w| by channel over the rows of all layers that share the input.
alpha = beta = 0.5 is LLMC's default and msModelSlim's m1 (norms alone); 0.9 and 0.1, also between
v and o and between up and down, is m4.

Origin: LLMC's SmoothQuant, arXiv 2211.10438; msModelSlim 26.1.0 (m1, m4).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mlc_bridge.quantizers.extra import torch_here

if TYPE_CHECKING:
    from torch import Tensor

LEAST = 1e-5


def largest_weight(weights: Sequence[Tensor]) -> Tensor:
    """max|w| of every input channel, ``[k]``."""
    return torch_here().stack([w.abs().amax(0) for w in weights]).amax(0)


def smooth(largest: Tensor, weights: Sequence[Tensor], alpha: float, beta: float) -> Tensor:
    """The scale ``[k]``; ``largest`` is max|x| ``[k]``."""
    w = largest_weight(weights).clamp(min=LEAST)
    return (largest.pow(alpha) / w.pow(beta)).clamp(min=LEAST)
