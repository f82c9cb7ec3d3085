"""Running a compiled model: ``MLCEngine`` and the limits it takes."""

from mlc_bridge.engine.engine import MLCEngine
from mlc_bridge.engine.runtime import EngineConfig, Runtime

__all__ = ["EngineConfig", "MLCEngine", "Runtime"]
