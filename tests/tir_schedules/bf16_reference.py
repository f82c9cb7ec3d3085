"""What 4-bit layers should give when x and the dequantized W are rounded to bfloat16."""

from __future__ import annotations

import ml_dtypes
import numpy as np
from linear_functions import AWQ_SHIFTS, Layer


def rounded_awq(layer: Layer) -> np.ndarray:
    """Of a layer by `linear_functions.awq`, without an epilogue."""
    x, words, zeros, scales = layer.inputs
    code, zero = (_nibbles(w, AWQ_SHIFTS) for w in (words, zeros))
    group = len(words) // len(zeros)
    weight = (code - np.repeat(zero, group, axis=0)) * np.repeat(scales, group, axis=0)
    return _bfloat16(x) @ _bfloat16(weight)


def rounded_group4(layer: Layer, nk: bool) -> np.ndarray:
    """Of a layer by `linear_functions.group4`."""
    words, scales = (a if nk else a.T for a in layer.inputs[1:])
    code = _nibbles(words, np.arange(0, 32, 4, dtype=np.uint32))
    group = code.shape[1] // scales.shape[1]
    weight = (code - 7) * np.repeat(scales.astype(np.float32), group, axis=1)
    return _bfloat16(layer.inputs[0]) @ _bfloat16(weight).T


def _nibbles(words: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    return ((words[:, :, None] >> shifts) & 15).reshape(len(words), -1).astype(np.float32)


def _bfloat16(a: np.ndarray) -> np.ndarray:
    return a.astype(np.float32).astype(ml_dtypes.bfloat16).astype(np.float64)
