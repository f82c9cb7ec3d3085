"""Jobs on an MLC model: whatever names it becomes a local directory before anything else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

from mlc_bridge.artifact.place import model_directory

T = TypeVar("T", bound=Any)


def located(job: T) -> T:
    """``job`` with a ``model_dir`` that is a path here. Raises ArtifactError."""
    found: T = replace(job, model_dir=model_directory(job.model_dir))
    return found
