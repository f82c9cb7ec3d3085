"""Structured output: which tokens keep an answer inside JSON or a JSON schema, with xgrammar.

``mask`` marks the allowed ids before a token is drawn, ``accept`` moves on by one. The model ends
the answer itself: its stop token becomes allowed when the JSON may end there, and forced when it
must.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

import numpy as np

from mlc_bridge.engine.protocol import ResponseFormat
from mlc_bridge.engine.tokenizer import Tokenizer
from mlc_bridge.errors import EngineError, MissingDependency
from mlc_bridge.packing import Array


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
        """True where a token may come next, ``[vocab]``; None when every token may."""
        if not self._matcher.fill_next_token_bitmask(self._bits):
            return None
        bits = np.unpackbits(self._bits.view(np.uint8), bitorder="little")
        return bits[: self._vocab_size].astype(bool)

    def accept(self, token: int) -> bool:
        """Take an allowed token; True when nothing may follow it."""
        self._matcher.accept_token(token)
        return bool(self._matcher.is_terminated())


class Grammars:
    """Compiles response formats for one tokenizer; equal formats are compiled once."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, stop_tokens: Collection[int]) -> None:
        try:
            import xgrammar
        except ImportError:
            raise MissingDependency(
                "xgrammar", "response_format", "pip install 'mlc-bridge[structured]'"
            ) from None
        self._vocab_size, self._stop_tokens = vocab_size, stop_tokens
        # Special tokens have no bytes here: they are no text, so no grammar allows them.
        special = tokenizer.special
        pieces = [b"" if i in special else tokenizer.bytes_of(i) for i in range(vocab_size)]
        info = xgrammar.TokenizerInfo(
            pieces, vocab_size=vocab_size, stop_token_ids=list(stop_tokens) or None
        )
        self._compiler = xgrammar.GrammarCompiler(info, max_threads=1)

    def matcher(self, wanted: ResponseFormat, *, free_end: bool = False) -> Matcher:
        """A fresh matcher; ``free_end`` for a request that ignores stop tokens. Raises EngineError
        for a schema that cannot be compiled."""
        schema = schema_of(wanted)
        try:
            if schema is None:
                compiled = self._compiler.compile_builtin_json_grammar()
            else:
                compiled = self._compiler.compile_json_schema(schema)
        except (RuntimeError, ValueError) as problem:
            raise EngineError(
                "the JSON schema cannot be used", where="response_format", found=str(problem)[:300]
            ) from problem
        return Matcher(compiled, self._vocab_size, () if free_end else self._stop_tokens)


def schema_of(wanted: ResponseFormat) -> str | None:
    """The schema as JSON text; None for any JSON."""
    if wanted.json_schema is not None:
        return json.dumps(wanted.json_schema.schema_)
    if wanted.schema_ is None or isinstance(wanted.schema_, str):
        return wanted.schema_
    return json.dumps(wanted.schema_)
