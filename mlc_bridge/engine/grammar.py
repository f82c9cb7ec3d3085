"""Structured output: which tokens keep an answer inside a structure, with xgrammar.

``mask`` marks the allowed ids before a token is drawn, ``accept`` moves on by one. The model ends
the answer itself: its stop token becomes allowed when the structure may end there, and forced when
it must. Grammars are compiled in a process of their own (``grammar_process``) and arrive as text.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from mlc_bridge.artifact.confined import Confined, Overrun
from mlc_bridge.engine.grammar_process import token_pieces, unpacked
from mlc_bridge.engine.schema import prepared
from mlc_bridge.engine.structure import Structure
from mlc_bridge.engine.tokenizer import Tokenizer
from mlc_bridge.errors import EngineError, MissingDependency
from mlc_bridge.packing import Array

SLOWEST_MASK = 1.0  # seconds
SECONDS, MEMORY = 8.0, 4 << 30
"""Processor time of one compilation, and the child's address space: the library brings torch."""
_KEPT = 64  # compiled grammars


class Matcher:
    """The state of one answer; see ``generation.Grammar``."""

    def __init__(self, compiled: Any, vocab_size: int, stop_tokens: Collection[int]) -> None:
        import xgrammar

        stops = list(stop_tokens)
        self._matcher = xgrammar.GrammarMatcher(
            compiled, override_stop_tokens=stops or None, terminate_without_stop_token=not stops
        )
        self._vocab_size = vocab_size
        self._bits = np.zeros((1, -(-vocab_size // 32)), np.int32)

    def mask(self) -> Array | None:
        """True where a token may come next, ``[vocab]``; None when every token may.

        Raises EngineError for a grammar that takes too long: it would hold up the others.
        """
        began = time.perf_counter()
        limited = self._matcher.fill_next_token_bitmask(self._bits)
        if (took := time.perf_counter() - began) > SLOWEST_MASK:
            raise EngineError(
                "this structure is too slow to follow",
                where="response_format",
                found=f"{took:.1f} s for one token",
                expected=f"at most {SLOWEST_MASK:g} s",
            )
        if not limited:
            return None
        bits = np.unpackbits(self._bits.view(np.uint8), bitorder="little")
        return bits[: self._vocab_size].astype(bool)

    def accept(self, token: int) -> bool:
        """Take an allowed token; True when nothing may follow it."""
        self._matcher.accept_token(token)
        return bool(self._matcher.is_terminated())


class Grammars:
    """Matchers for one tokenizer; equal structures are compiled once.

    ``pool`` has one thread, in which ``matcher`` should be called where others must not wait.
    """

    def __init__(self, tokenizer: Tokenizer, model_dir: Path, vocab_size: int, stops: list[int]):
        self._tokenizer, self._model_dir = tokenizer, str(model_dir.resolve())
        self._vocab_size, self.stops = vocab_size, stops
        self._child = Confined("mlc_bridge.engine.grammar_process", MEMORY)
        self._compiled = lru_cache(_KEPT)(self._compile)
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="mlc-bridge-grammar")

    def close(self) -> None:
        self.pool.shutdown(wait=False, cancel_futures=True)
        self._child.close()

    def matcher(self, wanted: Structure, *, free_end: bool = False) -> Matcher:
        """A fresh matcher; ``free_end`` for a request that ignores stop tokens. Raises EngineError
        for a structure that cannot be compiled within the bounds."""
        if find_spec("xgrammar") is None:
            raise MissingDependency(
                "xgrammar", "response_format", "pip install 'mlc-bridge[structured]'"
            )
        found = self._compiled(prepared(wanted))
        if isinstance(found, EngineError):
            raise found.with_traceback(None)
        return Matcher(found, self._vocab_size, () if free_end else self.stops)

    def _compile(self, structure: Structure) -> Any:
        """The grammar, or why there is none: what was refused once is not tried again."""
        import xgrammar

        reply = self._ask(structure)
        if "grammar" in reply:
            return xgrammar.CompiledGrammar.deserialize_json(unpacked(reply["grammar"]), self._info)
        found = reply["error"]
        return EngineError("the structure cannot be used", where="response_format", found=found)

    def _ask(self, structure: Structure) -> dict[str, Any]:
        question = {
            "model_dir": self._model_dir,
            "vocab_size": self._vocab_size,
            "stops": self.stops,
            "kind": structure.kind,
            "text": structure.text,
        }
        try:
            return self._child.ask(question, SECONDS)
        except Overrun as overrun:
            return {"error": f"compiling it: {overrun}"}

    @cached_property
    def _info(self) -> Any:
        import xgrammar

        pieces = token_pieces(self._tokenizer, self._vocab_size)
        return xgrammar.TokenizerInfo(
            pieces, vocab_size=self._vocab_size, stop_token_ids=self.stops or None
        )
