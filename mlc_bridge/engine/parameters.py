"""Weights from the artifact into device memory, once.

All parameters lie in one block, each at a multiple of 64 bytes (compiled kernels use aligned loads;
shards on disk have no alignment, so they cannot be used where they are mapped). On a CPU the block
is anonymous memory with huge pages asked for: one page fault and one TLB entry for 2 MiB instead of
512. The shards are mapped and copied tensor by tensor, so nothing is held twice beyond the page
cache.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlc_bridge.artifact.tensor_cache import TensorCache, dtype_of, read_index
from mlc_bridge.errors import ArtifactError
from mlc_bridge.packing import Array

ALIGNMENT = 64


def load_parameters(directory: Path, params: Sequence[Mapping[str, Any]], device: Any) -> list[Any]:
    """The tensors on ``device`` in the order of the lib's ``_metadata.params``.

    Raises ArtifactError for a calibration scale that was never calibrated.
    """
    cache = read_index(directory)
    names = [p["name"] for p in params]
    offsets, total = _layout(cache, names)
    block = _allocate(total, device)
    on_host = np.from_dlpack(block) if block.device.type == "cpu" else None
    tensors = []
    for name, offset in zip(names, offsets, strict=True):
        array = cache.array(name)
        check_calibrated(name, array)
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        if on_host is not None:
            on_host[offset : offset + data.size] = data
        else:
            block._create_view((data.size,), "uint8", offset).copyfrom(data)
        tensors.append(block._create_view(array.shape, cache.records[name].dtype, offset))
    return tensors


def check_calibrated(name: str, array: Array) -> None:
    """Scales wait for calibration as NaN; a lib that used one would speak garbage."""
    if name.endswith("q_calibration_scale") and not np.isfinite(array.astype(np.float32)).all():
        raise ArtifactError(
            "this activation scale was never calibrated",
            where=name,
            found="NaN",
            expected="a positive number",
            todo="Run `mlc-bridge calibrate` on this model",
        )


def _layout(cache: TensorCache, names: Sequence[str]) -> tuple[list[int], int]:
    offsets, end = [], 0
    for record in (cache.records[name] for name in names):
        offsets.append(end)
        nbytes = math.prod(record.shape) * dtype_of(record.dtype).itemsize
        end += -(-nbytes // ALIGNMENT) * ALIGNMENT
    return offsets, max(end, ALIGNMENT)


def _allocate(nbytes: int, device: Any) -> Any:
    import tvm
    import tvm_ffi

    if device.type != "cpu":
        return tvm.runtime.empty((nbytes,), "uint8", device)
    memory = mmap.mmap(-1, nbytes)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return tvm_ffi.from_dlpack(np.frombuffer(memory, np.uint8))
