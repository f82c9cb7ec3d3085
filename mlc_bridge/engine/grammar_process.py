"""The child that compiles grammars (see ``artifact/confined.py``).

The grammar library cannot be interrupted, and some grammars cost minutes, all memory or the
process. The child also walks some tokens into a grammar, so that one that fails later fails here.
"""

from __future__ import annotations

import base64
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any

from mlc_bridge.artifact.chat_config import ChatConfig
from mlc_bridge.artifact.confined import serve
from mlc_bridge.engine.tokenizer import Tokenizer

WALK = 16
MOST_WHITESPACE = 2  # characters in a row: an answer of blanks would never end


def token_pieces(tokenizer: Tokenizer, vocab_size: int) -> list[bytes]:
    """The bytes of each id; special tokens have none: they are no text."""
    special = tokenizer.special
    return [b"" if i in special else tokenizer.bytes_of(i) for i in range(vocab_size)]


def packed(grammar: str) -> str:
    """As it goes through a pipe."""
    return base64.b64encode(zlib.compress(grammar.encode(), 1)).decode()


def unpacked(text: str) -> str:
    return zlib.decompress(base64.b64decode(text)).decode()


def answer(question: dict[str, Any]) -> dict[str, str]:
    """``grammar`` of the structure ``kind`` and ``text`` for the tokenizer of ``model_dir``, where
    ``stops`` end an answer; what the library raises says what is wrong with the text."""
    compiler = _compiler(question["model_dir"], question["vocab_size"], tuple(question["stops"]))
    compiled = _compiled(compiler, question["kind"], question["text"])
    _walk(compiled)
    return {"grammar": packed(compiled.serialize_json())}


@lru_cache(1)
def _compiler(model_dir: str, vocab_size: int, stops: tuple[int, ...]) -> Any:
    import xgrammar

    tokenizer = Tokenizer(Path(model_dir), ChatConfig.load(model_dir).tokenizer_info)
    info = xgrammar.TokenizerInfo(
        token_pieces(tokenizer, vocab_size),
        vocab_size=vocab_size,
        stop_token_ids=list(stops) or None,
    )
    return xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)


def _compiled(compiler: Any, kind: str, text: str) -> Any:
    if kind == "json":
        return compiler.compile_json_schema(text, max_whitespace_cnt=MOST_WHITESPACE)
    if kind == "regex":
        return compiler.compile_regex(text)
    if kind == "ebnf":
        return compiler.compile_grammar(text)
    return compiler.compile_structural_tag(text)


def _walk(compiled: Any) -> None:
    """Some tokens into the grammar, each a random allowed one."""
    import numpy as np
    import xgrammar

    matcher, random = xgrammar.GrammarMatcher(compiled), np.random.default_rng(0)
    size = compiled.tokenizer_info.vocab_size
    bits = np.zeros((1, -(-size // 32)), np.int32)
    for _ in range(WALK):
        matcher.fill_next_token_bitmask(bits)
        allowed = np.flatnonzero(np.unpackbits(bits.view(np.uint8), bitorder="little")[:size])
        if not allowed.size or not matcher.accept_token(int(random.choice(allowed))):
            return
        if matcher.is_terminated():
            return


if __name__ == "__main__":
    import xgrammar  # noqa: F401  before the first question's time runs

    serve(answer)
