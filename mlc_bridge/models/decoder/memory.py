"""The runtime's RNN state in the graph: one flat array per sequence, layer and kind.

``get`` copies the arrays of this pass's sequences out, ``set`` puts new ones in their place. The
calls are pure to the compiler, so every ``set`` gives the state that the next one takes, and the
last one is returned by the function; else they would be dead code.
"""

from __future__ import annotations

from tvm import relax
from tvm.relax.frontend import nn

from mlc_bridge.models.decoder.layers import Expr


class RNNState(nn.Object):
    """What the functions take beside the paged cache."""


class Memory:
    """The state as one forward pass sees it; ``sequences`` is how many take part."""

    def __init__(self, state: RNNState, sequences: Expr) -> None:
        self.state, self.sequences = state, sequences

    def get(self, layer: int, kind: int, size: int, dtype: str) -> nn.Tensor:
        """``[sequences, size]``."""
        args = [self.state._expr, relax.prim_value(layer), relax.prim_value(kind)]
        call = relax.call_dps_packed(
            "vm.builtin.rnn_state_get",
            args,
            out_ty=relax.TensorType((self.sequences, size), dtype),
        )
        return nn.Tensor(_expr=relax.BlockBuilder.current().emit(call))

    def set(self, layer: int, kind: int, value: nn.Tensor) -> None:
        """``value [sequences, size]`` of the same dtype."""
        call = relax.call_pure_packed(
            "vm.builtin.rnn_state_set",
            self.state._expr,
            relax.prim_value(layer),
            relax.prim_value(kind),
            value._expr,
            ty_args=relax.AnyType(),
        )
        self.state = RNNState(_expr=call, _name="rnn_state")
