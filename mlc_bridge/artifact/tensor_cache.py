"""Weights on disk as MLC keeps them: ``params_shard_<i>.bin`` and the index ``tensor-cache.json``.

The index is in ``tensor_index.py``.

Shard rule (TVM's): tensors fill a shard of 32 MiB; one that would reach the cap starts a new
shard, and one of half the cap or more gets a shard of its own *before* the one being filled, so
shard numbers do not follow the order of names.

A directory with an index is complete, whatever happened to the run that wrote it: see
``workspace.py``.

Digests (XXH3, see ``inventory.py``) are taken while writing. md5 sums, which no runtime reads, are
on wish: at 0.8 GB/s a core they cost more than all the rest. They run on threads over finished
shards, whose bytes are still in the page cache, so that memory stays at what the caller holds.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import xxhash

from mlc_bridge.artifact.interrupts import HeldInterrupts
from mlc_bridge.artifact.inventory import INDEX, INVENTORY, OLDER_INDEX, Entry, Inventory
from mlc_bridge.artifact.journal import JOURNAL, Journal
from mlc_bridge.artifact.tensor_index import AGAIN, Record, checked, dtype_of, parse
from mlc_bridge.artifact.workspace import WEIGHTS_WORK, Workspace, told
from mlc_bridge.errors import ArtifactError
from mlc_bridge.packing import Array

WRITTEN = ("params_shard_*.bin", INDEX, OLDER_INDEX, "tensor-cache-b16.json")
"""What weights are written to, now or by older versions and tools."""
SHARD_CAP = 32 << 20
WORTH_KEEPING = 1 << 30
"""Bytes of finished weights that Ctrl-C leaves for the next run; less is quickly made again."""
PENDING = "pending.bin"
_SLAB = 4 << 20


class ShardWriter:
    """Writes the weights of one model directory; a context manager that publishes on a clean exit.

    ``metadata`` becomes the index's metadata block and may be filled until the block ends.
    On any exception, Ctrl-C included, nothing new is left in the directory, but for ``job``: a
    hash of all that decides the bytes. With it a killed run's ``finished`` parameters need only be
    named again (``keep``), and Ctrl-C leaves them for the next run from ``WORTH_KEEPING`` on.
    """

    def __init__(
        self,
        directory: str | Path,
        metadata: Mapping[str, Any] | None = None,
        *,
        md5: bool = True,
        job: str | None = None,
    ) -> None:
        self.directory = Path(directory)
        self.metadata: dict[str, Any] = dict(metadata or {})
        self.records: dict[str, Record] = {}
        self.finished: Mapping[str, Record] = {}
        self.nbytes = 0
        self.more: dict[str, Any] = {}
        """Keys of the inventory, to be filled before the block ends."""
        self._shards: list[dict[str, Any]] = []
        self._md5 = md5
        self._sums: list[Future[str]] = []
        self._pending: list[Record] = []
        self._pending_bytes = 0
        self._file: _Hashed | None = None
        self._refusal = "cannot write the weights"
        self._space = Workspace(
            self.directory,
            WRITTEN,
            refusal=self._refusal,
            folder=WEIGHTS_WORK,
            goes_on=lambda: self._journal.continues(),
        )
        self._journal = Journal(self._space.temp, job)
        self._interrupts = HeldInterrupts()

    @property
    def notes(self) -> Mapping[str, Any]:
        """What ``note`` was told, in this run or the one before it."""
        return self._journal.notes

    def __enter__(self) -> ShardWriter:
        with ExitStack() as stack:
            stack.callback(self._interrupts.release)
            self._interrupts.hold()
            stack.enter_context(self._space)
            stack.callback(self._journal.close)
            stack.callback(self._drop_pending)
            with told(self.directory, self._refusal):
                self._journal.open()
            self.finished = self._journal.finished
            self._hashing = ThreadPoolExecutor(2, thread_name_prefix="shard-md5")
            stack.callback(self._hashing.shutdown, wait=True, cancel_futures=True)
            self._all = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._all:
            if kind is None:
                with told(self.directory, self._refusal):
                    self._finish()
                self._publish()
            elif isinstance(error, KeyboardInterrupt):
                self._keep_for_later(error)

    def _keep_for_later(self, error: KeyboardInterrupt) -> None:
        done = sum(entry.nbytes for entry in self._journal.entries.values())
        if self._journal.key is not None and done >= WORTH_KEEPING:
            self._space.keep = True
            error.add_note(
                f"{done / 1e9:.1f} GB of finished weights stay in {self._space.temp}; "
                "the same command goes on from there"
            )

    def note(self, name: str, value: Any) -> None:
        """What there is to tell about a weight, for the run that goes on; before its ``add``."""
        self._journal.note(name, value)

    def keep(self, name: str) -> None:
        """A parameter of ``finished``, in its turn."""
        self._place(self.finished[name], None)

    def add(self, name: str, array: Array, dtype: str | None = None) -> None:
        """Append one tensor; contiguous views of a mapped file are written without a copy.

        ``dtype`` reinterprets the bytes under another MLC dtype name of the same item size.
        Raises ArtifactError for a repeated name or a disk that refuses.
        """
        if dtype is not None:
            array = array.view(dtype_of(dtype))
        word = "raw" if array.dtype == np.float32 else "f32-to-bf16"
        shape = tuple(array.shape)
        self._place(Record(name, shape, array.dtype.name, word, array.nbytes, 0, ""), array)

    def _place(self, record: Record, array: Array | None) -> None:
        """By TVM's rule; what is finished already is not written again."""
        self._interrupts.check()
        if record.name in self.records:
            raise ArtifactError("this parameter is written twice", where=record.name)
        array = None if record.name in self.finished else array
        self.nbytes += record.nbytes
        with told(self.directory, self._refusal):
            if self._pending_bytes + record.nbytes >= SHARD_CAP:
                if record.nbytes * 2 >= SHARD_CAP:
                    self._write_own(replace(record, offset=0), array)
                    return
                self._commit_pending()
            self._append(replace(record, offset=self._pending_bytes), array)

    def _write_own(self, record: Record, array: Array | None) -> None:
        name, entry = _shard_name(len(self._shards)), None
        if array is not None:
            file = _Hashed(self._space.temp / name)
            try:
                _write(file, array)
            finally:
                entry = file.close()
        self._register(name, [record], entry)

    def _append(self, record: Record, array: Array | None) -> None:
        if array is not None:
            self._file = self._file or _Hashed(self._space.temp / PENDING)
            _write(self._file, array)
        self._pending.append(record)
        self.records[record.name] = record
        self._pending_bytes += record.nbytes

    def _commit_pending(self) -> None:
        if not self._pending:
            return
        name, entry = _shard_name(len(self._shards)), None
        if self._file is not None:
            entry, self._file = self._file.close(), None
            os.replace(self._space.temp / PENDING, self._space.temp / name)
        self._register(name, self._pending, entry)
        self._pending, self._pending_bytes = [], 0

    def _drop_pending(self) -> None:
        if self._file is not None:
            with suppress(OSError):
                self._file.close()

    def _register(self, name: str, records: list[Record], entry: Entry | None) -> None:
        """A shard is on disk: written now, or (without ``entry``) by the run before."""
        records = [replace(record, shard=name) for record in records]
        self.records.update({record.name: record for record in records})
        shard = {
            "dataPath": name,
            "format": "raw-shard",
            "nbytes": sum(record.nbytes for record in records),
            "records": [record.as_json() for record in records],
        }
        if entry is not None:
            self._journal.add(shard, entry)
        elif self._journal.entries[name].nbytes != shard["nbytes"]:
            raise AssertionError(f"{name}: the run before wrote another shard of this name")
        if self._md5:
            self._sums.append(self._hashing.submit(_md5, self._space.temp / name))
        self._shards.append(shard)

    def _finish(self) -> None:
        self._commit_pending()
        for shard, known in zip(self._shards, self._sums, strict=self._md5):
            shard["md5sum"] = known.result()
            self._interrupts.check()
        index = {"metadata": self.metadata, "records": self._shards}
        (self._space.temp / INDEX).write_text(json.dumps(index, indent=4), encoding="utf-8")
        self._journal.close()
        (self._space.temp / JOURNAL).unlink(missing_ok=True)
        listed = Inventory(self._journal.entries, more=self.more).text()
        (self._space.temp / INVENTORY).write_text(listed, encoding="utf-8")
        self._interrupts.check()

    def _publish(self) -> None:
        self._space.publish(INDEX, stale=WRITTEN)


class _Hashed:
    """A file that is being written, with the digest of what went into it."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._digest = xxhash.xxh3_128()
        self._nbytes = 0

    def write(self, data: memoryview) -> None:
        self._file.write(data)
        self._digest.update(data)
        self._nbytes += data.nbytes

    def close(self) -> Entry:
        self._file.close()
        return Entry(nbytes=self._nbytes, xxh3_128=self._digest.hexdigest())


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
    index: str = INDEX

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
        """Compare every byte, the index's too, with the digests there are, and with the md5 sums
        if ``md5``.

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
        listed.check(self.directory, self.index)
        digests = sum(listed.check(self.directory, name) for name in self.shards)
        return Proof(len(self.shards), digests, len(summed))


def read_index(directory: str | Path, *, md5: bool = False) -> TensorCache:
    """Read the index of a model directory: files, lengths, offsets and shapes must agree.

    ``md5``: also every byte that has a digest or md5 sum, see ``TensorCache.prove``. Raises
    ArtifactError naming the file or tensor.
    """
    directory = Path(directory)
    path = directory / INDEX
    if not path.exists() and (directory / OLDER_INDEX).exists():
        path = directory / OLDER_INDEX
    index = parse(path)
    records = checked(directory, index)
    shards = {shard.dataPath: shard.md5sum for shard in index.shards}
    cache = TensorCache(directory, index.free_form, records, shards, path.name)
    if md5:
        cache.prove(md5=True)
    return cache


def _shard_name(number: int) -> str:
    return f"params_shard_{number}.bin"


def _write(file: _Hashed, array: Array) -> None:
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
