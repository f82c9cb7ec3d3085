"""Opening a compiled lib and refusing, by name, whatever would hang or crash an engine later.

A lib is a shared object with a Relax module. ``_metadata() -> str`` is JSON: model type,
limits, parameters in the order of the packed tuple. Compiled functions are called without further
checks, so a missing one is a null call and a wrong parameter dies inside a kernel: everything is
compared here first.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlc_bridge.artifact.manifest import check_lib
from mlc_bridge.errors import ArtifactError

REQUIRED_FUNCTIONS = {  # name -> number of arguments
    "embed": 2,
    "prefill": 3,
    "decode": 3,
    "batch_prefill": 4,
    "batch_decode": 3,
    "create_tir_paged_kv_cache": 5,
}
REQUIRED_KEYS = (
    "model_type", "quantization", "context_window_size", "prefill_chunk_size", "max_batch_size",
    "tensor_parallel_shards", "params", "kv_cache",
)  # fmt: skip
RECOMPILE = "Compile the model again"
OBSERVER = "mlc_bridge.observe"  # the function that a calibration lib calls
# ELF header: program and section table offsets, then size and number of entries of each.
_ELF64 = struct.Struct("<32xQQ6xHHHH2x")
_SEGMENT = struct.Struct("<8xQ16xQ")  # offset and bytes of one program header entry


@dataclass(frozen=True)
class Library:
    """A loaded lib: the virtual machine on ``device`` and the lib's ``_metadata``."""

    path: Path
    vm: Any
    metadata: dict[str, Any]
    device: Any


def find_library(model_dir: Path, model_lib: str | Path | None) -> Path:
    """``model_lib``, or ``lib.so`` of the model directory, or the only shared object there."""
    if model_lib is not None:
        path = Path(model_lib).expanduser()
        if not path.is_file():
            raise ArtifactError(
                "no such model lib", where=path, todo="Run mlc-bridge compile first"
            )
        return path
    if (model_dir / "lib.so").is_file():
        return model_dir / "lib.so"
    found = sorted(model_dir.glob("*.so"))
    if len(found) == 1:
        return found[0]
    raise ArtifactError(
        "which compiled lib?" if found else "no compiled lib",
        where=model_dir,
        found=", ".join(p.name for p in found) or "no .so file",
        expected="lib.so",
        todo="Name one as model_lib" if found else "Run mlc-bridge compile first",
    )


def open_library(path: Path, model_dir: Path, device: str) -> Library:
    """Load ``path`` for the weights in ``model_dir``; raises ArtifactError for whatever does not
    fit.
    """
    import tvm
    from tvm import relax

    _check_elf(path)
    try:
        module = tvm.runtime.load_module(str(path))
        target = _device(device, module, path)
        # Before this every call into the lib, even to _metadata, is a null call.
        vm = relax.VirtualMachine(module, target)
    except (AttributeError, RuntimeError, ValueError) as problem:
        if OBSERVER in str(problem):
            raise ArtifactError(
                "this lib is compiled for calibration and cannot answer",
                where=path,
                todo="Run mlc-bridge calibrate with it, then compile its output",
            ) from problem
        raise ArtifactError(
            "not a lib that tvm can load", where=path, found=_first_line(problem), todo=RECOMPILE
        ) from problem
    metadata = _metadata(path, vm.module)
    _check_functions(path, vm.module)
    if target.type == "cpu":
        check_cpu(metadata, path)
    check_lib(metadata, model_dir)
    return Library(path, vm, metadata, target)


def _check_elf(path: Path) -> None:
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
        file.seek(segments)
        table = file.read(segment_size * count)
    end = sections + section_size * section_count
    for at in range(0, len(table) - _SEGMENT.size + 1, segment_size):
        offset, nbytes = _SEGMENT.unpack_from(table, at)
        end = max(end, offset + nbytes)
    if path.stat().st_size < end:
        found = f"{path.stat().st_size} bytes"
        raise ArtifactError(
            "the lib is cut off", where=path, found=found, expected=end, todo=RECOMPILE
        )


def _metadata(path: Path, module: Any) -> dict[str, Any]:

    if not module.implements_function("_metadata"):
        raise ArtifactError("the lib has no function _metadata", where=path, todo=RECOMPILE)
    try:
        metadata = json.loads(str(module["_metadata"]()))
    except ValueError as problem:
        raise ArtifactError("_metadata is not JSON", where=path, found=str(problem)) from None
    missing = [key for key in REQUIRED_KEYS if key not in metadata]
    if missing:
        raise ArtifactError("_metadata is incomplete", where=path, found=f"no {', '.join(missing)}")
    if metadata["tensor_parallel_shards"] != 1:
        raise ArtifactError(
            "this engine runs models of one shard",
            where=path,
            found=f"tensor_parallel_shards {metadata['tensor_parallel_shards']}",
            todo="Compile without tensor parallelism",
        )
    kind, task = metadata.get("kv_state_kind", "kv_cache"), metadata.get("model_task", "chat")
    if (kind, task) != ("kv_cache", "chat"):
        raise ArtifactError(
            "this engine runs chat models with a KV cache",
            where=path,
            found=f"kv_state_kind {kind}, model_task {task}",
        )
    return dict(metadata)


def _check_functions(path: Path, module: Any) -> None:
    for name, arity in REQUIRED_FUNCTIONS.items():
        if not module.implements_function(name):
            raise ArtifactError(
                "the lib lacks a function", where=path, found=f"no {name}", todo=RECOMPILE
            )
        found = int(module["get_function_arity"](name))
        if found != arity:
            raise ArtifactError(
                f"{name} of this lib has another signature",
                where=path,
                found=f"{found} arguments",
                expected=arity,
                todo=RECOMPILE,
            )


def check_cpu(metadata: dict[str, Any], path: Path) -> None:
    """An instruction that is not here would end the process; our libs say which they use."""
    needed = set((metadata.get("mlc_bridge") or {}).get("cpu_flags") or ())
    cpuinfo = Path("/proc/cpuinfo")
    if not needed or not cpuinfo.exists():
        return
    lines = cpuinfo.read_text().splitlines()
    here = next((line.split() for line in lines if line.startswith(("flags", "Features"))), [])
    if missing := sorted(needed.difference(here)):
        raise ArtifactError(
            "the lib was compiled for another processor",
            where=path,
            found=f"no {', '.join(missing)} here",
            todo="Compile the model on this machine",
        )


def _device(wanted: str, module: Any, path: Path) -> Any:
    """``auto`` is the GPU that the lib holds code for, else the CPU; also checks a named one."""
    import tvm

    kinds = {imported.kind for imported in _all_imports(module)}
    gpu = next((k for k in ("cuda", "rocm", "vulkan", "metal", "opencl") if k in kinds), None)
    name = (gpu or "cpu") if wanted == "auto" else wanted
    try:
        device = tvm.device(name)
    except (ValueError, RuntimeError) as problem:
        raise ArtifactError("unknown device", found=wanted, expected="auto, cpu, cuda") from problem
    if name.split(":")[0] != (gpu or "cpu"):
        raise ArtifactError(
            f"the lib was compiled for {gpu or 'cpu'}",
            where=path,
            found=f"device {wanted}",
            todo=RECOMPILE,
        )
    if not device.exist:
        raise ArtifactError("the lib needs a device that is not here", where=path, found=name)
    return device


def _all_imports(module: Any) -> list[Any]:
    found = []
    for child in module.imports:
        found += [child, *_all_imports(child)]
    return found


def _first_line(problem: BaseException) -> str:
    text = str(problem).strip()
    return text.splitlines()[-1] if text else type(problem).__name__
