"""Regular expressions out of a config, which a stranger wrote, matched in bounded time.

Python's matcher tries every way to divide a name among repeats and branches: ``(a+)+`` has 2^n of
them, four ``.*`` in a row n^4. What a pattern can cost is counted from its parsed form before it is
tried; those of real tools have three repeats at most.
"""

from __future__ import annotations

import re
from functools import lru_cache
from importlib import import_module
from math import log
from typing import Any

from mlc_bridge.errors import SourceError

PARSER: Any = import_module("re._parser")
REPEATS = {"MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"}
MOST = log(1e7)


def matches(pattern: str, name: str) -> bool:
    """Whether ``name`` begins with ``pattern``; SourceError for a pattern that cannot be tried."""
    try:
        doubt = _doubt_of(pattern, len(name))
        if doubt <= MOST:
            return re.match(pattern, name) is not None
        found = f"repeats that divide {name} in too many ways"
    except (re.error, RecursionError, OverflowError) as error:
        found = str(error)
    raise SourceError(
        "a pattern of the config is no regular expression that can be tried", where=pattern[:200],
        found=found, todo="Write the layers' names, or a simple pattern, into the config",
    )  # fmt: skip


@lru_cache(maxsize=4096)
def _doubt_of(pattern: str, length: int) -> float:
    return _doubt(PARSER.parse(pattern), length)


def _doubt(parsed: Any, length: int) -> float:
    """Logarithm of the number of ways to lay the pattern over ``length`` characters, at most."""
    total = 0.0
    for op, arg in parsed:
        if str(op) in REPEATS:
            least, most, body = arg
            most = min(most, length)
            total += log(max(most - least, 0) + 1) + most * _doubt(body, length)
        elif str(op) == "BRANCH":
            total += log(len(arg[1])) + max(_doubt(option, length) for option in arg[1])
        else:
            inner = arg if isinstance(arg, tuple) else (arg,)
            total += sum(_doubt(x, length) for x in inner if isinstance(x, PARSER.SubPattern))
    return total
