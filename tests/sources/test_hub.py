"""Local paths, complete snapshots of the hub cache, and clear errors without a network."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from mlc_bridge.errors import SourceError
from mlc_bridge.sources.hub import resolve


def cached(cache: Path, commit: str, *, weights: bool = True) -> Path:
    repo = cache / "models--org--name"
    snapshot = repo / "snapshots" / commit
    (repo / "blobs").mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    snapshot.mkdir(parents=True)
    (repo / "blobs" / "c").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/c")
    if weights:
        save_file({"a": np.ones(2)}, repo / "blobs" / "w")
        (snapshot / "model.safetensors").symlink_to("../../blobs/w")
    return snapshot


def test_local_path(tmp_path: Path) -> None:
    assert resolve(tmp_path) == tmp_path
    assert resolve(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("bad", ["nowhere", "/no/such/dir", "a/b/c", "org/name@", "~nobody/x y"])
def test_neither_path_nor_hub_id(bad: str) -> None:
    with pytest.raises(SourceError, match="no hub id"):
        resolve(bad)


@pytest.mark.parametrize("revision", ["", "@main", "@" + "0" * 40])
def test_complete_snapshot_needs_no_network(tmp_path: Path, revision: str) -> None:
    snapshot = cached(tmp_path, "0" * 40)
    assert resolve(f"org/name{revision}", cache_dir=tmp_path) == snapshot


@pytest.mark.parametrize("how", ["offline mode", "no connection"])
def test_without_network(tmp_path: Path, how: str) -> None:
    """A snapshot without its weights is no hit; in a process of its own, as the hub reads its
    settings when it is imported."""
    cached(tmp_path, "0" * 40, weights=False)
    setting = (
        {"HF_HUB_OFFLINE": "1"} if how == "offline mode" else {"HF_ENDPOINT": "http://[::1]:9"}
    )
    code = (
        "import sys; from pathlib import Path\n"
        "from mlc_bridge.sources.hub import resolve\n"
        "from mlc_bridge.errors import SourceError\n"
        "try: resolve(sys.argv[1], cache_dir=Path(sys.argv[2]))\n"
        "except SourceError as e: print(e)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, "org/name", str(tmp_path)],
        capture_output=True, text=True, env={**os.environ, **setting}, check=True,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert run.stdout.startswith("org/name: not a local path")
    assert "give a local directory" in run.stdout


@pytest.mark.parametrize("name", ["a" * 5000, "~no-such-user/x y", "a\0b"])
def test_names_that_no_file_system_holds(name: str) -> None:
    with pytest.raises(SourceError, match="no hub id"):
        resolve(name)
