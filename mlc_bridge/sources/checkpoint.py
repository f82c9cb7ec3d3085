"""A checkpoint on disk: config, tensor names, and tensors as read-only views of mapped files.

Opening reads headers only and checks all of them; a tensor is mapped when it is asked for, and its
view costs no memory of its own. Works for a directory (one file, or shards under an index), for
one weights file (safetensors, or torch's ``.bin`` and ``.pt``) and for an ``.index.json``;
``config.json`` is looked for beside the weights, or in ``config_dir`` where they lie elsewhere.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mlc_bridge.errors import SourceError
from mlc_bridge.packing import Array
from mlc_bridge.sources.dialects import own_words
from mlc_bridge.sources.foreign import FILES, INSTEAD
from mlc_bridge.sources.missing import lacks
from mlc_bridge.sources.tensor_file import Entry, safetensors_entries
from mlc_bridge.sources.torch_file import torch_entries

# In the order in which they are looked for; msModelSlim copies the float model's index along.
WEIGHTS = (
    "quant_model_weight*.safetensors.index.json",
    "quant_model_weight*.safetensors",
    "model.safetensors",
    "model.safetensors.index.json",
    "*.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "*.pt",
    "*.safetensors",
)
LONGEST_JSON = 100_000_000
DEEPEST = 64
# Where tools keep their quantization settings when config.json has none.
QUANT_FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")


@dataclass(frozen=True)
class Checkpoint:
    """Lazy index of a checkpoint; build it with ``Checkpoint.open``.

    ``read_as``: the source that the user named, whose word goes over the config's. A view of a
    part of the file has ``renamed``, name's beginning here -> in the file, and ``outside``: tensors
    that are none of it -> what they are.
    """

    path: Path
    config: dict[str, Any]
    entries: Mapping[str, Entry]
    read_as: str | None = None
    renamed: Mapping[str, str] = field(default_factory=dict)
    outside: Mapping[str, str] = field(default_factory=dict)
    _maps: dict[Path, Array] = field(default_factory=dict, repr=False)
    _texts: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, path: str | Path, config_dir: str | Path | None = None) -> Checkpoint:
        """Index the weights at ``path`` (directory, weights file or index).

        Raises SourceError, naming file and tensor, for anything missing, damaged or unsafe.
        """
        path = Path(path)
        weights = _weights(path) if _is_dir(path) else path
        if not _is_file(weights):
            raise SourceError("no such file or directory", where=path)
        home = Path(config_dir) if config_dir is not None else weights.parent
        config = _read_json(home / "config.json") if (home / "config.json").is_file() else {}
        return cls(home, config, _entries(weights))

    @property
    def names(self) -> tuple[str, ...]:
        """All tensor names, in file order."""
        return tuple(self.entries)

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def stored(self, name: str) -> str:
        """What the file, and settings that name layers, call this tensor or layer."""
        return _renamed(name, self.renamed.items())

    def named(self, stored: str) -> str:
        """What a tensor or layer of the file is called here."""
        return _renamed(stored, [(theirs, ours) for ours, theirs in self.renamed.items()])

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entry(name).shape

    def dtype(self, name: str) -> np.dtype[Any]:
        return self._entry(name).dtype

    def file_of(self, name: str) -> Path:
        return self._entry(name).file

    def tensor(self, name: str) -> Array:
        """Read-only view of the mapped file (bfloat16 and float8 as ml_dtypes)."""
        e = self._entry(name)
        if e.nbytes == 0:
            return np.empty(e.shape, e.dtype)
        flat = self._map(e.file)[e.begin : e.begin + e.nbytes].view(e.dtype)
        if e.strides is None:
            return flat.reshape(e.shape)
        return np.lib.stride_tricks.as_strided(flat, e.shape, e.strides, writeable=False)

    def require(self, name: str, shape: tuple[int, ...] | None, *dtypes: Any) -> None:
        """Raise SourceError unless the tensor exists with this shape and one of these dtypes."""
        e = self._entry(name)
        if shape is not None and e.shape != shape:
            raise SourceError(
                "wrong shape", where=f"{e.file.name}: {self.stored(name)}",
                found=e.shape, expected=shape,
                todo="The weights do not fit config.json, or the quantization settings are wrong",
            )  # fmt: skip
        if dtypes and e.dtype not in [np.dtype(d) for d in dtypes]:
            raise SourceError(
                "wrong dtype", where=f"{e.file.name}: {self.stored(name)}", found=e.dtype,
                expected=" or ".join(str(np.dtype(d)) for d in dtypes),
            )  # fmt: skip

    def matrix(self, name: str, *dtypes: Any) -> tuple[int, int]:
        """Shape of a matrix that is not empty and of one of these dtypes."""
        self.require(name, None, *dtypes)
        shape = self.shape(name)
        if len(shape) != 2 or 0 in shape:
            raise SourceError("not a matrix", where=name, found=shape)
        return shape[0], shape[1]

    @cached_property
    def quantization(self) -> dict[str, Any]:
        """The quantization settings of config.json, its text_config, or a file of their own.

        Where the weights lie elsewhere, what the config beside them says comes last.
        """
        weights = {e.file.parent for e in self.entries.values()} - {self.path}
        beside = [home / "config.json" for home in sorted(weights)]
        configs = (self.config, *(_read_json(file) for file in beside if file.is_file()))
        for config in configs:
            for place in (config, config.get("text_config")):
                for key in ("quantization_config", "compression_config"):
                    if isinstance(place, dict) and isinstance(place.get(key), dict):
                        return dict(place[key])
        for name in QUANT_FILES:
            if found := self.json(name):
                return _unwrapped(found)
        return {}

    @cached_property
    def settings(self) -> dict[str, Any]:
        """``quantization`` in the words of the tool whose layout the weights have."""
        return own_words(self.quantization, self.read_as)

    def json(self, pattern: str) -> dict[str, Any]:
        """The JSON file of this name beside config.json or the weights; empty without one."""
        if pattern not in self._texts:
            weights = {e.file.parent for e in self.entries.values()}
            homes = (self.path, *sorted(weights - {self.path}))
            files = [file for home in homes for file in sorted(home.glob(pattern))]
            self._texts[pattern] = _read_json(files[0]) if files else {}
        return self._texts[pattern]

    def described(self, pattern: str) -> dict[str, Any]:
        """The JSON file whose keys are tensors of the file, under the names they have here."""
        if not self.renamed:
            return self.json(pattern)
        if (key := f"{pattern} as named here") not in self._texts:
            found = self.json(pattern).items()
            self._texts[key] = {self.named(n): v for n, v in found if n not in self.outside}
        return self._texts[key]

    def layers(self, suffix: str) -> tuple[str, ...]:
        """Module paths that own a tensor ``<path>.<suffix>``."""
        dot = f".{suffix}"
        return tuple(n.removesuffix(dot) for n in self.entries if n.endswith(dot))

    def _entry(self, name: str) -> Entry:
        try:
            return self.entries[name]
        except KeyError:
            raise lacks(name, self.entries, self.path) from None

    def _map(self, file: Path) -> Array:
        if file not in self._maps:
            with file.open("rb") as f:
                mapped = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
            self._maps[file] = np.frombuffer(mapped, np.uint8)
        return self._maps[file]


def _renamed(name: str, pairs: Iterable[tuple[str, str]]) -> str:
    for old, new in pairs:
        if name.startswith(old):
            return new + name.removeprefix(old)
        if f"{name}." == old:
            return new.removesuffix(".")
    return name


def _unwrapped(settings: dict[str, Any]) -> dict[str, Any]:
    """ModelOpt's own file has its settings one level down, and its name beside them."""
    inner, producer = settings.get("quantization"), settings.get("producer")
    if not isinstance(inner, dict) or not isinstance(producer, dict):
        return settings
    return {"quant_method": producer.get("name"), **inner}


def _weights(directory: Path) -> Path:
    """The weights file or index of a directory."""
    for pattern in WEIGHTS:
        found = sorted(directory.glob(pattern))
        if len(found) == 1:
            return found[0]
        if found:
            raise SourceError(
                "several weight files and no index that joins them",
                where=directory,
                found=", ".join(f.name for f in found[:4]) + (" ..." if len(found) > 4 else ""),
                todo="Name the file or index to read, or fetch the missing index",
            )
    for file in sorted(directory.iterdir()):
        _refuse_foreign(file)
    raise SourceError(
        "no weights here", where=directory, expected=" or ".join(WEIGHTS[2:4]),
        todo="Give a checkpoint directory, a weights file or its index",
    )  # fmt: skip


def _entries(weights: Path) -> dict[str, Entry]:
    return _sharded(weights) if weights.suffix == ".json" else _file_entries(weights)


def _file_entries(file: Path) -> dict[str, Entry]:
    if file.suffix == ".safetensors":
        return safetensors_entries(file)
    if file.suffix in (".bin", ".pt", ".pth"):
        return torch_entries(file)
    _refuse_foreign(file)
    raise SourceError(
        "not a weights file by its name", where=file, found=file.suffix or "no suffix",
        expected=".safetensors, .bin, .pt or .pth",
    )  # fmt: skip


def _refuse_foreign(file: Path) -> None:
    if name := FILES.get(file.suffix.lower()):
        raise SourceError(f"this is a file of {name}: not supported", where=file, todo=INSTEAD)


def _sharded(index: Path) -> dict[str, Entry]:
    """Entries of all shards of an index, each tensor in the shard that the index names."""
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise SourceError("the index has no weight_map", where=index)
    if odd := [s for s in weight_map.values() if not isinstance(s, str)]:
        raise SourceError("a shard is no file name", where=index, found=repr(odd[0])[:80])
    entries: dict[str, Entry] = {}
    for shard in sorted(set(weight_map.values())):
        for name, entry in _file_entries(_shard(index, shard)).items():
            if name in entries:
                raise SourceError(
                    "two shards hold this tensor", where=name,
                    found=f"{entries[name].file.name} and {shard}",
                    todo="Which of the two is meant cannot be known; fetch the checkpoint again",
                )  # fmt: skip
            entries[name] = entry
    for name, shard in weight_map.items():
        if name not in entries or entries[name].file.name != shard:
            raise SourceError(
                "the index names a tensor that its shard does not hold",
                where=f"{index}: {name}", expected=f"in {shard}",
                todo="Index and shards are of different checkpoints; fetch both again",
            )  # fmt: skip
    return entries


def _shard(index: Path, name: str) -> Path:
    """The shard's path; its name comes from outside and must not lead out of the directory."""
    unsafe = SourceError(
        "the index leads out of the checkpoint's directory", where=index, found=repr(name),
        expected="the plain name of a file in the same directory",
        todo="Do not use this checkpoint unless you know who made it",
    )  # fmt: skip
    if Path(name).name != name or "\\" in name or name in ("", ".", ".."):
        raise unsafe
    file = index.parent / name
    if not _is_file(file):
        raise SourceError(
            "a shard is missing", where=index, expected=name, todo="Fetch the missing file"
        )
    # A hub cache links snapshots/<revision>/<name> to blobs/<hash> of the same repository.
    home, target = index.parent.resolve(), file.resolve()
    blobs = home.parent.parent / "blobs"
    if target.parent != home and not (home.parent.name == "snapshots" and target.parent == blobs):
        raise unsafe
    return file


def _is_dir(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False


def _is_file(path: Path) -> bool:
    """Whether there is such a file; a name that no file system can hold is none."""
    try:
        return path.is_file()
    except OSError:
        return False


def _read_json(file: Path) -> dict[str, Any]:
    """The JSON object in ``file``, of a size and depth that tools write."""
    try:
        if file.stat().st_size > LONGEST_JSON:
            raise ValueError(f"{file.stat().st_size} bytes")
        value = json.loads(file.read_text(encoding="utf-8"))
        _check_depth(value)
    except (ValueError, RecursionError, OSError) as error:
        raise SourceError("not valid JSON", where=file, found=str(error)[:200]) from None
    if not isinstance(value, dict):
        raise SourceError("not a JSON object", where=file, found=type(value).__name__)
    return value


def _check_depth(value: Any) -> None:
    """Nothing lies deeper than ``DEEPEST``: what reads settings may then call itself."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(DEEPEST):
        below = (x.values() if isinstance(x, dict) else x for x in level)
        level = [y for x in below for y in x if isinstance(y, dict | list)]
        if not level:
            return
    raise ValueError(f"more than {DEEPEST} levels deep")
