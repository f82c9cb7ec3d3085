"""Runs a compiled model's own functions over the runtime's paged cache: no engine in between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.runtime import ShapeTuple

Array = np.ndarray[Any, Any]
PAGE = 16


def builtin(name: str) -> Any:
    return tvm.get_global_func(f"vm.builtin.{name}")


class Lib:
    """A loaded lib with its parameters; every method returns float32 logits ``[rows, vocab]``."""

    def __init__(self, executable: Any, params: Mapping[str, Array], names: Sequence[str]) -> None:
        self.device = tvm.cpu()
        self.vm = relax.VirtualMachine(executable, self.device)
        self.params = [tvm.runtime.tensor(params[name], self.device) for name in names]

    def cache(
        self, sequences: int = 1, total: int = 1024, chunk: int = 256, window: int = 0
    ) -> tuple[Any, ...]:
        """The paged cache, and the RNN state of a model that has one."""
        kv = self.vm["create_tir_paged_kv_cache"](
            *(ShapeTuple([n]) for n in (sequences, total, chunk, PAGE, int(window > 0)))
        )
        states = [kv]
        if self.vm.module.implements_function("create_rnn_state"):
            states.append(self.vm["create_rnn_state"](ShapeTuple([sequences]), ShapeTuple([1])))
        for sequence in range(sequences):
            for state in states:
                builtin("kv_state_add_sequence")(state, sequence)
            if window:
                enable = builtin("attention_kv_cache_enable_sliding_window_for_seq")
                enable(kv, sequence, window, 0)
        return tuple(states)

    def prefill(self, kv: Any, ids: Sequence[int], sequence: int = 0) -> Array:
        """Logits after the last token, ``[1, v]``."""
        x = self._embed(ids, (1, len(ids)))
        with _forward(kv, [sequence], [len(ids)]):
            return self._logits(self.vm["prefill"](x, *kv, self.params))

    def all_logits(self, kv: Any, ids: Sequence[int], sequence: int = 0) -> Array:
        """Logits after every token, ``[len(ids), v]``."""
        x = self._embed(ids, (1, len(ids)))
        with _forward(kv, [sequence], [len(ids)]):
            return self._logits(self.vm["batch_verify"](x, *kv, self.params))

    def decode(self, kv: Any, token: int, sequence: int = 0) -> Array:
        x = self._embed([token], (1, 1))
        with _forward(kv, [sequence], [1]):
            return self._logits(self.vm["decode"](x, *kv, self.params))

    def batch_prefill(self, kv: Any, prompts: Sequence[Sequence[int]]) -> Array:
        """Logits after the last token of every prompt, ``[b, v]``; prompt i is sequence i."""
        lengths = [len(p) for p in prompts]
        x = self._embed([t for p in prompts for t in p], (1, sum(lengths)))
        last = tvm.runtime.tensor((np.cumsum(lengths) - 1).astype("int32"), self.device)
        with _forward(kv, list(range(len(prompts))), lengths):
            return self._logits(self.vm["batch_prefill"](x, last, *kv, self.params))

    def batch_decode(self, kv: Any, tokens: Sequence[int]) -> Array:
        x = self._embed(tokens, (len(tokens), 1))
        with _forward(kv, list(range(len(tokens))), [1] * len(tokens)):
            return self._logits(self.vm["batch_decode"](x, *kv, self.params))

    def _embed(self, ids: Sequence[int], shape: tuple[int, int]) -> Any:
        tokens = tvm.runtime.tensor(np.asarray(ids, "int32"), self.device)
        x = self.vm["embed"](tokens, self.params)
        return builtin("reshape")(x, ShapeTuple([*shape, x.shape[-1]]))

    def _logits(self, out: Any) -> Array:
        logits = out[0].numpy()
        return logits.reshape(-1, logits.shape[-1])


class _forward:
    """Brackets one forward pass of the cache and what is beside it."""

    def __init__(self, states: Any, sequences: list[int], lengths: list[int]) -> None:
        self.states, self.sequences, self.lengths = states, sequences, lengths

    def __enter__(self) -> None:
        begin = builtin("kv_state_begin_forward")
        for state in self.states:
            begin(state, ShapeTuple(self.sequences), ShapeTuple(self.lengths))

    def __exit__(self, *_: object) -> None:
        for state in self.states:
            builtin("kv_state_end_forward")(state)
