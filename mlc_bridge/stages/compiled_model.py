"""A compiled model that answers as ``verify``'s reference does: logits of windows, and readings of
its hidden states (``trace.py`` says how a library tells them).

It lives in a thread of its own, because TVM keeps one pool of threads per calling thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

import numpy as np

from mlc_bridge.artifact.chat_config import ChatConfig
from mlc_bridge.engine.runtime import Runtime
from mlc_bridge.engine.threads import start_pool
from mlc_bridge.packing import Array
from mlc_bridge.stages.progress import Progress, silent
from mlc_bridge.stages.recognise import described
from mlc_bridge.stages.trace import depths_of, silenced

DECODED = 32  # tokens of a window that are computed one by one


class CompiledModel:
    """A context manager; ``threads`` run its kernels."""

    def __init__(
        self,
        directory: str | Path,
        lib: str | Path | None = None,
        device: str = "auto",
        threads: int | None = None,
    ) -> None:
        self.how = f"the library of {directory}"
        self.directory = directory
        self._thread = ThreadPoolExecutor(1)

        def opened() -> Runtime:
            start_pool(threads)
            return Runtime.open(directory, lib, device=device, mode="interactive")

        try:
            self._runtime = self._thread.submit(opened).result()
        except BaseException:
            self._thread.shutdown()
            raise

    def __enter__(self) -> CompiledModel:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._thread.submit(self.__dict__.pop, "_runtime").result()
        self._thread.shutdown()

    def logits(self, windows: Sequence[Array], progress: Progress = silent) -> Iterator[Array]:
        """float32 ``[n, vocab]`` of each window of ids ``[n]``, from an empty cache."""
        for ids in windows:
            yield self._thread.submit(self._scored, ids).result()

    def decoded(self, ids: Array) -> Array:
        """float32 ``[m, vocab]`` of the last m tokens one by one: other kernels than a prompt's.

        None of them where the engine would compute the sequence anew on the way.
        """
        return self._thread.submit(self._decoded, ids).result()

    def readings(self, ids: Array, progress: Progress = silent) -> list[Array]:
        """float32 ``[n, vocab]`` of the hidden state at every depth, the embedding first.

        The model is of no use afterwards.
        """
        model = described(ChatConfig.load(self.directory))
        depths, found = depths_of(model), list[Array]()
        for depth in reversed(range(depths + 1)):
            progress("trace", depths - depth, depths + 1)
            found += self.logits([ids])
            if depth:
                names = frozenset(silenced(model, depth - 1))
                self._thread.submit(self._runtime.silence, names).result()
        return found[::-1]

    def _scored(self, ids: Array) -> Array:
        chunk = self._runtime.limits.prefill_chunk
        self._runtime.add(0)
        parts = [
            np.array(self._runtime.score(0, ids[at : at + chunk].tolist()))
            for at in range(0, len(ids), chunk)
        ]
        self._runtime.remove(0)
        return np.concatenate(parts)

    def _decoded(self, ids: Array) -> Array:
        rest = len(ids) - min(DECODED, len(ids) // 2)
        limits = self._runtime.limits
        if limits.crosses(rest, len(ids)):
            return np.empty((0, 0), np.float32)
        self._runtime.add(0)
        for at in range(0, rest, limits.prefill_chunk):
            self._runtime.prefill([0], [ids[at : min(at + limits.prefill_chunk, rest)].tolist()])
        rows = [np.array(self._runtime.decode([0], [token])[0]) for token in ids[rest:].tolist()]
        self._runtime.remove(0)
        return np.stack(rows)
