"""Activation order folded into the layers before it, where that changes nothing else.

GPTQ's ``desc_act`` scatters the columns of a group over the layer's input: stored column ``j`` is
input column ``perm[j]``, and no layout of MLC has a place for ``perm``. In a gated MLP

    y = W_down (act(W_gate x) * (W_up x))

the input of ``W_down`` is computed element by element, so with the rows of gate and up (and their
biases) taken in the order ``perm`` the columns of down lie in stored order, and y is the same sum.
Nothing of the kind exists for the other layers: q/k/v and gate/up read the hidden state, which all
blocks share, and o_proj reads heads, which attention must not mix. Their order stays, and schemes
refuse it by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from mlc_bridge.packing import Array
from mlc_bridge.qtensor import QTensor, take_rows
from mlc_bridge.sources.checkpoint import Checkpoint
from mlc_bridge.sources.source import Evidence, Source

# The layer that reads an elementwise product, and the layers that make it.
MADE_BY = {"down_proj": ("gate_proj", "up_proj", "gate_up_proj"), "w2": ("w1", "w3")}


def folded(source: Source, ckpt: Checkpoint) -> Source:
    """``source``, or the same with activation order folded where the checkpoint has any."""
    ordered = any(name.endswith("g_idx") for name in ckpt.names)
    return FoldedOrder(source) if ordered else source


class FoldedOrder(Source):
    """Reads as its inner source does, except that MLP layers come in one common order."""

    def __init__(self, inner: Source) -> None:
        self.inner = inner
        self._orders: dict[str, Array | None] = {}

    @property
    def name(self) -> str:
        return self.inner.name

    def evidence(self, ckpt: Checkpoint) -> Evidence:
        return self.inner.evidence(ckpt)

    def layers(self, ckpt: Checkpoint) -> tuple[str, ...]:
        return self.inner.layers(ckpt)

    def parts(self, ckpt: Checkpoint, layer: str) -> tuple[str, ...]:
        return self.inner.parts(ckpt, layer)

    def check(self, ckpt: Checkpoint, layer: str, shape: tuple[int, int]) -> None:
        self.inner.check(ckpt, layer, shape)

    def check_whole(self, ckpt: Checkpoint) -> None:
        self.inner.check_whole(ckpt)

    def aside(self, ckpt: Checkpoint) -> tuple[str, ...]:
        return self.inner.aside(ckpt)

    def copies(self, ckpt: Checkpoint) -> Mapping[str, str]:
        return self.inner.copies(ckpt)

    def findings(self, ckpt: Checkpoint) -> tuple[str, ...]:
        return self.inner.findings(ckpt)

    def read(self, ckpt: Checkpoint, layer: str) -> QTensor | Array:
        got, rows = self.inner.read(ckpt, layer), self._rows(ckpt, layer)
        if isinstance(got, QTensor):
            got = replace(got, perm=None) if _makers(ckpt, layer) else got
            return got if rows is None else take_rows(got, rows)
        return got if rows is None else got[rows]

    def bias(self, ckpt: Checkpoint, layer: str) -> Array | None:
        bias, rows = self.inner.bias(ckpt, layer), self._rows(ckpt, layer)
        return bias if bias is None or rows is None else bias[rows]

    def _rows(self, ckpt: Checkpoint, layer: str) -> Array | None:
        """Order of this layer's output rows, which the layer that reads them asks for."""
        home, _, last = layer.rpartition(".")
        reader = next((f"{home}.{r}" for r, makers in MADE_BY.items() if last in makers), "")
        if layer not in _makers(ckpt, reader):
            return None
        if reader not in self._orders:
            got = self.inner.read(ckpt, reader)
            self._orders[reader] = got.perm if isinstance(got, QTensor) else None
        order = self._orders[reader]
        if order is None or last != "gate_up_proj":
            return order
        return np.concatenate([order, order + len(order)])


def _makers(ckpt: Checkpoint, reader: str) -> tuple[str, ...]:
    """The layers that make ``reader``'s input, if the checkpoint has them; only then it folds."""
    home, _, last = reader.rpartition(".")
    have = tuple(f"{home}.{m}" for m in MADE_BY.get(last, ()) if _has(ckpt, f"{home}.{m}"))
    apart = len(have) == 2 and not have[-1].endswith("gate_up_proj")
    return have if apart or (len(have) == 1 and have[0].endswith("gate_up_proj")) else ()


def _has(ckpt: Checkpoint, layer: str) -> bool:
    return any(f"{layer}.{s}" in ckpt for s in ("weight", "qweight", "weight_packed"))
