"""A float checkpoint again: edited weights (LLMC's ``save_trans``) or rounded ones (``save_fake``).

Rounded weights are ``q.dequantize()`` in the model's dtype.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mlc_bridge.packing import Array
from mlc_bridge.quantizers.outputs.output import Output, Rounded
from mlc_bridge.quantizers.recipe import Recipe


class Floats(Output):
    name = "float"

    def check(self, recipe: Recipe) -> None:
        return

    def tensors(self, layer: str, found: Rounded, recipe: Recipe) -> dict[str, Array]:
        parts = {"weight": found.q.dequantize().astype(found.q.scale.dtype)}
        if found.bias is not None:
            parts["bias"] = found.bias
        return {f"{layer}.{suffix}": array for suffix, array in parts.items()}

    def settings(
        self, recipe: Recipe, floats: Sequence[str], config: Mapping[str, Any]
    ) -> dict[str, Any]:
        return dict(config)
