"""What builds took on this machine, so that the next plan can say how long it will take.

One JSON line per build in the user's cache directory, the last ``KEEP`` of them. Conversion is
measured in bytes per second, compilation in seconds of runs that really compiled, of the same
architecture and scheme where there are such.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from mlc_bridge.compiler.cache import default_directory

KEEP = 64
Run = Mapping[str, Any]


def remember(model_type: str, quantization: str, nbytes: int, times: Mapping[str, float]) -> None:
    """Note a build; a cache that cannot be written is no reason to fail."""
    run = {"model": model_type, "scheme": quantization, "nbytes": nbytes, "times": dict(times)}
    path = _file()
    try:
        lines = path.read_text("utf-8").splitlines() if path.is_file() else []
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join([*lines, json.dumps(run)][-KEEP:]) + "\n", "utf-8")
    except (OSError, UnicodeDecodeError):
        return


def expected(model_type: str, quantization: str, nbytes: int) -> dict[str, float]:
    """Seconds by stage, as far as earlier runs tell."""
    runs, found = _runs(), {}
    if speeds := [r["nbytes"] / r["times"]["convert"] for r in runs if r["times"].get("convert")]:
        found["convert"] = nbytes / median(speeds)
    alike = [r for r in runs if (r["model"], r["scheme"]) == (model_type, quantization)]
    for known in (alike, runs):
        if seconds := [r["times"]["compile"] for r in known if r["times"].get("compile")]:
            found["compile"] = float(median(seconds))
            break
    return found


def _runs() -> list[Run]:
    try:
        found = [json.loads(line) for line in _file().read_text("utf-8").splitlines()]
        return [r for r in found if r["model"] and r["scheme"] and r["nbytes"] and r["times"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _file() -> Path:
    return default_directory().parent / "builds.jsonl"
