"""Mamba 2 (Granite 4, Nemotron H): a state space with one decay per head.

    z, x B C, dt = in_proj(h);     x, B, C = silu(conv(x B C));     dt = softplus(dt + dt_bias)
    S  <- exp(-exp(A_log) dt) S + B (dt x)^T;     y = C S + D x                    (``scan.py``)
    out = out_proj(norm(y silu(z)))               the norm over each group's columns

A sequence's state: S [N, P] of every head in float32, and the last rows before the convolution.
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
class Mamba2:
    path: str
    heads: int
    width: int
    """P, of a head."""
    groups: int
    """Heads of one group share B and C."""
    size: int
    """N, of a column of the state."""
    taps: int
    eps: float
    bias: bool = False
    conv_bias: bool = True
    steps: tuple[float, float | None] = (0.0, None)
    """Least and largest dt."""

    @property
    def inner(self) -> int:
        return self.heads * self.width

    @property
    def channels(self) -> int:
        """Of the convolution: x, B and C."""
        return self.inner + 2 * self.groups * self.size

    def weights(self, hidden: int) -> Weights:
        def projection(name: str, rows: int, k: int) -> Weights:
            path = (f"{self.path}.{name}_proj",) * 2
            return {name: matrix(path, (rows,), k, bias=self.bias)}

        def small(name: str, *axes: int, follows: bool = False) -> Weights:
            return {name: tensor((f"{self.path}.{name}",) * 2, axes, follows=follows)}

        bias = small("conv1d.bias", self.channels, follows=True) if self.conv_bias else {}
        return {
            **projection("in", self.inner + self.channels + self.heads, hidden),
            **small("conv1d.weight", self.channels, 1, self.taps, follows=True),
            **bias,
            **small("dt_bias", self.heads),
            **small("A_log", self.heads),
            "out_norm": Norm(self.eps).weight((f"{self.path}.norm",) * 2, self.inner),
            **small("D", self.heads),
            **projection("out", hidden, self.inner),
        }

    def state(self) -> Recurrent:
        past = (self.taps - 1) * self.channels
        return Recurrent((Held(self.heads * self.size * self.width, "float32"), Held(past)))

    def emit(self, block: Block, x: nn.Tensor, step: Step) -> nn.Tensor:
        from tvm.relax.frontend.nn import op

        from mlc_bridge.models.decoder import recurrent_ops as ops
        from mlc_bridge.models.decoder.convolution import convolve, next_past
        from mlc_bridge.models.decoder.scan import Scan

        b, s, _ = x.shape
        memory, runs = step.recurrence
        inner, wide = self.inner, self.groups * self.size
        scan = Scan(
            self.heads, self.groups, self.size, self.width,
            q=inner + wide, k=inner, v=0, delta=False,
        )  # fmt: skip
        every = block["in"](op.reshape(x, (b * s, x.shape[-1])))
        z, xbc = ops.columns(every, 0, inner), ops.columns(every, inner, self.channels)
        dt = ops.step_size(
            ops.columns(every, inner + self.channels, self.heads), block["dt_bias"], self.steps
        )
        held, rows = self.state().arrays
        past = memory.get(step.index, 1, rows.size, x.dtype)
        bias = block.get("conv1d.bias")
        mixed = convolve(xbc, past, block["conv1d.weight"], bias, runs, "silu", "float32")
        memory.set(step.index, 1, next_past(xbc, past, runs))
        state = memory.get(step.index, 0, held.size, "float32")
        decay, scale = ops.exp_step(dt, block["A_log"]), ops.ones(dt, 2 * self.groups)
        y, state = scan(mixed, scale, decay, dt, state, runs)
        memory.set(step.index, 0, state)
        norm = block["out_norm"].weight
        y = ops.gate_then_norm(ops.skip(y, mixed, block["D"]), z, norm, self.groups, self.eps)
        return op.reshape(block["out"](y), x.shape)
