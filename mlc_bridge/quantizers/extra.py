"""The packages of the extra ``torch``, asked for when a quantizer runs."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from mlc_bridge.errors import MissingDependency
from mlc_bridge.packing import Array


def torch_here() -> ModuleType:
    """torch. Raises MissingDependency."""
    try:
        import torch
    except ImportError:
        raise MissingDependency("torch", "quantizing", "pip install 'mlc-bridge[torch]'") from None
    return torch


def transformers_here() -> ModuleType:
    """transformers. Raises MissingDependency."""
    try:
        import transformers
    except ImportError:
        install = "pip install 'mlc-bridge[torch]'"
        raise MissingDependency("transformers", "quantizing with data", install) from None
    return transformers


def float32(array: Array) -> Any:
    """A tensor of the array's values; a copy, since files are mapped read-only."""
    return torch_here().from_numpy(np.array(array, np.float32))
