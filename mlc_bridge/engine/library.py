"""Opening a compiled lib and refusing, by name, whatever would hang or crash an engine later.

A lib is a shared object with a Relax module. ``_metadata() -> str`` is JSON: model type,
limits, parameters in the order of the packed tuple. Compiled functions are called without further
checks, so a missing one is a null call and a wrong parameter dies inside a kernel: everything is
compared here first.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlc_bridge.artifact.lib_file import (
    GPUS,
    LibFile,
    check_elf,
    check_functions,
    required_functions,
)
from mlc_bridge.artifact.lib_metadata import (
    RECOMPILE,
    check_cpu,
    check_runnable,
    parse_metadata,
)
from mlc_bridge.artifact.manifest import check_lib
from mlc_bridge.errors import ArtifactError

OBSERVER = "mlc_bridge.observe"  # the function that a calibration lib calls


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
    module, vm, target = _loaded(path, device)
    metadata = _metadata(path, module)
    check_runnable(metadata, path)
    check_functions(_functions(module, metadata), metadata, path)
    if target.type == "cpu":
        check_cpu(metadata, path)
    check_lib(metadata, model_dir)
    return Library(path, vm, metadata, target)


def loaded_metadata(path: Path) -> dict[str, Any]:
    """What the lib says when it is asked, which runs its code. Raises ArtifactError."""
    return _metadata(path, _loaded(path, "auto")[0])


def check_lib_file(lib: LibFile, model_dir: Path, device: str) -> None:
    """As ``open_library`` for a lib that is only read."""
    if OBSERVER in lib.functions:
        raise _calibrates(lib.path)
    check_runnable(lib.metadata, lib.path)
    check_functions(lib.functions, lib.metadata, lib.path)
    if device != "auto" and device.split(":")[0] != lib.device:
        raise _other_device(lib.device, device, lib.path)
    if lib.device == "cpu":
        check_cpu(lib.metadata, lib.path)
    check_lib(lib.metadata, model_dir)


def _loaded(path: Path, device: str) -> tuple[Any, Any, Any]:
    """The module, its virtual machine and the device."""
    import tvm
    from tvm.runtime.vm import VirtualMachine  # tvm.relax is not in a runtime-only tvm

    check_elf(path)
    try:
        module = tvm.runtime.load_module(str(path))
        target = _device(device, module, path)
        # Before this every call into the lib, even to _metadata, is a null call.
        vm = VirtualMachine(module, target)
    except (AttributeError, RuntimeError, ValueError) as problem:
        if OBSERVER in str(problem):
            raise _calibrates(path) from problem
        raise ArtifactError(
            "not a lib that tvm can load", where=path, found=_first_line(problem), todo=RECOMPILE
        ) from problem
    return vm.module, vm, target


def _calibrates(path: Path) -> ArtifactError:
    return ArtifactError(
        "this lib is compiled for calibration and cannot answer",
        where=path,
        todo="Run mlc-bridge calibrate with it, then compile its output",
    )


def _other_device(compiled: str, wanted: str, path: Path) -> ArtifactError:
    return ArtifactError(
        f"the lib was compiled for {compiled}",
        where=path,
        found=f"device {wanted}",
        todo=RECOMPILE,
    )


def _metadata(path: Path, module: Any) -> dict[str, Any]:
    if not module.implements_function("_metadata"):
        raise ArtifactError("the lib has no function _metadata", where=path, todo=RECOMPILE)
    return parse_metadata(str(module["_metadata"]()), path)


def _functions(module: Any, metadata: dict[str, Any]) -> dict[str, int]:
    return {
        name: int(module["get_function_arity"](name))
        for name in required_functions(metadata)
        if module.implements_function(name)
    }


def _device(wanted: str, module: Any, path: Path) -> Any:
    """``auto`` is the GPU that the lib holds code for, else the CPU; also checks a named one."""
    import tvm

    kinds = {imported.kind for imported in _all_imports(module)}
    gpu = next((k for k in GPUS if k in kinds), None)
    name = (gpu or "cpu") if wanted == "auto" else wanted
    try:
        device = tvm.device(name)
    except (ValueError, RuntimeError) as problem:
        raise ArtifactError("unknown device", found=wanted, expected="auto, cpu, cuda") from problem
    if name.split(":")[0] != (gpu or "cpu"):
        raise _other_device(gpu or "cpu", wanted, path)
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
