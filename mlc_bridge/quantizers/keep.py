"""Which linear layers stay in float.

Names are exact, or patterns (``*`` as in file names, ``re:`` before a regular expression); a name
that matches no layer is refused. The head is left out unless the recipe says otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase

from mlc_bridge.errors import ConfigError
from mlc_bridge.quantizers.recipe import Keep
from mlc_bridge.quantizers.skeleton import HEAD
from mlc_bridge.registry import did_you_mean


def kept(keep: Keep, linears: Iterable[str]) -> frozenset[str]:
    """The layers of ``linears`` that stay float by name; ConfigError for a name of none."""
    every = sorted(linears)
    found = {HEAD} & set(every) if keep.last_linear else set()
    for name in keep.names:
        matching = {layer for layer in every if _matches(name, layer)}
        if not matching and name != HEAD:
            raise ConfigError("no linear layer has this name", where="layers left in float",
                              found=name, todo=did_you_mean(name, every))  # fmt: skip
        found |= matching
    return frozenset(found)


def _matches(name: str, layer: str) -> bool:
    if name.startswith("re:"):
        return re.fullmatch(name[3:], layer) is not None
    return name == layer or fnmatchcase(layer, name)
