"""The contract of a source format: checkpoint bytes in, ``QTensor`` out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from mlc_bridge.packing import Array
from mlc_bridge.qtensor import QTensor
from mlc_bridge.sources.checkpoint import Checkpoint


@dataclass(frozen=True)
class Evidence:
    """What speaks for and against a format; it matches when nothing speaks against it."""

    supports: tuple[str, ...] = ()
    contradicts: tuple[str, ...] = ()

    @property
    def matches(self) -> bool:
        return bool(self.supports) and not self.contradicts


class Source(Protocol):
    """One quantization tool's file format.

    ``layer`` is a module path of the checkpoint such as ``model.layers.0.self_attn.q_proj``.
    """

    @property
    def name(self) -> str: ...

    def evidence(self, ckpt: Checkpoint) -> Evidence:
        """Looks at the config and at tensor names and dtypes, never at data."""
        ...

    def matches(self, ckpt: Checkpoint) -> bool: ...

    def parts(self, ckpt: Checkpoint, layer: str) -> tuple[str, ...]:
        """Names of the tensors on disk that make the layer's weight (and nothing else)."""
        ...

    def check(self, ckpt: Checkpoint, layer: str, shape: tuple[int, int]) -> None:
        """Headers only: every part is there, with the dtype and shape that [n, k] wants."""
        ...

    def read(self, ckpt: Checkpoint, layer: str) -> QTensor | Array:
        """The layer's weight: a QTensor, or the float array ``[n, k]`` where the layer is float."""
        ...

    def bias(self, ckpt: Checkpoint, layer: str) -> Array | None:
        """The layer's bias ``[n]``, or None."""
        ...
