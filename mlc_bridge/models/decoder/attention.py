"""Attention over the runtime's paged cache.

    q, k, v = split(qkv(x)),   q, k normed per head (``norm``),   q, k rotated (``rope``)
    out     = o(softmax(cap(q k^T * scale) + mask) v)

Query, key and value are one matrix where MLC fuses them. A local layer (``window``) sees the last
``window`` positions only, itself among them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlc_bridge.models.arch import Weight
from mlc_bridge.models.decoder.norm import Norm
from mlc_bridge.models.decoder.part import Block, Path, Step, Weights, matrix
from mlc_bridge.models.decoder.rope import Rope
from mlc_bridge.models.decoder.state import KVPages

if TYPE_CHECKING:
    from tvm.relax.frontend import nn

    from mlc_bridge.models.decoder.config import DecoderConfig

SINKS = "self_attn.sinks"
QKV: Path = ("self_attn.qkv_proj", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


@dataclass(frozen=True)
class Attention:
    heads: int
    kv_heads: int
    head_dim: int
    rope: Rope | None
    """None: the layer knows no positions but the causal mask."""
    bias: bool = False
    """Of query, key and value."""
    o_bias: bool = False
    norm: Norm | None = None
    """Of queries and keys: each head for itself, or all ``together``."""
    together: bool = False
    query_width: float | None = None
    """Scores are divided by its square root; the head width unless given."""
    multiplier: float | None = None
    """Of the scores, in place of that."""
    score_cap: float | None = None
    window: int | None = None
    sinks: bool = False
    """Every head has a logit more, which no key and no value belong to."""
    gate: bool = False
    """Each query head brings a gate for its output, in the rows behind it."""
    norms: tuple[str, str] = ("self_attn.q_norm", "self_attn.k_norm")
    qkv: Path = QKV
    o: Path = ("self_attn.o_proj", "self_attn.o_proj")

    @classmethod
    def of(cls, config: DecoderConfig, rope: Rope | None, **more: Any) -> Attention:
        """With the heads of ``config``."""
        return cls(
            config.num_attention_heads, config.num_key_value_heads, config.head_dim, rope, **more
        )

    def weights(self, hidden: int) -> Weights:
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        slots = {
            "qkv": matrix(self.qkv, (q * (1 + self.gate), kv, kv), hidden, bias=self.bias),
            "o": matrix(self.o, (hidden,), q, bias=self.o_bias),
        }
        if self.norm is not None:
            widths = (q, kv) if self.together else (self.head_dim,) * 2
            for slot, path, width in zip(("q_norm", "k_norm"), self.norms, widths, strict=True):
                slots[slot] = self.norm.weight((path,) * 2, width)
        if self.sinks:
            slots["sinks"] = Weight(SINKS, (SINKS,), (self.heads,), 0, "plain")
        return slots

    def emit(self, block: Block, x: nn.Tensor, step: Step) -> nn.Tensor:
        from tvm.relax.frontend.nn import op

        from mlc_bridge.models.decoder.layers import attend
        from mlc_bridge.models.decoder.output_gate import gate, split_gate
        from mlc_bridge.models.decoder.sinks import sunk, with_spare_heads

        b, s, _ = x.shape
        every = self.heads + 2 * self.kv_heads + (self.heads if self.gate else 0)
        qkv = op.reshape(block["qkv"](x), (b * s, every, self.head_dim))
        if self.gate:
            qkv, gates = split_gate(qkv, self.heads)
        if self.rope is not None and self.rope.before_norm:
            qkv = self._normed(block, self.rotated(qkv, step))
        else:
            qkv = self.rotated(self._normed(block, qkv), step)
        heads, local = self.state().heads, self.window is not None
        if self.sinks:
            qkv = with_spare_heads(qkv, self.heads, self.kv_heads)
        out = attend(step.kv, step.index, qkv, heads, self.scale, local=local)
        out = sunk(out, block["sinks"], self.kv_heads) if self.sinks else out
        out = gate(out, gates) if self.gate else out
        return block["o"](op.reshape(out, (b, s, self.heads * self.head_dim)))

    def _normed(self, block: Block, qkv: nn.Tensor) -> nn.Tensor:
        from mlc_bridge.models.decoder.layers import joint_norm, qk_norm

        if self.norm is None:
            return qkv
        norm = joint_norm if self.together else qk_norm
        return norm(qkv, block["q_norm"], block["k_norm"], self.heads, self.kv_heads)

    def rotated(self, qkv: nn.Tensor, step: Step) -> nn.Tensor:
        from mlc_bridge.models.decoder.rotary import rotate

        if step.tables is None or self.rope is None:
            return qkv
        turned, table = (self.heads, self.kv_heads), step.tables[self.rope]
        return rotate(qkv, table, turned, interleaved=self.rope.interleaved)

    @property
    def scale(self) -> float:
        return self.multiplier or float(self.query_width or self.head_dim) ** -0.5

    def state(self) -> KVPages:
        return KVPages(
            self.heads + (self.kv_heads if self.sinks else 0),
            self.kv_heads,
            self.head_dim,
            self.rope,
            self.window,
            self.score_cap,
            self.sinks,
        )
