"""AutoAWQ ``version: gemm``, which is also LLMC's ``save_autoawq`` and ``save_mlcllm``.

=========  =======  ==========================================================================
tensor     dtype    layout
=========  =======  ==========================================================================
qweight    int32    [k, n/8], eight output channels a word in the order 0 2 4 6 1 3 5 7
qzeros     int32    [k/g, n/8], the same order
scales     float16  [k/g, n]
=========  =======  ==========================================================================

MLC's q4f16_autoawq has the same bytes. A symmetric grid is written with its zero of 8.
Origin: awq/modules/linear/gemm.py, AutoAWQ 0.2.9.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mlc_bridge.errors import ConfigError
from mlc_bridge.packing import AWQ, Array, repack
from mlc_bridge.quantizers.outputs.output import Output, Rounded
from mlc_bridge.quantizers.recipe import Gptq, Recipe


class AutoAwq(Output):
    name = "autoawq"

    def check(self, recipe: Recipe) -> None:
        grid, how = recipe.weights, recipe.rounding
        found = f"{grid.bits} bits per {grid.granularity}"
        if grid.bits != 4 or grid.granularity != "group" or recipe.inputs.kind != "float":
            raise ConfigError("AutoAWQ's layout holds 4-bit groups and float inputs",
                              where=recipe.name, found=f"{found}, {recipe.inputs.kind} inputs",
                              todo="Choose the output compressed-tensors")  # fmt: skip
        if isinstance(how, Gptq) and how.order and not how.static_groups:
            raise ConfigError("AutoAWQ's layout has no place for scattered columns",
                              where=recipe.name, todo="Set static_groups")  # fmt: skip

    def tensors(self, layer: str, found: Rounded, recipe: Recipe) -> dict[str, Array]:
        q = found.q
        assert q.zero is not None
        if q.shape[0] % 8:
            raise ConfigError("AutoAWQ's words hold eight output rows", where=layer,
                              found=f"{q.shape[0]} rows", todo="Leave it in float")  # fmt: skip
        parts: dict[str, Array] = {
            "qweight": repack(q.codes, AWQ).words.view(np.int32),
            "qzeros": repack(q.zero, AWQ).words.view(np.int32),
            "scales": np.ascontiguousarray(q.scale.T, np.float16),
        }
        if found.bias is not None:
            parts["bias"] = found.bias
        return {f"{layer}.{suffix}": array for suffix, array in parts.items()}

    def settings(
        self, recipe: Recipe, floats: Sequence[str], config: Mapping[str, Any]
    ) -> dict[str, Any]:
        quantization = {
            "quant_method": "awq",
            "version": "gemm",
            "bits": 4,
            "group_size": recipe.weights.group_size,
            "zero_point": True,
            "modules_to_not_convert": list(floats) or None,
        }
        return {**config, "quantization_config": quantization}
