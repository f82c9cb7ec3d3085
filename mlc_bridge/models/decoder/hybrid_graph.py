"""The graph of decoders with recurrent layers: every function takes the RNN state too.

MLC's engine (its kind ``hybrid``) passes the state behind the cache, and calls the ``batch_``
functions alone; ours have all of ``DecoderGraph``'s::

    batch_prefill    [1, s, h], positions int32 [b], kv, rnn_state, params  -> [1, b, v], kv, state
    batch_verify     [1, s, h], kv, rnn_state, params                       -> [1, s, v], kv, state

The rows at ``positions`` end the sequences' runs. ``batch_verify`` reads one sequence.
"""

from __future__ import annotations

from typing import Any

from tvm.relax.frontend import nn
from tvm.relax.frontend.nn.llm.kv_cache import PagedKVCache

from mlc_bridge.models.decoder.graph import DecoderGraph
from mlc_bridge.models.decoder.layers import Expr, last_token, take_rows
from mlc_bridge.models.decoder.memory import Memory, RNNState
from mlc_bridge.models.decoder.rotary import Reach, each_row, one_sequence, up_to
from mlc_bridge.models.decoder.runs import Runs


class HybridGraph(DecoderGraph):
    def _read(
        self, x: nn.Tensor, kv: PagedKVCache, state: RNNState, runs: Runs, reach: Reach
    ) -> tuple[nn.Tensor, RNNState]:
        """Hidden states of all rows, and the state after them."""
        sequences: Expr = runs.ends.shape[0]
        memory = Memory(state, sequences)
        x = self.hidden(x, kv, reach, memory=memory, runs=runs)
        return x, memory.state

    def _prefilled(self, x: nn.Tensor, kv: PagedKVCache, state: RNNState) -> Any:
        return self._read(x, kv, state, Runs.one(x), one_sequence)

    def _decoded(self, x: nn.Tensor, kv: PagedKVCache, state: RNNState) -> Any:
        x, state = self._read(x, kv, state, Runs.each(x), each_row)
        return self.logits(x), kv, state

    def prefill(  # type: ignore[override]
        self, input_embed: nn.Tensor, paged_kv_cache: PagedKVCache, rnn_state: RNNState
    ) -> Any:
        x, state = self._prefilled(input_embed, paged_kv_cache, rnn_state)
        return self.logits(last_token(x)), paged_kv_cache, state

    def decode(  # type: ignore[override]
        self, input_embed: nn.Tensor, paged_kv_cache: PagedKVCache, rnn_state: RNNState
    ) -> Any:
        return self._decoded(input_embed, paged_kv_cache, rnn_state)

    def batch_prefill(  # type: ignore[override]
        self,
        input_embeds: nn.Tensor,
        logit_positions: nn.Tensor,
        paged_kv_cache: PagedKVCache,
        rnn_state: RNNState,
    ) -> Any:
        runs = Runs.up_to(input_embeds, logit_positions)
        reach = up_to(logit_positions)
        x, state = self._read(input_embeds, paged_kv_cache, rnn_state, runs, reach)
        return self.logits(take_rows(x, logit_positions)), paged_kv_cache, state

    def batch_decode(  # type: ignore[override]
        self, input_embeds: nn.Tensor, paged_kv_cache: PagedKVCache, rnn_state: RNNState
    ) -> Any:
        return self._decoded(input_embeds, paged_kv_cache, rnn_state)

    def batch_verify(  # type: ignore[override]
        self, input_embeds: nn.Tensor, paged_kv_cache: PagedKVCache, rnn_state: RNNState
    ) -> Any:
        x, state = self._prefilled(input_embeds, paged_kv_cache, rnn_state)
        return self.logits(x), paged_kv_cache, state

    def inputs(self) -> dict[str, dict[str, Any]]:
        state = {"rnn_state": nn.spec.Object(object_type=RNNState)}
        return {
            name: takes if name == "embed" else {**takes, **state}
            for name, takes in super().inputs().items()
        }
