"""A conversion that was stopped goes on: what decides its bytes, and what of it is done already.

The shards are kept by ``artifact/journal.py``; here is the key under which they may be used again
(every file beside config and weights by size and time, scheme, wishes, versions, our own source),
and what a report has to tell about a weight that is not read again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlc_bridge import __version__
from mlc_bridge.artifact.tensor_cache import ShardWriter
from mlc_bridge.compiler.cache import build_key
from mlc_bridge.models import Weight
from mlc_bridge.stages.recognise import Recognised
from mlc_bridge.stages.requantize import Requantize
from mlc_bridge.stages.weight_encoding import Encoded, LayerError

PACKAGE = Path(__file__).parents[1]
ROOMS = ("sources", "schemes", "models", "stages", "artifact", "packing.py", "qtensor.py")


def job_key(plan: Recognised, requantize: Requantize) -> str:
    """Equal keys mean equal bytes."""
    ckpt = plan.ckpt
    files = {entry.file for entry in ckpt.entries.values()}
    folders = {file.parent.resolve() for file in files} | {ckpt.path.resolve()}
    beside = (path for folder in folders if folder.is_dir() for path in folder.iterdir())
    seen = sorted((str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in beside if p.is_file())
    described = {
        "version": __version__,
        "fingerprint": plan.fingerprint,
        "scheme": plan.scheme.name,
        "source": plan.source.name,
        "requantize": requantize.names,
        "config": ckpt.config,
        "files": seen,
    }
    return build_key(described, [PACKAGE / room for room in ROOMS])


def finished(plan: Recognised, writer: ShardWriter) -> dict[str, Encoded]:
    """Path -> what is told, of the weights whose every parameter is in a finished shard."""
    return {
        weight.path: _known(weight, told)
        for weight in plan.weights
        if (told := writer.notes.get(weight.path)) is not None
        and all(weight.parameter(suffix) in writer.finished for suffix in told["params"])
    }


def told(item: Encoded) -> dict[str, Any]:
    """As JSON, all but the numbers; ``params`` in the order in which they are written."""
    return {
        "params": list(item.params),
        "scales_rounded": item.scales_rounded,
        "errors": [asdict(error) for error in item.errors],
        "findings": item.findings,
    }


def _known(weight: Weight, told: Mapping[str, Any]) -> Encoded:
    errors = [LayerError(**error) for error in told["errors"]]
    params = dict.fromkeys(told["params"])
    return Encoded(weight, params, told["scales_rounded"], errors, list(told["findings"]))
