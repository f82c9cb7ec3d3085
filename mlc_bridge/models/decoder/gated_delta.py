"""Gated DeltaNet (Qwen 3.5, Qwen 3 Next): linear attention that overwrites what it remembers.

    q, k, v = silu(conv(in_proj_qkv(x)))      q, k of length one, q / sqrt(K);  K x V per value head
    decay   = exp(-exp(A_log) softplus(in_proj_a(x) + dt_bias))
    beta    = sigmoid(in_proj_b(x))
    S      <- decay S (1 - beta k k^T) + beta k v^T;   y = q S                      (``scan.py``)
    out     = out_proj(norm(y) silu(in_proj_z(x)))     the norm over each head, its weight shared

A sequence's state: S of every head in float32, and the last rows before the convolution. Names and
shapes are those of MLC LLM's qwen3_5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlc_bridge.models.decoder.norm import Norm
from mlc_bridge.models.decoder.part import Block, Step, Weights, matrix, tensor
from mlc_bridge.models.decoder.state import Held, Recurrent

if TYPE_CHECKING:
    from tvm.relax.frontend import nn


@dataclass(frozen=True)
class GatedDelta:
    key_heads: int
    value_heads: int
    key: int
    """Width of a key head, ``value`` of a value head."""
    value: int
    taps: int
    eps: float
    grouped: bool = False
    """The checkpoint has in_proj_qkvz and in_proj_ba, the rows of each key head together."""

    @property
    def keys(self) -> int:
        return self.key_heads * self.key

    @property
    def values(self) -> int:
        return self.value_heads * self.value

    @property
    def channels(self) -> int:
        """Of the convolution: q, k and v."""
        return 2 * self.keys + self.values

    def weights(self, hidden: int) -> Weights:
        def projection(name: str, rows: int) -> Weights:
            return {name: matrix((f"linear_attn.in_proj_{name}",) * 2, (rows,), hidden)}

        def of_heads(name: str) -> Weights:
            return {name: tensor((f"linear_attn.{name}",) * 2, (self.value_heads,))}

        if self.grouped:
            into = projection("qkvz", self.channels + self.values)
            into |= projection("ba", 2 * self.value_heads)
        else:
            into = projection("qkv", self.channels) | projection("z", self.values)
            into |= projection("b", self.value_heads) | projection("a", self.value_heads)
        kernel = ("linear_attn.conv1d_weight", "linear_attn.conv1d.weight")
        return {
            **into,
            "out": matrix(("linear_attn.out_proj",) * 2, (hidden,), self.values),
            "conv": tensor(kernel, (self.channels, 1, self.taps), follows=True),
            **of_heads("A_log"),
            **of_heads("dt_bias"),
            "out_norm": Norm(self.eps).weight(("linear_attn.norm",) * 2, self.value),
        }

    def state(self) -> Recurrent:
        past = (self.taps - 1) * self.channels
        return Recurrent((Held(self.value_heads * self.key * self.value, "float32"), Held(past)))

    def emit(self, block: Block, x: nn.Tensor, step: Step) -> nn.Tensor:
        from tvm.relax.frontend.nn import op

        from mlc_bridge.models.decoder import recurrent_ops as ops
        from mlc_bridge.models.decoder.convolution import convolve, next_past
        from mlc_bridge.models.decoder.scan import Scan

        b, s, _ = x.shape
        memory, runs = step.recurrence
        scan = Scan(
            self.value_heads, self.key_heads, self.key, self.value,
            q=0, k=self.keys, v=2 * self.keys, delta=True,
        )  # fmt: skip
        qkv, z, beta, alpha = self._projected(block, op.reshape(x, (b * s, x.shape[-1])))
        held, rows = self.state().arrays
        past = memory.get(step.index, 1, rows.size, x.dtype)
        mixed = convolve(qkv, past, block["conv"], None, runs, "silu", "float32")
        memory.set(step.index, 1, next_past(qkv, past, runs))
        scale = ops.unit_scale(mixed, self.key_heads, self.key)
        decay = ops.decay(alpha, block["A_log"], block["dt_bias"])
        state = memory.get(step.index, 0, held.size, "float32")
        y, state = scan(mixed, scale, decay, ops.sigmoid(beta), state, runs)
        memory.set(step.index, 0, state)
        y = ops.norm_then_gate(y, z, block["out_norm"].weight, self.eps)
        return op.reshape(block["out"](y), x.shape)

    def _projected(self, block: Block, x: nn.Tensor) -> tuple[nn.Tensor, ...]:
        """q with k and v, z, b, a: a row for every token, b and a in float32."""
        from mlc_bridge.models.decoder import recurrent_ops as ops

        if not self.grouped:
            return block["qkv"](x), block["z"](x), *(block[name](x, "float32") for name in "ba")
        per = self.value_heads // self.key_heads
        widths = (self.key, self.key, per * self.value, per * self.value)
        wide = ops.ungrouped(block["qkvz"](x), self.key_heads, widths)
        qkv, z = ops.columns(wide, 0, self.channels), ops.columns(wide, self.channels, self.values)
        both = ops.ungrouped(block["ba"](x, "float32"), self.key_heads, (per, per))
        return qkv, z, *(ops.columns(both, at, self.value_heads) for at in (0, self.value_heads))
