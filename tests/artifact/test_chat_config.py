"""mlc-chat-config.json against files written by MLC LLM's own gen_config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlc_bridge.artifact.chat_config import CONFIG_NAME, ChatConfig
from mlc_bridge.artifact.conversation import template, template_names
from mlc_bridge.errors import ArtifactError, ConfigError

NAMES = ("LM", "chatml", "llama-2", "llama-3", "mistral_default", "qwen2")


def golden(goldens: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((goldens / f"artifacts/chat_config/{name}.json").read_text())
    return found


@pytest.mark.parametrize("name", NAMES)
def test_round_trip_keeps_mlcs_file(goldens: Path, tmp_path: Path, name: str) -> None:
    raw = golden(goldens, name)
    config = ChatConfig.model_validate(raw)
    assert list(config.to_json()) == list(raw)  # the order of keys too
    config.save(tmp_path)
    assert json.loads((tmp_path / CONFIG_NAME).read_text()) == raw
    assert ChatConfig.load(tmp_path) == config
    assert [p.name for p in tmp_path.iterdir()] == [CONFIG_NAME]  # no temporary file stays


@pytest.mark.parametrize("name", NAMES)
def test_named_template_is_mlcs(goldens: Path, name: str) -> None:
    assert template(name).to_json() == golden(goldens, name)["conv_template"]


def test_unknown_keys_are_kept(goldens: Path, tmp_path: Path) -> None:
    raw = golden(goldens, "LM") | {"mlc_bridge": {"fingerprint": "ab"}, "later": [1]}
    raw["conv_template"]["new"] = {"x": 1}
    ChatConfig.model_validate(raw).save(tmp_path)
    again = ChatConfig.load(tmp_path)
    assert again.to_json() == raw
    assert again.fingerprint == "ab"


@pytest.mark.parametrize("key", ["model_type", "model_config", "vocab_size", "conv_template"])
def test_missing_key_is_named(goldens: Path, tmp_path: Path, key: str) -> None:
    raw = golden(goldens, "LM")
    del raw[key]
    (tmp_path / CONFIG_NAME).write_text(json.dumps(raw))
    with pytest.raises(ArtifactError, match=key):
        ChatConfig.load(tmp_path)


def test_template_name_instead_of_object_is_refused(goldens: Path, tmp_path: Path) -> None:
    (tmp_path / CONFIG_NAME).write_text(json.dumps(golden(goldens, "LM") | {"conv_template": "LM"}))
    with pytest.raises(ArtifactError, match="conv_template"):
        ChatConfig.load(tmp_path)


def test_no_file_and_no_json(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="gen-config"):
        ChatConfig.load(tmp_path)
    (tmp_path / CONFIG_NAME).write_text("{")
    with pytest.raises(ArtifactError, match=CONFIG_NAME):
        ChatConfig.load(tmp_path)


def test_save_into_a_file_says_so(goldens: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="cannot be written"):
        ChatConfig.model_validate(golden(goldens, "LM")).save(tmp_path / "file")


def test_unknown_template_answers_with_the_list() -> None:
    assert len(template_names()) >= 50
    with pytest.raises(ConfigError, match="chatml_nosystem"):
        template("chat-ml")
