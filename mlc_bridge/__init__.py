"""From any quantized Hugging Face checkpoint to a compiled, verified MLC LLM model that answers.

    from mlc_bridge import BuildJob, MLCEngine, build

    build(BuildJob("org/model-AWQ", output="dist/model"))
    with MLCEngine("dist/model") as engine:
        engine.chat.completions.create(messages=[{"role": "user", "content": "Hello"}])

Jobs and reports go through JSON (``report.to_json()``, ``BuildJob.from_json(text)``), errors are
``BridgeError`` and its tree, and what happens is logged under ``mlc_bridge``.
Names are imported when first used, so ``import mlc_bridge`` loads neither tvm nor numpy.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

logging.getLogger(__name__).addHandler(logging.NullHandler())
__version__ = "0.1.0"

if TYPE_CHECKING:
    from mlc_bridge.engine.async_engine import AsyncMLCEngine
    from mlc_bridge.engine.engine import MLCEngine
    from mlc_bridge.engine.runtime import EngineConfig
    from mlc_bridge.errors import (
        ArtifactError,
        BridgeError,
        CannotExpress,
        CompileError,
        ConfigError,
        ContextOverflow,
        EngineError,
        MissingDependency,
        SourceError,
        UnknownFormat,
    )
    from mlc_bridge.models import MODELS
    from mlc_bridge.record import Record
    from mlc_bridge.schemes import SCHEMES
    from mlc_bridge.sources import SOURCES
    from mlc_bridge.stages.bench import BenchJob, BenchReport, bench
    from mlc_bridge.stages.build import BuildJob, BuildReport, build, plan
    from mlc_bridge.stages.build_plan import BuildPlan
    from mlc_bridge.stages.calibrate import CalibrateJob, CalibrateReport, calibrate
    from mlc_bridge.stages.compile import CompileJob, CompileReport, compile_model
    from mlc_bridge.stages.convert_weight import ConvertJob, ConvertReport, convert_weight
    from mlc_bridge.stages.doctor import Diagnosis, examine
    from mlc_bridge.stages.gen_config import GenConfigJob, GenConfigReport, gen_config
    from mlc_bridge.stages.inspect_artifact import (
        ArtifactReport,
        CheckJob,
        CheckReport,
        check_artifact,
        inspect_artifact,
    )
    from mlc_bridge.stages.inspect_checkpoint import (
        CheckpointReport,
        InspectJob,
        inspect_checkpoint,
    )
    from mlc_bridge.stages.progress import Progress
    from mlc_bridge.stages.quantize import QuantizeJob, QuantizeReport, quantize
    from mlc_bridge.stages.upload import UploadJob, UploadReport, upload
    from mlc_bridge.stages.verify import VerifyJob, VerifyReport, verify

_HOMES = {
    "mlc_bridge.engine.async_engine": ("AsyncMLCEngine",),
    "mlc_bridge.engine.engine": ("MLCEngine",),
    "mlc_bridge.engine.runtime": ("EngineConfig",),
    "mlc_bridge.errors": (
        "ArtifactError",
        "BridgeError",
        "CannotExpress",
        "CompileError",
        "ConfigError",
        "ContextOverflow",
        "EngineError",
        "MissingDependency",
        "SourceError",
        "UnknownFormat",
    ),
    "mlc_bridge.models": ("MODELS",),
    "mlc_bridge.record": ("Record",),
    "mlc_bridge.schemes": ("SCHEMES",),
    "mlc_bridge.sources": ("SOURCES",),
    "mlc_bridge.stages.bench": (
        "BenchJob",
        "BenchReport",
        "bench",
    ),
    "mlc_bridge.stages.build": (
        "BuildJob",
        "BuildReport",
        "build",
        "plan",
    ),
    "mlc_bridge.stages.build_plan": ("BuildPlan",),
    "mlc_bridge.stages.calibrate": (
        "CalibrateJob",
        "CalibrateReport",
        "calibrate",
    ),
    "mlc_bridge.stages.compile": (
        "CompileJob",
        "CompileReport",
        "compile_model",
    ),
    "mlc_bridge.stages.convert_weight": (
        "ConvertJob",
        "ConvertReport",
        "convert_weight",
    ),
    "mlc_bridge.stages.doctor": (
        "Diagnosis",
        "examine",
    ),
    "mlc_bridge.stages.gen_config": (
        "GenConfigJob",
        "GenConfigReport",
        "gen_config",
    ),
    "mlc_bridge.stages.inspect_artifact": (
        "ArtifactReport",
        "CheckJob",
        "CheckReport",
        "check_artifact",
        "inspect_artifact",
    ),
    "mlc_bridge.stages.inspect_checkpoint": (
        "CheckpointReport",
        "InspectJob",
        "inspect_checkpoint",
    ),
    "mlc_bridge.stages.progress": ("Progress",),
    "mlc_bridge.stages.quantize": ("QuantizeJob", "QuantizeReport", "quantize"),
    "mlc_bridge.stages.upload": ("UploadJob", "UploadReport", "upload"),
    "mlc_bridge.stages.verify": (
        "VerifyJob",
        "VerifyReport",
        "verify",
    ),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "MODELS",
    "SCHEMES",
    "SOURCES",
    "ArtifactError",
    "ArtifactReport",
    "AsyncMLCEngine",
    "BenchJob",
    "BenchReport",
    "BridgeError",
    "BuildJob",
    "BuildPlan",
    "BuildReport",
    "CalibrateJob",
    "CalibrateReport",
    "CannotExpress",
    "CheckJob",
    "CheckReport",
    "CheckpointReport",
    "CompileError",
    "CompileJob",
    "CompileReport",
    "ConfigError",
    "ContextOverflow",
    "ConvertJob",
    "ConvertReport",
    "Diagnosis",
    "EngineConfig",
    "EngineError",
    "GenConfigJob",
    "GenConfigReport",
    "InspectJob",
    "MLCEngine",
    "MissingDependency",
    "Progress",
    "QuantizeJob",
    "QuantizeReport",
    "Record",
    "SourceError",
    "UnknownFormat",
    "UploadJob",
    "UploadReport",
    "VerifyJob",
    "VerifyReport",
    "bench",
    "build",
    "calibrate",
    "check_artifact",
    "compile_model",
    "convert_weight",
    "examine",
    "gen_config",
    "inspect_artifact",
    "inspect_checkpoint",
    "plan",
    "quantize",
    "upload",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
