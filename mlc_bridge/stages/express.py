"""One matrix of MLC from the checkpoint layers that make it: stacked along n, and encoded exactly.

The one place that says what "exactly" means, for the conversion and for everything that foretells
it. Codes and zeros are never rounded; what a scheme's ``align`` has to move is not exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mlc_bridge.errors import CannotExpress
from mlc_bridge.packing import Array
from mlc_bridge.qtensor import QTensor, concat
from mlc_bridge.schemes import Scheme

Read = QTensor | Array


@dataclass(frozen=True)
class Expressed:
    """The parameters by suffix, and the stacked tensor that they stand for."""

    params: dict[str, Array]
    tensor: QTensor


def express(parts: Sequence[Read], scheme: Scheme, path: str) -> Expressed:
    """Exact, or CannotExpress naming ``path``; ``parts`` are layers ``[n_i, k]`` in order."""
    tensors = [part for part in parts if isinstance(part, QTensor)]
    if len(tensors) < len(parts):
        raise CannotExpress(path, scheme.name, "some of its parts are float, others are quantized")
    tensors, moved = aligned(tensors, scheme, path)
    if moved:
        raise CannotExpress(path, scheme.name, "; ".join(moved).removeprefix(f"{path}: "))
    tensor = stacked(tensors, scheme, path)
    return Expressed(scheme.encode(tensor, path), tensor)


def aligned(
    tensors: Sequence[QTensor], scheme: Scheme, path: str
) -> tuple[list[QTensor], tuple[str, ...]]:
    """Layers to be fused, as the scheme wants them; what it had to move, if anything, in words."""
    align = getattr(scheme, "align", None)
    if align is None or len(tensors) == 1:
        return list(tensors), ()
    brought: tuple[list[QTensor], tuple[str, ...]] = align(tensors, path)
    return brought


def stacked(tensors: Sequence[QTensor], scheme: Scheme, path: str) -> QTensor:
    try:
        return concat(tensors)
    except ValueError as problem:
        raise CannotExpress(path, scheme.name, str(problem)) from None
