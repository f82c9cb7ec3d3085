"""What binds a compiled lib to its weights: parameter names, shapes, dtypes, and a fingerprint.

``fingerprint`` hashes what the graph is built from: model type, model config without run-time
limits, and every parameter that conversion fills. Not the scheme's name and not the activation
scales: an FP8 artifact converted for calibration and its final form hold the same parameters. It
stands as ``{"mlc_bridge": {"version", "fingerprint"}}`` in the lib's ``_metadata``, in the index
of the weights and in ``mlc-chat-config.json``; readers that do not know the key ignore it, and
artifacts without it are compared by parameters alone.

The sliding window is a limit that the graph computes with. It is no part of the fingerprint, for
weights converted before anybody chose one fit all; the lib names its own, and the config decides.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mlc_bridge.artifact.chat_config import CONFIG_NAME, ChatConfig
from mlc_bridge.artifact.stamp import stamp_of
from mlc_bridge.artifact.tensor_cache import TensorCache, read_index
from mlc_bridge.errors import ArtifactError

WINDOW = "sliding_window_size"
RUNTIME_LIMITS = frozenset(
    (
        WINDOW,
        "context_window_size",
        "attention_sink_size",
        "prefill_chunk_size",
        "max_batch_size",
        "tensor_parallel_shards",
        "pipeline_parallel_stages",
        "disaggregation",
        "active_vocab_size",
    )
)

CALIBRATED = ".q_calibration_scale"


def fingerprint(
    model_type: str,
    model_config: Mapping[str, Any],
    params: Iterable[tuple[str, Iterable[int], str]],
) -> str:
    """sha256 (hex) over everything that a lib and its weights must agree on.

    ``params`` are (name, shape, dtype) in any order.
    """
    config = _without_limits(model_config)
    rows = sorted(
        [name, [int(d) for d in shape], dtype]
        for name, shape, dtype in params
        if not name.endswith(CALIBRATED)
    )
    text = json.dumps([model_type, config, rows], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _without_limits(config: Mapping[str, Any]) -> dict[str, Any]:
    """Gemma-3's repeats them in ``text_config``."""
    return {
        k: _without_limits(v) if isinstance(v, Mapping) else v
        for k, v in config.items()
        if k not in RUNTIME_LIMITS
    }


def check_lib(metadata: Mapping[str, Any], artifact_dir: str | Path) -> None:
    """Refuse a lib (its ``_metadata``) that does not fit the weights of ``artifact_dir``.

    Raises ArtifactError naming the first parameter that differs, or the fingerprints, or windows.
    """
    cache = read_index(artifact_dir)
    for param in metadata["params"]:
        _check_param(param, cache)
    lib = stamp_of(metadata, "the lib")
    ours, theirs = lib.fingerprint, stamp_of(cache.metadata, cache.directory).fingerprint
    if ours is not None and theirs is not None and ours != theirs:
        raise ArtifactError(
            "the lib and the weights come from different builds",
            where=cache.directory,
            found=f"weights {theirs[:12]}",
            expected=f"{ours[:12]} as in the lib",
            todo="Compile the lib again for these weights",
        )
    if lib.sliding_window_size is not None:
        _check_window(lib.sliding_window_size, cache.directory)


def _check_window(ours: int, directory: Path) -> None:
    theirs = ChatConfig.load(directory).arch_config.get(WINDOW)
    if theirs not in (None, ours):
        raise ArtifactError(
            "the lib computes with another sliding window",
            where=f"{directory / CONFIG_NAME}: model_config.{WINDOW}",
            found=theirs,
            expected=f"{ours} as in the lib",
            todo="Compile the lib again for this config",
        )


def _check_param(param: Mapping[str, Any], cache: TensorCache) -> None:
    name, record = param["name"], cache.records.get(param["name"])
    found = "no such parameter" if record is None else f"{list(record.shape)} {record.dtype}"
    # A symbolic dimension ("vocab_size") takes any length.
    same = record is not None and (
        record.dtype == param["dtype"]
        and len(record.shape) == len(param["shape"])
        and all(
            isinstance(want, str) or want == have
            for want, have in zip(param["shape"], record.shape, strict=True)
        )
    )
    if not same:
        raise ArtifactError(
            f"{name}: the lib does not fit these weights",
            where=cache.directory,
            found=found,
            expected=f"{list(param['shape'])} {param['dtype']}",
            todo="Compile the lib again for these weights",
        )
