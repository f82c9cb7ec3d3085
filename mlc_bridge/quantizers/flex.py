"""msModelSlim's m6 (flexible smoothing): ``smooth`` with exponents found by a search.

    s = clamp(max|x|^alpha max|W|^-beta, 1e-5)
    e(s) = rms(Qa(x / s) Qw(W s)^T - x W^T) / rms(x W^T)

with weights by row and inputs as one tensor (asymmetric, all samples together), in int8. First
alpha = 0, 0.05 ... 1 with beta = 1 - alpha, then beta with alpha fixed; of equal errors the later
value. What the user fixes is not searched.

Origin: msModelSlim 26.1.0 (v1's flex_smooth_quant).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from mlc_bridge.quantizers.recipe import Flex
from mlc_bridge.quantizers.smooth import smooth

if TYPE_CHECKING:
    from torch import Tensor

STEPS = 20


def flex(
    largest: Tensor, weights: Sequence[Tensor], how: Flex, loss: Callable[[Tensor], float]
) -> Tensor:
    """The scale ``[k]``; ``loss`` of a scale."""
    steps = [i / STEPS for i in range(STEPS + 1)]
    alpha, beta = how.alpha, how.beta
    if alpha is None:
        alpha = _last_best(steps, lambda a: loss(smooth(largest, weights, a, 1 - a)))
    if beta is None:
        fixed = alpha
        beta = _last_best(steps, lambda b: loss(smooth(largest, weights, fixed, b)))
    return smooth(largest, weights, alpha, beta)


def _last_best(values: Sequence[float], loss: Callable[[float], float]) -> float:
    best, least = values[0], float("inf")
    for value in values:
        found = loss(value)
        if found <= least:
            best, least = value, found
    return best
