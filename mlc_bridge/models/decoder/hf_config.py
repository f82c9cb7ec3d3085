"""Reads HF's ``config.json`` of any transformers version, or MLC's own ``model_config`` block.

transformers 5 moved ``rope_theta`` and ``rope_scaling`` into ``rope_parameters`` (per layer type
for models with local attention), and multimodal checkpoints nest the text model in ``text_config``.
Files on the hub have the old places, so every reader here looks at both. All answers are checked;
what is missing or unusable is a ``ConfigError`` that names the key.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mlc_bridge.errors import ConfigError

HF = Mapping[str, Any]
FULL, LOCAL = "full_attention", "sliding_attention"
LARGEST, COUNTED = 2**31 - 1, 10_000
"""Of any size, and of what is listed one by one (layers, experts)."""
GELU_TANH = "gelu_pytorch_tanh"


@dataclass(frozen=True)
class Limits:
    """Sizes the compiled functions are planned for: tokens, tokens of one prefill, sequences."""

    context: int
    chunk: int
    batch: int


def block_of(hf: HF, key: str) -> dict[str, Any]:
    """The object under ``key``, empty where there is none."""
    found = hf.get(key) or {}
    if not isinstance(found, dict):
        raise ConfigError(f"{key} must be an object", where="config", found=repr(found)[:60])
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def integer(hf: HF, *keys: str, default: int | None = None, least: int = 1) -> int:
    """The first of ``keys`` that is set; ``default`` when none is."""
    for key, value in [(key, hf.get(key)) for key in keys]:  # all count as read
        if value is None:
            continue
        if not _is_number(value) or value != int(value):
            raise ConfigError(
                f"{key} must be a whole number", where="config", found=repr(value)[:60]
            )
        if value < least:
            raise ConfigError(f"{key} is too small", found=value, expected=f"at least {least}")
        most = COUNTED if "layers" in key or "experts" in key else LARGEST
        if value > most:
            raise ConfigError(f"{key} is too large", found=value, expected=f"at most {most}")
        return int(value)
    if default is None:
        raise ConfigError(
            f"the model's config lacks {keys[0]}",
            expected=" or ".join(keys),
            todo="Take config.json from the original checkpoint",
        )
    return default


def number(hf: HF, key: str, default: float | None = None) -> float:
    """A positive number."""
    value = hf.get(key, default)
    if not _is_number(value) or value <= 0:
        raise ConfigError(f"the model's config needs a positive number as {key}", found=repr(value))
    return value


def expect(hf: HF, key: str, allowed: Iterable[Any], default: Any = None) -> Any:
    """The value of ``key`` when it is one of ``allowed``; else a ConfigError that names both."""
    value = hf.get(key, default)
    allowed = tuple(allowed)
    if value not in allowed:
        raise ConfigError(
            f"{hf.get('model_type', 'the model')}: {key} is not supported with this value",
            where="config",
            found=repr(value),
            expected=" or ".join(repr(a) for a in allowed),
        )
    return value


def rope_theta(hf: HF, default: float = 10000, layers: str | None = None) -> float:
    """Base of the rotary embedding; ``layers`` names a layer type (``full_attention``)."""
    block = _rope_parameters(hf, layers).get("rope_theta")
    told = (hf.get("position_embedding_base"), block, hf.get("rope_theta"), default)
    theta = number({"rope_theta": next(x for x in told if x is not None)}, "rope_theta")
    return int(theta) if theta == int(theta) else theta


def rope_scaling(
    hf: HF, allowed: Iterable[str], layers: str | None = None, *, partial: bool = False
) -> dict[str, Any] | None:
    """The scaling block with its ``rope_type``, or None for plain rotary embedding.

    Without ``partial`` all dimensions of a head are rotated, and a config that says otherwise is
    refused.
    """
    block = block_of(hf, "rope_scaling") or _rope_parameters(hf, layers)
    kind = block.get("rope_type", block.get("type", "default"))
    allowed = ("default", *allowed)
    if kind not in allowed:
        raise ConfigError(
            f"{hf.get('model_type', 'the model')}: this rope_type is not supported",
            where="rope_scaling",
            found=repr(kind),
            expected=" or ".join(allowed),
        )
    if not partial:
        expect(block, "partial_rotary_factor", (1, None))
    if kind == "default":
        return None
    other = ("type", "rope_theta", "rope_type", "max_position_embeddings")
    keep = {k: v for k, v in block.items() if k not in other}
    return {**keep, "rope_type": kind}


def local_theta(hf: HF, default: float = 10000) -> float:
    """Base of the rotary embedding in layers with local attention."""
    own = _rope_parameters(hf, "sliding_attention").get("rope_theta")
    theta = next(x for x in (hf.get("rope_local_base_freq"), own, default) if x is not None)
    return float(number({"rope_local_base_freq": theta}, "rope_local_base_freq"))


def window(hf: HF, *keys: str) -> int:
    """Width of local attention in tokens, -1 when the checkpoint has none."""
    width = next((hf[key] for key in keys if hf.get(key) is not None), -1)
    return -1 if width == -1 else integer({keys[0]: width}, keys[0])


def local_layers(hf: HF, every: int) -> None:
    """Checks that every ``every``-th layer is global (1: all are) and all others are local."""
    kinds = hf.get("layer_types")
    if kinds is None:
        return
    layers = integer(hf, "num_hidden_layers")
    wanted = [FULL if (i + 1) % every == 0 else LOCAL for i in range(layers)]
    if kinds != wanted:
        raise ConfigError(
            f"{hf.get('model_type', 'the model')}: this order of layer_types is not supported",
            found=kinds,
            expected=f"{FULL} on every {every}. of {layers} layers",
        )


def layer_types(hf: HF, every: int) -> list[str]:
    """As given; else every ``every``-th layer global (1: all are) and the others local."""
    layers = integer(hf, "num_hidden_layers")
    usual = [FULL if (i + 1) % every == 0 else LOCAL for i in range(layers)]
    return kinds_of_layers(hf, hf.get("layer_types") or usual, (FULL, LOCAL))


def kinds_of_layers(
    hf: HF, kinds: Iterable[str], known: Iterable[str], key: str = "layer_types"
) -> list[str]:
    """``kinds`` when it names a known one for every layer."""
    found = list(kinds)
    if len(found) != integer(hf, "num_hidden_layers") or not set(known) >= set(found):
        raise ConfigError(
            f"{key}: one known kind for every layer", found=found, expected=" or ".join(known)
        )
    return found


def _rope_parameters(hf: HF, layers: str | None) -> dict[str, Any]:
    block = block_of(hf, "rope_parameters")
    return block_of(block, layers) if layers and layers in block else block


def limits(hf: HF, largest_chunk: int = 8192) -> Limits:
    """Context, prefill chunk and batch; the chunk never exceeds the context."""
    context = integer(
        hf, "context_window_size", "max_position_embeddings", "max_sequence_length", "n_positions"
    )
    most = min(context, largest_chunk)
    chunk = integer(hf, "prefill_chunk_size", default=0, least=0) or most
    return Limits(
        context,
        most if chunk > context else chunk,
        integer(hf, "max_batch_size", default=128),
    )


def heads(hf: HF) -> tuple[int, int, int]:
    """Query heads, key/value heads, head width."""
    hidden, q = integer(hf, "hidden_size"), integer(hf, "num_attention_heads")
    kv = integer(hf, "num_key_value_heads", default=q)
    if q % kv:
        raise ConfigError(
            "num_attention_heads is no multiple of num_key_value_heads", found=f"{q} and {kv}"
        )
    width = integer(hf, "head_dim", default=0, least=0)
    if not width and hidden % q:
        raise ConfigError(
            "hidden_size is no multiple of num_attention_heads and head_dim is not given",
            found=f"{hidden} and {q}",
        )
    return q, kv, width or hidden // q


def single_device(hf: HF) -> None:
    """Tensor and pipeline parallel builds are refused by name."""
    for key in ("tensor_parallel_shards", "pipeline_parallel_stages"):
        expect(hf, key, (1,), default=1)
