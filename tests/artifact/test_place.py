"""What names a model: a directory, its config's file, a repository of the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.constants import ENDPOINT

from mlc_bridge.artifact.place import model_directory
from mlc_bridge.errors import ArtifactError
from mlc_bridge.hub_id import hub_id
from mlc_bridge.sources import hub


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("org/name", ("org/name", None)),
        ("org/name@v1", ("org/name", "v1")),
        ("HF://org/na.me-1", ("org/na.me-1", None)),
        (f"{ENDPOINT}/org/name", ("org/name", None)),
        (f"{ENDPOINT}/org/name/", ("org/name", None)),
        (f"{ENDPOINT}/org/name/tree/main", ("org/name", "main")),
        ("https://example.org/org/name", None),
        ("a/b/c", None),
        ("name", None),
    ],
)
def test_hub_names(text: str, found: tuple[str, str | None] | None) -> None:
    assert hub_id(text) == found


def test_the_configs_file_stands_for_its_directory(tmp_path: Path) -> None:
    assert model_directory(tmp_path / "mlc-chat-config.json") == tmp_path
    assert model_directory(str(tmp_path)) == tmp_path
    (tmp_path / "config.json").write_text("{}")
    assert hub.resolve(tmp_path / "config.json") == tmp_path


def test_a_repository_comes_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def download(repo: str, revision: str | None = None, **_: Any) -> str:
        asked.append((repo, revision))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(ArtifactError, match="holds no MLC model"):
        model_directory("HF://org/name")
    (tmp_path / "mlc-chat-config.json").write_text("{}")
    assert model_directory("HF://org/name@v2") == tmp_path
    assert asked == [("org/name", None), ("org/name", "v2")]
    with pytest.raises(ArtifactError, match="no repository"):
        model_directory("HF://name")
