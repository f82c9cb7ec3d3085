"""Logits of a reference, kept in a folder for the next ``verify`` of the same checkpoint.

One float32 ``[n, vocab]`` file a window, under a key of all that decides them: the checkpoint's
config and files (by size and time), the ids, the versions of torch and transformers. What is there
is mapped, what is not is computed and written; the folder may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mlc_bridge.artifact.workspace import told
from mlc_bridge.packing import Array
from mlc_bridge.sources import Checkpoint, Source
from mlc_bridge.stages.behaviour import Answers
from mlc_bridge.stages.certificate import versions
from mlc_bridge.stages.progress import Progress


@dataclass
class KeptReference:
    """``open`` makes the reference, and is not called where nothing of it is needed."""

    folder: Path
    ckpt: Checkpoint
    source: Source
    open: Callable[[], Answers]
    how: str = field(default="", init=False)
    _opened: Answers | None = field(default=None, init=False)

    def logits(self, windows: Sequence[Array], progress: Progress) -> Iterator[Array]:
        """float32 ``[n, vocab]`` of each window of ids ``[n]``."""
        key = self._key()
        paths = [self.folder / f"{_digest(key, ids.tobytes())}.npy" for ids in windows]
        missing = [ids for ids, path in zip(windows, paths, strict=True) if not path.exists()]
        computed = self._reference.logits(missing, progress) if missing else iter(())
        for path in paths:
            if path.exists():
                yield np.load(path, mmap_mode="r")
            else:
                yield self._keep(path, next(computed))
        known = len(windows) - len(missing)
        self.how = f"{self.how}, " if missing else "float32, "
        self.how += f"{known} of {len(windows)} windows as kept in {self.folder}"

    def readings(self, ids: Array) -> Sequence[Array]:
        return self._reference.readings(ids)

    @property
    def _reference(self) -> Answers:
        if self._opened is None:
            self._opened = self.open()
            self.how = self._opened.how
        return self._opened

    def _keep(self, path: Path, logits: Array) -> Array:
        with told(self.folder, "cannot keep the reference"):
            self.folder.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f".{path.name}.{os.getpid()}.part")
            with part.open("wb") as file:
                np.save(file, logits)
            os.replace(part, path)
        return logits

    def _key(self) -> bytes:
        files = sorted({entry.file for entry in self.ckpt.entries.values()})
        seen = [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
        about = [self.ckpt.config, self.source.name, seen, versions("torch", "transformers")]
        return json.dumps(about, sort_keys=True).encode()


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:32]
