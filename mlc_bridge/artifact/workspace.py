"""A place to write files of a model directory, all of which appear at once or not at all.

One run at a time holds a lock on the directory and works in a temporary folder inside it. At the
end the old index goes first, the new files move in by rename, the index comes last: a directory
with an index is complete. On any failure what the run made is removed; a killed run leaves the
folder behind and the next one removes it. Ctrl-C is held from beginning to end, see
``interrupts.py``.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mlc_bridge.artifact.interrupts import HeldInterrupts
from mlc_bridge.errors import ArtifactError


class Workspace:
    """``open``, write into ``temp``, ``publish``, and ``close`` in every case."""

    def __init__(self, directory: Path, name: str) -> None:
        self.directory = directory
        self.temp = directory / name
        self.interrupts = HeldInterrupts()
        self._created: list[Path] = []
        self._lock: int | None = None
        self._published = False

    def open(self) -> None:
        """Raises ArtifactError when the disk refuses or another run writes here."""
        self.interrupts.hold()
        try:
            with told(self.directory):
                self._created = _make_dirs(self.directory)
                self._lock = _lock(self.directory)
                self._clear()
                self.temp.mkdir()
        except BaseException:
            self._leave()
            raise

    def publish(self, names: Iterable[str], index: str, stale: Iterable[Path]) -> None:
        """Remove ``stale`` files and the old index, move ``names`` in, then the new index."""
        names = tuple(names)
        (self.directory / index).unlink(missing_ok=True)
        try:
            for path in stale:
                path.unlink(missing_ok=True)
            for name in (*names, index):
                os.replace(self.temp / name, self.directory / name)
        except BaseException:
            for name in names:
                (self.directory / name).unlink(missing_ok=True)
            raise
        self._published = True

    def close(self) -> None:
        """Remove what was not published; raises a Ctrl-C that came meanwhile as the last thing."""
        self._clear()
        self._leave()

    def _clear(self) -> None:
        if self.temp.exists():
            shutil.rmtree(self.temp, ignore_errors=True)

    def _leave(self) -> None:
        if not self._published:
            with suppress(OSError):  # not empty: somebody else's files came in
                for path in reversed(self._created):
                    path.rmdir()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        self.interrupts.release()


@contextmanager
def told(where: Path) -> Iterator[None]:
    """Turns the operating system's refusals into the user's error."""
    try:
        yield
    except OSError as problem:
        full = problem.errno in (errno.ENOSPC, errno.EDQUOT)
        raise ArtifactError(
            f"cannot write the weights: {problem.strerror or problem}",
            where=where,
            todo="Free space or choose another output" if full else "Choose another output",
        ) from problem


def _make_dirs(directory: Path) -> list[Path]:
    """Create missing folders and say which, outermost first."""
    missing = []
    for path in (directory, *directory.parents):
        if path.exists():
            break
        missing.append(path)
    directory.mkdir(parents=True, exist_ok=True)
    return missing[::-1]


def _lock(directory: Path) -> int | None:
    """The lock dies with its process. None where folders cannot be locked."""
    try:
        import fcntl
    except ImportError:
        return None
    fd = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise ArtifactError("another run is writing here", where=directory) from None
    except OSError:
        os.close(fd)
        return None
    return fd
