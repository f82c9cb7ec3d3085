"""A recipe from what was given: short name, LLMC's YAML, our JSON, msModelSlim's options."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mlc_bridge.errors import ConfigError
from mlc_bridge.quantizers.llmc import is_llmc, read_llmc
from mlc_bridge.quantizers.msmodelslim import read_options
from mlc_bridge.quantizers.recipe import Recipe
from mlc_bridge.quantizers.short_names import is_short, short


def read_recipe(given: str | Path | None, options: Mapping[str, str]) -> tuple[Recipe, str | None]:
    """The recipe, and the calibration data that it names itself.

    Raises ConfigError for what is no recipe, naming the key at fault.
    """
    if options:
        if given is not None:
            raise ConfigError("a recipe and msModelSlim's options at once", where="quantize",
                              found=", ".join(options), todo="Leave one out")  # fmt: skip
        return read_options(options)
    if given is None:
        raise ConfigError("no recipe", where="quantize", expected="--recipe",
                          todo="Give a short name such as awq-w4a16-g128, or a file")  # fmt: skip
    if isinstance(given, str) and is_short(given) and not Path(given).exists():
        return short(given), None
    path = Path(given)
    if not path.is_file():
        return short(str(given)), None
    values = _mapping(path)
    return read_llmc(values, path) if is_llmc(values) else (Recipe.of(values, path), None)


def _mapping(path: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot be read as YAML: {str(error)[:200]}", where=path) from error
    if not isinstance(found, dict):
        raise ConfigError("must hold key: value lines", where=path)
    return {str(key): value for key, value in found.items()}
