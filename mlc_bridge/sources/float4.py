"""E2M1 codes as NVFP4 and MXFP4 files hold them, whatever the tool calls its tensors.

    W[n, k] = e2m1[code[n, k]] * scale[n, k // g] * outer

======  =============  ====  ===================================================================
tensor  dtype          shape
======  =============  ====  ===================================================================
codes   uint8          [n, k/2]   two columns to a byte, the even one in the low nibble
scale   float8_e4m3fn  [n, k/16]  NVFP4; ``outer``, one number, scales it once more
scale   uint8          [n, k/32]  MXFP4: exponents of two, 127 higher (e8m0)
======  =============  ====  ===================================================================
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from mlc_bridge.errors import SourceError
from mlc_bridge.packing import NIBBLES4, Array, PackedArray
from mlc_bridge.qtensor import QTensor
from mlc_bridge.sources.checkpoint import Checkpoint
from mlc_bridge.sources.source import sound_scale

E4M3, E8M0 = np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(ml_dtypes.float8_e8m0fnu)
GROUPS = {E4M3: 16, E8M0: 32, np.dtype(np.uint8): 32}


def check(ckpt: Checkpoint, codes: str, scale: str, shape: tuple[int, int]) -> None:
    """Headers only: codes and scales of a weight [n, k]."""
    n, k = shape
    ckpt.require(codes, NIBBLES4.words_shape(n, k), np.uint8)
    ckpt.require(scale, None, *GROUPS)
    ckpt.require(scale, (n, k // GROUPS[ckpt.dtype(scale)]))


def shape(ckpt: Checkpoint, codes: str) -> tuple[int, int]:
    """n and k of the weight whose codes these are."""
    n, half = ckpt.matrix(codes, np.uint8)
    return n, 2 * half


def e2m1(
    codes: Array, scale: Array, name: str, outer: float | np.floating[Any] | None = None
) -> QTensor:
    """From codes ``[n, k/2]`` and scales ``[n, k/g]``, which errors call ``name``."""
    n, k = codes.shape[0], 2 * codes.shape[1]
    scale = scale.view(E8M0) if scale.dtype == np.uint8 else scale
    return QTensor(
        codes=PackedArray(codes, NIBBLES4, (n, k), "float4_e2m1fn"),
        scale=sound_scale(scale, name, zero_allowed=True),
        zero=None,
        block=(1, GROUPS[scale.dtype]),
        outer=None if outer is None else np.full(n, outer, np.float32),
    )


def one_number(ckpt: Checkpoint, name: str) -> np.float32:
    """A scale of the whole weight: finite and above zero."""
    found = ckpt.tensor(name).astype(np.float32)
    if found.size != 1 or not np.isfinite(found).all() or found.reshape(-1)[0] <= 0:
        raise SourceError(
            "not one scale for the whole weight", where=name, found=found.reshape(-1)[:4],
            expected="one number above zero", todo="The file is damaged; fetch it again",
        )  # fmt: skip
    return np.float32(found.reshape(-1)[0])
