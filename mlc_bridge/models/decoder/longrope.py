"""The longrope block of a config: a factor for every pair of dimensions, in two lists."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mlc_bridge.errors import ConfigError
from mlc_bridge.models.decoder import hf_config
from mlc_bridge.models.decoder.rope import LongRope


def longrope_block(flat: Mapping[str, Any], largest: int, trained: int) -> dict[str, Any] | None:
    """MLC's block, which carries both lengths; ``su`` is the older name of the same thing."""
    scaling = hf_config.rope_scaling(flat, ("longrope", "su"), partial=True)
    if scaling is None:
        return None
    lists = {key: [float(f) for f in scaling[key]] for key in ("short_factor", "long_factor")}
    given = {key: scaling[key] for key in ("factor", "attention_factor") if scaling.get(key)}
    return {
        **lists,
        **given,
        "type": "longrope",
        "rope_type": "longrope",
        "max_position_embeddings": largest,
        "original_max_position_embeddings": trained,
    }


def longrope_lists(scaling: Mapping[str, Any], count: int) -> LongRope:
    """Both lists, and the amplitude that the stretch of the context asks for."""
    trained = int(scaling["original_max_position_embeddings"])
    stretch = scaling.get("factor") or scaling["max_position_embeddings"] / trained
    grown = math.sqrt(1 + math.log(max(stretch, 1.0)) / math.log(trained))
    short, long = (tuple(scaling[key]) for key in ("short_factor", "long_factor"))
    for factors in (short, long):
        if len(factors) != count:
            raise ConfigError(
                "longrope needs a factor for every rotated pair of dimensions",
                where="rope_scaling",
                found=f"{len(factors)} factors",
                expected=count,
            )
    return LongRope(short, long, trained, scaling.get("attention_factor") or grown)


def check_chunk(trained: int | None, chunk: int) -> None:
    """The first chunk must tell whether a prompt is longer than the length of training."""
    if trained and chunk <= trained:
        raise ConfigError(
            "longrope: a prefill chunk must be longer than original_max_position_embeddings",
            where="prefill_chunk_size",
            found=chunk,
            expected=f"more than {trained}",
            todo=f"Raise it, or keep the context within {trained}",
        )
