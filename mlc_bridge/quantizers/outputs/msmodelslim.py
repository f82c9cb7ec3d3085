"""msModelSlim's files (ascendV1): ``quant_model_weight_<type>`` and a type for each tensor.

==============  ==============================================================================
type            tensors of a layer
==============  ==============================================================================
W8A16, W4A16    weight int8 [n, k]; 4 bits two to a byte: two rows [n/2, k] under groups, two
                columns [n, k/2] under channels; weight_scale, weight_offset float32
W8A8            these, and input_scale, input_offset [1], deq_scale [n], quant_bias int32 [n]
W8A8_DYNAMIC    weight, weight_scale, weight_offset
W8A8_MIX        as W8A8
W8A8S           as W8A8, without weight_scale and weight_offset
W4A8_DYNAMIC    two levels: weight_scale [n, 1], weight_scale_second [n, k/g] whole numbers,
                weight_offset_second int64; scale_bias = 8 sum_k (s2 I4) bfloat16(s1)
==============  ==============================================================================

deq_scale = input_scale * weight_scale; its float32 bits in an int64 for float16 models.
quant_bias = round(bias / deq_scale - input_offset * sum_k q). With ``safe_tensor`` the names are
the older ones: the description carries the type, config.json says ``quantize``, and a scaled norm
is stored as ``.module`` too. Float tensors are float32, as the tool's are on a CPU.

Origin: msModelSlim 26.1.0, save/, read through the files it wrote.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from mlc_bridge.errors import ConfigError
from mlc_bridge.packing import Array, Packing, pack
from mlc_bridge.qtensor import QTensor
from mlc_bridge.quantizers.outputs.output import Output, Rounded
from mlc_bridge.quantizers.recipe import Flex, Recipe, Sparse

VERSION = "1.0.0"
PARTS = (
    16  # parts of k that scale_bias sums apart, in layers that tensor parallelism splits along k
)
SPLIT_ALONG_K = ("o_proj", "down_proj")
TWO_ROWS = Packing(4, "n", word_bits=8)
TWO_COLUMNS = Packing(4, "k", word_bits=8)


def kind_of(recipe: Recipe) -> str:
    """msModelSlim's word for the recipe."""
    if isinstance(recipe.rounding, Sparse):
        return "W8A8S"
    suffix = {"float": "A16", "static": "A8", "dynamic": "A8_DYNAMIC", "mixed": "A8_MIX"}
    return f"W{recipe.weights.bits}{suffix[recipe.inputs.kind]}"


class MsModelSlim(Output):
    name = "msmodelslim"

    def check(self, recipe: Recipe) -> None:
        grid = recipe.weights
        if grid.granularity == "tensor" or grid.bits not in (4, 8):
            raise ConfigError(
                "msModelSlim's files hold 4 or 8 bits by channel or group",
                where=recipe.name,
                found=f"{grid.bits} bits {grid.granularity}",
            )
        if recipe.inputs.kind != "float" and not grid.symmetric:
            raise ConfigError("quantized inputs want symmetric weights", where=recipe.name)

    def stem(self, recipe: Recipe) -> str:
        return f"quant_model_weight_{kind_of(recipe).lower()}"

    def floats(self, name: str, tensor: Array, recipe: Recipe) -> dict[str, Array]:
        """Every method but m6 gives all norms a bias, which stays zero."""
        if "norm" not in name or not recipe.scalings or isinstance(recipe.scalings[0], Flex):
            return {name: tensor}
        bias = np.zeros(tensor.shape, np.float32)
        found = {name: tensor, name.removesuffix("weight") + "bias": bias}
        if recipe.output.safe_tensor:
            module = name.removesuffix("weight") + "module."
            found |= {f"{module}weight": tensor, f"{module}bias": bias}
        return found

    def tensors(self, layer: str, found: Rounded, recipe: Recipe) -> dict[str, Array]:
        q = found.q
        signed = q.codes.unpack().astype(np.int16) - (1 << (q.bits - 1))
        parts: dict[str, Array] = {"weight": _stored(signed.astype(np.int8), q, recipe)}
        scale = q.scale.astype(np.float32)
        if not isinstance(recipe.rounding, Sparse):
            first = scale if found.second is None else found.second
            parts |= {"weight_scale": first, "weight_offset": _offset(q, found)}
        if found.second is not None:
            parts |= _second(layer, q, scale, found.second)
        if found.inputs is not None:
            parts |= _static(found, signed, scale, recipe)
        if found.bias is not None:
            parts["bias"] = found.bias
        return {f"{layer}.{suffix}": array for suffix, array in parts.items()}

    def settings(
        self, recipe: Recipe, floats: Sequence[str], config: Mapping[str, Any]
    ) -> dict[str, Any]:
        if not recipe.output.safe_tensor:
            return dict(config)
        kind = kind_of(recipe)
        return {**config, "quantize": kind.lower(), "quantization_config": {}}

    def described(
        self, recipe: Recipe, names: Sequence[str], layers: Sequence[str]
    ) -> dict[str, str]:
        """File name -> text of the description; ``names`` are all tensors written."""
        kind = kind_of(recipe)
        known = set(layers)
        about: dict[str, Any] = {} if recipe.output.safe_tensor else {"version": VERSION}
        about["model_quant_type"] = kind
        if recipe.weights.granularity == "group":
            about["group_size"] = recipe.weights.group_size
        if recipe.cache == "int8":
            about |= {"kv_cache_type": "C8", "kv_quant_type": "C8"}
        if recipe.attention:
            about["fa_quant_type"] = "FAQuant"
        types = {name: _type(name, kind, known) for name in names}
        suffix = f"_{kind.lower()}" if recipe.output.safe_tensor else ""
        text = json.dumps({**about, **types}, indent=2)
        return {f"quant_model_description{suffix}.json": text}


def _type(name: str, kind: str, layers: set[str]) -> str:
    module, _, suffix = name.rpartition(".")
    if ".fa_" in name:
        return "FAQuant"
    if suffix.startswith("kv_cache"):
        return "C8"
    return kind if module in layers or ".module." in name else "FLOAT"


def _stored(codes: Array, q: QTensor, recipe: Recipe) -> Array:
    if q.bits == 8 or recipe.output.safe_tensor:
        return codes
    packing = TWO_ROWS if recipe.weights.granularity == "group" else TWO_COLUMNS
    return pack((codes & 15).astype(np.uint8), packing).words.view(np.int8)


def _offset(q: QTensor, found: Rounded) -> Array:
    if found.second is not None or q.zero is None:
        return np.zeros((q.shape[0], 1), np.float32)
    return (q.zero.unpack().astype(np.float32) - (1 << (q.bits - 1))).astype(np.float32)


def _second(layer: str, q: QTensor, scale: Array, first: Array) -> dict[str, Array]:
    parts = PARTS if layer.endswith(SPLIT_ALONG_K) else 1
    second = np.rint(scale / first).astype(np.float32)
    half = 1 << (q.bits - 1)
    whole = (q.codes.unpack().astype(np.float32) - half) * np.repeat(second, q.block[1], axis=1)
    sums = whole.reshape(q.shape[0], parts, -1).sum(-1)
    rounded = first.astype(ml_dtypes.bfloat16).astype(np.float32)
    return {
        "weight_scale_second": second,
        "weight_offset_second": np.zeros(second.shape, np.int64),
        "scale_bias": 8 * sums * rounded,
    }


def _static(found: Rounded, signed: Array, scale: Array, recipe: Recipe) -> dict[str, Array]:
    assert found.inputs is not None
    step = np.float32(found.inputs.scale)
    offset = np.float32(found.inputs.zero - 128)
    deq = (step * scale).reshape(-1)
    sums = signed.sum(1, dtype=np.int64).astype(np.float32)
    bias = 0 if found.bias is None else found.bias.astype(np.float32) / deq
    wide = found.model_dtype != "bfloat16"
    return {
        "input_scale": np.array([step], np.float32),
        "input_offset": np.array([offset], np.float32),
        "quant_bias": np.rint(bias - offset * sums).astype(np.int32),
        "deq_scale": deq.view(np.int32).astype(np.int64) if wide else deq,
    }
