"""``tokenizer.json`` into the tokenizers library, which a bad file brings down with everything.

The library aborts the process, or takes all memory, on files that no schema tells from good ones
(a piece numbered 2^32 - 1, say). So every file is tried once in a child process with bounds
(``confined.py``), and the verdict kept in the user's cache under the file's sha256: later starts
pay for the hash alone, 20 ms for the largest tokenizers.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mlc_bridge.artifact.confined import Confined, Overrun
from mlc_bridge.errors import ConfigError

STEP = 4 << 20
"""Bytes of a file for which the child gets one second and ``MEMORY`` more."""
MEMORY = 768 << 20
SECONDS = 2.0


def open_tokenizer(content: bytes, where: object) -> Any:
    """The library's ``Tokenizer``, without truncation and padding.

    Raises ConfigError for a file that the library refuses or does not survive.
    """
    from tokenizers import Tokenizer

    verdict = _verdicts() / hashlib.sha256(content + version("tokenizers").encode()).hexdigest()
    if not verdict.exists():
        _try_out(content, where)
        with suppress(OSError):
            verdict.parent.mkdir(parents=True, exist_ok=True)
            verdict.touch()
    try:
        tokens = Tokenizer.from_buffer(content)
        tokens.no_truncation()
        tokens.no_padding()
    except BaseException as problem:
        raise _refused(problem, where) from problem
    return tokens


def encode(tokens: Any, text: str) -> list[int]:
    """Token ids without added special tokens. Raises ConfigError for what cannot be encoded.

    Other threads run meanwhile; the library's plain ``encode`` holds the interpreter.
    """
    try:
        ids: list[int] = tokens.encode_batch_fast([text], add_special_tokens=False)[0].ids
    except BaseException as problem:
        raise _refused(problem, "the tokenizer") from problem
    return ids


def _refused(problem: BaseException, where: object) -> BaseException:
    """The library raises bare Exception, and its panics are not even that."""
    if isinstance(problem, Exception) or type(problem).__name__ == "PanicException":
        return ConfigError(f"the tokenizers library refuses it: {problem}", where=where)
    return problem


def _try_out(content: bytes, where: object) -> None:
    steps = len(content) // STEP
    child = _child((1 + steps) * MEMORY)
    try:
        reply = child.ask({"text": content.decode()}, SECONDS + steps)
        problem = reply.get("error")
    except (Overrun, UnicodeDecodeError) as overrun:
        problem = str(overrun)
    finally:
        child.close()
    if problem:
        raise ConfigError(
            f"the tokenizers library refuses it: {problem}",
            where=where,
            todo="Take tokenizer.json from another copy of the model",
        )


@cache
def _child(memory: int) -> Confined:
    return Confined("mlc_bridge.artifact.tokenizer_process", memory)


def _verdicts() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "mlc-bridge" / "tokenizers"
