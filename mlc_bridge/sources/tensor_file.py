"""One safetensors file: its header, checked before a byte of data is mapped.

    [8 bytes: header length, little endian] [header: JSON] [data]

The header maps a tensor name to ``dtype``, ``shape`` and ``data_offsets`` (begin and end inside the
data). The data must be covered exactly once, without holes, and end where the file ends: a header
that says otherwise was truncated, damaged or made to mislead.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from mlc_bridge.errors import SourceError

LONGEST_HEADER = 100_000_000  # the limit of the safetensors library itself
MOST_AXES = 32

DTYPES: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "U16": np.dtype(np.uint16),
    "I16": np.dtype(np.int16),
    "U32": np.dtype(np.uint32),
    "I32": np.dtype(np.int32),
    "U64": np.dtype(np.uint64),
    "I64": np.dtype(np.int64),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "C64": np.dtype(np.complex64),
}


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies in a file; ``strides`` (bytes) only where it is not C-contiguous."""

    file: Path
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    begin: int
    nbytes: int
    strides: tuple[int, ...] | None = None


def safetensors_entries(file: Path) -> dict[str, Entry]:
    """Header of ``file`` as name -> Entry. Raises SourceError for anything that does not add up."""
    header, start, size = _header(file)
    entries = {n: _entry(file, n, e, start) for n, e in header.items() if n != "__metadata__"}
    _check_cover(file, entries, start, size)
    return entries


def _header(file: Path) -> tuple[dict[str, Any], int, int]:
    """The parsed header, the offset where data starts, and the file's size."""
    size = file.stat().st_size
    with file.open("rb") as f:
        length = int.from_bytes(f.read(8), "little")
        if size < 8 or length > min(size - 8, LONGEST_HEADER):
            raise SourceError(
                "the file is shorter than its header says",
                where=file,
                found=f"{size} bytes and a header length of {length}",
                expected=f"a header of at most {min(max(size - 8, 0), LONGEST_HEADER)} bytes",
                todo="The file is truncated or no safetensors file; fetch it again",
            )
        raw = f.read(length)
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique(file))
    except (ValueError, RecursionError) as error:
        raise SourceError(
            "the header is not valid JSON",
            where=file,
            found=str(error)[:200],
            todo="Fetch the file again",
        ) from None
    if not isinstance(header, dict):
        raise SourceError(
            "the header is not a JSON object", where=file, found=type(header).__name__
        )
    return header, 8 + length, size


def _unique(file: Path) -> Any:
    """A JSON object hook that refuses a name given twice (plain json keeps the last one)."""

    def hook(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        for key, value in pairs:
            if not key.isprintable():
                raise SourceError("a name that cannot be printed", where=file, found=ascii(key))
            if key in seen:
                raise SourceError(
                    f"the header names {key!r} twice",
                    where=file,
                    todo="Which of the two is meant cannot be known; fetch or save the file again",
                )
            seen[key] = value
        return seen

    return hook


def _entry(file: Path, name: str, raw: Any, start: int) -> Entry:
    where = f"{file}: {name}"
    if not isinstance(raw, dict) or not {"dtype", "shape", "data_offsets"} <= raw.keys():
        raise SourceError(
            "a header entry is incomplete",
            where=where,
            found=repr(raw)[:200],
            expected="dtype, shape and data_offsets",
        )
    shape, offsets = raw["shape"], raw["data_offsets"]
    dtype = DTYPES.get(raw["dtype"]) if isinstance(raw["dtype"], str) else None
    if dtype is None:
        raise SourceError(
            "unknown dtype", where=where, found=repr(raw["dtype"])[:40], expected=", ".join(DTYPES)
        )
    if not (_naturals(shape) and countable(shape) and _naturals(offsets) and len(offsets) == 2):
        raise SourceError(
            "shape and data_offsets must be lists of integers that are not negative",
            where=where,
            found=f"shape {shape}, data_offsets {offsets}"[:200],
        )
    nbytes = prod(shape) * dtype.itemsize
    if offsets[1] - offsets[0] != nbytes:
        raise SourceError(
            "the tensor's size and its offsets disagree",
            where=where,
            found=f"{offsets[1] - offsets[0]} bytes between its offsets",
            expected=f"{nbytes} bytes for {raw['dtype']} {shape}",
            todo="The file is damaged; fetch it again",
        )
    return Entry(file, dtype, tuple(shape), start + offsets[0], nbytes)


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(v) is int and v >= 0 for v in value)


def countable(shape: Sequence[int]) -> bool:
    """An array of this shape can exist: few enough axes, and a size in 63 bits."""
    return len(shape) <= MOST_AXES and prod(s for s in shape if s) < 1 << 59


def _check_cover(file: Path, entries: Mapping[str, Entry], start: int, size: int) -> None:
    """Tensors lie end to end from the first data byte to the last byte of the file."""
    at, before = start, "the header"
    for name, e in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].nbytes)):
        if e.begin != at:
            fault = "overlaps" if e.begin < at else "leaves a hole after"
            raise SourceError(
                f"the tensor {fault} {before}",
                where=f"{file}: {name}",
                found=f"data offset {e.begin - start}",
                expected=at - start,
                todo="The file is damaged or was made to mislead; fetch it again",
            )
        at, before = e.begin + e.nbytes, name
    if at != size:
        raise SourceError(
            "the file is truncated" if at > size else "the file has bytes that no tensor owns",
            where=file,
            found=f"{size} bytes",
            expected=f"{at} bytes, the end of {before}",
            todo="Fetch the file again",
        )
