"""The block ``mlc_bridge`` of config, index and lib: version, fingerprint; MLC ignores the key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from mlc_bridge.artifact.json_text import checked
from mlc_bridge.errors import ArtifactError


class Stamp(BaseModel):
    """Other keys are kept for those who read them."""

    model_config = ConfigDict(extra="allow", strict=True)

    version: str | None = None
    fingerprint: str | None = None
    cpu_flags: list[str] = []
    sliding_window_size: int | None = None
    state_bytes: int = 0
    """Of a lib with recurrent layers: what these keep of one sequence."""


def stamp_of(found: Mapping[str, Any], where: object) -> Stamp:
    """The block in a file's JSON, empty in one that MLC LLM wrote. Raises ArtifactError."""
    return checked(Stamp, found.get("mlc_bridge") or {}, f"{where}: mlc_bridge", ArtifactError)
