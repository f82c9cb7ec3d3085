"""A config whose rotary embedding may be scaled, in any of the kinds of ``rope.KINDS``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlc_bridge.errors import ConfigError
from mlc_bridge.models.decoder import hf_config
from mlc_bridge.models.decoder.config import DecoderConfig
from mlc_bridge.models.decoder.rope import KINDS, Rope, rope_of

OF_TRAINING = ("yarn", "llama3", "dynamic")


@dataclass(frozen=True, kw_only=True)
class Scaled(DecoderConfig):
    """``rope_scaling`` has its ``rope_type``; None for the plain rotary embedding."""

    rope_scaling: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        """ConfigError where a prompt could come in pieces that rotate differently."""
        if self.stretched and self.prefill_chunk_size < self.context_window_size:
            raise ConfigError(
                "dynamic rope beyond the length of training: a prompt must be read at once",
                where="prefill_chunk_size",
                found=self.prefill_chunk_size,
                expected=f"{self.context_window_size}, the context",
                todo="Raise it, or keep the context within max_position_embeddings",
            )

    @property
    def dynamic(self) -> bool:
        return self.rope_scaling is not None and self.rope_scaling["rope_type"] == "dynamic"

    @property
    def stretched(self) -> bool:
        """Whether ``dynamic`` rope is anything but plain: it is while all is trained."""
        scaling = self.rope_scaling or {}
        trained = scaling.get("original_max_position_embeddings", 0)
        return self.dynamic and self.context_window_size > trained

    def scaled_rope(
        self, theta: float, width: int | None = None, *, interleaved: bool = False
    ) -> Rope:
        """``width`` dimensions of a head are rotated, all of them unless given."""
        scaling = None if self.dynamic and not self.stretched else self.rope_scaling
        return rope_of(theta, scaling, width or self.head_dim, interleaved=interleaved)


def scaling_of(
    flat: Mapping[str, Any], layers: str | None = None, *, partial: bool = False
) -> dict[str, Any] | None:
    """``rope_scaling`` from a flat config, with the length of training where the kind asks.

    ``mrope`` of a text prompt, whose positions are equal in all sections, is plain.
    """
    scaling = hf_config.rope_scaling(flat, (*KINDS, "mrope"), layers, partial=partial)
    if scaling is not None and scaling["rope_type"] == "mrope":
        return None
    if scaling is not None and scaling["rope_type"] in OF_TRAINING:
        largest = hf_config.integer(flat, "max_position_embeddings", "context_window_size")
        scaling.setdefault("original_max_position_embeddings", largest)
    return scaling
