"""How much memory is left, so that a model that does not fit is refused instead of killed."""

from __future__ import annotations

from pathlib import Path

from mlc_bridge.errors import ArtifactError


def available_memory() -> int | None:
    """Bytes that can be had without swapping: the kernel's estimate, and the control group's limit.

    None where the system does not say.
    """
    found = [value for value in (_kernel(), _control_group()) if value is not None]
    return min(found, default=None)


def require_memory(nbytes: int, what: str) -> None:
    """Raises ArtifactError when ``nbytes`` are not there."""
    free = available_memory()
    if free is not None and nbytes > free:
        raise ArtifactError(
            f"{what} do not fit into memory",
            found=f"{free / 1e9:.2f} GB available",
            expected=f"{nbytes / 1e9:.2f} GB",
            todo="Free memory, or use a model with fewer bits",
        )


def _kernel() -> int | None:
    path = Path("/proc/meminfo")
    lines = path.read_text().splitlines() if path.exists() else []
    found = [line.split() for line in lines if line.startswith("MemAvailable:")]
    return int(found[0][1]) * 1024 if found else None


def _control_group() -> int | None:
    root = Path("/sys/fs/cgroup")
    try:
        limit = (root / "memory.max").read_text().strip()
        used = int((root / "memory.current").read_text())
        inactive = next(
            int(line.split()[1])
            for line in (root / "memory.stat").read_text().splitlines()
            if line.startswith("inactive_file ")
        )
    except (OSError, ValueError, StopIteration):
        return None
    # Page cache that nobody uses is given back under pressure.
    return None if limit == "max" else int(limit) - used + inactive
