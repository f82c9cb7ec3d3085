"""Bit layouts: the only file with shifts, masks and nibble orders.

A ``Packing`` says how the unsigned codes of a logical matrix ``[n, k]`` (n output rows, k input
columns) lie in words. ``axis`` names the logical axis whose neighbours share a word, ``transposed``
says that the word array is stored ``[k, n]``-major, and position ``i`` of a word (counted from its
least significant bits) holds element ``per_word * c + order[i]`` of the packed axis.

===========  ====  ======  ==========  ================  =====================================
name         bits  packed  word array  order in a word   origin
===========  ====  ======  ==========  ================  =====================================
AWQ          4     n       [k, n/8]    0 2 4 6 1 3 5 7   AutoAWQ GEMM, MLC q4f16_autoawq
GPTQ4        4     k       [k/8, n]    natural           AutoGPTQ / GPTQModel ``qweight``
GPTQ4_ZEROS  4     n       [k, n/8]    natural           AutoGPTQ / GPTQModel ``qzeros``
NK4          4     k       [n, k/8]    natural           AutoAWQ GEMV, compressed-tensors
PLAIN        8     -       [n, k]      one code a word   int8 and float8 weights
===========  ====  ======  ==========  ================  =====================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

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


AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
AWQ = Packing(4, "n", transposed=True, order=AWQ_ORDER)
GPTQ4 = Packing(4, "k", transposed=True)
GPTQ4_ZEROS = Packing(4, "n", transposed=True)
NK4 = Packing(4, "k")
PLAIN = Packing(8, "k", word_bits=8)


@dataclass(frozen=True)
class PackedArray:
    """Codes of logical ``shape`` ``[n, k]``; ``words`` may be a view of a mapped file.

    ``words`` has the unsigned dtype of the packing's word, or a float8 dtype under ``PLAIN``.
    """

    words: Array
    packing: Packing
    shape: tuple[int, int]

    def __post_init__(self) -> None:
        wanted = self.packing.words_shape(*self.shape)
        if self.words.shape != wanted:
            raise ValueError(f"words of shape {self.words.shape}, the packing wants {wanted}")

    def unpack(self) -> Array:
        """Codes as uint8 ``[n, k]`` (or the float8 array itself)."""
        p = self.packing
        if p.per_word == 1:
            return self.words.T if p.transposed else self.words
        # One pass per position in the word: a strided store of whole rows, no per-element gather.
        rows, cols = self.words.shape
        mask = self.words.dtype.type((1 << p.bits) - 1)
        if p.word_axis == 1:
            out = np.empty((rows, cols, p.per_word), np.uint8)
            for i, j in enumerate(p.order):
                out[:, :, j] = (self.words >> self.words.dtype.type(i * p.bits)) & mask
            codes = out.reshape(rows, cols * p.per_word)
        else:
            out = np.empty((rows, p.per_word, cols), np.uint8)
            for i, j in enumerate(p.order):
                out[:, j, :] = (self.words >> self.words.dtype.type(i * p.bits)) & mask
            codes = out.reshape(rows * p.per_word, cols)
        codes = codes.T if p.transposed else codes
        return codes[: self.shape[0], : self.shape[1]]


def pack(codes: Array, packing: Packing) -> PackedArray:
    """Pack unsigned ``codes`` ``[n, k]``; the last word of a ragged axis is filled with zeros."""
    n, k = codes.shape
    if packing.per_word == 1:
        return PackedArray(codes.T if packing.transposed else codes, packing, (n, k))
    if codes.size and int(codes.max()) >> packing.bits:
        raise ValueError(f"code {int(codes.max())} does not fit {packing.bits} bits")
    major = codes.T if packing.transposed else codes
    rows, cols = packing.words_shape(n, k)
    dtype = np.dtype(f"uint{packing.word_bits}")
    words = np.zeros((rows, cols), dtype)
    for i, j in enumerate(packing.order):
        every = slice(j, None, packing.per_word)
        part = (major[:, every] if packing.word_axis else major[every]).astype(dtype)
        words[: part.shape[0], : part.shape[1]] |= part << dtype.type(i * packing.bits)
    return PackedArray(words, packing, (n, k))


def from_signed(words: Array, packing: Packing, shape: tuple[int, int]) -> PackedArray:
    """Two's complement codes in ``words`` as unsigned ones, 2^(bits-1) higher than the signed."""
    unsigned = words.view(np.dtype(f"uint{packing.word_bits}"))
    top = unsigned.dtype.type(packing.ones << (packing.bits - 1))
    return PackedArray(unsigned ^ top, packing, shape)


def float32_bits(values: Array) -> Array:
    """The float32 whose bit pattern is the low half of each int64."""
    return (values & 0xFFFFFFFF).astype(np.uint32).view(np.float32)


def repack(array: PackedArray, packing: Packing) -> PackedArray:
    """The same codes in another packing; the identity when the packings are equal."""
    if array.packing == packing:
        return array
    return pack(array.unpack(), packing)


def from_gemv_fast(words: Array) -> PackedArray:
    """AutoAWQ GEMV_FAST and llm-awq v2: uint16 ``[n/4, k]`` as natural 4-bit words ``[n, k/8]``.

    A row of words holds four rows of the weight, 64 columns of each in turn. Two words side by
    side are 32 bits of one row: nibble ``i`` of the ``j``-th of four such words in a run of 32
    columns is column ``2 j + 8 i`` for ``i < 4`` and ``2 j + 1 + 8 (i - 4)`` after that. Bringing
    nibble ``i + 4`` beside nibble ``i`` makes bytes of two neighbouring columns, and a 4 x 4
    transpose of bytes puts them in order.
    """
    rows, k = words.shape
    n = 4 * rows
    wide = _shuffle_nibbles(np.ascontiguousarray(words).view(np.uint32))
    quads = wide.reshape(rows, k // 64, 4, 2, 4, 1).view(np.uint8)  # .., row, run of 32, j, byte
    ordered = quads.transpose(0, 2, 1, 3, 5, 4)
    return PackedArray(
        np.ascontiguousarray(ordered).view(np.uint32).reshape(n, k // 8), NK4, (n, k)
    )


def from_marlin(words: Array) -> PackedArray:
    """Marlin's uint32 ``[k/16, 2 n]`` as natural 4-bit words ``[n, k/8]``.

    Four 16 x 16 tiles (k, n) side by side make 128 words. Word ``(c, a, j)`` of them, c and a
    counting 8 and 4, is of tile ``j``; its nibbles, written ``(r0, b, r1)`` from the highest bit of
    their number to the lowest, are the codes at column ``8 b + c`` and row ``8 r1 + 2 a + r0``.
    """
    rows, cols = words.shape
    n, k = cols // 2, rows * 16
    codes = _nibbles(words).reshape(rows, n // 64, 8, 4, 4, 2, 2, 2)
    t, blk, c, a, j, r0, b, r1 = range(8)
    ordered = codes.transpose(blk, j, b, c, t, r1, a, r0).reshape(n, k)
    return pack(ordered, NK4)


def marlin_scales(scales: Array, grouped: bool) -> Array:
    """Marlin's scales ``[groups, n]`` in the natural order of n."""
    groups, n = scales.shape
    if grouped:
        return scales.reshape(groups, n // 64, 8, 8).swapaxes(2, 3).reshape(groups, n)
    return scales.reshape(groups, n // 32, 4, 4, 2).swapaxes(2, 3).reshape(groups, n)


def _shuffle_nibbles(words: Array) -> Array:
    """Nibbles 0 1 2 3 4 5 6 7 of each uint32 in the order 0 4 1 5 2 6 3 7."""
    for shift, mask in ((8, 0x0000FF00), (4, 0x00F000F0)):
        swap = (words ^ (words >> np.uint32(shift))) & np.uint32(mask)
        words = words ^ swap ^ (swap << np.uint32(shift))
    return words


def _nibbles(words: Array) -> Array:
    """The eight nibbles of each uint32, lowest first, as uint8 in a new last axis."""
    out = np.empty((*words.shape, 8), np.uint8)
    for i in range(8):
        out[..., i] = (words >> np.uint32(4 * i)) & np.uint32(15)
    return out
