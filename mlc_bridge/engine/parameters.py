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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlc_bridge.artifact.tensor_cache import TensorCache, dtype_of, read_index
from mlc_bridge.engine.memory import require_memory
from mlc_bridge.errors import ArtifactError
from mlc_bridge.packing import Array

ALIGNMENT = 64


def load_parameters(directory: Path, params: Sequence[Mapping[str, Any]], device: Any) -> list[Any]:
    """The tensors on ``device`` in the order of the lib's ``_metadata.params``.

    Raises ArtifactError for weights that are not as their digests say (10 GB/s, and what it reads
    the copy finds in the page cache), and for a calibration scale that was never calibrated.
    """
    cache = read_index(directory)
    cache.prove(md5=False)
    names = [p["name"] for p in params]
    for name in names:
        if name.endswith("q_calibration_scale"):
            check_calibrated(name, cache.array(name))
    place = _host_block(cache, names) if device.type == "cpu" else _each_alone(device)
    return [_filled(place, cache, name) for name in names]


def _filled(place: Callable[[int], Any], cache: TensorCache, name: str) -> Any:
    array = cache.array(name)
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    tensor = place(data.size)
    tensor.copyfrom(data)
    return tensor._create_view(array.shape, cache.records[name].dtype)


def _host_block(cache: TensorCache, names: Sequence[str]) -> Callable[[int], Any]:
    """Hands out the next bytes of one block. A compiled function refuses tensors with a byte
    offset, so each is a tensor of its own over a slice of the block."""
    import tvm_ffi

    total = _total(cache, names)
    require_memory(total, "the weights")
    block, end = np.frombuffer(_huge_pages(total), np.uint8), 0

    def place(nbytes: int) -> Any:
        nonlocal end
        start, end = end, end + _aligned(nbytes)
        return tvm_ffi.from_dlpack(block[start : start + nbytes])

    return place


def _each_alone(device: Any) -> Callable[[int], Any]:
    import tvm

    return lambda nbytes: tvm.runtime.empty((nbytes,), "uint8", device)


def _total(cache: TensorCache, names: Sequence[str]) -> int:
    records = [cache.records[name] for name in names]
    return sum(_aligned(math.prod(r.shape) * dtype_of(r.dtype).itemsize) for r in records)


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def _huge_pages(nbytes: int) -> mmap.mmap:
    memory = mmap.mmap(-1, max(nbytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def check_calibrated(name: str, array: Array) -> None:
    """Scales wait for calibration as NaN; a lib that used one would speak garbage."""
    if not np.isfinite(array.astype(np.float32)).all():
        raise ArtifactError(
            "this activation scale was never calibrated",
            where=name,
            found="NaN",
            expected="a positive number",
            todo="Run `mlc-bridge calibrate` on this model",
        )
