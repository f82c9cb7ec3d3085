"""Short convolution (LFM2): gates around a causal convolution of a few taps.

    b, c, v = in_proj(x);    y = out_proj(c * conv(b * v))

Between two steps it remembers the last ``taps - 1`` rows of b * v.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlc_bridge.models.decoder.part import Block, Step, Weights, matrix, tensor
from mlc_bridge.models.decoder.state import Held, Recurrent

if TYPE_CHECKING:
    from tvm.relax.frontend import nn


@dataclass(frozen=True)
class ShortConv:
    channels: int
    taps: int
    bias: bool = False
    """Of all three: in_proj, conv, out_proj."""

    def weights(self, hidden: int) -> Weights:
        width = self.channels
        bias = (
            {"conv_bias": tensor(("conv.conv.bias",) * 2, (width,), follows=True)}
            if self.bias
            else {}
        )
        return {
            "in": matrix(("conv.in_proj",) * 2, (3 * width,), hidden, bias=self.bias),
            "conv": tensor(("conv.conv.weight",) * 2, (width, 1, self.taps), follows=True),
            **bias,
            "out": matrix(("conv.out_proj",) * 2, (hidden,), width, bias=self.bias),
        }

    def emit(self, block: Block, x: nn.Tensor, step: Step) -> nn.Tensor:
        from tvm.relax.frontend.nn import op

        from mlc_bridge.models.decoder.convolution import convolve, next_past

        b, s, _ = x.shape
        memory, runs = step.recurrence
        first, gate, value = op.split(block["in"](x), 3, axis=-1)
        x = op.reshape(first * value, (b * s, self.channels))
        past = memory.get(step.index, 0, self.state().arrays[0].size, x.dtype)
        y = convolve(x, past, block["conv"], block.get("conv_bias"), runs, None, x.dtype)
        memory.set(step.index, 0, next_past(x, past, runs))
        return block["out"](gate * op.reshape(y, (b, s, self.channels)))

    def state(self) -> Recurrent:
        return Recurrent((Held((self.taps - 1) * self.channels),))
