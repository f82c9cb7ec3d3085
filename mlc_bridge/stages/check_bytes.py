"""What ``check`` says about bytes: which were compared with a digest, and which were not.

A statement about what was not looked at is worse than none: lengths that agree say nothing about
four thousand flipped bytes.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

from mlc_bridge.artifact.chat_config import CONFIG_NAME
from mlc_bridge.artifact.inventory import INVENTORY, Inventory
from mlc_bridge.artifact.tensor_cache import TensorCache
from mlc_bridge.artifact.workspace import WEIGHTS_WORK, WORK
from mlc_bridge.errors import ArtifactError

SHARDS = "params_shard_*.bin"
LEFT = (
    WORK,
    WEIGHTS_WORK,
    ".tensor-cache.tmp",
    ".calibration-state.npz",
    ".*.part",
    f".{CONFIG_NAME}.*",
    ".lib.so.*",
)
"""What runs that were killed leave behind, those of older versions too."""


def weights_said(cache: TensorCache, every_byte: bool) -> str:
    """Raises ArtifactError for the first file that is not as its digest or md5 sum says."""
    said = f"{len(cache.records)} parameters in {_shards(len(cache.shards))}, lengths agree"
    if not every_byte:
        return f"{said}; no byte was read"
    proof = cache.prove(md5=True)
    kinds = {"XXH3 digests": proof.digests, "md5 sums": proof.md5}
    agree = [f"{kind} of {_shards(count)}" for kind, count in kinds.items() if count]
    unproven = proof.shards - max(kinds.values())
    rest = f"; neither digest nor md5 sum for {_shards(unproven)}" if unproven else ""
    return ", ".join((said, *(f"{kind} agree" for kind in agree))) + rest


def _shards(count: int) -> str:
    return "1 shard" if count == 1 else f"{count} shards"


def files_said(path: Path, every_byte: bool) -> str:
    """The files beside the weights, and what lies about.

    Raises ArtifactError for a file that is not as it was written; the config may be edited.
    """
    listed = Inventory.read(path)
    if listed is None:
        return "; ".join((f"no {INVENTORY}: none was compared", *_about(path, Inventory())))
    if listed.unfinished:
        raise ArtifactError(
            "a run was killed while it moved its files in", where=path, todo="Run it again"
        )
    names = [name for name in listed.files if not fnmatchcase(name, SHARDS)]
    if not every_byte:
        return "; ".join((f"{len(names)} are listed, none was read", *_about(path, listed)))
    edited = CONFIG_NAME in names and _edited(listed, path)
    rest = [name for name in names if not (edited and name == CONFIG_NAME)]
    same = sum(listed.check(path, name) for name in rest)
    said = [f"{same} are as they were written"]
    said += [f"{CONFIG_NAME} was edited since"] * edited
    said += [f"{len(rest) - same} have no digest"] * (same < len(rest))
    return "; ".join((*said, *_about(path, listed)))


def _edited(listed: Inventory, path: Path) -> bool:
    try:
        listed.check(path, CONFIG_NAME)
    except ArtifactError:
        return (path / CONFIG_NAME).is_file()
    return False


def _about(path: Path, listed: Inventory) -> list[str]:
    """Leftovers, and shards that belong to no index that we wrote."""
    names = sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []
    left = [name for name in names if any(fnmatchcase(name, pattern) for pattern in LEFT)]
    stray = [n for n in names if listed.files and n not in listed.files and fnmatchcase(n, SHARDS)]
    said = [f"left by a run that was killed or still writes: {', '.join(left)}"] if left else []
    return said + ([f"shards of no known run: {', '.join(stray)}"] if stray else [])
