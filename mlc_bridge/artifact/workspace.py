"""A place to write files of a model directory, all of which appear at once or not at all.

One run at a time holds a lock on the directory and works in a hidden folder inside it, so that a
mount point, a symlink or a directory below a read-only one is a place like any other. ``publish``
moves the files in by rename::

    list of files, marked unfinished      from here on a killed run is known as one
    old index, old config, old files      out of the way, into the hidden folder
    new files ... new index               the index last: a directory with one is complete
    list of files

What is not ours by that list (``inventory.py``) is never touched, a text of ours that was edited
since is kept as ``NAME.edited-1``; a file of the user where one of
ours must go ends the run before it begins. When a move fails, all are taken back. On any failure
what the run made is removed; a killed run leaves the hidden folder behind and the next one removes
it. Only unfinished weights, in a hidden folder of their own name, wait for a run that goes on.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any

from mlc_bridge.artifact.chat_config import CONFIG_NAME
from mlc_bridge.artifact.interrupts import HeldInterrupts
from mlc_bridge.artifact.inventory import INDEX, INVENTORY, OLDER_INDEX, Entry, Inventory, adopt
from mlc_bridge.errors import ArtifactError

WORK = ".mlc-bridge-work"
WEIGHTS_WORK = ".mlc-bridge-weights"
REFUSAL = "cannot be written"
FIRST_OUT = (INDEX, OLDER_INDEX, CONFIG_NAME)
"""What makes a directory a model goes first, so that a half-replaced one is none."""


class Workspace:
    """A context manager: write into ``temp``, then ``publish``.

    ``writes``: patterns of the names that may come, ``more``: keys for the inventory. ``goes_on``
    says whether what a killed run left in ``temp`` is of use, ``keep`` leaves it there for the next
    one. Raises ArtifactError when the disk refuses, another run writes here, or a file of that name
    is not ours.
    """

    def __init__(
        self,
        directory: str | Path,
        writes: Iterable[str],
        *,
        refusal: str = REFUSAL,
        folder: str = WORK,
        goes_on: Callable[[], bool] = lambda: False,
    ) -> None:
        self.named = Path(directory)
        self.directory = Path(os.path.realpath(directory))
        self.temp = self.directory / folder
        self.inventory = Inventory()
        self.more: dict[str, Any] = {}
        self._writes = tuple(writes)
        self.keep = False
        self._refusal = refusal
        self._goes_on = goes_on
        self._created: list[Path] = []
        self._lock: int | None = None
        self._published = False

    def __enter__(self) -> Workspace:
        interrupts = HeldInterrupts()
        try:
            interrupts.hold()
            with told(self.named, self._refusal):
                self._open()
            interrupts.release()
        except BaseException:
            self._close()
            interrupts.release()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        interrupts = HeldInterrupts()
        interrupts.hold()
        self._close()
        interrupts.release()

    def publish(self, last: str, stale: Iterable[str] = ()) -> None:
        """Move all files of ``temp`` in, ``last`` as the last one.

        Files of ours that match a pattern of ``stale`` and have no successor are removed. Raises
        ArtifactError when the disk refuses; everything is then as it was.
        """
        interrupts = HeldInterrupts()
        interrupts.hold()
        try:
            with told(self.named, self._refusal):
                self._publish(last, tuple(stale))
        finally:
            interrupts.release()

    def _open(self) -> None:
        self._created, self._lock = _locked(self.directory)
        self.inventory = adopt(self.directory)
        for path in sorted(self.directory.iterdir()):
            ours = path.name in self.inventory.files and not _is_folder(path)
            if not ours and _matches(path.name, self._writes):
                raise ArtifactError(
                    "this file was not written by mlc-bridge and is not overwritten",
                    where=self.named / path.name,
                    todo="Move it away or choose another output",
                )
        if self.temp.is_symlink():
            raise ArtifactError("a link is in the way", where=self.named / self.temp.name)
        if not self._goes_on():
            self._clear()
        self.temp.mkdir(exist_ok=True)

    def _publish(self, last: str, stale: Sequence[str]) -> None:
        made = Inventory.read(self.temp) or Inventory()
        found = [p.name for p in self.temp.iterdir() if p.is_file() and p.name != INVENTORY]
        names = sorted(found, key=lambda name: (name == last, name))
        new = {name: made.files.get(name) or Entry.of(self.temp / name) for name in names}
        old = self.inventory
        more = {**old.more, **made.more, **self.more}
        there = {n: e for n, e in old.files.items() if _is_file(self.directory / n)}
        kept = {n: e for n, e in there.items() if n not in new and not _matches(n, stale)}
        listed = self.directory / INVENTORY
        before = listed.read_bytes() if listed.exists() else None
        self._spare([name for name in there if name not in kept])
        self._list(Inventory({**there, **new}, True, more))
        try:
            self._move(names, [n for n in there if n not in kept])
        except BaseException:
            listed.unlink() if before is None else listed.write_bytes(before)
            raise
        self._list(Inventory({**kept, **new}, False, more))
        self._published = True
        if last == INDEX:
            shutil.rmtree(self.directory / WEIGHTS_WORK, ignore_errors=True)

    def _spare(self, names: Sequence[str]) -> None:
        """What the user edited in a text of ours stays under another name."""
        for name in names:
            entry, path = self.inventory.files[name], self.directory / name
            told = entry.xxh3_128 is not None and not self.inventory.unfinished
            if told and name.endswith(".json") and path.is_file() and Entry.of(path) != entry:
                places = (path.with_name(f"{name}.edited-{number}") for number in count(1))
                shutil.copyfile(path, next(p for p in places if not os.path.lexists(p)))

    def _list(self, inventory: Inventory) -> None:
        (self.temp / INVENTORY).write_text(inventory.text(), encoding="utf-8")
        os.replace(self.temp / INVENTORY, self.directory / INVENTORY)

    def _move(self, names: Sequence[str], gone: Sequence[str]) -> None:
        """``gone`` out, ``names`` in; a single file is replaced in one step."""
        done: list[tuple[Path, Path]] = []
        aside = self.temp / "replaced"
        aside.mkdir()
        if len(names) == 1 and [*names] == [*gone]:
            gone = ()
        out = [*(n for n in FIRST_OUT if n in gone), *(n for n in gone if n not in FIRST_OUT)]
        moves = [(self.directory / n, aside / n) for n in out]
        moves += [(self.temp / n, self.directory / n) for n in names]
        try:
            for source, target in moves:
                os.replace(source, target)
                done.append((source, target))
        except BaseException:
            for source, target in reversed(done):
                os.replace(target, source)
            raise

    def _clear(self) -> None:
        """Empty the hidden folder, but for unfinished weights in it."""
        if not self.temp.is_dir():
            return
        for path in self.temp.iterdir():
            if _is_folder(path):
                if path.name != WEIGHTS_WORK:
                    shutil.rmtree(path)
            else:
                path.unlink()

    def _close(self) -> None:
        if self._lock is None:
            return
        with suppress(OSError):
            if self._published:
                shutil.rmtree(self.temp)
            elif not self.keep:
                self._clear()
                self.temp.rmdir()
        if not self._published:
            with suppress(OSError):  # not empty: somebody else's files came in
                for path in reversed(self._created):
                    path.rmdir()
        if self._lock >= 0:
            os.close(self._lock)
        self._lock = None


def refuse_overlap(output: str | Path, *sources: str | Path | None) -> None:
    """Raises ArtifactError when ``output`` is where files of a checkpoint lie.

    ``sources`` that are not there (hub ids) are no concern. A checkpoint in a folder inside the
    output, or the other way round, is none either: only files of our own are ever replaced.
    """
    place = Path(output)
    for source in (Path(s).expanduser() for s in sources if s is not None):
        folder = source if source.is_dir() else source.parent
        if not (source.exists() and place.exists()):
            continue
        links = [path for path in folder.iterdir() if path.is_symlink() and path.exists()]
        if any(os.path.samefile(f, place) for f in (folder, *(p.resolve().parent for p in links))):
            raise ArtifactError(
                "the output is the checkpoint itself, whose directory is never modified",
                where=output,
                todo="Name another directory with -o",
            )


@contextmanager
def told(where: Path, refusal: str = REFUSAL) -> Iterator[None]:
    """Turns the operating system's refusals into the user's error."""
    try:
        yield
    except OSError as problem:
        full = problem.errno in (errno.ENOSPC, errno.EDQUOT)
        raise ArtifactError(
            f"{refusal}: {problem.strerror or problem}",
            where=where,
            todo="Free space or choose another output" if full else "Choose another output",
        ) from problem


def _locked(directory: Path) -> tuple[list[Path], int]:
    """Make the directory and lock it: which folders are new, and the lock.

    The run that held the lock before may just have removed the directory: then once more.
    """
    while True:
        created = _make_dirs(directory)
        lock = _lock(directory)
        with suppress(FileNotFoundError):
            if lock < 0 or os.path.samestat(os.fstat(lock), directory.stat()):
                return created, lock
        os.close(lock)


def _make_dirs(directory: Path) -> list[Path]:
    """Create missing folders and say which, outermost first."""
    missing = []
    for path in (directory, *directory.parents):
        if path.exists():
            break
        missing.append(path)
    directory.mkdir(parents=True, exist_ok=True)
    return missing[::-1]


def _lock(directory: Path) -> int:
    """The lock dies with its process. -1 where folders cannot be locked."""
    try:
        import fcntl
    except ImportError:
        return -1
    fd = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise ArtifactError(
            "another run is writing here",
            where=directory,
            todo="Wait for its end or choose another output",
        ) from None
    except OSError:
        os.close(fd)
        return -1
    return fd


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _is_file(path: Path) -> bool:
    return os.path.lexists(path) and not _is_folder(path)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
