"""Multi-head latent attention (MLA: DeepSeek V2 and V3, GLM 4.7 Flash, Mistral 4).

    q            = q_b(norm(q_a(x))), or q(x)                     per head [nope | rope]
    c, k_rope    = kv_a(x);    k_nope, v = kv_b(norm(c))          k_rope is one for all heads
    out          = o(softmax(q k^T * scale) v),    q = [rope | nope], k = [k_rope | k_nope]

Keys and values are stored as every head reads them, in ordinary pages: exact, and served by the
kernels of any attention, but far more bytes than the latent c with k_rope ((rank + rope) for a
token and layer instead of 2 heads x width). The rotated part stands first, where rotations are
made; values narrower than keys are filled up with zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlc_bridge.models.decoder.attention import Attention
from mlc_bridge.models.decoder.norm import Norm
from mlc_bridge.models.decoder.part import Block, Step, Weights, matrix
from mlc_bridge.models.decoder.rope import Rope
from mlc_bridge.models.decoder.state import KVPages

if TYPE_CHECKING:
    from tvm.relax.frontend import nn

EPS = 1e-6
"""Of the norms of latents, whatever the model's other norms have."""


@dataclass(frozen=True)
class Latent:
    heads: int
    rank: int
    q_rank: int | None
    rotated: int
    """Columns of a query or key head that turn, beside ``nope`` that do not."""
    nope: int
    value: int
    rope: Rope
    scale: float
    bias: bool = False
    """Of q_a, kv_a and o."""

    @property
    def width(self) -> int:
        """Of a head in the pages."""
        return max(self.rotated + self.nope, self.value)

    @property
    def attention(self) -> Attention:
        """What the pages see."""
        return Attention(self.heads, self.heads, self.width, self.rope, multiplier=self.scale)

    def state(self) -> KVPages:
        return self.attention.state()

    def weights(self, hidden: int) -> Weights:
        def layer(slot: str, name: str, rows: int, k: int, *, bias: bool = False) -> Weights:
            return {slot: matrix((f"self_attn.{name}",) * 2, (rows,), k, bias=bias)}

        def norm(slot: str, width: int) -> Weights:
            return {slot: Norm(EPS).weight((f"self_attn.{slot}_layernorm",) * 2, width)}

        queries = self.heads * (self.rotated + self.nope)
        if self.q_rank is None:
            slots = layer("q", "q_proj", queries, hidden)
        else:
            slots = layer("q_a_in", "q_a_proj", self.q_rank, hidden, bias=self.bias)
            slots |= norm("q_a", self.q_rank)
            slots |= layer("q", "q_b_proj", queries, self.q_rank)
        both, name = self.rank + self.rotated, "kv_a_proj_with_mqa"
        return {
            **slots,
            **layer("kv_a_in", name, both, hidden, bias=self.bias),
            **norm("kv_a", self.rank),
            **layer("kv", "kv_b_proj", self.heads * (self.nope + self.value), self.rank),
            **layer("o", "o_proj", hidden, self.heads * self.value, bias=self.bias),
        }

    def emit(self, block: Block, x: nn.Tensor, step: Step) -> nn.Tensor:
        from tvm.relax.frontend.nn import op

        from mlc_bridge.models.decoder.latent_heads import heads_of, values_of
        from mlc_bridge.models.decoder.layers import attend, rms_norm
        from mlc_bridge.models.decoder.recurrent_ops import columns

        b, s, hidden = x.shape
        x = op.reshape(x, (b * s, hidden))
        into = x if self.q_rank is None else rms_norm(block["q_a_in"](x), block["q_a"].weight, EPS)
        compressed = block["kv_a_in"](x)
        latent = rms_norm(columns(compressed, 0, self.rank), block["kv_a"].weight, EPS)
        qkv = heads_of(self, block["q"](into), compressed, block["kv"](latent))
        qkv = self.attention.rotated(qkv, step)
        out = attend(step.kv, step.index, qkv, self.heads, self.scale, local=False)
        return op.reshape(block["o"](values_of(self, out)), (b, s, hidden))
