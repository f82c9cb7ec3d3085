"""The two float8 formats: what they hold and how values round to them, in numpy and on a device.

    value = (-1)^s * 2^(max(e, 1) - bias) * (m / 2^mantissa + [e > 0])

=================  ===  ========  ====  =======  ==============  ==========================
name               e    mantissa  bias  largest  smallest        not numbers
=================  ===  ========  ====  =======  ==============  ==========================
``float8_e4m3fn``  4    3         7     448      2^-9            2 NaN codes, no infinity
``float8_e5m2``    5    2         15    57344    2^-16           6 NaN codes, 2 infinities
=================  ===  ========  ====  =======  ==============  ==========================

Rounding is to nearest, ties to even, and saturates at ``largest`` (a float8 NaN or infinity would
spoil a whole row). Every value is a float16 and a float32 exactly.

Device expressions use integer and float32 arithmetic, exact on every target (CUDA decodes with its
own instruction) and in every floating-point mode: in a process that has loaded a library built with
fast-math denormals are flushed to zero, so none may come up on the way, although the bits of small
codes look like one at the top of a float. TVM's LLVM lowering of float8 casts is not used: it drops
the implicit one of results below the smallest normal (0.0079 becomes 0, not 2^-7). MLC's converter
runs those casts when it quantizes on a CPU; ``round_like_mlc`` gives its bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from mlc_bridge.packing import Array

Expr = Any


@dataclass(frozen=True)
class Float8:
    """One format; ``name`` is MLC's and ml_dtypes' dtype name."""

    name: str
    mantissa: int
    bias: int
    largest: float

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(getattr(ml_dtypes, self.name))

    def round(self, x: Array) -> Array:
        """Nearest float8 of every value, saturating; NaN stays NaN."""
        return np.clip(x.astype(np.float32), -self.largest, self.largest).astype(self.dtype)

    def round_like_mlc(self, x: Array) -> Array:
        """The bytes of MLC's CPU converter: equal to ``round`` except below the smallest normal.

        There the implicit one is lost: 2^(1-bias) * 1.f / 2 becomes 2^(1-bias) * 0.f, and anything
        smaller becomes zero. ``x`` must not exceed ``largest`` by more than rounding does.
        """
        bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
        drop = 23 - self.mantissa
        size: Array = bits & np.uint32(0x7FFFFFFF)
        size = (size + ((size >> drop) & 1) + ((1 << (drop - 1)) - 1)) >> drop
        code: Array = size.astype(np.int32) - ((127 - self.bias) << self.mantissa)
        sign = np.where(code >= 0, (bits >> 24) & 0x80, 0)
        return (np.maximum(code, 0) | sign).astype(np.uint8).view(self.dtype)

    def finite(self, codes: Array) -> bool:
        """Whether stored ``codes`` hold neither NaN nor infinity."""
        largest = np.array(self.largest, self.dtype).view(np.uint8)
        return bool((codes.view(np.uint8) & np.uint8(0x7F)).max(initial=0) <= largest)

    def rounded(self, x: Expr) -> Expr:
        """Device: the float8 value nearest to float32 ``x``, as float32.

        x lies in [2^e, 2^(e+1)), where values are multiples of q = 2^(max(e, 1 - bias) - mantissa):
        round(x / q) * q, with q and 1 / q written as exponents.
        """
        from tvm import tirx

        x = tirx.max(tirx.min(x, _f32(self.largest)), _f32(-self.largest))
        exponent = tirx.reinterpret("uint32", x) & _u32(0x7F800000)
        exponent = tirx.max(exponent, _u32((128 - self.bias) << 23))
        step = tirx.reinterpret("float32", exponent - _u32(self.mantissa << 23))
        steps = tirx.reinterpret("float32", _u32((254 + self.mantissa) << 23) - exponent)
        return tirx.nearbyint(x * steps) * step

    def value(self, code: Expr, dtype: str) -> Expr:
        """Device: a stored float8 as ``dtype``; NaN and infinity codes are not expected.

        The bits of |code| under float32's bias are f = 2^(e - bias) (1 + m / 2^mantissa), the value
        where e > 0. Below, where e = 0, the value is 2 f - 2^(1 - bias), and just there that is the
        smaller of the two. CUDA has an instruction for it.
        """
        from tvm import tirx

        if on_cuda():
            return code.astype(dtype)
        byte = tirx.reinterpret("uint8", code).astype("uint32")
        size = (byte & _u32(0x7F)) << _u32(23 - self.mantissa)
        normal = tirx.reinterpret("float32", size + _u32((127 - self.bias) << 23))
        size = tirx.min(normal, normal * _f32(2.0) - _f32(2.0 ** (1 - self.bias)))
        sign = (byte & _u32(0x80)) << _u32(24)
        exact = tirx.reinterpret("float32", tirx.reinterpret("uint32", size) | sign)
        return exact if dtype == "float32" else exact.astype(dtype)


def on_cuda(oldest: int = 0) -> bool:
    """Whether the current target is CUDA, of architecture sm_`oldest` or newer."""
    from tvm.target import Target

    target = Target.current(allow_none=True)
    if target is None or target.kind.name != "cuda":
        return False
    arch = "".join(filter(str.isdigit, str(target.attrs.get("arch", ""))))
    return int(arch or 0) >= oldest


def _f32(value: float) -> Expr:
    from tvm import tirx

    return tirx.const(value, "float32")


def _u32(value: int) -> Expr:
    from tvm import tirx

    return tirx.const(value, "uint32")


E4M3 = Float8("float8_e4m3fn", 3, 7, 448.0)
E5M2 = Float8("float8_e5m2", 2, 15, 57344.0)
FORMATS = {row.name: row for row in (E4M3, E5M2)}
