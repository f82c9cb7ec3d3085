"""What a changed checkpoint is read as: the same weights, or a refusal; nothing else is allowed.

A mutant is a ``Checkpoint`` with tensors or settings changed in memory. ``outcome`` looks at it
through the doors that a conversion uses: detect, check with the layer's true shape, read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mlc_bridge.errors import BridgeError
from mlc_bridge.qtensor import QTensor
from mlc_bridge.sources import Checkpoint, detect

GOLDEN = Path(__file__).parents[1] / "golden" / "sources"
CASES = sorted(
    p.parent
    for p in GOLDEN.glob("*/*/expected.safetensors")
    if p.parent.parent.name != "msmodelslim"  # its description file is a question of its own
)
Shapes = Mapping[str, tuple[int, ...]]


def case_id(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def shapes_of(case: Path) -> Shapes:
    """Layer -> [n, k], as the model wants them."""
    expected = Checkpoint.open(case / "expected.safetensors")
    return {layer: expected.shape(f"{layer}.weight") for layer in expected.layers("weight")}


def weights(ckpt: Checkpoint, shapes: Shapes) -> dict[str, np.ndarray]:
    """Layer -> float32 [n, k], by way of everything that a conversion asks of a source."""
    source, read = detect(ckpt), {}
    for layer, (n, k) in shapes.items():
        source.check(ckpt, layer, (n, k))
        got = source.read(ckpt, layer)
        read[layer] = got.dequantize() if isinstance(got, QTensor) else got.astype(np.float32)
    return read


def outcome(ckpt: Checkpoint, shapes: Shapes, wanted: Mapping[str, np.ndarray]) -> str:
    """ "refused", "same" or "silent": other weights without a word. Other errors escape."""
    try:
        got = weights(ckpt, shapes)
    except BridgeError:
        return "refused"
    same = all(np.array_equal(got[layer], wanted[layer]) for layer in shapes)
    return "same" if same else "silent"


def opened_outcome(path: Path, shapes: Shapes, wanted: Mapping[str, np.ndarray]) -> str:
    """The same of files, which may be refused as soon as they are opened."""
    try:
        ckpt = Checkpoint.open(path)
    except BridgeError:
        return "refused"
    return outcome(ckpt, shapes, wanted)


def without(ckpt: Checkpoint, *names: str) -> Checkpoint:
    entries = {name: e for name, e in ckpt.entries.items() if name not in names}
    return Checkpoint(ckpt.path, ckpt.config, entries)


def with_config(ckpt: Checkpoint, config: dict[str, Any]) -> Checkpoint:
    return Checkpoint(ckpt.path, config, ckpt.entries)
