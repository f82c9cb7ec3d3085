"""Weights on disk as MLC keeps them: ``params_shard_<i>.bin`` and the index ``tensor-cache.json``.

The index is in ``tensor_index.py``.

Shard rule (TVM's): tensors fill a shard of 32 MiB; one that would reach the cap starts a new
shard, and one of half the cap or more gets a shard of its own *before* the one being filled, so
shard numbers do not follow the order of names.

A directory with an index is complete, whatever happened to the run that wrote it: see
``workspace.py``.

md5 sums, which no runtime reads, are on wish: at 0.8 GB/s a core they cost more than all the rest.
They run on threads over finished shards, whose bytes are still in the page cache, so that memory
stays at what the caller holds.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from mlc_bridge.artifact.interrupts import HeldInterrupts
from mlc_bridge.artifact.inventory import INDEX, OLDER_INDEX, Inventory
from mlc_bridge.artifact.tensor_index import AGAIN, Record, checked, dtype_of, parse
from mlc_bridge.artifact.workspace import WEIGHTS_WORK, Workspace, told
from mlc_bridge.errors import ArtifactError
from mlc_bridge.packing import Array

WRITTEN = ("params_shard_*.bin", INDEX, OLDER_INDEX, "tensor-cache-b16.json")
"""What weights are written to, now or by older versions and tools."""
SHARD_CAP = 32 << 20
_SLAB = 4 << 20


class ShardWriter:
    """Writes the weights of one model directory; a context manager that publishes on a clean exit.

    ``metadata`` becomes the index's metadata block and may be filled until the block ends.
    ``beside``: patterns of other files that will be put into ``folder`` and published with them.
    On any exception, Ctrl-C included, nothing new is left in the directory.
    """

    def __init__(
        self,
        directory: str | Path,
        metadata: Mapping[str, Any] | None = None,
        *,
        md5: bool = True,
        beside: Iterable[str] = (),
    ) -> None:
        self.directory = Path(directory)
        self.metadata: dict[str, Any] = dict(metadata or {})
        self.records: dict[str, Record] = {}
        self._shards: list[dict[str, Any]] = []
        self._md5 = md5
        self._digests: list[Future[str]] = []
        self._pending: list[Record] = []
        self._pending_bytes = 0
        self._file: BinaryIO | None = None
        self._refusal = "cannot write the weights"
        self._writes = (*WRITTEN, *beside)
        self._space = Workspace(
            self.directory, self._writes, refusal=self._refusal, folder=WEIGHTS_WORK
        )
        self._interrupts = HeldInterrupts()

    @property
    def folder(self) -> Path:
        """Where files that shall be published with the weights are written."""
        return self._space.temp

    def __enter__(self) -> ShardWriter:
        self._interrupts.hold()
        try:
            self._space.__enter__()
        except BaseException:
            self._interrupts.release()
            raise
        self._hashing = ThreadPoolExecutor(2, thread_name_prefix="shard-md5")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                with told(self.directory, self._refusal):
                    self._finish()
                self._publish()
        finally:
            if self._file is not None:
                with suppress(OSError):
                    self._file.close()
            self._hashing.shutdown(wait=True, cancel_futures=True)
            self._space.__exit__(kind, error, trace)
            self._interrupts.release()

    def add(self, name: str, array: Array, dtype: str | None = None) -> None:
        """Append one tensor; contiguous views of a mapped file are written without a copy.

        ``dtype`` reinterprets the bytes under another MLC dtype name of the same item size.
        Raises ArtifactError for a repeated name or a disk that refuses.
        """
        self._interrupts.check()
        if name in self.records:
            raise ArtifactError("this parameter is written twice", where=name)
        if dtype is not None:
            array = array.view(dtype_of(dtype))
        word = "raw" if array.dtype == np.float32 else "f32-to-bf16"
        size, shape = array.nbytes, tuple(array.shape)
        record = Record(name, shape, array.dtype.name, word, size, 0, "")
        with told(self.directory, self._refusal):
            if self._pending_bytes + size >= SHARD_CAP:
                if size * 2 >= SHARD_CAP:
                    self._write_own(record, array)
                    return
                self._commit_pending()
            self._append(record, array)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors added so far."""
        return sum(record.nbytes for record in self.records.values())

    def _write_own(self, record: Record, array: Array) -> None:
        path = self._space.temp / _shard_name(len(self._shards))
        with path.open("wb") as file:
            _write(file, array)
        self._register(path, record.nbytes, [record])

    def _append(self, record: Record, array: Array) -> None:
        if self._file is None:
            self._file = (self._space.temp / "pending.bin").open("wb")
        _write(self._file, array)
        placed = _moved(record, offset=self._pending_bytes)
        self._pending.append(placed)
        self.records[record.name] = placed
        self._pending_bytes += record.nbytes

    def _commit_pending(self) -> None:
        if self._file is None:
            return
        self._file.close()
        self._file = None
        path = self._space.temp / _shard_name(len(self._shards))
        os.replace(self._space.temp / "pending.bin", path)
        self._register(path, self._pending_bytes, self._pending)
        self._pending, self._pending_bytes = [], 0

    def _register(self, path: Path, nbytes: int, records: list[Record]) -> None:
        records = [_moved(record, shard=path.name) for record in records]
        self.records.update({record.name: record for record in records})
        if self._md5:
            self._digests.append(self._hashing.submit(_md5, path))
        self._shards.append(
            {
                "dataPath": path.name,
                "format": "raw-shard",
                "nbytes": nbytes,
                "records": [record.as_json() for record in records],
            }
        )

    def _finish(self) -> None:
        self._commit_pending()
        for shard, digest in zip(self._shards, self._digests, strict=self._md5):
            shard["md5sum"] = digest.result()
            self._interrupts.check()
        index = {"metadata": self.metadata, "records": self._shards}
        (self._space.temp / INDEX).write_text(json.dumps(index, indent=4), encoding="utf-8")
        self._interrupts.check()

    def _publish(self) -> None:
        self._space.publish(INDEX, stale=self._writes)


@dataclass(frozen=True)
class Proof:
    """How many of ``shards`` files have every byte compared with a digest of which kind."""

    shards: int
    digests: int
    md5: int


@dataclass(frozen=True)
class TensorCache:
    """An index that agrees with itself and its files; ``array`` maps tensors on demand."""

    directory: Path
    metadata: Mapping[str, Any]
    records: Mapping[str, Record]
    shards: Mapping[str, str | None]
    """File name -> its md5 sum, where the index has one."""

    def array(self, name: str) -> Array:
        """The tensor as a read-only view of its shard; float32 stored as bfloat16 is expanded."""
        try:
            record = self.records[name]
        except KeyError:
            raise ArtifactError("no such parameter", where=self.directory, found=name) from None
        dtype = np.dtype(np.uint16) if record.narrowed else dtype_of(record.dtype)
        if record.nbytes == 0:
            return np.zeros(record.shape, dtype_of(record.dtype))
        path = self.directory / record.shard
        raw = np.memmap(path, np.uint8, "r", record.offset, (record.nbytes,))
        array = raw.view(dtype).view(np.ndarray).reshape(record.shape)
        return (array.astype(np.uint32) << 16).view(np.float32) if record.narrowed else array

    def prove(self, *, md5: bool) -> Proof:
        """Compare every byte with the digests there are, and with the md5 sums if ``md5``.

        Raises ArtifactError naming the first file that differs.
        """
        listed = Inventory.read(self.directory) or Inventory()
        summed = [name for name, known in self.shards.items() if md5 and known]
        for name in summed:
            if _md5(self.directory / name) != self.shards[name]:
                raise ArtifactError(
                    "damaged weights: the md5 sum differs from the index",
                    where=self.directory / name,
                    todo=AGAIN,
                )
        digests = sum(listed.check(self.directory, name) for name in self.shards)
        return Proof(len(self.shards), digests, len(summed))


def read_index(directory: str | Path, *, md5: bool = False) -> TensorCache:
    """Read the index of a model directory: files, lengths, offsets and shapes must agree, and the
    index must be the one that was written, where that is known.

    ``md5``: also every byte of the weights, see ``TensorCache.prove``. Raises ArtifactError naming
    the file or tensor.
    """
    directory = Path(directory)
    path = directory / INDEX
    if not path.exists() and (directory / OLDER_INDEX).exists():
        path = directory / OLDER_INDEX
    index = parse(path)
    records = checked(directory, index)
    (Inventory.read(directory) or Inventory()).check(directory, path.name)
    shards = {shard.dataPath: shard.md5sum for shard in index.shards}
    cache = TensorCache(directory, index.free_form, records, shards)
    if md5:
        cache.prove(md5=True)
    return cache


def _shard_name(number: int) -> str:
    return f"params_shard_{number}.bin"


def _moved(record: Record, offset: int | None = None, shard: str | None = None) -> Record:
    place = (record.offset if offset is None else offset, record.shard if shard is None else shard)
    return Record(record.name, record.shape, record.dtype, record.format, record.nbytes, *place)


def _write(file: BinaryIO, array: Array) -> None:
    """C-order bytes; a strided array goes through small slabs of its leading axis."""
    if array.flags.c_contiguous:
        file.write(array.reshape(-1).view(np.uint8).data)
        return
    rows = max(1, _SLAB * len(array) // max(array.nbytes, 1))
    for start in range(0, len(array), rows):
        slab = np.ascontiguousarray(array[start : start + rows])
        file.write(slab.reshape(-1).view(np.uint8).data)


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
