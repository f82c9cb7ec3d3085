"""From what the user typed to a local directory: a path, or a hub id ``org/name[@revision]``.

A complete copy in the hub's cache is used without asking the network, so that a model once fetched
works offline. Only what a conversion reads is fetched: configs, tokenizer, and safetensors (torch
files only where a repository has nothing else).
"""

from __future__ import annotations

from pathlib import Path

from mlc_bridge.errors import SourceError
from mlc_bridge.hub_id import hub_id
from mlc_bridge.sources.checkpoint import Checkpoint

TEXTS = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken")
# Subdirectories and Mistral's consolidated files hold the same weights in other forms.
IGNORED = ("*/*", "consolidated*")


def resolve(model: str | Path, cache_dir: Path | None = None) -> Path:
    """A local directory (or weights file) for ``model``, fetched from the hub when need be.

    Raises SourceError when ``model`` is neither, or when the hub does not give it.
    """
    if (path := _local(model)) is not None:
        return path
    found = hub_id(str(model))
    if found is None:
        raise SourceError(
            "no such file or directory, and no hub id",
            where=str(model)[:200],
            expected="a checkpoint directory, org/name[@revision] or HF://org/name",
        )
    repo, revision = found
    return _cached(repo, revision, cache_dir) or _fetch(repo, revision, cache_dir)


def _local(model: str | Path) -> Path | None:
    """The path, if there is one; no file system holds some names, and no user has some homes."""
    try:
        path = Path(model).expanduser()
        path = path.parent if path.name == "config.json" else path
        return path if path.exists() else None
    except (OSError, RuntimeError, ValueError):
        return None


def _cached(repo: str, revision: str | None, cache_dir: Path | None) -> Path | None:
    """The snapshot in the cache, if all its weights are there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        path = Path(
            snapshot_download(repo, revision=revision, cache_dir=cache_dir, local_files_only=True)
        )
        Checkpoint.open(path)
    except (OSError, HFValidationError, SourceError):
        return None
    return path


def _fetch(repo: str, revision: str | None, cache_dir: Path | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    found = "a repository without *.safetensors or *.bin"
    try:
        for weights in ("*.safetensors", "*.bin"):
            path = Path(
                snapshot_download(
                    repo,
                    revision=revision,
                    cache_dir=cache_dir,
                    allow_patterns=[*TEXTS, weights],
                    ignore_patterns=list(IGNORED),
                )
            )
            # Without a network this is the snapshot in the cache, whatever it lacks.
            if any(path.glob(weights)):
                return path
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        found = str(error).strip().splitlines()[0]
    raise SourceError(
        "not a local path, and neither the hub nor its cache has its weights",
        where=repo + (f"@{revision}" if revision else ""),
        found=found,
        todo="Check the name, the network and HF_TOKEN, or give a local directory",
    )
