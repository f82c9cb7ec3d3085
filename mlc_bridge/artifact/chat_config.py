"""``mlc-chat-config.json``: everything about a model that is neither weights nor code.

Schema, key order and defaults are MLC LLM's (``MLCChatConfig``, July 2026). ``model_config`` is
the compile-time block of the architecture; ``vocab_size``, the window sizes and
``prefill_chunk_size`` repeat what MLC's engine reads at the top level. Unknown keys are kept, so a
config written by a newer tool survives a round trip; ours live under ``mlc_bridge`` (version,
fingerprint), which MLC ignores.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from mlc_bridge.artifact.conversation import Conversation
from mlc_bridge.artifact.json_text import checked, json_object
from mlc_bridge.artifact.stamp import stamp_of
from mlc_bridge.errors import ArtifactError

__all__ = ["CONFIG_NAME", "GENERATION_DEFAULTS", "ChatConfig", "Conversation", "write_text"]

CONFIG_NAME = "mlc-chat-config.json"
GENERATION_DEFAULTS: dict[str, float | int] = {
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "temperature": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "top_p": 1.0,
}
"""What MLC writes for a key that neither generation_config.json nor config.json sets."""


class ChatConfig(BaseModel):
    """The file's keys in MLC's order. ``arch_config`` is the key ``model_config``."""

    model_config = ConfigDict(extra="allow", populate_by_name=True, protected_namespaces=())

    version: str = "0.1.0"
    model_type: str
    quantization: str
    arch_config: dict[str, Any] = Field(alias="model_config")
    vocab_size: int
    context_window_size: int
    sliding_window_size: int
    prefill_chunk_size: int
    attention_sink_size: int
    tensor_parallel_shards: int
    pipeline_parallel_stages: int = 1
    active_vocab_size: int | None = None
    temperature: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    top_p: float | None = None
    tokenizer_files: list[str] = Field(default_factory=list)
    tokenizer_info: dict[str, Any] = Field(default_factory=dict)
    conv_template: Conversation
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    model_task: Literal["chat", "embedding"] = "chat"
    embedding_metadata: dict[str, Any] | None = None

    @property
    def fingerprint(self) -> str | None:
        """Hash of the graph these weights belong to, or None in a config that MLC LLM wrote."""
        return stamp_of(self.model_extra or {}, CONFIG_NAME).fingerprint

    @classmethod
    def load(cls, directory: str | Path) -> ChatConfig:
        """Read the config of a directory. Raises ``ArtifactError`` naming the key at fault."""
        path = Path(directory) / CONFIG_NAME
        try:
            text = path.read_bytes()
        except FileNotFoundError:
            raise ArtifactError(
                "no such file: this is no MLC model directory",
                where=path,
                todo="Write it with: mlc-bridge gen-config MODEL_DIR -o " + str(directory),
            ) from None
        except (OSError, ValueError) as error:  # ValueError: a null byte in the name
            why = getattr(error, "strerror", None) or error
            raise ArtifactError(f"cannot be read ({why})", where=str(path)[:200]) from error
        chat = checked(cls, json_object(text, path, ArtifactError), path, ArtifactError)
        stamp_of(chat.model_extra or {}, path)
        return chat

    def to_json(self) -> dict[str, Any]:
        """As MLC writes it."""
        data = self.model_dump(by_alias=True)
        if self.active_vocab_size is None:  # MLC's reader refuses null here
            del data["active_vocab_size"]
        data["conv_template"] = self.conv_template.to_json()
        return data

    def save(self, directory: str | Path) -> Path:
        """Write ``directory/mlc-chat-config.json`` in one step; returns its path."""
        return write_text(
            Path(directory) / CONFIG_NAME, json.dumps(self.to_json(), indent=2, ensure_ascii=False)
        )


def write_text(path: Path, text: str) -> Path:
    """Replace ``path`` by ``text`` in one step (a temporary file beside it, then a rename)."""
    temp = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as out:
            temp = Path(out.name)
            out.write(text)
        temp.chmod(0o666 & ~_umask())
        temp.replace(path)
    except OSError as error:
        raise ArtifactError(f"cannot be written ({error.strerror})", where=path) from error
    finally:
        if temp is not None:
            temp.unlink(missing_ok=True)
    return path


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
