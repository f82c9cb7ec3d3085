"""What a lib says about itself: the JSON of its ``_metadata``, in MLC's words.

Unknown keys are fine; ours stand under ``mlc_bridge`` (fingerprint, processor features).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from mlc_bridge.artifact.json_text import checked, json_object
from mlc_bridge.artifact.stamp import Stamp, stamp_of
from mlc_bridge.errors import ArtifactError

Limit = Annotated[int, Field(strict=True, ge=-1, le=2**31 - 1)]
Count = Annotated[int, Field(strict=True, ge=1, le=2**31 - 1)]
RECOMPILE = "Compile the model again"


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow", protected_namespaces=())


class Param(_Part):
    name: str
    shape: list[Annotated[int, Field(strict=True, ge=0)] | str]
    """A word ("vocab_size") stands for any length."""
    dtype: str


class KVCache(_Part):
    num_hidden_layers: Count
    num_attention_heads: Count
    num_key_value_heads: Count
    head_dim: Count


class LibMetadata(_Part):
    """The keys that somebody reads."""

    model_type: str
    quantization: str
    context_window_size: Limit
    sliding_window_size: Limit = -1
    attention_sink_size: Limit = 0
    prefill_chunk_size: Count
    max_batch_size: Count
    tensor_parallel_shards: Count
    params: list[Param]
    kv_cache: KVCache | None = None
    kv_state_kind: str = "kv_cache"
    model_task: str = "chat"
    mlc_bridge: Stamp | None = None


def parse_metadata(text: str | bytes, where: Path) -> dict[str, Any]:
    """The metadata of a lib as it is written, every key of the schema looked at.

    Raises ArtifactError, naming the key at fault.
    """
    found = json_object(text, f"{where}: _metadata", ArtifactError)
    checked(LibMetadata, found, f"{where}: _metadata", ArtifactError)
    return found


def check_runnable(metadata: Mapping[str, Any], where: Path) -> None:
    """Refuse, by name, a model that this engine has no place for."""
    if metadata["tensor_parallel_shards"] != 1:
        raise ArtifactError(
            "this engine runs models of one shard",
            where=where,
            found=f"tensor_parallel_shards {metadata['tensor_parallel_shards']}",
            todo="Compile without tensor parallelism",
        )
    kind, task = metadata.get("kv_state_kind", "kv_cache"), metadata.get("model_task", "chat")
    known = kind in ("kv_cache", "hybrid")
    if not known or task != "chat" or not metadata.get("kv_cache"):
        raise ArtifactError(
            "this engine runs chat models with a KV cache",
            where=where,
            found=f"kv_state_kind {kind}, model_task {task}",
        )


def check_cpu(metadata: Mapping[str, Any], path: Path) -> None:
    """An instruction that is not here would end the process; our libs say which they use."""
    needed = set(stamp_of(metadata, path).cpu_flags)
    cpuinfo = Path("/proc/cpuinfo")
    if not needed or not cpuinfo.exists():
        return
    lines = cpuinfo.read_text().splitlines()
    here = next((line.split() for line in lines if line.startswith(("flags", "Features"))), [])
    if missing := sorted(needed.difference(here)):
        raise ArtifactError(
            "the lib was compiled for another processor",
            where=path,
            found=f"no {', '.join(missing)} here",
            todo="Compile the model on this machine",
        )
