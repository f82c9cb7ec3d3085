"""Bit layouts: the only file with shifts, masks and nibble orders.

A ``Packing`` says how the unsigned codes of a logical matrix ``[n, k]`` (n output rows, k input
columns) lie in words. ``axis`` names the logical axis whose neighbours share a word, ``transposed``
says that the word array is stored ``[k, n]``-major, and position ``i`` of a word (counted from its
least significant bits) holds element ``per_word * c + order[i]`` of the packed axis.

===========  ====  ======  ==========  ================  =====================================
name         bits  packed  word array  order in a word   origin
===========  ====  ======  ==========  ================  =====================================
AWQ          4     n       [k, n/8]    0 2 4 6 1 3 5 7   AutoAWQ GEMM, MLC q4f16_autoawq
AWQ8         8     n       [k, n/4]    0 2 1 3           AWQ with 8 bits, as vLLM reads it
GPTQ4        4     k       [k/8, n]    natural           AutoGPTQ / GPTQModel ``qweight``
GPTQ4_ZEROS  4     n       [k, n/8]    natural           AutoGPTQ / GPTQModel ``qzeros``
NK4          4     k       [n, k/8]    natural           AutoAWQ GEMV, compressed-tensors
PLAIN        8     -       [n, k]      one code a word   int8 and float8 weights
NIBBLES4     4     k       [n, k/2]    natural           4-bit floats (bytes; the bits of NK4)
===========  ====  ======  ==========  ================  =====================================

Two kernel layouts are no such table of words: ``from_gemv_fast`` and ``from_marlin`` turn them into
``AWQ`` words. Where both packings have 4 bits, words become words without passing through codes:
8 x 8 nibbles are transposed in three rounds of exchanged halves (``_transpose``), a tile that fits
the cache at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Packing:
    """How codes lie in words; equal packings mean equal bytes."""

    bits: int
    axis: Literal["n", "k"]
    transposed: bool = False
    order: tuple[int, ...] = ()
    word_bits: int = 32

    def __post_init__(self) -> None:
        if not self.order:
            object.__setattr__(self, "order", tuple(range(self.word_bits // self.bits)))

    @property
    def per_word(self) -> int:
        """Codes in one word; left-over high bits stay zero (3-bit codes: 10 in 32 bits)."""
        return self.word_bits // self.bits

    @property
    def word_axis(self) -> int:
        """Axis of the word array along which codes are packed."""
        return int((self.axis == "k") != self.transposed)

    @property
    def ones(self) -> int:
        """The word whose every code is 1: adding it adds 1 to each code (until one overflows)."""
        return sum(1 << (i * self.bits) for i in range(self.per_word))

    def words_shape(self, n: int, k: int) -> tuple[int, int]:
        """Shape of the word array that holds ``[n, k]`` codes."""
        shape = [k, n] if self.transposed else [n, k]
        shape[self.word_axis] = -(-shape[self.word_axis] // self.per_word)
        return shape[0], shape[1]


FLOAT_CODES = (np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(ml_dtypes.float8_e5m2))
"""Codes that are floats, stored one a byte; all others are unsigned integers."""
_HALF = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
FLOAT4: dict[str, tuple[float, ...]] = {
    "float4_e2m1fn": (*_HALF, *(-x for x in _HALF)),
    "nf4": (
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
        -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
        0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ),
}  # fmt: skip
"""What 4-bit codes stand for where they are no integers: a value for each code.

E2M1 is sign, two bits of exponent, one of mantissa (OCP MX); NF4 are bitsandbytes' 16 quantiles of
the normal distribution.
"""
NATURAL = tuple(range(8))
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
AWQ = Packing(4, "n", transposed=True, order=AWQ_ORDER)
AWQ8 = Packing(8, "n", transposed=True, order=(0, 2, 1, 3))
GPTQ4 = Packing(4, "k", transposed=True)
GPTQ4_ZEROS = Packing(4, "n", transposed=True)
NK4 = Packing(4, "k")
PLAIN = Packing(8, "k", word_bits=8)
NIBBLES4 = Packing(4, "k", word_bits=8)
# Rounds that transpose 8 x 8 nibbles, one uint32 a row: rows apart, bits apart, bits kept.
NIBBLES = ((4, 16, 0x0000FFFF), (2, 8, 0x00FF00FF), (1, 4, 0x0F0F0F0F))


@dataclass(frozen=True)
class PackedArray:
    """Codes of logical ``shape`` ``[n, k]``; ``words`` may be a view of a mapped file.

    ``words`` has an unsigned dtype (wider than the packing's word only where each holds one code,
    as zeros of 256), or a float8 dtype under ``PLAIN``. ValueError where it has another.
    ``floats`` names the table of ``FLOAT4`` that 4-bit codes are of, where they are no integers.
    """

    words: Array
    packing: Packing
    shape: tuple[int, int]
    floats: str | None = None

    def __post_init__(self) -> None:
        wanted = self.packing.words_shape(*self.shape)
        if self.words.shape != wanted:
            raise ValueError(f"words of shape {self.words.shape}, the packing wants {wanted}")
        dtype = self.words.dtype
        if dtype.kind != "u" and not (dtype in FLOAT_CODES and self.packing.per_word == 1):
            raise ValueError(f"words of {dtype}, neither unsigned nor float8 codes")

    @property
    def kind(self) -> str:
        """What one code is: ``uint4``, ``uint8``, ``float8_e4m3fn`` ...; range says nothing of it.

        Two kinds never mean the same weight, whatever their bits: a scheme asks for its own.
        """
        dtype = self.words.dtype
        plain = dtype.name if dtype in FLOAT_CODES else f"uint{self.packing.bits}"
        return self.floats or plain

    def values(self) -> Array:
        """What the codes stand for, float32 ``[n, k]``."""
        if self.floats is None:
            return self.unpack().astype(np.float32)
        return np.array(FLOAT4[self.floats], np.float32)[self.unpack()]

    def unpack(self) -> Array:
        """Codes as uint8 ``[n, k]`` (or the words themselves where each holds one code)."""
        p = self.packing
        if p.per_word == 1:
            return self.words.T if p.transposed else self.words
        rows, cols = self.words.shape
        if p.word_axis == 1:
            major = np.empty((rows, cols * p.per_word), np.uint8)
            for step in _steps(rows, self.words[:1].nbytes * 8):
                _spread(self.words[step], p, major[step])
        else:
            major = np.empty((rows * p.per_word, cols), np.uint8)
            layers = major.reshape(rows, p.per_word, cols)
            for step in _steps(rows, self.words[:1].nbytes * 4):
                for i, j in enumerate(p.order):
                    layers[step, j] = _position(self.words[step], p, i)
        codes = major.T if p.transposed else major
        return codes[: self.shape[0], : self.shape[1]]


def pack(codes: Array, packing: Packing) -> PackedArray:
    """Pack unsigned ``codes`` ``[n, k]``; the last word of a ragged axis is filled with zeros.

    Raises ValueError for codes that are no integers (but float8, one a word) or do not fit.
    """
    n, k = codes.shape
    if packing.per_word == 1:
        return PackedArray(codes.T if packing.transposed else codes, packing, (n, k))
    if codes.dtype.kind not in "ui" or (codes.dtype.kind == "i" and codes.min(initial=0) < 0):
        raise ValueError(f"codes of {codes.dtype} are not unsigned integers")
    if codes.size and int(codes.max()) >> packing.bits:
        raise ValueError(f"code {int(codes.max())} does not fit {packing.bits} bits")
    if _has_fast_words(packing) and codes.dtype == np.uint8:
        # Along the axis they lie in first; turning words is cheaper than gathering bytes.
        along = GPTQ4_ZEROS if codes.T.flags.c_contiguous else NK4
        major = np.ascontiguousarray(codes.T if along.transposed else codes)
        if major.shape[1] % 8 == 0:
            return repack(PackedArray(_gather(major), along, (n, k)), packing)
    return _pack_any(codes, packing)


def repack(array: PackedArray, packing: Packing) -> PackedArray:
    """The same codes in another packing; the identity when the packings are equal."""
    if array.packing == packing:
        return array
    return replace(_repacked(array, packing), floats=array.floats)


def _repacked(array: PackedArray, packing: Packing) -> PackedArray:
    old = array.packing
    if (old, packing) == (NIBBLES4, NK4) and old.words_shape(*array.shape)[1] % 4 == 0:
        return PackedArray(np.ascontiguousarray(array.words).view("<u4"), packing, array.shape)
    if _has_fast_words(old) and _has_fast_words(packing):
        if old.axis == packing.axis:
            return _turn(array, packing)
        if array.shape[0] % 8 == 0 and array.shape[1] % 8 == 0:
            return _transpose(array, packing)
        return _pack_any(array.unpack(), packing)
    return pack(array.unpack(), packing)


def from_signed(words: Array, packing: Packing, shape: tuple[int, int]) -> PackedArray:
    """Two's complement codes in ``words`` as unsigned ones, 2^(bits-1) higher than the signed.

    Raises ValueError where the words are no integers: float8 codes have no such offset.
    """
    if words.dtype.kind not in "iu":
        raise ValueError(f"words of {words.dtype} are no integers")
    unsigned = words.view(np.dtype(f"uint{packing.word_bits}"))
    top = unsigned.dtype.type(packing.ones << (packing.bits - 1))
    return PackedArray(unsigned ^ top, packing, shape)


def float32_bits(values: Array) -> Array:
    """The float32 whose bit pattern is the low half of each int64."""
    return (values & 0xFFFFFFFF).astype(np.uint32).view(np.float32)


def from_gemv_fast(words: Array) -> PackedArray:
    """AutoAWQ GEMV_FAST and llm-awq v2: uint16 ``[n/4, k]`` as ``AWQ`` words ``[k, n/8]``.

    A row of words holds four rows of the weight, 64 columns of each in turn, as 8 words of 32 bits.
    Nibble ``i`` of the ``j``-th word of four, which hold a run of 32 columns, is column
    ``2 j + 8 i`` for ``i < 4`` and ``2 j + 1 + 8 (i - 4)`` after that. So the same word of eight
    rows is transposed into words of eight rows, one for each column.
    """
    rows, k = words.shape
    even = words if rows % 2 == 0 else np.concatenate([words, np.zeros_like(words[:1])])
    # 64 columns of one row are 32 bytes, moved as one item.
    runs = np.ascontiguousarray(even).view("V32").reshape(-1, 2, k // 64, 4)
    blocks = len(runs)
    out = np.empty((k // 64, 2, 4, 4, 2, blocks), np.uint32)
    for a in _steps(blocks, 1, 64):
        for b in _steps(k // 64, 1, 16):
            tile = np.stack([runs[a, row // 4, b, row % 4] for row in AWQ_ORDER]).view(np.uint32)
            _exchange(tile)
            i1, i0, m, c, run, j = range(6)
            split = tile.reshape(2, 4, tile.shape[1], -1, 2, 4)
            out[b, ..., a] = split.transpose(c, run, i0, j, i1, m)
    return PackedArray(out.reshape(k, blocks), AWQ, (4 * rows, k))


def from_marlin(words: Array) -> PackedArray:
    """Marlin's uint32 ``[k/16, 2 n]`` as ``AWQ`` words ``[k, n/8]``.

    Four 16 x 16 tiles (k, n) side by side make 128 words. Word ``(c, a, j)`` of them, c and a
    counting 8 and 4, is of tile ``j``; its nibbles, written ``(r0, b, r1)`` from the highest bit of
    their number to the lowest, are the codes at column ``8 b + c`` and row ``8 r1 + 2 a + r0``. So
    the eight words of all c are transposed into words of eight columns.
    """
    rows, cols = words.shape
    n, k = cols // 2, rows * 16
    out = np.empty((rows, 2, 4, 2, n // 64, 4, 2), np.uint32)
    split = words.reshape(rows, n // 64, 8, 4, 4)
    for step in _steps(rows, 4 * cols):
        tile = np.ascontiguousarray(np.moveaxis(split[step], 2, 0)[list(AWQ_ORDER)])
        _exchange(tile)
        r0, b, r1, t, blk, a, j = range(7)
        out[step] = tile.reshape(2, 2, 2, *tile.shape[1:]).transpose(t, r1, a, r0, blk, j, b)
    return PackedArray(out.reshape(k, n // 8), AWQ, (n, k))


def overrun(codes: PackedArray, zero: PackedArray) -> tuple[int, float]:
    """AWQ words that a code of -1 seems to have filled, and how many to expect by chance.

    A packer that does not clamp writes -1 as ones in its own nibble and all above it. Only a group
    whose weights are all negative has such codes, and its zero is 15; so these groups alone are
    looked at. Chance is measured where the group's own code is another and cannot have run over.
    A code of 16 leaves a 0 and one bit in its neighbour, which nothing tells from true codes.
    """
    groups, blocks = zero.words.shape
    words = codes.words.reshape(groups, -1, blocks)
    found, chance = 0, 0.0
    for i in range(6):  # two nibbles above, or more: one alone is 15 too often
        at = np.argwhere(_position(zero.words, AWQ, i) == 15)[:256]  # enough to see a defect
        picked = words[at[:, 0], :, at[:, 1]]
        own = _position(picked, AWQ, i) == 15
        above = (picked >> np.uint32(4 * i + 4)) == np.uint32(0xFFFFFFF >> (4 * i))
        found += int((own & above).sum())
        chance += float(own.sum() * (~own & above).sum() / max(1, (~own).sum()))
    return found, chance


def marlin_scales(scales: Array, grouped: bool) -> Array:
    """Marlin's scales ``[groups, n]`` in the natural order of n."""
    groups, n = scales.shape
    if grouped:
        return scales.reshape(groups, n // 64, 8, 8).swapaxes(2, 3).reshape(groups, n)
    return scales.reshape(groups, n // 32, 4, 4, 2).swapaxes(2, 3).reshape(groups, n)


def _has_fast_words(packing: Packing) -> bool:
    """4-bit codes in 32-bit words, in one of the two orders that files use."""
    return (packing.bits, packing.word_bits) == (4, 32) and packing.order in (NATURAL, AWQ_ORDER)


def _steps(count: int, nbytes: int, limit: int = 1 << 18) -> Iterator[slice]:
    """Slices of ``count`` rows of ``nbytes`` each whose temporaries stay in a core's own cache."""
    rows = max(1, limit // max(nbytes, 1))
    return (slice(at, min(at + rows, count)) for at in range(0, count, rows))


def _position(words: Array, packing: Packing, i: int) -> Array:
    """The codes at position ``i`` of each word."""
    kind = words.dtype.type
    return (words >> kind(i * packing.bits)) & kind((1 << packing.bits) - 1)


def _spread(words: Array, packing: Packing, out: Array) -> None:
    """Codes of ``words`` [rows, cols] side by side as bytes in ``out`` [rows, cols * per_word]."""
    if not _has_fast_words(packing):
        split = out.reshape(*words.shape, packing.per_word)
        for i, j in enumerate(packing.order):
            split[..., j] = _position(words, packing, i)
        return
    # Each round moves half of every field to where that half belongs. AutoAWQ's order needs one
    # round less once the middle bytes are exchanged: its nibbles i and i + 4 end side by side.
    rounds = [(16, 0x0000FFFF0000FFFF), (8, 0x00FF00FF00FF00FF), (4, 0x0F0F0F0F0F0F0F0F)]
    if packing.order == AWQ_ORDER:
        words = _swap(words, 8, 0x0000FF00)
        rounds[1:] = [(12, 0x0F0F0F0F0F0F0F0F)]
    wide = words.astype(np.uint64)
    for shift, mask in rounds:
        moved = wide << np.uint64(shift)
        moved |= wide
        last = out.view(np.uint64) if mask == rounds[-1][1] else moved
        wide = np.bitwise_and(moved, np.uint64(mask), out=last)


def _gather(codes: Array) -> Array:
    """4-bit codes ``[rows, 8 c]`` in natural words ``[rows, c]``; the inverse of ``_spread``."""
    rows, cols = codes.shape
    words = np.empty((rows, cols // 8), np.uint32)
    for step in _steps(rows, cols):
        wide = codes[step].view(np.uint64)
        for shift, mask in ((4, 0x00FF00FF00FF00FF), (8, 0x0000FFFF0000FFFF), (16, 0xFFFFFFFF)):
            moved = wide >> np.uint64(shift)
            moved |= wide
            moved &= np.uint64(mask)
            wide = moved
        words[step] = wide
    return words


def _pack_any(codes: Array, packing: Packing) -> PackedArray:
    """Any packing, one position of the word after the other."""
    major = codes.T if packing.transposed else codes
    dtype = np.dtype(f"uint{packing.word_bits}")
    words = np.zeros(packing.words_shape(*codes.shape), dtype)
    for i, j in enumerate(packing.order):
        every = slice(j, None, packing.per_word)
        part = (major[:, every] if packing.word_axis else major[every]).astype(dtype)
        words[: part.shape[0], : part.shape[1]] |= part << dtype.type(i * packing.bits)
    return PackedArray(words, packing, (codes.shape[0], codes.shape[1]))


def _turn(array: PackedArray, packing: Packing) -> PackedArray:
    """Between packings along the same axis: whole words move, their nibbles at most shuffle."""
    old, words = array.packing, array.words
    source = words if old.transposed == packing.transposed else words.T
    out = np.empty(source.shape, np.uint32)
    change = {
        (NATURAL, AWQ_ORDER): _unshuffle,
        (AWQ_ORDER, NATURAL): _shuffle,
    }.get((old.order, packing.order))
    # Tiles of 64 x 256 words: turned as a whole, each word would be fetched with a line of its own.
    for a in _steps(source.shape[0], 1, 64):
        for b in _steps(source.shape[1], 1, 256 if source is not words else 1 << 16):
            out[a, b] = source[a, b] if change is None else change(source[a, b])
    return PackedArray(out, packing, array.shape)


def _transpose(array: PackedArray, packing: Packing) -> PackedArray:
    """Between packings along different axes: 8 words across become 8 words along.

    With ``a`` the axis that the target packs and ``b`` the one that the source packs, the source is
    seen as ``[a/8, 8, b/8]`` and the target as ``[b/8, 8, a/8]``; in between lies one 8 x 8 matrix
    of nibbles for each pair of blocks, transposed in three rounds of exchanged halves.
    """
    old = array.packing
    source = array.words if old.word_axis == 1 else array.words.T
    blocks_a, blocks_b = source.shape[0] // 8, source.shape[1]
    source = (
        source.reshape(blocks_a, 8, blocks_b)
        if old.word_axis == 1
        else np.moveaxis(array.words.reshape(blocks_b, blocks_a, 8), 0, 2)
    )
    words = np.empty(packing.words_shape(*array.shape), np.uint32)
    if packing.word_axis == 1:
        target = words.reshape(blocks_b, 8, blocks_a)
    else:
        target = np.moveaxis(words.reshape(blocks_a, blocks_b, 8), 0, 2)
    for a in _steps(blocks_a, 1, 64):
        for b in _steps(blocks_b, 1, 128):
            tile = np.ascontiguousarray(source[a, :, b].transpose(1, 0, 2)[list(packing.order)])
            _exchange(tile)
            target[b, list(old.order), a] = tile.transpose(2, 0, 1)
    return PackedArray(words, packing, array.shape)


def _exchange(tile: Array) -> None:
    """Transpose in place: nibble j of ``tile[i]`` and nibble i of ``tile[j]`` change places.

    First the upper right and lower left quarters of the 8 x 8 matrix are exchanged, then those of
    each quarter, then those of each 2 x 2 block.
    """
    flat = tile.reshape(8, -1)
    for rows, shift, mask in NIBBLES:
        pairs = flat.reshape(-1, 2, rows, flat.shape[1])
        low, high = pairs[:, 0], pairs[:, 1]
        swap = low >> np.uint32(shift)
        swap ^= high
        swap &= np.uint32(mask)
        high ^= swap
        swap <<= np.uint32(shift)
        low ^= swap


def _shuffle(words: Array) -> Array:
    """Nibbles 0 1 2 3 4 5 6 7 of each uint32 in the order 0 4 1 5 2 6 3 7 (AWQ to natural)."""
    return _swap(_swap(words, 8, 0x0000FF00), 4, 0x00F000F0)


def _unshuffle(words: Array) -> Array:
    """Nibbles 0 1 2 3 4 5 6 7 of each uint32 in the order 0 2 4 6 1 3 5 7 (natural to AWQ)."""
    return _swap(_swap(words, 4, 0x00F000F0), 8, 0x0000FF00)


def _swap(words: Array, shift: int, mask: int) -> Array:
    """Exchange the bits under ``mask`` with those ``shift`` higher."""
    swap = words >> np.uint32(shift)
    swap ^= words
    swap &= np.uint32(mask)
    moved = swap << np.uint32(shift)
    moved ^= swap
    moved ^= words
    return moved
