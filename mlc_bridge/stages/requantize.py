"""``--requantize``: which layers may be rounded into the scheme; nothing, everything, or by name.

A name matches a layer whose MLC path or checkpoint path is that name or ends with it
(``lm_head``, ``mlp.down_proj``), or that it describes whole as a regular expression
(``model.layers.0\\..*``). Several are joined by commas.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from mlc_bridge.errors import ConfigError
from mlc_bridge.models import Weight

ALL = "all"


@dataclass(frozen=True)
class Requantize:
    """The parsed wish; ``names`` are empty where nothing may be rounded."""

    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, wish: bool | str | None) -> Requantize:
        """From a job's field: False, True (all layers), or names joined by commas."""
        if isinstance(wish, str):
            return cls(tuple(name.strip() for name in wish.split(",") if name.strip()))
        return cls((ALL,) if wish else ())

    def __bool__(self) -> bool:
        return bool(self.names)

    def covers(self, weight: Weight) -> bool:
        """Whether this weight may be rounded."""
        return any(names(name, weight.path, *weight.sources) for name in self.names)

    def check(self, weights: Sequence[Weight]) -> None:
        """Raises ConfigError for a name that no weight of the model has."""
        matrices = [weight for weight in weights if weight.tensor is None]
        for name in self.names:
            if not any(names(name, weight.path, *weight.sources) for weight in matrices):
                raise ConfigError(
                    "--requantize names a layer that the model does not have",
                    found=repr(name),
                    expected=f"{ALL}, or names such as {matrices[-1].path}, {matrices[1].path}",
                )


def names(name: str, *paths: str) -> bool:
    """Whether ``name`` is meant for the layer of these paths; ConfigError for a wrong pattern."""
    if name == ALL or any(p == name or p.endswith(f".{name}") for p in paths):
        return True
    try:
        return any(re.fullmatch(name, path) for path in paths)
    except re.error as error:
        raise ConfigError(
            "the name of a layer is no regular expression", found=f"{name!r}: {error}"
        ) from None
