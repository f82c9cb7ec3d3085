"""What ``build`` is about to do, from headers and config alone: schemes, sizes, needs, time."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from mlc_bridge.engine.memory import available_memory
from mlc_bridge.record import Record
from mlc_bridge.stages.choose_scheme import nbytes_of
from mlc_bridge.stages.gen_config import GenConfigReport
from mlc_bridge.stages.history import expected
from mlc_bridge.stages.recognise import Recognised


@dataclass(frozen=True)
class LayerPlan(Record):
    """Weights of one name (numbers as ``*``) that are stored alike."""

    pattern: Annotated[str, "MLC path, layer numbers as *."]
    count: Annotated[int, "Weights of this name."]
    shape: Annotated[tuple[int, ...], "Output rows and input columns; experts first."]
    scheme: Annotated[str, "Scheme in whose form they are stored."]
    nbytes: Annotated[int, "Bytes of all of them."]


@dataclass(frozen=True)
class BuildPlan(Record):
    """What ``build`` is about to do; sizes in bytes, times in seconds."""

    model: Annotated[Path, "Local directory of the checkpoint."]
    output: Annotated[Path, "Directory that will be written."]
    model_type: Annotated[str, "Architecture."]
    source_format: Annotated[str, "Format found in the checkpoint."]
    quantization: Annotated[str, "Scheme that will be written."]
    conv_template: Annotated[str, "Conversation template."]
    prompts_proven_equal: Annotated[int, "Prompts equal to those of the checkpoint's own template."]
    n_params: Annotated[int, "Parameters (arrays)."]
    nbytes: Annotated[int, "Bytes of all parameters."]
    checkpoint_nbytes: Annotated[int, "Bytes of the same weights in the checkpoint."]
    bits_per_weight: Annotated[float, "Bits for each logical weight, scales included."]
    float_layers: Annotated[tuple[str, ...], "Linear layers left in float."]
    context_window_size: Annotated[int, "Tokens of prompt and answer together."]
    device: Annotated[str, "What will be compiled for."]
    notes: Annotated[tuple[str, ...], "What the user should know."]
    layers: Annotated[tuple[LayerPlan, ...], "Every kind of weight with its scheme."]
    disk: Annotated[int, "Bytes that the weights need at the output."]
    disk_free: Annotated[int, "Bytes that are free there."]
    memory: Annotated[int, "Bytes to run it: weights, and the cache of one full context window."]
    memory_free: Annotated[int | None, "Bytes of memory that are free now."]
    seconds: Annotated[Mapping[str, float], "Seconds by stage, from earlier builds here."]


def build_plan(output: Path, device: str, config: GenConfigReport, found: Recognised) -> BuildPlan:
    """The plan of a checkpoint that is recognised and whose config is made."""
    chat = config.config
    there = next(path for path in (output, *output.absolute().parents) if path.exists())
    cache = _cache_bytes(found, chat.arch_config, chat.context_window_size)
    return BuildPlan(
        model=found.ckpt.path,
        output=output,
        model_type=found.arch.name,
        source_format=found.source.name,
        quantization=found.scheme.name,
        conv_template=chat.conv_template.name or "unnamed",
        prompts_proven_equal=config.prompts_proven_equal,
        n_params=len(found.specs),
        nbytes=found.nbytes,
        checkpoint_nbytes=found.checkpoint_nbytes,
        bits_per_weight=found.nbytes * 8 / found.elements,
        float_layers=tuple(found.config.float_layers),
        context_window_size=chat.context_window_size,
        device=device,
        notes=config.notes,
        layers=_layers(found),
        disk=found.nbytes,
        disk_free=shutil.disk_usage(there).free,
        memory=found.nbytes + cache,
        memory_free=available_memory(),
        seconds=expected(found.arch.name, found.scheme.name, found.nbytes),
    )


def _layers(found: Recognised) -> tuple[LayerPlan, ...]:
    kinds: dict[tuple[str, tuple[int, ...], str], tuple[int, int]] = {}
    for weight in found.weights:
        shape = tuple(size for size in (weight.experts, weight.n, weight.k) if size)
        key = (re.sub(r"\.\d+\.", ".*.", weight.path), shape, found.scheme_of(weight).name)
        count, nbytes = kinds.get(key, (0, 0))
        own = sum(nbytes_of(spec) for spec in found.params(weight).values())
        kinds[key] = (count + 1, nbytes + own)
    return tuple(LayerPlan(p, count, s, x, n) for (p, s, x), (count, n) in kinds.items())


def _cache_bytes(found: Recognised, config: Mapping[str, object], window: int) -> int:
    """Keys and values of every layer with attention for one full window."""
    itemsize = 4 if found.scheme.model_dtype == "float32" else 2
    if (decoder := getattr(found.arch, "decoder", None)) is not None:
        pages = decoder(found.config).pages
        return 2 * itemsize * max(window, 0) * sum(p.kv_heads * p.head_dim for p in pages)

    def size(key: str) -> int:
        value = config.get(key)
        return value if isinstance(value, int) else 0

    heads = size("num_key_value_heads") or size("num_attention_heads")
    width = size("head_dim") or size("hidden_size") // max(size("num_attention_heads"), 1)
    return 2 * size("num_hidden_layers") * heads * width * max(window, 0) * itemsize
