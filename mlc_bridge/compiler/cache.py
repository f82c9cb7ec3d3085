"""Libraries compiled before, so that the same build is a file copy.

    key = sha256(target, everything the lib's metadata says, versions, source of the compiler)

The source files of models, schemes, compiler and schedules are part of the key: a changed line is
another compiler. So are those of third packages' architectures and schemes. An entry is a library
and a small JSON file beside it that holds its checksum and is written last; what does not match
its checksum counts as absent. The oldest entries beyond ``KEEP`` are deleted.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

KEEP = 32
PACKAGES = ("apache-tvm", "apache-tvm-ffi", "mlc-ai-nightly-cpu", "numpy")


def default_directory() -> Path:
    """Where libraries are kept unless the job says otherwise."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "mlc-bridge" / "libs"


def build_key(description: Mapping[str, Any], sources: Iterable[Path]) -> str:
    """sha256 (hex) of a JSON-able ``description``, package versions and source files."""
    text = json.dumps([description, _versions()], sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode())
    for path in sorted(set(_files(sources))):
        digest.update(str(path.name).encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def fetch(directory: Path, key: str, output: Path) -> dict[str, Any] | None:
    """Copy the library of ``key`` to ``output`` and return its notes; None when there is none."""
    library, notes = _entry(directory, key)
    try:
        known = json.loads(notes.read_text())
        if hashlib.sha256(library.read_bytes()).hexdigest() != known["sha256"]:
            return None
    except (OSError, ValueError, KeyError):
        return None
    _copy(library, output)
    os.utime(notes)
    return dict(known["notes"])


def store(directory: Path, key: str, built: Path, notes: Mapping[str, Any]) -> None:
    """Keep ``built``; a cache that cannot be written is no reason to fail."""
    library, index = _entry(directory, key)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _copy(built, library)
        sha256 = hashlib.sha256(library.read_bytes()).hexdigest()
        _write(json.dumps({"sha256": sha256, "notes": dict(notes)}), index)
        for old in sorted(directory.glob("*.json"), key=_age)[:-KEEP]:
            old.unlink(missing_ok=True)
            old.with_suffix(".so").unlink(missing_ok=True)
    except OSError:
        return


def _entry(directory: Path, key: str) -> tuple[Path, Path]:
    return directory / f"{key}.so", directory / f"{key}.json"


def _age(path: Path) -> float:
    return path.stat().st_mtime


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _files(sources: Iterable[Path]) -> Iterable[Path]:
    for path in sources:
        kinds = ("*.py", "*.json")  # code, and the tables that it reads
        yield from (f for k in kinds for f in path.rglob(k)) if path.is_dir() else [path]


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = _neighbour(target)
    try:
        shutil.copyfile(source, temporary)
        temporary.chmod(0o755)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _write(text: str, target: Path) -> None:
    temporary = _neighbour(target)
    try:
        temporary.write_text(text)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _neighbour(target: Path) -> Path:
    """A new, empty file beside ``target``, so that a rename can publish it."""
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    os.close(handle)
    return Path(name)
