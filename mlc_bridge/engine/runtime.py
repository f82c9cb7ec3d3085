"""A model in memory: compiled lib, weights and the paged KV cache, as two calls that give logits.

A model with recurrent layers (``kv_state_kind`` hybrid) keeps an RNN state beside the cache. Both
know the sequences and go through the same calls; what a state has read cannot be taken back.

``prefill`` appends runs of tokens to sequences, ``decode`` one token to each. Both go the way of
every MLC lib: ``embed`` the ids, tell the cache which sequence grows by how much
(``begin_forward``), run the function, ``end_forward``. Logits come back as float32 ``[sequences,
vocab]``, each row for the last token of one sequence.

All calls must come from one thread, the one that called ``threads.start_pool`` (see there).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mlc_bridge.artifact.chat_config import ChatConfig
from mlc_bridge.artifact.lib_file import HYBRID
from mlc_bridge.artifact.tensor_cache import dtype_of
from mlc_bridge.engine.library import Library, find_library, open_library
from mlc_bridge.engine.memory import available_memory
from mlc_bridge.engine.parameters import load_parameters
from mlc_bridge.engine.vocabulary import check_ids
from mlc_bridge.errors import ArtifactError, ConfigError, EngineError
from mlc_bridge.packing import Array

PAGE = 16  # tokens in one page of the KV cache; compiled kernels know no other size
Mode = Literal["local", "interactive", "server"]


@dataclass(frozen=True)
class EngineConfig:
    """Limits a user may set; None leaves each to the mode. Lengths are in tokens.

    ``prefix_cache`` keeps the cache of ended requests for those that begin the same. A prompt
    prefilled from it is rounded as in another chunking; requests with a seed do not take from it,
    so that their answers repeat.
    """

    max_num_sequence: int | None = None
    max_total_sequence_length: int | None = None
    context_window_size: int | None = None
    prefill_chunk_size: int | None = None
    prefix_cache: bool = True


@dataclass(frozen=True)
class Limits:
    """What the engine runs with: window of one sequence, tokens of one prefill step, sequences at
    once, tokens of all sequences together; ``sliding_window`` is -1 without one. A sequence that
    grows beyond ``restart_beyond`` tokens is prefilled anew. ``only_grows``: the last tokens of a
    sequence cannot be forgotten."""

    context_window: int
    prefill_chunk: int
    max_batch: int
    total: int
    sliding_window: int = -1
    attention_sink: int = 0
    prefix_cache: bool = True
    restart_beyond: int | None = None
    only_grows: bool = False

    def crosses(self, cached: int, tokens: int) -> bool:
        """Whether the cache of ``cached`` tokens is of no use to a sequence of ``tokens``."""
        return self.restart_beyond is not None and cached <= self.restart_beyond < tokens


class Runtime:
    """See the module docstring."""

    def __init__(
        self, library: Library, params: list[Any], limits: Limits, vocab_size: int, model_dir: Path
    ) -> None:
        import tvm
        import tvm_ffi

        self.library, self.limits = library, limits
        self.vocab_size, self.model_dir = vocab_size, model_dir
        self._params = tvm_ffi.convert(params)
        self._shape = tvm_ffi.Shape
        self._empty = tvm.runtime.empty
        vm = library.vm
        self._embed, self._prefill, self._decode = vm["embed"], vm["prefill"], vm["decode"]
        self._batch_prefill, self._batch_decode = vm["batch_prefill"], vm["batch_decode"]
        state = "vm.builtin.kv_state_"
        self._add, self._remove, self._fork, self._popn, self._begin, self._end, self._clear = (
            tvm.get_global_func(state + name)
            for name in ("add_sequence", "remove_sequence", "fork_sequence", "popn",
                         "begin_forward", "end_forward", "clear")
        )  # fmt: skip
        cache = "vm.builtin.attention_kv_cache_"
        self._pages = tvm.get_global_func(cache + "get_num_available_pages")
        self._slide = tvm.get_global_func(cache + "enable_sliding_window_for_seq")
        self._kv = self._create_cache()
        self._states = (self._kv, *self._create_state())

    @classmethod
    def open(
        cls,
        model_dir: str | Path,
        model_lib: str | Path | None = None,
        *,
        device: str = "auto",
        mode: Mode = "local",
        config: EngineConfig | None = None,
    ) -> Runtime:
        """Check everything, then load. Raises ArtifactError or ConfigError naming what does not
        fit.
        """
        directory = Path(model_dir).expanduser()
        if not directory.is_dir():
            raise ArtifactError("no such model directory", where=directory)
        chat = ChatConfig.load(directory)
        library = open_library(find_library(directory, model_lib), directory, device)
        vocab_size = _vocab_size(chat, directory)
        limits = plan_limits(library.metadata, chat, mode, config or EngineConfig())
        params = load_parameters(directory, library.metadata["params"], library.device)
        return cls(library, params, limits, vocab_size, directory)

    def add(self, sequence: int) -> None:
        """A new, empty sequence."""
        for state in self._states:
            self._add(state, sequence)
        self._enable_sliding(sequence)

    def fork(self, parent: int, child: int) -> None:
        """A new sequence with the past of ``parent``; pages are shared."""
        for state in self._states:
            self._fork(state, parent, child, -1)
        self._enable_sliding(child)

    def remove(self, sequence: int) -> None:
        for state in self._states:
            self._remove(state, sequence)

    def pop(self, sequence: int, count: int) -> None:
        """Forget the last ``count`` tokens of a sequence; EngineError where it only grows."""
        if count and self.limits.only_grows:
            raise EngineError("a recurrent model cannot forget tokens", where=self.library.path)
        self._popn(self._kv, sequence, count)

    def clear(self) -> None:
        """Forget all sequences."""
        for state in self._states:
            self._clear(state)

    @property
    def free_pages(self) -> int:
        return int(self._pages(self._kv))

    def prefill(self, sequences: Sequence[int], runs: Sequence[Sequence[int]]) -> Array:
        """Append ``runs[i]`` (at least one token) to ``sequences[i]``; logits ``[len(runs),
        vocab]``.
        """
        lengths = [len(run) for run in runs]
        total = sum(lengths)
        hidden = self._embedded([token for run in runs for token in run], (1, total))
        if len(runs) == 1:
            return self._forward(self._prefill, [hidden], sequences, lengths, 1)
        last = self._tensor(np.cumsum(lengths, dtype=np.int32) - 1)
        return self._forward(self._batch_prefill, [hidden, last], sequences, lengths, len(runs))

    def decode(self, sequences: Sequence[int], tokens: Sequence[int]) -> Array:
        """Append ``tokens[i]`` to ``sequences[i]``; logits ``[len(tokens), vocab]``."""
        count = len(tokens)
        hidden = self._embedded(tokens, (count, 1))
        function = self._decode if count == 1 else self._batch_decode
        return self._forward(function, [hidden], sequences, [1] * count, count)

    @property
    def can_score(self) -> bool:
        return bool(self.library.vm.module.implements_function("batch_verify"))

    def score(self, sequence: int, run: Sequence[int]) -> Array:
        """Append ``run``; logits ``[len(run), vocab]`` after every token of it.

        Raises ArtifactError when the lib has no ``batch_verify``.
        """
        if not self.can_score:
            raise ArtifactError("the lib has no function batch_verify", where=self.library.path)
        hidden = self._embedded(run, (1, len(run)))
        verify = self.library.vm["batch_verify"]
        return self._forward(verify, [hidden], [sequence], [len(run)], len(run))

    def silence(self, names: Collection[str]) -> None:
        """Set these parameters to zero. What the model says then is of use to ``verify`` alone."""
        for param, about in zip(self._params, self.library.metadata["params"], strict=True):
            if about["name"] in names:
                nbytes = math.prod(param.shape) * dtype_of(str(param.dtype)).itemsize
                flat = param._create_view((nbytes,), "uint8")
                flat.copyfrom(np.zeros(nbytes, np.uint8))

    def warm_up(self) -> None:
        """One token through the model: finds a lib that cannot run, broken weights, or another
        vocabulary, now."""
        self.add(0)
        logits = self.prefill([0], [[0]])
        self.clear()
        found = logits.shape[-1]
        if not np.isfinite(logits).all():
            raise ArtifactError(
                "the model gives logits that are not finite",
                where=self.model_dir,
                todo="Convert the weights again; mlc-bridge inspect shows what they hold",
            )
        if found != self.vocab_size:
            raise ArtifactError(
                "the lib has another vocabulary than mlc-chat-config.json",
                where=self.library.path,
                found=found,
                expected=self.vocab_size,
            )

    def _create_cache(self) -> Any:
        limits = self.limits
        sliding = int(limits.sliding_window > 0)
        numbers = (limits.max_batch, limits.total, limits.prefill_chunk, PAGE, sliding)
        create = self.library.vm["create_tir_paged_kv_cache"]
        return create(*(self._shape([number]) for number in numbers))

    def _create_state(self) -> list[Any]:
        """The RNN state, where the model has one; a single place for each array of a sequence."""
        if not self.limits.only_grows:
            return []
        create = self.library.vm["create_rnn_state"]
        return [create(self._shape([self.limits.max_batch]), self._shape([1]))]

    def _forward(
        self,
        function: Any,
        inputs: list[Any],
        sequences: Sequence[int],
        lengths: Sequence[int],
        rows: int,
    ) -> Array:
        """One pass: ``lengths[i]`` tokens go to ``sequences[i]``; logits ``[rows, vocab]``."""
        for state in self._states:
            self._begin(state, self._shape(sequences), self._shape(lengths))
        out = function(*inputs, *self._states, self._params)
        for state in self._states:
            self._end(state)
        return self._logits(out, rows)

    def _enable_sliding(self, sequence: int) -> None:
        if self.limits.sliding_window > 0:
            window, sink = self.limits.sliding_window, self.limits.attention_sink
            self._slide(self._kv, sequence, window, sink)

    def _embedded(self, ids: Sequence[int], leading: tuple[int, int]) -> Any:
        # The kernel reads whatever lies at a row that does not exist.
        check_ids(ids, self.vocab_size, "token ids")
        rows = self._embed(self._tensor(np.array(ids, np.int32)), self._params)
        return rows._create_view((*leading, rows.shape[-1]))

    def _tensor(self, array: Array) -> Any:
        out = self._empty(array.shape, str(array.dtype), self.library.device)
        out.copyfrom(array)
        return out

    def _logits(self, out: Any, count: int) -> Array:
        logits = out[0]
        on_host = logits.device.type == "cpu"
        array = np.from_dlpack(logits) if on_host else logits.numpy()
        return array.reshape(count, -1)


def plan_limits(
    metadata: dict[str, Any], chat: ChatConfig, mode: Mode, config: EngineConfig
) -> Limits:
    """The lib's limits, made smaller where the chat config, the mode or the user say so.

    ``interactive`` serves one sequence; ``local`` eight that share the larger of one window and
    8192 tokens; ``server`` all that the lib allows, within half of the memory that is free.
    """
    # A lib with a context window masks its sliding window itself; without one the cache must roll.
    rolls = metadata["context_window_size"] <= 0
    sliding = int(metadata.get("sliding_window_size", -1)) if rolls else -1
    window = _smallest(
        metadata["context_window_size"], chat.context_window_size, config.context_window_size
    )
    if window is None and sliding <= 0:
        raise ConfigError("the model has neither a context window nor a sliding window")
    reach = window or sliding
    batch = {"interactive": 1, "local": 8, "server": metadata["max_batch_size"]}[mode]
    batch = _smallest(config.max_num_sequence or batch, metadata["max_batch_size"]) or 1
    batch = min(batch, _states_in_memory(metadata))
    chunk = _smallest(
        metadata["prefill_chunk_size"], chat.prefill_chunk_size, config.prefill_chunk_size, reach
    )
    room = {
        "interactive": reach,
        "local": max(reach, min(batch * reach, 8192)),
        "server": max(reach, min(batch * reach, _tokens_in_memory(metadata))),
    }[mode]
    total = config.max_total_sequence_length or room
    if window is not None:
        window = min(window, total)
    sink = max(int(metadata.get("attention_sink_size", 0)), 0)
    # What slid out of the window cannot be taken back.
    keep = config.prefix_cache and sliding <= 0
    beyond = (metadata.get("mlc_bridge") or {}).get("restart_beyond")
    if beyond is not None and (chunk or 1) <= beyond < (window or sys.maxsize):
        raise ConfigError(
            f"a prefill must show at once whether a prompt is longer than {beyond} tokens, because "
            "this model then reads it in another way",
            where="prefill_chunk_size",
            found=chunk,
            expected=f"more than {beyond}",
            todo=f"Raise it, or set context_window_size to {beyond} at most",
        )
    grows = metadata.get("kv_state_kind") == HYBRID
    return Limits(
        window or sys.maxsize, chunk or 1, batch, total, sliding, sink, keep, beyond, grows
    )


def _smallest(*values: int | None) -> int | None:
    """The smallest of the limits that are set (MLC writes -1 for "no limit")."""
    return min((int(v) for v in values if v is not None and v > 0), default=None)


def _states_in_memory(metadata: dict[str, Any]) -> int:
    """Sequences whose recurrent states fill a quarter of what is left, at least one."""
    each = (metadata.get("mlc_bridge") or {}).get("state_bytes", 0)
    free = available_memory()
    return sys.maxsize if free is None or not each else max(1, int(free // 4 // each))


def _tokens_in_memory(metadata: dict[str, Any]) -> int:
    """Tokens whose keys and values (at most 4 bytes an element) fill half of what is left."""
    cache = metadata["kv_cache"]
    per_token = 8 * cache["head_dim"] * cache["num_key_value_heads"] * cache["num_hidden_layers"]
    free = available_memory()
    return sys.maxsize if free is None else int(free // 2 // per_token)


def _vocab_size(chat: ChatConfig, directory: Path) -> int:
    inner = chat.arch_config.get("vocab_size", chat.vocab_size)
    if inner != chat.vocab_size:
        raise ConfigError(
            "vocab_size differs between the two places of mlc-chat-config.json",
            where=directory,
            found=f"{chat.vocab_size} and {inner} in model_config",
        )
    return int(chat.vocab_size)
