"""The canonical form of one quantized linear weight, in the middle between sources and schemes.

    W[n, k] = (code[n, k] - zero[n // bn, k // bk]) * scale[n // bn, k // bk] * outer[n]

Codes are unsigned integers, float8 values or 4-bit floats (``packing.FLOAT4``); zeros are in code
units, with no format's offset left in them; ``block = (bn, bk)`` is ``(n, k)`` per tensor,
``(1, k)`` per channel, ``(1, g)`` per group, ``(128, 128)`` per block. Codes and zeros stay in the
packing of the file they came from, so a source whose packing equals the scheme's passes its words
through without unpacking.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from mlc_bridge.packing import Array, PackedArray, Packing, pack


@dataclass(frozen=True)
class QTensor:
    """One layer's weight ``[n, k]``; see the module docstring for the equation.

    ``scale`` is ``[ceil(n/bn), ceil(k/bk)]`` in the file's dtype; ``zero`` has the same logical
    shape or is None (zero 0, float8); ``perm`` gives the input column of each stored column
    (activation order) or is None; ``outer`` (float32 ``[n]``) scales narrow scales once more, as
    NVFP4 does, or is None. Static activations: ``input_scale`` (float32 ``[]``), and
    ``input_zero``, the whole number that is added to the rounded value; None where there are none,
    or the zero is 0.
    """

    codes: PackedArray
    scale: Array
    zero: PackedArray | None
    block: tuple[int, int]
    perm: Array | None = None
    input_scale: Array | None = None
    outer: Array | None = None
    input_zero: Array | None = None

    def __post_init__(self) -> None:
        grid = self.grid
        if self.scale.shape != grid:
            raise ValueError(f"scale of shape {self.scale.shape}, blocks {self.block} want {grid}")
        if self.zero is not None and self.zero.shape != grid:
            raise ValueError(f"zero of shape {self.zero.shape}, blocks {self.block} want {grid}")
        if self.zero is not None and self.zero.words.dtype.kind != "u":
            raise ValueError(f"zero points of {self.zero.kind} are no unsigned integers")
        if self.outer is not None and self.outer.shape != self.shape[:1]:
            raise ValueError(f"outer scales of shape {self.outer.shape} for {self.shape[0]} rows")

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape

    @property
    def bits(self) -> int:
        return self.codes.packing.bits

    @property
    def kind(self) -> str:
        """What a code is, ``PackedArray.kind``: ``uint4``, ``uint8``, ``float8_e4m3fn`` ..."""
        return self.codes.kind

    @property
    def grid(self) -> tuple[int, int]:
        """Number of blocks along n and k."""
        (n, k), (bn, bk) = self.shape, self.block
        return -(-n // bn), -(-k // bk)

    def dequantize(self) -> Array:
        """The weight as float32 ``[n, k]``, input columns in their original order."""
        w = self.codes.values()
        if self.zero is not None:
            self._each_block(np.subtract, w, self.zero.unpack())
        self._each_block(np.multiply, w, self.scale)
        if self.outer is not None:
            w *= self.outer[:, None]
        if self.perm is None:
            return w
        out = np.empty_like(w)
        out[:, self.perm] = w
        return out

    def _each_block(self, do: np.ufunc, w: Array, grid: Array) -> None:
        """``w = do(w, grid)`` in place, one value of ``grid`` for each block."""
        (n, k), (bn, bk) = self.shape, self.block
        values = grid.astype(np.float32)
        if n % bn or k % bk:
            wide = np.repeat(np.repeat(values, bn, axis=0)[:n], bk, axis=1)[:, :k]
            do(w, wide, out=w)
        elif w.flags.c_contiguous:
            blocks = w.reshape(n // bn, bn, k // bk, bk)
            do(blocks, values[:, None, :, None], out=blocks)
        else:  # codes packed along n come out transposed
            blocks = w.T.reshape(k // bk, bk, n // bn, bn)
            do(blocks, values.T[:, None, :, None], out=blocks)


def concat(parts: Sequence[QTensor]) -> QTensor:
    """Stack layers along n (q/k/v, gate/up) in one packing; per-tensor scales become per-channel.

    Words are joined as they are when every part fills whole words, else codes are packed again.
    Raises ValueError when the parts differ in k, block width, kind of codes or activation order.
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    rows = [_rowwise(p) for p in parts]
    looks = ((p.shape[1], p.block, p.kind, p.codes.packing, p.zero is None) for p in rows)
    if len({(*look, p.outer is None) for look, p in zip(looks, rows, strict=True)}) != 1:
        raise ValueError("parts differ in input width, block, kind of codes or packing")
    if any(not _same(p.perm, first.perm) for p in rows):
        raise ValueError("parts differ in activation order")
    inputs = [(p.input_scale, p.input_zero) for p in rows]
    if any(not _same(a, b) for one in inputs for a, b in zip(one, inputs[0], strict=True)):
        raise ValueError("parts differ in their static activation scale")
    zeros = [p.zero for p in rows if p.zero is not None]
    outer = [p.outer for p in rows if p.outer is not None]
    return replace(
        rows[0],
        codes=_stack([p.codes for p in rows]),
        scale=_stack_scale([p.scale for p in rows]),
        zero=_stack(zeros) if zeros else None,
        outer=np.concatenate(outer) if outer else None,
    )


def share_input_scale(parts: Sequence[QTensor]) -> list[QTensor]:
    """The layers with one static activation scale: the largest; None where a layer has none.

    Layers to be fused read the same input, so a tool that measures them apart measures one thing.
    """
    scales = [p.input_scale for p in parts]
    known = [s.max() for s in scales if s is not None]
    widest = np.array(max(known), np.float32) if len(known) == len(scales) else None
    return [replace(p, input_scale=widest, input_zero=None) for p in parts]


def constant_zero(value: int, grid: tuple[int, int], packing: Packing) -> PackedArray:
    """The zero of a symmetric format: ``value`` for every block of ``grid``."""
    return pack(np.full(grid, value, np.uint8), packing)


def zero_of_product(product: Array, scale: Array, bits: int) -> PackedArray:
    """Whole zeros of ``bits`` bits from ``product = -(scale * zero)``, rounded to the file's dtype.

    Raises ValueError when a quotient is no whole number, within what that rounding allows.
    """
    quotient = -product.astype(np.float32) / scale.astype(np.float32)
    zero = np.rint(quotient)
    # 8 bits of mantissa (bfloat16) leave 2^-8 * 15 < 0.06 around a zero of 15.
    if not (np.abs(quotient - zero) < 0.1).all() or zero.min() < 0 or zero.max() >= 1 << bits:
        worst = float(quotient.flat[int(np.argmax(np.abs(quotient - zero)))])
        raise ValueError(f"not minus the scale times a whole zero point: {worst}")
    return pack(zero.astype(np.uint8), Packing(bits, "n"))


def group_order(g_idx: Array, group: int) -> Array | None:
    """Activation order from the group of each input column: the columns, group by group.

    None when the columns already lie group by group. Raises ValueError when the groups are not of
    ``group`` columns each (the last one may be smaller).
    """
    k = len(g_idx)
    in_order = np.arange(k) // group
    if np.array_equal(g_idx, in_order):
        return None
    perm = np.argsort(g_idx, kind="stable")
    if not np.array_equal(np.asarray(g_idx)[perm], in_order):
        raise ValueError(f"the groups of g_idx do not have {group} columns each")
    return perm


def reorder(codes: PackedArray, perm: Array | None) -> PackedArray:
    """``codes`` with stored column ``j`` taken from input column ``perm[j]``."""
    if perm is None:
        return codes
    return replace(pack(codes.unpack()[:, perm], codes.packing), floats=codes.floats)


def take_rows(q: QTensor, rows: Array) -> QTensor:
    """The layer with output row ``rows[i]`` in place ``i``; ValueError where blocks mix rows."""
    if q.block[0] not in (1, q.shape[0]):
        raise ValueError(f"blocks of {q.block[0]} rows would mix rows")
    whole = q.block[0] > 1
    return replace(
        q,
        codes=_take(q.codes, rows),
        scale=q.scale if whole else q.scale[rows],
        zero=q.zero if whole or q.zero is None else _take(q.zero, rows),
        outer=None if q.outer is None else q.outer[rows],
    )


def _take(array: PackedArray, rows: Array) -> PackedArray:
    if array.packing.axis == "n":
        return replace(pack(array.unpack()[rows], array.packing), floats=array.floats)
    words = np.take(array.words, rows, axis=int(array.packing.transposed))
    return replace(array, words=words)


def _rowwise(q: QTensor) -> QTensor:
    """Blocks one row high, so that layers of different n (or cut blocks) can be stacked."""
    n, bn = q.shape[0], q.block[0]
    if bn == 1:
        return q
    tall = [None if a is None else np.repeat(a, bn, axis=0)[:n] for a in (q.scale, _codes(q.zero))]
    zero = None if q.zero is None or tall[1] is None else pack(tall[1], q.zero.packing)
    assert tall[0] is not None
    return replace(q, scale=tall[0], zero=zero, block=(1, q.block[1]))


def _codes(array: PackedArray | None) -> Array | None:
    return None if array is None else array.unpack()


def _stack(parts: Sequence[PackedArray]) -> PackedArray:
    packing, floats = parts[0].packing, parts[0].floats
    n, k = sum(p.shape[0] for p in parts), parts[0].shape[1]
    whole = packing.axis == "k" or all(p.shape[0] % packing.per_word == 0 for p in parts)
    if not whole:
        return replace(pack(np.concatenate([p.unpack() for p in parts]), packing), floats=floats)
    words = np.concatenate([p.words for p in parts], axis=int(packing.transposed))
    return PackedArray(words, packing, (n, k), floats)


def _stack_scale(scales: Sequence[Array]) -> Array:
    """Joined along n, in the memory order of the parts (AutoAWQ stores scales ``[k/g, n]``)."""
    if all(s.T.flags.c_contiguous for s in scales):
        return np.concatenate([s.T for s in scales], axis=1).T
    return np.concatenate(scales)


def _same(a: Array | None, b: Array | None) -> bool:
    return (a is None) == (b is None) and (a is None or b is None or np.array_equal(a, b))
