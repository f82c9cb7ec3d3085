"""The architectures: HF ``model_type`` -> config, weight table and relax graph."""

from __future__ import annotations

from mlc_bridge.models.arch import Arch, ModelConfig, Weight
from mlc_bridge.models.llama import LLAMA
from mlc_bridge.registry import Table, table

MODELS: Table[Arch] = table("models", LLAMA)

__all__ = ["MODELS", "Arch", "ModelConfig", "Weight"]
