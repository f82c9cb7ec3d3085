"""Running a compiled model: ``MLCEngine``, ``AsyncMLCEngine`` and the limits they take."""

from mlc_bridge.engine.async_engine import AsyncMLCEngine
from mlc_bridge.engine.engine import MLCEngine
from mlc_bridge.engine.runtime import EngineConfig, Runtime

__all__ = ["AsyncMLCEngine", "EngineConfig", "MLCEngine", "Runtime"]
