"""From any quantized Hugging Face checkpoint to a compiled, verified MLC LLM model that answers.

    from mlc_bridge import BuildJob, MLCEngine, build

    build(BuildJob("org/model-AWQ", output="dist/model"))
    with MLCEngine("dist/model") as engine:
        engine.chat.completions.create(messages=[{"role": "user", "content": "Hello"}])

Names are imported when first used, so ``import mlc_bridge`` loads neither tvm nor numpy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from mlc_bridge.engine.async_engine import AsyncMLCEngine
    from mlc_bridge.engine.engine import MLCEngine
    from mlc_bridge.models import MODELS
    from mlc_bridge.schemes import SCHEMES
    from mlc_bridge.sources import SOURCES
    from mlc_bridge.stages.bench import BenchJob, BenchReport, bench
    from mlc_bridge.stages.build import BuildJob, BuildReport, build
    from mlc_bridge.stages.calibrate import CalibrateJob, CalibrateReport, calibrate
    from mlc_bridge.stages.compile import CompileJob, CompileReport, compile_model
    from mlc_bridge.stages.convert_weight import ConvertJob, ConvertReport, convert_weight
    from mlc_bridge.stages.gen_config import GenConfigJob, GenConfigReport, gen_config
    from mlc_bridge.stages.inspect_artifact import CheckJob, check_artifact, inspect_artifact
    from mlc_bridge.stages.inspect_checkpoint import InspectJob, inspect_checkpoint
    from mlc_bridge.stages.verify import VerifyJob, VerifyReport, verify

_HOMES = {
    "mlc_bridge.engine.async_engine": ("AsyncMLCEngine",),
    "mlc_bridge.engine.engine": ("MLCEngine",),
    "mlc_bridge.models": ("MODELS",),
    "mlc_bridge.schemes": ("SCHEMES",),
    "mlc_bridge.sources": ("SOURCES",),
    "mlc_bridge.stages.bench": ("BenchJob", "BenchReport", "bench"),
    "mlc_bridge.stages.build": ("BuildJob", "BuildReport", "build"),
    "mlc_bridge.stages.calibrate": ("CalibrateJob", "CalibrateReport", "calibrate"),
    "mlc_bridge.stages.compile": ("CompileJob", "CompileReport", "compile_model"),
    "mlc_bridge.stages.convert_weight": ("ConvertJob", "ConvertReport", "convert_weight"),
    "mlc_bridge.stages.gen_config": ("GenConfigJob", "GenConfigReport", "gen_config"),
    "mlc_bridge.stages.inspect_artifact": ("CheckJob", "check_artifact", "inspect_artifact"),
    "mlc_bridge.stages.inspect_checkpoint": ("InspectJob", "inspect_checkpoint"),
    "mlc_bridge.stages.verify": ("VerifyJob", "VerifyReport", "verify"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "MODELS",
    "SCHEMES",
    "SOURCES",
    "AsyncMLCEngine",
    "BenchJob",
    "BenchReport",
    "BuildJob",
    "BuildReport",
    "CalibrateJob",
    "CalibrateReport",
    "CheckJob",
    "CompileJob",
    "CompileReport",
    "ConvertJob",
    "ConvertReport",
    "GenConfigJob",
    "GenConfigReport",
    "InspectJob",
    "MLCEngine",
    "VerifyJob",
    "VerifyReport",
    "bench",
    "build",
    "calibrate",
    "check_artifact",
    "compile_model",
    "convert_weight",
    "gen_config",
    "inspect_artifact",
    "inspect_checkpoint",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
