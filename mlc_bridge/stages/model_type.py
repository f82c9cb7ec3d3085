"""``--model-type``: MLC reads config.json as that architecture; here it may say what is there."""

from __future__ import annotations

from pathlib import Path

from mlc_bridge.artifact.chat_config import ChatConfig
from mlc_bridge.artifact.place import model_directory
from mlc_bridge.errors import ConfigError
from mlc_bridge.stages.inspect_artifact import is_artifact
from mlc_bridge.stages.recognise import architecture, home_of, read_config


def check_model_type(model: str | Path, wanted: str) -> None:
    """Raise ConfigError unless ``wanted`` is ``auto`` or the architecture of ``model``."""
    if wanted == "auto":
        return
    if is_artifact(model):
        found = ChatConfig.load(model_directory(model)).model_type
    else:
        home = home_of(model)
        found = architecture(read_config(home), home).name
    if found != wanted:
        raise ConfigError(
            "this model is of another architecture",
            where="--model-type",
            found=wanted,
            expected=found,
            todo="Leave it out: the architecture is what config.json says in model_type",
        )
