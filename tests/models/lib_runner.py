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
    ) -> Any:
        kv = self.vm["create_tir_paged_kv_cache"](
            *(ShapeTuple([n]) for n in (sequences, total, chunk, PAGE, int(window > 0)))
        )
        for sequence in range(sequences):
            builtin("kv_state_add_sequence")(kv, sequence)
            if window:
                enable = builtin("attention_kv_cache_enable_sliding_window_for_seq")
                enable(kv, sequence, window, 0)
        return kv

    def prefill(self, kv: Any, ids: Sequence[int], sequence: int = 0) -> Array:
        """Logits after the last token, ``[1, v]``."""
        x = self._embed(ids, (1, len(ids)))
        with _forward(kv, [sequence], [len(ids)]):
            return self._logits(self.vm["prefill"](x, kv, self.params))

    def all_logits(self, kv: Any, ids: Sequence[int], sequence: int = 0) -> Array:
        """Logits after every token, ``[len(ids), v]``."""
        x = self._embed(ids, (1, len(ids)))
        with _forward(kv, [sequence], [len(ids)]):
            return self._logits(self.vm["batch_verify"](x, kv, self.params))

    def decode(self, kv: Any, token: int, sequence: int = 0) -> Array:
        x = self._embed([token], (1, 1))
        with _forward(kv, [sequence], [1]):
            return self._logits(self.vm["decode"](x, kv, self.params))

    def batch_prefill(self, kv: Any, prompts: Sequence[Sequence[int]]) -> Array:
        """Logits after the last token of every prompt, ``[b, v]``; prompt i is sequence i."""
        lengths = [len(p) for p in prompts]
        x = self._embed([t for p in prompts for t in p], (1, sum(lengths)))
        last = tvm.runtime.tensor((np.cumsum(lengths) - 1).astype("int32"), self.device)
        with _forward(kv, list(range(len(prompts))), lengths):
            return self._logits(self.vm["batch_prefill"](x, last, kv, self.params))

    def batch_decode(self, kv: Any, tokens: Sequence[int]) -> Array:
        x = self._embed(tokens, (len(tokens), 1))
        with _forward(kv, list(range(len(tokens))), [1] * len(tokens)):
            return self._logits(self.vm["batch_decode"](x, kv, self.params))

    def _embed(self, ids: Sequence[int], shape: tuple[int, int]) -> Any:
        tokens = tvm.runtime.tensor(np.asarray(ids, "int32"), self.device)
        x = self.vm["embed"](tokens, self.params)
        return builtin("reshape")(x, ShapeTuple([*shape, x.shape[-1]]))

    def _logits(self, out: Any) -> Array:
        logits = out[0].numpy()
        return logits.reshape(-1, logits.shape[-1])


class _forward:
    """Brackets one forward pass of the cache."""

    def __init__(self, kv: Any, sequences: list[int], lengths: list[int]) -> None:
        self.kv, self.sequences, self.lengths = kv, sequences, lengths

    def __enter__(self) -> None:
        begin = builtin("kv_state_begin_forward")
        begin(self.kv, ShapeTuple(self.sequences), ShapeTuple(self.lengths))

    def __exit__(self, *_: object) -> None:
        builtin("kv_state_end_forward")(self.kv)
