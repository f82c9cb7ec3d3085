"""safetensors files: parts of one decoder layer each, then shards of the size that was asked for.

    [8 bytes: header length, little endian] [header: JSON, padded with blanks] [data]

Parts are written while layers are quantized; ``assemble`` copies their tensors, as views of the
mapped parts, into the files of the checkpoint, and removes each part when it is copied.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from mlc_bridge.packing import Array
from mlc_bridge.sources.checkpoint import Checkpoint
from mlc_bridge.sources.tensor_file import DTYPES

WORDS = {dtype: word for word, dtype in DTYPES.items()}


def write(
    path: Path, tensors: Mapping[str, Array], metadata: Mapping[str, str] | None = None
) -> None:
    """One file, complete before it has its name."""
    header: dict[str, object] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    at = 0
    for name, tensor in tensors.items():
        header[name] = {"dtype": WORDS[tensor.dtype], "shape": list(tensor.shape),
                        "data_offsets": [at, at + tensor.nbytes]}  # fmt: skip
        at += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def assemble(parts: Sequence[Path], folder: Path, stem: str, limit: int) -> list[str]:
    """The tensors of ``parts`` as ``<stem>.safetensors``, or numbered files and their index.

    Returns the names of the files written.
    """
    shards = _shards(parts, limit)
    many = len(shards) > 1
    index: dict[str, str] = {}
    total, written = 0, []
    for number, names in enumerate(shards, 1):
        name = f"{stem}-{number:05d}-of-{len(shards):05d}" if many else stem
        file = f"{name}.safetensors"
        tensors = {t: Checkpoint.open(part, folder).tensor(t) for part, t in names}
        write(folder / file, tensors)
        index.update(dict.fromkeys(tensors, file))
        total += sum(t.nbytes for t in tensors.values())
        written.append(file)
        _remove_used(parts, shards[number:])
    if many:
        place = folder / f"{stem}.safetensors.index.json"
        text = json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=1)
        place.write_text(text, encoding="utf-8")
        written.append(place.name)
    return written


def _shards(parts: Sequence[Path], limit: int) -> list[list[tuple[Path, str]]]:
    """Tensors in order, a new file where the next would pass the limit."""
    shards: list[list[tuple[Path, str]]] = [[]]
    room = limit
    for part in parts:
        ckpt = Checkpoint.open(part, part.parent)
        for name, entry in ckpt.entries.items():
            if entry.nbytes > room and shards[-1]:
                shards.append([])
                room = limit
            shards[-1].append((part, name))
            room -= entry.nbytes
    return shards


def _remove_used(parts: Sequence[Path], rest: Iterable[list[tuple[Path, str]]]) -> None:
    needed = {part for names in rest for part, _ in names}
    for part in parts:
        if part not in needed:
            part.unlink(missing_ok=True)
