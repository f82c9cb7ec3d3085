"""``mlc-bridge.json``: the files of a model directory that were written here, each with its digest.

::

    {"files": {"lib.so": {"nbytes": 90112, "xxh3_128": "f3..."}, ...}, "unfinished": true}

It answers two questions. *Whose is this file?* Only what it lists is ever replaced or removed; in a
directory without it, what the config and the index of the weights name, unless that directory is a
checkpoint's. *Is it as it was written?* XXH3 (128 bits) finds every accident at 10 GB/s a core; it
is no proof against an adversary, who could change this file as well.

``unfinished`` stands there while files are being moved in: a run that was killed then leaves the
mark. MLC's readers ask for files by name and never for this one. Other keys are kept.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import xxhash
from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError

from mlc_bridge.artifact.chat_config import CONFIG_NAME
from mlc_bridge.errors import ArtifactError

INVENTORY = "mlc-bridge.json"
INDEX = "tensor-cache.json"
OLDER_INDEX = "ndarray-cache.json"
LIB_NAME = "lib.so"
_BLOCK = 1 << 20


class Entry(BaseModel):
    """Length and digest of one file; a file adopted from another tool has no digest."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    nbytes: NonNegativeInt
    xxh3_128: str | None = None

    @classmethod
    def of(cls, path: Path) -> Entry:
        """Reads the file; raises OSError."""
        return cls(nbytes=path.stat().st_size, xxh3_128=digest_of(path))


class _File(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")

    files: dict[str, Entry]
    unfinished: bool = False


@dataclass(frozen=True)
class Inventory:
    """What stands in ``mlc-bridge.json``; ``more`` are keys that others put there."""

    files: Mapping[str, Entry] = field(default_factory=dict)
    unfinished: bool = False
    more: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, directory: Path) -> Inventory | None:
        """None where there is none. Raises ArtifactError for one that cannot be read."""
        path = directory / INVENTORY
        try:
            found = _File.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as problem:
            said = problem.strerror if isinstance(problem, OSError) else problem.errors()[0]["msg"]
            raise ArtifactError(
                f"the list of written files cannot be read ({said})",
                where=path,
                todo="Delete it if you trust these files, or build the model again elsewhere",
            ) from None
        return cls(
            {name: entry for name, entry in found.files.items() if _plain(name)},
            found.unfinished,
            found.model_extra or {},
        )

    def text(self) -> str:
        files = {n: e.model_dump(exclude_none=True) for n, e in sorted(self.files.items())}
        mark = {"unfinished": True} if self.unfinished else {}
        return json.dumps({"files": files, **mark, **self.more}, indent=1)

    def check(self, directory: Path, name: str) -> bool:
        """Whether the file has a digest here. Raises ArtifactError if it is another file now."""
        entry = self.files.get(name)
        if entry is None or entry.xxh3_128 is None:
            return False
        try:
            found = Entry.of(directory / name)
        except OSError as problem:
            raise ArtifactError(
                f"cannot be read ({problem.strerror})", where=directory / name
            ) from None
        if found != entry:
            same = found.nbytes == entry.nbytes
            raise ArtifactError(
                "damaged or changed since it was written",
                where=directory / name,
                found=f"xxh3 {found.xxh3_128}" if same else f"{found.nbytes} bytes",
                expected=f"{entry.xxh3_128 if same else entry.nbytes} as in {INVENTORY}",
                todo=f"Build it again; if the change was meant, delete {INVENTORY}",
            )
        return True


def adopt(directory: Path) -> Inventory:
    """The inventory, or what takes its place in a directory that MLC or an older version wrote."""
    listed = Inventory.read(directory)
    if listed is None:
        names = set() if holds_checkpoint(directory) else _named(directory)
        return Inventory({n: Entry(nbytes=(directory / n).stat().st_size) for n in sorted(names)})
    if holds_checkpoint(directory):  # came later, perhaps over files of ours
        same = {n: e for n, e in listed.files.items() if _unchanged(directory / n, e)}
        return replace(listed, files=same)
    return listed


def holds_checkpoint(directory: Path) -> bool:
    """Whether a Hugging Face checkpoint lies in ``directory`` itself."""
    weights = ("*.safetensors", "pytorch_model*.bin", "*.pt", "*.pth")
    return (directory / "config.json").exists() and any(any(directory.glob(w)) for w in weights)


def digest_of(path: Path) -> str:
    """XXH3 of a file, 128 bits in hex."""
    digest = xxhash.xxh3_128()
    with path.open("rb", buffering=0) as file:
        block = memoryview(bytearray(_BLOCK))
        while count := file.readinto(block):
            digest.update(block[:count])
    return digest.hexdigest()


def _unchanged(path: Path, entry: Entry) -> bool:
    return path.is_file() and Entry.of(path) == entry


def _named(directory: Path) -> set[str]:
    """The files of an MLC directory by what its own config and index say, as far as they exist."""
    config, names = _json(directory / CONFIG_NAME), set()
    if isinstance(config.get("model_config"), dict):
        names = {CONFIG_NAME, LIB_NAME, *_texts(config.get("tokenizer_files"))}
    for index in (INDEX, OLDER_INDEX, "tensor-cache-b16.json"):
        shards = _json(directory / index).get("records")
        if isinstance(shards, list):
            places = [s.get("dataPath") for s in shards if isinstance(s, dict)]
            names |= {index, *_texts(places)}
    there = {name for name in names if _plain(name) and (directory / name).is_file()}
    return {name for name in there if name != LIB_NAME or is_library(directory / name)}


def is_library(path: Path) -> bool:
    """Whether it begins as a shared library of Linux, Windows or macOS does."""
    heads = (b"\x7fELF", b"MZ", b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe")
    with path.open("rb") as file:
        return file.read(4).startswith(heads)


def _texts(values: Any) -> list[str]:
    return [v for v in values if isinstance(v, str)] if isinstance(values, list) else []


def _plain(name: str) -> bool:
    """A name in this very directory, and no other spelling of one."""
    return name not in ("", ".", "..") and os.path.basename(name) == name and "\0" not in name


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
