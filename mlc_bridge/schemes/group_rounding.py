"""The rounding of MLC's converter and of AutoAWQ, in the arithmetic of their dtypes, fast.

Over groups of g consecutive input columns; ``round`` is half to even::

    MLC      s = max|w| / m                      code = clamp(round(w / s + m), 0, 2m)
             m = 2^(bits-1) - 1
    AutoAWQ  s = max(max w - min w, 1e-5) / 15   code = clamp(round(w / s) + zero, 0, 15)
             zero = clamp(-round(min w / s), 0, 15)

MLC's converter computes in the model dtype on a CPU, and so do we, bit for bit: float16 rounds
after the division and after the addition; bfloat16 runs in float32 and rounds the stored scale
only; a group whose scale is 0 has codes 0, or 2m where w > 0. AutoAWQ computes in float16.

numpy's own float16 conversions take 1.2 to 1.5 ns an element, more than everything else here, so
they are done on float32 bit patterns: a float16 is the float32 with 13 fewer bits of mantissa.
Work goes block by block through arrays that fit a core's cache.
"""

from __future__ import annotations

import numpy as np

from mlc_bridge.errors import CannotExpress
from mlc_bridge.packing import Array
from mlc_bridge.schemes.model_dtype import NUMPY_DTYPES

_BLOCK = 1 << 18
_F16_TINY = np.float32(2.0**-14)
_F16_STEP_MAGIC = np.float32(0.75)  # adding it leaves multiples of 2^-24, float16's subnormal step
_F16_FIRST_INF = np.float32(65520.0)
_EXPONENT_GAP = np.float32(2.0**112)  # float32's exponent bias minus float16's


def round_groups(
    w: Array, group: int, bits: int, dtype: str, *, wide: bool = False, wide_scale: bool = False
) -> tuple[Array, Array]:
    """Codes uint8 ``[n, k]`` and scales ``[n, ceil(k/group)]`` in ``dtype`` of ``w [n, k]``.

    ``wide`` keeps the quotients in float32. ``wide_scale`` divides by the float32 scale and
    rounds it only to store it, as MLC's KN converter comes to do for bfloat16. A last group that
    k does not fill is a group of what is there. Raises CannotExpress for NaN, infinities, and
    values that overflow the model dtype.
    """
    n, k = w.shape
    width = -(-k // group) * group
    codes = np.empty((n, k), np.uint8)
    scale = np.empty((n, width // group), NUMPY_DTYPES[dtype])
    rows = max(1, _BLOCK // width)
    m, half = 2 ** (bits - 1) - 1, dtype == "float16" and not wide
    for at in range(0, n, rows):
        block = np.ascontiguousarray(w[at : at + rows])
        if width != k:
            block = np.pad(block, ((0, 0), (0, width - k)))
        x = _values(block, dtype)
        got, scale[at : at + rows] = _round_block(x, group, m, dtype, half, wide_scale)
        codes[at : at + rows] = got.reshape(len(x), width)[:, :k]
    return codes, scale


def round_asymmetric(w: Array, group: int) -> tuple[Array, Array, Array]:
    """AutoAWQ's codes uint8 ``[n, k]``, scales float16 and zeros uint8 ``[n, k/group]``.

    ``group`` divides k. Raises CannotExpress as ``round_groups`` does.
    """
    n, k = w.shape
    codes = np.empty((n, k), np.uint8)
    scales = np.empty((n, k // group), np.float16)
    zeros = np.empty((n, k // group), np.uint8)
    rows = max(1, _BLOCK // k)
    for at in range(0, n, rows):
        groups = _values(np.ascontiguousarray(w[at : at + rows]), "float16").reshape(
            -1, k // group, group
        )
        low, high = groups.min(axis=2), groups.max(axis=2)
        _refuse_unusable(np.maximum(np.abs(low), np.abs(high)), "float16")
        gap = high.astype(np.float16) - low.astype(np.float16)
        scale = np.maximum(gap, np.float16(1e-5)) / np.float16(15)
        zero = np.clip(-np.rint(low.astype(np.float16) / scale), 0, 15).astype(np.float32)
        q = groups / scale.astype(np.float32)[..., None]
        _to_half(q)
        np.rint(q, out=q)
        q += zero[..., None]
        np.clip(q, 0, 15, out=q)
        here = slice(at, at + rows)
        codes[here], scales[here], zeros[here] = q.reshape(-1, k), scale, zero
    return codes, scales, zeros


def _refuse_unusable(most: Array, dtype: str) -> None:
    if not most.max(initial=0) < (_F16_FIRST_INF if dtype == "float16" else np.inf):
        reason = f"a weight is infinite, NaN or too large for {dtype}"
        raise CannotExpress("weight", dtype, reason, todo="Look at the float checkpoint")


def _round_block(
    x: Array, group: int, m: int, dtype: str, half: bool, wide_scale: bool
) -> tuple[Array, Array]:
    """Codes ``[groups, group]`` and scales of one block of values."""
    most = _group_max(x, group)
    _refuse_unusable(most, dtype)
    wide = most / np.float32(m)
    stored = wide.astype(NUMPY_DTYPES[dtype])
    scale = (wide if wide_scale else stored.astype(np.float32)).reshape(-1, 1)
    empty = np.flatnonzero(scale == 0)
    scale[empty] = 1
    groups = x.reshape(-1, group)
    q = groups / scale
    if half:
        _to_half(q)
    q += np.float32(m)
    if half:
        _to_half(q)
    np.rint(q, out=q)
    np.clip(q, 0, 2 * m, out=q)
    codes = q.astype(np.uint8)
    if empty.size:
        codes[empty] = np.where(groups[empty] > 0, 2 * m, 0)
    return codes, stored.reshape(len(x), -1)


def _values(block: Array, dtype: str) -> Array:
    """``block`` rounded to the model dtype, as float32 ``[rows, columns]``."""
    if block.dtype == np.float16 and dtype == "float16":
        bits = block.view(np.int16).astype(np.int32)
        bits <<= 13  # the sign spreads over bits 28 to 31
        bits &= np.int32(-0x70000001)  # ... and stays in 31 alone
        x = bits.view(np.float32)
        x *= _EXPONENT_GAP
        return x
    x = _float32(block)
    if dtype == "bfloat16" and block.dtype != NUMPY_DTYPES[dtype]:
        return x.astype(NUMPY_DTYPES[dtype]).astype(np.float32)
    if dtype == "float16":
        tiny = np.flatnonzero(np.abs(x) < _F16_TINY)
        subnormal = (x.ravel()[tiny] + _F16_STEP_MAGIC) - _F16_STEP_MAGIC
        _to_half(x)
        x.ravel()[tiny] = subnormal
    return x


def _float32(block: Array) -> Array:
    """A float32 copy; bfloat16 is the upper half of one."""
    if block.dtype != NUMPY_DTYPES["bfloat16"]:
        return block.astype(np.float32)
    bits = block.view(np.uint16).astype(np.uint32)
    bits <<= np.uint32(16)
    return bits.view(np.float32)


def _to_half(x: Array) -> None:
    """Round float32 in place to float16's 11 bits of mantissa, half to even.

    Right for float16's normal range; smaller values keep more bits than a float16 would.
    """
    bits = x.view(np.uint32)
    odd = bits >> np.uint32(13)
    odd &= np.uint32(1)
    odd += np.uint32(0xFFF)
    bits += odd
    bits &= np.uint32(0xFFFFE000)


def _group_max(x: Array, group: int) -> Array:
    """max|x| of every ``group`` consecutive values, by doubling windows over the flat bits.

    Positive floats order like their bits, and whole-array maxima of integers run at full vector
    width, which a reduction over a short last axis does not. NaN comes out on top.
    """
    window = x.view(np.uint32).ravel() & np.uint32(0x7FFFFFFF)
    width, covered = 1, 0
    result: Array | None = None
    while True:
        if group & width:
            part = window[covered:]
            result = part if result is None else np.maximum(result[: len(part)], part)
            covered += width
        if covered == group:
            assert result is not None
            return result[::group].view(np.float32)
        window = np.maximum(window[:-width], window[width:])
        width *= 2
