"""What quantizing did to one linear layer, in numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from mlc_bridge.quantizers.outputs import Rounded
from mlc_bridge.quantizers.stats import Stats

if TYPE_CHECKING:
    from torch import Tensor


class LayerReport(BaseModel):
    """``weight``: RMS error over the weights' RMS; ``output``: the same of the layer's output on
    the calibration text, None without one. Scales as stored.
    """

    model_config = ConfigDict(frozen=True)

    layer: str
    shape: tuple[int, int]
    bits: int
    weight: float
    output: float | None
    smallest_scale: float
    largest_scale: float
    input_scale: float | None = None


def compared(
    layer: str, before: Tensor, after: Tensor, found: Rounded, stats: Stats | None
) -> LayerReport:
    """``before`` is the edited float weight, ``after`` what the codes mean, both ``[n, k]``."""
    wrong = after - before
    output = None
    if stats is not None and stats.tokens:
        parts = [float(((w @ stats.gram) * w).sum()) for w in (wrong, before)]
        output = (max(parts[0], 0.0) / max(parts[1], 1e-30)) ** 0.5
    scale = abs(found.q.scale.astype("float32"))
    return LayerReport(
        layer=layer,
        shape=found.q.shape,
        bits=found.q.bits,
        weight=float(wrong.norm() / before.norm().clamp(min=1e-30)),
        output=output,
        smallest_scale=float(scale.min()),
        largest_scale=float(scale.max()),
        input_scale=None if found.inputs is None else found.inputs.scale,
    )
