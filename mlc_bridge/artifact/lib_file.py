"""What a compiled lib says, read from its bytes: nothing of it is loaded or run.

Loading a shared object runs its code, so a stranger's lib is only looked at. TVM keeps the modules
of a lib as data under one symbol of the ELF file:

    __tvm_ffi__library_bin   u64 bytes, then
        import tree          two lists of u64: a module's children
        modules              kind, and content unless the kind is "_lib" (the shared object itself)
    content of the kind "relax.VMExecutable"
        u64 magic, version, u64 functions, each
            i32 kind (1 its own, 0 one that it calls), name, i64 first, last instruction,
            i64 arguments, i64 registers, list of the arguments' names
        ... constants, among them the text that ``_metadata`` returns

Every text and list has its length as u64 before it. ``_metadata`` returns a constant, in MLC LLM's
libs as in ours, so the constant is what the lib says; an engine that does load the lib asks again.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlc_bridge.artifact.lib_metadata import RECOMPILE, parse_metadata
from mlc_bridge.errors import ArtifactError

REQUIRED_FUNCTIONS = {  # name -> number of arguments
    "embed": 2,
    "prefill": 3,
    "decode": 3,
    "batch_prefill": 4,
    "batch_decode": 3,
    "create_tir_paged_kv_cache": 5,
}
HYBRID = "hybrid"  # MLC's kv_state_kind of models that keep an RNN state beside the cache
GPUS = ("cuda", "rocm", "vulkan", "metal", "opencl")
SYMBOL = b"__tvm_ffi__library_bin"
MAGIC = 0xD225DE2F4214151E
CANDIDATES, LONGEST = 256, 16 << 20
# ELF header: program and section table offsets, then size and number of entries of each.
_ELF64 = struct.Struct("<32xQQ6xHHHH2x")
_SEGMENT = struct.Struct("<8xQ16xQ")  # offset and bytes of one program header entry
_SECTION = struct.Struct("<4xI8xQQQI12xQ")  # type, address, offset, bytes, link, entry size
_SYMBOL = struct.Struct("<I4xQQ")  # name, address, bytes
_FUNCTION = struct.Struct("<qqqq")
_DYNSYM = 11


@dataclass(frozen=True)
class LibFile:
    """``functions``: name -> number of arguments, those it calls included; ``device``: what its
    kernels run on.
    """

    path: Path
    nbytes: int
    metadata: Mapping[str, Any]
    functions: Mapping[str, int]
    device: str


def read_lib(path: Path) -> LibFile:
    """Read what the lib says. Raises ArtifactError where the file is damaged or of another form."""
    check_elf(path)
    with _mapped(path) as data:
        try:
            blob = _blob(data)
            modules = dict(_modules(blob))
            executable = modules["relax.VMExecutable"]
            functions = dict(_functions(executable))
            text = _metadata_text(executable)
        except (struct.error, LookupError, ValueError, OverflowError) as problem:
            raise ArtifactError(
                "what this lib says cannot be read from its bytes",
                where=path,
                found=str(problem) or type(problem).__name__,
                todo="If you trust it, let it be loaded with --load-lib",
            ) from problem
        nbytes = len(data)
    device = next((kind for kind in GPUS if kind in modules), "cpu")
    return LibFile(path, nbytes, parse_metadata(text, path), functions, device)


def required_functions(metadata: Mapping[str, Any]) -> dict[str, int]:
    """Name -> number of arguments of what an engine calls; a hybrid's take the RNN state too."""
    if metadata.get("kv_state_kind") != HYBRID:
        return REQUIRED_FUNCTIONS
    states = {name for name in REQUIRED_FUNCTIONS if name.endswith(("prefill", "decode"))}
    taken = {name: n + (name in states) for name, n in REQUIRED_FUNCTIONS.items()}
    return {**taken, "create_rnn_state": 2}


def check_functions(functions: Mapping[str, int], metadata: Mapping[str, Any], path: Path) -> None:
    """Compiled functions are called without a look: a missing one is a null call."""
    for name, arity in required_functions(metadata).items():
        if name not in functions:
            raise ArtifactError(
                "the lib lacks a function", where=path, found=f"no {name}", todo=RECOMPILE
            )
        if functions[name] != arity:
            raise ArtifactError(
                f"{name} of this lib has another signature",
                where=path,
                found=f"{functions[name]} arguments",
                expected=arity,
                todo=RECOMPILE,
            )


def check_elf(path: Path) -> None:
    """A cut shared object makes the loader die of a bus error, so the file must hold its
    segments.
    """
    with path.open("rb") as file:
        head = file.read(_ELF64.size)
        if head[:4] != b"\x7fELF":
            raise ArtifactError(
                "not a shared library", where=path, found=repr(head[:4]), todo=RECOMPILE
            )
        if len(head) < _ELF64.size or head[4] != 2:
            raise ArtifactError("not a 64-bit shared library", where=path, todo=RECOMPILE)
        segments, sections, segment_size, count, section_size, section_count = _ELF64.unpack(head)
        size = path.stat().st_size
        file.seek(min(segments, size))
        table = file.read(segment_size * count)
    end = sections + section_size * section_count
    for at in range(0, len(table) - _SEGMENT.size + 1, max(segment_size, 1)):
        offset, nbytes = _SEGMENT.unpack_from(table, at)
        end = max(end, offset + nbytes)
    if size < end:
        found = f"{size} bytes"
        raise ArtifactError(
            "the lib is cut off", where=path, found=found, expected=end, todo=RECOMPILE
        )


@contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap]:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield data


def _blob(data: mmap.mmap) -> bytes:
    """The bytes under TVM's symbol, found through the dynamic symbol table."""
    _, table, _, _, entry, count = _ELF64.unpack_from(data)
    sections = [_SECTION.unpack_from(data, table + i * entry) for i in range(count)]
    for kind, _, offset, nbytes, link, size in sections:
        if kind != _DYNSYM:
            continue
        names = sections[link][2]
        for at in range(offset, offset + nbytes, max(size, _SYMBOL.size)):
            name, address, length = _SYMBOL.unpack_from(data, at)
            if data[names + name : names + name + len(SYMBOL) + 1] == SYMBOL + b"\0":
                start = _file_offset(sections, address)
                return data[start : start + length]
        break  # there is one such table
    raise ValueError(f"no symbol {SYMBOL.decode()}")


def _file_offset(sections: list[tuple[int, ...]], address: int) -> int:
    for kind, start, offset, nbytes, _, _ in sections:
        if kind == 1 and start <= address < start + nbytes:
            return address - start + offset
    raise ValueError("the symbol points outside the file")


class _Reader:
    """Little-endian numbers, texts and lists, one after the other."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def number(self, form: str = "<Q") -> int:
        (value,) = struct.unpack_from(form, self.data, self.at)
        self.at += struct.calcsize(form)
        return int(value)

    def text(self) -> bytes:
        length = self.number()
        found = self.data[self.at : self.at + length]
        if len(found) < length:
            raise ValueError("a text is cut off")
        self.at += length
        return found

    def count(self) -> int:
        """The length of a list whose entries take at least eight bytes each."""
        found = self.number()
        if found * 8 > len(self.data) - self.at:
            raise ValueError("a list is cut off")
        return found


def _modules(blob: bytes) -> Iterator[tuple[str, bytes]]:
    read = _Reader(blob)
    read.number()
    starts = [read.number() for _ in range(read.count())]
    for _ in range(read.count()):
        read.number()
    for _ in starts[1:]:
        kind = read.text().decode()
        yield kind, b"" if kind == "_lib" else read.text()


def _functions(executable: bytes) -> Iterator[tuple[str, int]]:
    read = _Reader(executable)
    if (magic := read.number()) != MAGIC:
        raise ValueError(f"unknown form of the executable ({magic:#x})")
    read.text()
    for _ in range(read.count()):
        read.number("<i")
        name = read.text().decode()
        _, _, arguments, _ = (read.number("<q") for _ in range(4))
        for _ in range(read.count()):
            read.text()
        yield name, arguments


def _metadata_text(executable: bytes) -> bytes:
    """The one constant that is a JSON object with the keys that every lib's metadata has."""
    found, looked_at = set(), 0
    for match in re.finditer(rb'\{\s*"', executable):
        at = match.start()
        (length,) = struct.unpack_from("<Q", executable, max(at - 8, 0))
        end = at + length
        if length > LONGEST or executable[end - 1 : end] != b"}":
            continue
        text, looked_at = executable[at:end], looked_at + 1
        if b'"model_type"' in text and b'"params"' in text:
            found.add(text)
        if looked_at > CANDIDATES:
            break
    if len(found) != 1:
        raise ValueError("no metadata in it" if not found else "more than one metadata in it")
    return found.pop()
