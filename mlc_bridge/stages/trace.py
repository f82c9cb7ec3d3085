"""``verify --trace``: the first layer where the compiled model and its checkpoint part.

A library returns logits only. But in a residual stream

    h_{i+1} = h_i + mixer_i(h_i) + mlp_i(h_i)

a layer whose matrices are zero passes its input on. So with the scales (and float matrices and
biases) of all layers from depth i on set to zero, the very library under test answers with
head(norm(h_i)): the hidden state after i layers, as its own norm and head read it. The reference
gives the same reading of its own h_i. From one depth to the next only one layer is new, so the
first reading that differs names it; depth 0 is embedding, last norm and head, which every reading
passes.

No other library is compiled for it: kernels, weights and config are those that answer requests.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from mlc_bridge.packing import Array
from mlc_bridge.record import Record
from mlc_bridge.stages.recognise import Model

TRACED = 256
"""Tokens that are traced at most."""
TINY = 1e-30
PARTED = 0.05
"""Distance that is no rounding: 4-bit weights in float16 stay below 0.01."""


@dataclass(frozen=True)
class Depth(Record):
    """Both sides' readings ``[n, vocab]`` of the hidden state after ``layers`` layers."""

    layers: Annotated[int, "Layers computed; 0 is the embedding."]
    cosine: Annotated[float, "Least cosine of both sides' readings, over the positions."]
    distance: Annotated[float, "Norm of their difference, in parts of the reference's norm."]
    largest: Annotated[float, "Largest difference of a value."]


def silenced(model: Model, depth: int) -> list[str]:
    """Parameters of layer ``depth`` that are zero when it passes its input on."""
    return [
        weight.parameter(suffix)
        for weight in model.weights
        if weight.role == "linear" and layer_of(weight.path) == depth
        for suffix in model.params(weight)
        if suffix != "q_calibration_scale"  # divides the activations
    ]


def layer_of(path: str) -> int | None:
    found = re.search(r"\blayers\.(\d+)\.", f"{path}.")
    return int(found[1]) if found else None


def depths_of(model: Model) -> int:
    """How many layers there are."""
    found = [n for weight in model.weights if (n := layer_of(weight.path)) is not None]
    return max(found, default=-1) + 1


def compared(ours: Sequence[Array], theirs: Sequence[Array]) -> tuple[Depth, ...]:
    """Readings ``[n, vocab]`` of both sides at every depth, the embedding first."""
    pairs = enumerate(zip(ours, theirs, strict=True))
    return tuple(_compared(depth, mine, other) for depth, (mine, other) in pairs)


def _compared(depth: int, ours: Array, theirs: Array) -> Depth:
    """Logits are compared without their mean, which softmax does not see."""
    a, b = (x - x.mean(axis=1, keepdims=True) for x in (ours, theirs))
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosine = (a * b).sum(axis=1) / np.maximum(norms, TINY)
    gap = float(np.linalg.norm(a - b)) / max(float(np.linalg.norm(b)), TINY)
    return Depth(depth, float(cosine.min()), gap, float(np.abs(a - b).max()))


def parted(depths: Sequence[Depth]) -> str:
    """The place where they part in words; "" where they do not."""
    for depth in depths:
        if not depth.distance <= PARTED:  # NaN is a difference too
            where = f"layer {depth.layers - 1}" if depth.layers else "embedding, last norm or head"
            return f"they part in {where}: {depth.distance:.1%} apart, cosine {depth.cosine:.4f}"
    return ""
