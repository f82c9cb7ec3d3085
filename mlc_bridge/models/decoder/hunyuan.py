"""What the Hunyuans share: heads normed after the rotation, whose base is stretched once."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mlc_bridge.models.decoder.attention import Attention
from mlc_bridge.models.decoder.classic import ClassicConfig
from mlc_bridge.models.decoder.norm import Norm
from mlc_bridge.models.decoder.rope import Rope, stretched


@dataclass(frozen=True, kw_only=True)
class HunyuanConfig(ClassicConfig):
    attention_bias: bool

    def hunyuan_rope(self) -> Rope:
        alpha = (self.rope_scaling or {}).get("alpha") if self.dynamic else None
        if not alpha:
            return replace(self.rope(), before_norm=True)
        theta = stretched(self.rope_theta, alpha, self.head_dim)
        return Rope(theta, rotary_dim=self.head_dim, before_norm=True)


def hunyuan_attention(config: HunyuanConfig, norm: Norm) -> Attention:
    return Attention.of(
        config,
        config.hunyuan_rope(),
        bias=config.attention_bias,
        o_bias=config.attention_bias,
        norm=norm,
        norms=("self_attn.query_layernorm", "self_attn.key_layernorm"),
    )
