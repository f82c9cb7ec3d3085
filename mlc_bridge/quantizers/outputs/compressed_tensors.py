"""compressed-tensors, as vLLM and transformers read it (LLMC's ``save_vllm`` is this as well).

================  =====================  =======================================================
tensor            shape                  when
================  =====================  =======================================================
weight_packed     int32 [n, k b/32]      weights alone are quantized (``pack-quantized``)
weight            int8 [n, k]            inputs are quantized too (``int-quantized``)
weight_scale      [n, groups]            in the dtype of the model
weight_zero_point int32 [n b/32, groups] asymmetric, packed; int8 [n, groups] beside int8 weights
weight_shape      int64 [2]              packed
weight_g_idx      int32 [k]              the columns of a group are scattered
input_scale       [1]                    static inputs; with int8 input_zero_point
================  =====================  =======================================================

Signed integers in the file, 2^(b-1) lower than the codes of a QTensor.
Origin: compressed-tensors 0.19, ``compressors/`` and ``quantization/``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mlc_bridge.errors import ConfigError
from mlc_bridge.packing import Array, Packing, repack
from mlc_bridge.qtensor import QTensor
from mlc_bridge.quantizers.outputs.output import Output, Rounded
from mlc_bridge.quantizers.recipe import Gptq, Progressive, Recipe

VERSION = "0.19.0"


class CompressedTensors(Output):
    name = "compressed-tensors"

    def check(self, recipe: Recipe) -> None:
        if isinstance(recipe.rounding, Progressive):
            raise ConfigError("two levels of scales have no place in compressed-tensors",
                              where=recipe.name, todo="Choose the output msmodelslim")  # fmt: skip
        if recipe.weights.bits not in (4, 8):
            raise ConfigError("only 4 and 8 bits are packed", where=recipe.name,
                              found=recipe.weights.bits)  # fmt: skip

    def tensors(self, layer: str, found: Rounded, recipe: Recipe) -> dict[str, Array]:
        q = found.q
        packed = recipe.inputs.kind == "float"
        parts = _packed(q) if packed else {"weight": _signed(q.codes.unpack(), q.bits)}
        parts["weight_scale"] = q.scale if q.scale.size > 1 else q.scale.reshape(1)
        if not recipe.weights.symmetric:
            parts["weight_zero_point"] = _zero(q, packed)
        if q.perm is not None:
            group = np.empty(q.shape[1], np.int32)
            group[q.perm] = np.arange(q.shape[1]) // q.block[1]
            parts["weight_g_idx"] = group
        if found.inputs is not None:
            parts["input_scale"] = np.array([found.inputs.scale], q.scale.dtype)
            if not recipe.inputs.symmetric:
                parts["input_zero_point"] = np.array([found.inputs.zero - 128], np.int8)
        if found.bias is not None:
            parts["bias"] = found.bias
        return {f"{layer}.{suffix}": array for suffix, array in parts.items()}

    def settings(
        self, recipe: Recipe, floats: Sequence[str], config: Mapping[str, Any]
    ) -> dict[str, Any]:
        form = "pack-quantized" if recipe.inputs.kind == "float" else "int-quantized"
        group = {
            "format": form,
            "targets": ["Linear"],
            "weights": _weights(recipe),
            "input_activations": _inputs(recipe),
            "output_activations": None,
        }
        quantization = {
            "quant_method": "compressed-tensors",
            "format": form,
            "quantization_status": "compressed",
            "config_groups": {"group_0": group},
            "ignore": list(floats),
            "kv_cache_scheme": None,
            "version": VERSION,
        }
        return {**config, "quantization_config": quantization}


def _packed(q: QTensor) -> dict[str, Array]:
    words = repack(q.codes, Packing(q.bits, "k")).words
    return {"weight_packed": words.view(np.int32), "weight_shape": np.array(q.shape, np.int64)}


def _signed(codes: Array, bits: int) -> Array:
    return (codes.astype(np.int16) - (1 << (bits - 1))).astype(np.int8)


def _zero(q: QTensor, packed: bool) -> Array:
    assert q.zero is not None
    if not packed:
        return _signed(q.zero.unpack(), q.bits)
    return repack(q.zero, Packing(q.bits, "n")).words.view(np.int32)


def _weights(recipe: Recipe) -> dict[str, Any]:
    grid = recipe.weights
    scattered = isinstance(recipe.rounding, Gptq) and recipe.rounding.order
    order = None
    if scattered and isinstance(recipe.rounding, Gptq):
        order = "weight" if recipe.rounding.static_groups else "group"
    return {
        "num_bits": grid.bits,
        "type": "int",
        "symmetric": grid.symmetric,
        "strategy": grid.granularity,
        "group_size": grid.group_size if grid.granularity == "group" else None,
        "actorder": order,
        "dynamic": False,
        "observer": "minmax",
    }


def _inputs(recipe: Recipe) -> dict[str, Any] | None:
    kind = recipe.inputs.kind
    if kind == "float":
        return None
    dynamic = kind == "dynamic"
    return {
        "num_bits": 8,
        "type": "int",
        "symmetric": recipe.inputs.symmetric or dynamic,
        "strategy": "token" if dynamic else "tensor",
        "dynamic": dynamic,
        "observer": None if dynamic else "minmax",
    }
