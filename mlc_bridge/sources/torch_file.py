"""One torch file (``.bin``, ``.pt``): a zip of a pickle and of raw storages, read without torch.

    <name>/data.pkl      the state dict; a tensor is (storage, offset, shape, stride)
    <name>/data/<key>    one storage, uncompressed, so that it can be mapped

A pickle may name any function and call it. This reader knows a few words (the dict, the functions
that rebuild a tensor, the storage types); any other word ends the reading, so no code of the file
ever runs. What it builds are plain tuples and strings, which a pickle cannot change afterwards.
Everything a tensor claims is then held against the size of its storage.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from mlc_bridge.errors import SourceError
from mlc_bridge.sources.tensor_file import DTYPES, Entry, countable

LONGEST_PICKLE = 1 << 28
# A member's own header: signature, version, flags, method, time, date, sum, two sizes, two lengths.
LOCAL = struct.Struct("<4sHHHHHIIIHH")
UTF8 = 1 << 11  # the flag of a name in utf-8
DESCRIBED = 1 << 3  # the flag that sum and sizes come after the data
STORAGES = {
    "torch.HalfStorage": "F16",
    "torch.BFloat16Storage": "BF16",
    "torch.FloatStorage": "F32",
    "torch.DoubleStorage": "F64",
    "torch.CharStorage": "I8",
    "torch.ByteStorage": "U8",
    "torch.ShortStorage": "I16",
    "torch.IntStorage": "I32",
    "torch.LongStorage": "I64",
    "torch.BoolStorage": "BOOL",
}


class Storage(NamedTuple):
    key: str
    dtype: str


class Tensor(NamedTuple):
    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def torch_entries(file: Path) -> dict[str, Entry]:
    """The state dict of ``file`` as name -> Entry. Raises SourceError for anything else in it."""
    try:
        with zipfile.ZipFile(file) as archive:
            places = _places(file, archive)
            state = _state(file, archive, places)
    except SourceError:
        raise
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error, OSError) as error:
        raise SourceError(
            "not a torch file of the zip form, or damaged", where=file, found=str(error)[:200],
            todo="Save it again with torch 1.6 or later, or as safetensors",
        ) from None  # fmt: skip
    return {name: _entry(file, name, tensor, places) for name, tensor in state.items()}


def _places(file: Path, archive: zipfile.ZipFile) -> dict[str, tuple[int, int]]:
    """Offset and length of every member, by its name below the archive's own folder.

    The directory at the end of a zip says what the members are, and so does a header before each:
    where the two disagree, one of them was damaged or made to mislead. Members lie end to end.
    """
    places: dict[str, tuple[int, int]] = {}
    at = 0
    with file.open("rb") as f:
        for info in sorted(archive.infolist(), key=lambda info: info.header_offset):
            name = info.filename.partition("/")[2]
            if name in places or info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
                raise SourceError(
                    "a member is compressed, encrypted or there twice",
                    where=f"{file}: {info.filename}",
                )
            begin, end = _member(f, info)
            if info.header_offset != at or end > archive.start_dir:
                raise zipfile.BadZipFile(f"{info.filename} does not lie where the one before ends")
            places[name], at = (begin, info.file_size), end
    if at != archive.start_dir:
        raise zipfile.BadZipFile("bytes between the last member and the directory")
    return places


def _member(f: BinaryIO, info: zipfile.ZipInfo) -> tuple[int, int]:
    """Where a member's data begins and where the member ends, its own header having agreed."""
    f.seek(info.header_offset)
    signature, _, flags, method, _, _, *sums, name, extra = LOCAL.unpack(f.read(LOCAL.size))
    own = f.read(name).decode("utf-8" if flags & UTF8 else "cp437")
    begin = info.header_offset + LOCAL.size + name + extra
    end = begin + info.file_size
    if flags & DESCRIBED:
        f.seek(end)
        sums, length = _description(f.read(24), info)
        end += length
    elif sums[1:] == [0xFFFFFFFF] * 2:  # larger than 4 GiB: the sizes are in the extra field
        sums[1:] = [info.compress_size, info.file_size]
    same = (signature, flags, method) == (b"PK\3\4", info.flag_bits, info.compress_type)
    sizes = [info.CRC, info.file_size, info.file_size]
    if not same or own != info.orig_filename or sums != sizes or info.compress_size != sizes[1]:
        raise zipfile.BadZipFile(f"{info.filename}: header and directory disagree")
    return begin, end


def _sizes(info: zipfile.ZipInfo) -> tuple[int, int]:
    return info.compress_size, info.file_size


def _description(tail: bytes, info: zipfile.ZipInfo) -> tuple[list[int], int]:
    """Sum and sizes that follow a member's data (the sizes in 4 or 8 bytes), and their length."""
    for form in (struct.Struct("<4sIQQ"), struct.Struct("<4sIII")):
        signature, *sums = form.unpack(tail[: form.size])
        if signature == b"PK\7\x08" and sums[1:] == list(_sizes(info)):
            return sums, form.size
    raise zipfile.BadZipFile(f"{info.filename}: nothing describes its data")


def _state(
    file: Path, archive: zipfile.ZipFile, places: Mapping[str, tuple[int, int]]
) -> dict[str, Tensor]:
    if "data.pkl" not in places or places["data.pkl"][1] > LONGEST_PICKLE:
        raise SourceError("no data.pkl of a sensible size in the archive", where=file)
    folder = archive.infolist()[0].filename.partition("/")[0]
    order = archive.read(f"{folder}/byteorder") if "byteorder" in places else b"little"
    if order != b"little":
        raise SourceError("big-endian storages are not read", where=file, found=order)
    pickled = archive.read(f"{folder}/data.pkl")
    try:
        _check_words(pickled)
        state = Unpickler(io.BytesIO(pickled)).load()
    except SourceError as error:
        raise SourceError(error.what, where=file, found=error.found, todo=error.todo) from None
    except Exception as error:  # a hostile pickle can fail in any way
        raise SourceError(
            "the pickle cannot be read", where=file, found=f"{type(error).__name__}: {error}"[:200]
        ) from None
    if not isinstance(state, dict) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()
    ):
        raise SourceError(
            "the file is no state dict of names and tensors", where=file,
            todo="Save model.state_dict() alone",
        )  # fmt: skip
    return dict(state)


def _check_words(pickled: bytes) -> None:
    """Refuse what would make a few bytes into much memory or time: far memo places, shared tuples.

    The memo is an array up to its largest place, and a tuple of a tuple twice, and so on, doubles
    with every step whenever it is hashed. No pickle of a state dict has either.
    """
    tuples: set[int] = set()
    before = ""
    for opcode, argument, _ in pickletools.genops(pickled):
        place = argument if isinstance(argument, int) else -1
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT"):
            if place > len(pickled):
                raise ValueError(f"memo place {place} in a pickle of {len(pickled)} bytes")
            tuples |= {place} if before.startswith("TUPLE") else set()
        elif opcode.name in ("GET", "BINGET", "LONG_BINGET") and place in tuples:
            raise ValueError("a tuple is used twice")
        elif opcode.name in ("DUP", "MEMOIZE"):
            raise ValueError(f"the opcode {opcode.name}")
        before = opcode.name


class Unpickler(pickle.Unpickler):
    """Knows the words of a state dict and no others."""

    def find_class(self, module: str, name: str) -> Any:
        word = f"{module}.{name}"
        if word in WORDS:
            return WORDS[word]
        if word in STORAGES:
            return STORAGES[word]
        raise SourceError(
            "the pickle names something that is no part of a state dict", found=word,
            todo="It could run code, so it is not loaded; ask its author for safetensors",
        )  # fmt: skip

    def persistent_load(self, pid: Any) -> Storage:
        kind, dtype, key, _device, _count = pid
        if kind != "storage" or dtype not in DTYPES or not isinstance(key, str):
            raise ValueError("a persistent id that is no storage")
        return Storage(key, dtype)


def _rebuild_tensor(
    storage: Storage, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> Tensor:
    if not isinstance(storage, Storage):
        raise TypeError("a tensor of no storage")
    return Tensor(storage, int(offset), tuple(map(int, shape)), tuple(map(int, stride)))


def _rebuild_parameter(tensor: Tensor, *_: Any) -> Tensor:
    return tensor


WORDS: Mapping[str, Callable[..., Any]] = {
    "collections.OrderedDict": OrderedDict,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
}


def _entry(file: Path, name: str, t: Tensor, places: Mapping[str, tuple[int, int]]) -> Entry:
    dtype = DTYPES[t.storage.dtype]
    size = dtype.itemsize
    begin, length = places.get(f"data/{t.storage.key}", (0, -1))
    sane = len(t.shape) == len(t.stride) and min((t.offset, *t.shape, *t.stride)) >= 0
    sane = sane and countable(t.shape) and countable(t.stride)
    empty = prod(t.shape) == 0
    span = 0 if empty else 1 + sum((s - 1) * d for s, d in zip(t.shape, t.stride, strict=False))
    # A stride of 0 repeats elements: a tensor may not be larger than its storage.
    fits = (t.offset + max(span, prod(t.shape))) * size <= length
    if not sane or not fits:
        raise SourceError(
            "the tensor does not fit its storage",
            where=f"{file}: {name}",
            found=f"offset {t.offset}, shape {list(t.shape)}, stride {list(t.stride)}",
            expected=f"within {length} bytes of {dtype}"
            if length >= 0
            else "a storage in the file",
            todo="The file is damaged or was made to mislead; fetch it again",
        )
    strides = tuple(d * size for d in t.stride)
    plain = empty or strides == _contiguous(t.shape, size)
    return Entry(
        file, dtype, t.shape, begin + t.offset * size, span * size, None if plain else strides
    )


def _contiguous(shape: tuple[int, ...], size: int) -> tuple[int, ...]:
    return tuple(size * prod(shape[i + 1 :]) for i in range(len(shape)))
