"""Every tensor of a checkpoint is used, or left out for a reason that was looked at.

Left out are buffers that the graph computes itself, biases that are zero, and copies: a head beside
a tied embedding, and what a format repeats, as long as both hold the same values.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mlc_bridge.errors import SourceError
from mlc_bridge.models import Weight
from mlc_bridge.sources import Checkpoint, Source

BUFFERS = (".rotary_emb.inv_freq", ".attn.bias", ".masked_bias")
ROWS = 4096  # rows compared at once, so that a large table never lies in memory whole


def left_out(ckpt: Checkpoint, source: Source, weights: Sequence[Weight]) -> dict[str, str]:
    """Name -> why, of every tensor that is not converted. SourceError where one would matter."""
    copies = source.copies(ckpt)
    used = set(source.aside(ckpt))
    for weight in weights:
        for layer in weight.sources:
            used |= {weight.tensor} if weight.tensor else {*source.parts(ckpt, layer)}
            if weight.bias:
                used.add(f"{layer}.bias")
    if all(weight.role != "lm_head" for weight in weights):
        copies = {**copies, "lm_head.weight": f"{weights[0].sources[0]}.weight"}
    reasons = {n: _reason(ckpt, n, copies.get(n)) for n in ckpt.names if n not in used}
    left = [name for name, reason in reasons.items() if reason is None]
    if left:
        more = f" and {len(left) - 4} more" if len(left) > 4 else ""
        raise SourceError(
            "the model has no place for these tensors of the checkpoint",
            where=ckpt.path,
            found=", ".join(left[:4]) + more,
            todo="They change what the model computes, so the checkpoint is not converted",
        )
    return {name: reason for name, reason in reasons.items() if reason is not None}


def _reason(ckpt: Checkpoint, name: str, original: str | None) -> str | None:
    if name.endswith(BUFFERS):
        return "the graph computes it"
    if name.endswith(".bias") and not np.any(ckpt.tensor(name)):
        return "it is zero"
    if original is not None and same_values(ckpt, name, original):
        return f"it is a copy of {original}"
    if original is not None:
        raise SourceError(
            "two tensors that should hold the same differ",
            where=name,
            expected=f"the values of {original}",
            todo="Which of the two is meant cannot be known; quantize the model again",
        )
    return None


def same_values(ckpt: Checkpoint, a: str, b: str) -> bool:
    """Whether two tensors hold the same numbers, whatever their dtypes."""
    if a not in ckpt or b not in ckpt or ckpt.shape(a) != ckpt.shape(b):
        return False
    one, other = ckpt.tensor(a), ckpt.tensor(b)
    return all(
        np.array_equal(one[at : at + ROWS], other[at : at + ROWS])
        for at in range(0, len(one), ROWS)
    )
