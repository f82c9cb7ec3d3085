"""What all parts share: paths, the rows of the weight table, and what a part sees of a step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from mlc_bridge.models.arch import Weight
from mlc_bridge.models.decoder.state import State

if TYPE_CHECKING:
    from tvm.relax.frontend import nn
    from tvm.relax.frontend.nn.llm.kv_cache import PagedKVCache

    from mlc_bridge.models.decoder.memory import Memory
    from mlc_bridge.models.decoder.rope import Rope
    from mlc_bridge.models.decoder.runs import Runs

Path = tuple[str, ...]
"""MLC's module path first, then the checkpoint's, relative to the layer. What MLC fuses has several
checkpoint paths, stacked along the rows."""
Weights = dict[str, Weight]
Block = Mapping[str, Any]
"""Slot -> planted layer; one that was split joins its parts' outputs."""


@dataclass(frozen=True)
class Step:
    """One forward pass as a layer sees it."""

    kv: PagedKVCache
    tables: Mapping[Rope, tuple[nn.Tensor, ...]] | None
    """Cosine and sine of this step's positions (``rotary.Table``); None where the cache rotates."""
    index: int = 0
    """Of this layer among those that keep the same kind of state."""
    memory: Memory | None = None
    runs: Runs | None = None

    @property
    def recurrence(self) -> tuple[Memory, Runs]:
        assert self.memory is not None
        assert self.runs is not None
        return self.memory, self.runs


class Part(Protocol):
    """A mixer or an MLP: ``[b, s, hidden] -> [b, s, hidden]``."""

    def weights(self, hidden: int) -> Weights:
        """Slot -> weight relative to the layer, in MLC's order."""
        ...

    def emit(self, block: Block, x: nn.Tensor, step: Step) -> nn.Tensor: ...


@runtime_checkable
class Mixer(Part, Protocol):
    """A part that looks at other tokens than its own, through what the runtime holds."""

    def state(self) -> State: ...


def matrix(names: Path, rows: tuple[int, ...], k: int, **more: Any) -> Weight:
    """A weight that the checkpoint has fused already is one source with all the rows."""
    path, *sources = names
    if len(sources) == 1:
        rows = (sum(rows),)
    return Weight(path, tuple(sources), rows, k, **more)


def tensor(names: Path, axes: tuple[int, ...], *, follows: bool = False) -> Weight:
    """One small float tensor under its whole name: float32, or as the model (``follows``)."""
    ours, theirs = names
    return Weight(ours, (theirs,), (math.prod(axes),), 0, "plain", axes=axes, follows=follows)
