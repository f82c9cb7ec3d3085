"""The index of the weights: what it says, and whether that can be true.

Index (TVM's tensor cache; older runtimes call the same file ``ndarray-cache.json``)::

    {"metadata": {...},                           free-form, no runtime reads it
     "records": [{"dataPath": "params_shard_0.bin", "format": "raw-shard", "nbytes", "md5sum",
                  "records": [{"name", "shape", "dtype", "format", "nbytes", "byteOffset"}, ...]}]}

Tensors lie in C order, little endian, without padding, so the records of a shard tile it: each
begins where the one before ends, the last ends with the file, and each is as long as its shape and
dtype say. A reader that trusts offsets alone takes a shifted tensor for a right one.

Record format: ``f32-to-bf16`` is the word that MLC's converter writes on every record; it changes
float32 tensors only (stored as their bfloat16 rounding). We store float32 exactly, as ``raw``,
which every loader of this format accepts.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError

from mlc_bridge.artifact.inventory import INDEX
from mlc_bridge.artifact.stamp import Stamp
from mlc_bridge.errors import ArtifactError

AGAIN = "Convert or download the model again"
DTYPES = {
    *("bool", "float16", "float32", "float64", "bfloat16"),
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
    *(name for name in dir(ml_dtypes) if name.startswith("float8_")),
}
"""Numbers of whole bytes, under the names that TVM gives them."""


def dtype_of(name: str) -> np.dtype[Any]:
    """numpy dtype of an MLC dtype name (bfloat16 and the float8 family through ml_dtypes)."""
    return np.dtype(getattr(ml_dtypes, name, name))


@dataclass(frozen=True)
class Record:
    """Where one tensor lies: ``nbytes`` at ``offset`` of ``shard``."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    format: str
    nbytes: int
    offset: int
    shard: str

    @property
    def narrowed(self) -> bool:
        """float32 stored as its bfloat16 rounding."""
        return self.dtype == "float32" and self.format == "f32-to-bf16"

    @property
    def itemsize(self) -> int:
        return 2 if self.narrowed else dtype_of(self.dtype).itemsize

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "format": self.format,
            "nbytes": self.nbytes,
            "byteOffset": self.offset,
        }


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class Metadata(_Strict):
    mlc_bridge: Stamp | None = None


class Tensor(_Strict):
    """One record as the file has it."""

    name: str
    shape: list[NonNegativeInt]
    dtype: str
    format: Literal["raw", "f32-to-bf16"]
    nbytes: NonNegativeInt
    byteOffset: int

    def record(self, shard: str) -> Record:
        place = (self.nbytes, self.byteOffset, shard)
        return Record(self.name, tuple(self.shape), self.dtype, self.format, *place)


class Shard(_Strict):
    """One file of weights and what lies in it."""

    dataPath: str
    format: str
    nbytes: NonNegativeInt
    md5sum: str | None = None
    records: list[Tensor]


class Index(_Strict):
    metadata: Metadata | None = None
    records: list[Shard]

    @property
    def shards(self) -> list[Shard]:
        return self.records

    @property
    def free_form(self) -> dict[str, Any]:
        return self.metadata.model_dump(exclude_unset=True) if self.metadata else {}


def parse(path: Path) -> Index:
    """The file as it stands. Raises ArtifactError naming file and key."""
    try:
        return Index.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise ArtifactError(
            "no weights here",
            where=path.parent,
            expected=INDEX,
            todo="Run mlc-bridge convert first",
        ) from None
    except ValidationError as problem:
        first = problem.errors()[0]
        said = ": ".join((".".join(map(str, first["loc"])) or "the file", first["msg"]))
    except OSError as problem:
        said = str(problem.strerror)
    raise ArtifactError("the index cannot be read", where=path, found=said, todo=AGAIN)


def checked(directory: Path, index: Index) -> dict[str, Record]:
    """Name -> record, if files, lengths, shapes and offsets agree.

    Raises ArtifactError naming the file or tensor that does not.
    """
    records: dict[str, Record] = {}
    files: set[str] = set()
    for shard in index.shards:
        _check_file(directory, shard)
        if shard.dataPath in files:
            raise ArtifactError("the index lists a shard twice", where=shard.dataPath, todo=AGAIN)
        files.add(shard.dataPath)
        inside = [tensor.record(shard.dataPath) for tensor in shard.records]
        for record in inside:
            _check_size(record)
            if record.name in records:
                raise ArtifactError("the index lists a parameter twice", where=record.name)
            records[record.name] = record
        _check_tiles(inside, shard.nbytes)
    return records


def _check_file(directory: Path, shard: Shard) -> None:
    name, path = shard.dataPath, directory / shard.dataPath
    if Path(name).name != name or "\0" in name or shard.format != "raw-shard":
        raise ArtifactError("the index names a shard that is no plain file here", where=repr(name))
    found = os.path.getsize(path) if os.path.isfile(path) else "no such file"
    if found != shard.nbytes:
        raise ArtifactError(
            "damaged weights", where=path, found=found, expected=f"{shard.nbytes} bytes", todo=AGAIN
        )


def _check_size(record: Record) -> None:
    if record.dtype not in DTYPES:
        raise ArtifactError("unknown dtype", where=record.name, found=record.dtype)
    wanted = math.prod(record.shape) * record.itemsize
    if record.nbytes != wanted:
        raise ArtifactError(
            f"the index gives shape {list(record.shape)} {record.dtype} ({record.format})",
            where=record.name,
            found=f"{record.nbytes} bytes",
            expected=f"{wanted}",
            todo=AGAIN,
        )


def _check_tiles(records: Sequence[Record], nbytes: int) -> None:
    """From the first byte to the last, nothing twice and nothing left out."""
    end = 0
    for record in sorted(records, key=lambda record: (record.offset, record.nbytes)):
        if record.offset < 0 or record.offset + record.nbytes > nbytes:
            raise ArtifactError(
                "the index places the tensor outside its shard",
                where=record.name,
                found=f"bytes {record.offset} to {record.offset + record.nbytes}",
                expected=f"within {nbytes} bytes of {record.shard}",
                todo=AGAIN,
            )
        if record.offset != end:
            how = "a gap before" if record.offset > end else "an overlap with"
            raise ArtifactError(
                f"the index leaves {how} this tensor in {record.shard}",
                where=record.name,
                found=f"byte {record.offset}",
                expected=f"{end}",
                todo=AGAIN,
            )
        end += record.nbytes
    if end != nbytes:
        raise ArtifactError(
            "the index leaves bytes of a shard to no tensor",
            where=records[-1].shard if records else "a shard without records",
            found=f"{nbytes - end} of {nbytes} bytes",
            todo=AGAIN,
        )
