"""From what the user typed to an MLC model directory: the directory, its mlc-chat-config.json, or
a repository of the hub, ``HF://org/name``, as MLC LLM takes them."""

from __future__ import annotations

from pathlib import Path

from mlc_bridge.artifact.chat_config import CONFIG_NAME
from mlc_bridge.errors import ArtifactError
from mlc_bridge.hub_id import hub_id, is_remote


def model_directory(model: str | Path) -> Path:
    """A local directory. Raises ArtifactError when the hub does not give it.

    A path that is nothing yet comes back as it is: whoever reads it says what is missing.
    """
    if is_remote(str(model)):
        return _fetched(str(model))
    path = Path(model).expanduser()
    return path.parent if path.name == CONFIG_NAME else path


def _fetched(model: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    repo, revision = hub_id(model) or ("", None)
    if not repo:
        raise ArtifactError("no repository of the hub", where=model, expected="HF://org/name")
    try:
        path = Path(snapshot_download(repo, revision=revision))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ArtifactError(
            "the hub does not give this model",
            where=model,
            found=(str(error).strip().splitlines() or [type(error).__name__])[0],
            todo="Check the name, the network and HF_TOKEN, or give a local directory",
        ) from error
    if not (path / CONFIG_NAME).is_file():
        raise ArtifactError(
            "this repository holds no MLC model",
            where=model,
            expected=CONFIG_NAME,
            todo=f"Make one of it: mlc-bridge build {repo} -o OUT",
        )
    return path
