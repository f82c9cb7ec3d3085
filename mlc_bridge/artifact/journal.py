"""What a conversion had finished when it was stopped, so that the next run goes on from there.

A file in the hidden folder of the weights, one JSON value a line: the key of the job; what there is
to tell about each weight (``note``), written before it; each finished shard with its digest. A run
with the same key takes over the shards that are as their digests say. The weights in no finished
shard are converted again, and since shards follow from the order and sizes of the tensors alone,
the bytes of the whole are those of a run without a stop.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from mlc_bridge.artifact.inventory import Entry
from mlc_bridge.artifact.tensor_index import Record, Shard

JOURNAL = "journal.jsonl"


class Journal:
    """Without a ``key`` nothing is written down, and nothing taken over."""

    def __init__(self, folder: Path, key: str | None) -> None:
        self.folder = folder
        self.key = key
        self.shards: dict[str, Shard] = {}
        self.entries: dict[str, Entry] = {}
        self.notes: dict[str, Any] = {}
        self._file: TextIO | None = None

    @property
    def finished(self) -> Mapping[str, Record]:
        """Parameter -> where it lies, of those that need no work."""
        found = [(shard, tensor) for shard in self.shards.values() for tensor in shard.records]
        return {tensor.name: tensor.record(shard.dataPath) for shard, tensor in found}

    def continues(self) -> bool:
        """Whether the folder holds the beginning of this very job."""
        return self.key is not None and next(self._lines(), None) == {"job": self.key}

    def open(self) -> None:
        """Take over what is whole, remove the rest, and go on writing."""
        for line in self._lines() if self.continues() else ():
            self._take(line)
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name not in self.shards:
                path.unlink()
        if self.key is None:
            return
        self._file = (self.folder / JOURNAL).open("w", encoding="utf-8")
        self._put({"job": self.key})
        for name, value in self.notes.items():
            self._put({"note": [name, value]})
        for name, shard in self.shards.items():
            self._put_shard(shard, self.entries[name])

    def note(self, name: str, value: Any) -> None:
        self._put({"note": [name, value]})

    def add(self, shard: Mapping[str, Any], entry: Entry) -> None:
        """A shard that is complete on disk."""
        self.entries[str(shard["dataPath"])] = entry
        self._put_shard(Shard.model_validate(shard), entry)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _take(self, line: Any) -> None:
        if "note" in line:
            name, value = line["note"]
            self.notes[name] = value
        elif "shard" in line:
            shard, entry = Shard.model_validate(line["shard"]), Entry.model_validate(line["entry"])
            path = self.folder / shard.dataPath
            if path.is_file() and Entry.of(path) == entry:
                self.shards[shard.dataPath] = shard
                self.entries[shard.dataPath] = entry

    def _put_shard(self, shard: Shard, entry: Entry) -> None:
        self._put({"shard": shard.model_dump(exclude_unset=True), "entry": entry.model_dump()})

    def _put(self, value: Any) -> None:
        if self._file is not None:
            self._file.write(json.dumps(value) + "\n")
            self._file.flush()

    def _lines(self) -> Iterator[Any]:
        """Up to the line in which the run was stopped."""
        try:
            with (self.folder / JOURNAL).open(encoding="utf-8") as file:
                for line in file:
                    yield json.loads(line)
        except (OSError, ValueError):
            return
