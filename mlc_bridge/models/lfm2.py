"""LFM2, dense; see ``decoder/lfm.py``. Its MLP has two thirds of the config's width, rounded up."""

from __future__ import annotations

from dataclasses import dataclass

from mlc_bridge.models.decoder import Decoder, DecoderFamily, Norm, Settings, hf_config
from mlc_bridge.models.decoder.lfm import (
    LFM_DEFAULTS,
    NAMES,
    RENAMED,
    LfmConfig,
    dense,
    layer,
    lfm_fields,
)

DEFAULTS = {
    **LFM_DEFAULTS,
    "hidden_size": 2560,
    "intermediate_size": 12288,
    "block_multiple_of": 256,
    "block_ffn_dim_multiplier": 1.0,
    "block_auto_adjust_ff_dim": True,
}


@dataclass(frozen=True, kw_only=True)
class Lfm2Config(LfmConfig):
    block_auto_adjust_ff_dim: bool
    block_ffn_dim_multiplier: float | None
    block_multiple_of: int

    @property
    def inner(self) -> int:
        """Width of the MLP."""
        if not self.block_auto_adjust_ff_dim:
            return self.intermediate_size
        width = int(2 * self.intermediate_size / 3)
        if self.block_ffn_dim_multiplier is None:
            return width
        step = self.block_multiple_of
        return -(-int(self.block_ffn_dim_multiplier * width) // step) * step


class Lfm2(DecoderFamily):
    name = "lfm2"
    defaults = DEFAULTS
    renamed = RENAMED

    def read(self, flat: Settings) -> Lfm2Config:
        return Lfm2Config(
            **lfm_fields(flat),
            block_auto_adjust_ff_dim=bool(flat["block_auto_adjust_ff_dim"]),
            block_ffn_dim_multiplier=flat["block_ffn_dim_multiplier"],
            block_multiple_of=hf_config.integer(flat, "block_multiple_of"),
        )

    def decoder(self, config: Lfm2Config) -> Decoder:
        layers = (layer(config, kind, dense(config.inner)) for kind in config.layer_types)
        norm, tied = Norm(config.rms_norm_eps), config.tie_word_embeddings
        return Decoder.of(config, layers, norm, tied=tied, names=NAMES)


LFM2 = Lfm2()
