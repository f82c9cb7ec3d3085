"""Checkpoint directory -> loaded lib and the Hugging Face model it must agree with.

The road is the user's: ``convert_weight`` writes the artifact, ``compile`` reads only its config.
The reference is the Hugging Face model in float32, with every weight replaced by what the artifact
holds (the scheme's numpy ``decode``), so that quantization itself is no part of the difference.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from lib_runner import Lib
from safetensors.numpy import save_file
from thrift import quick_target, thrifty

from mlc_bridge.artifact.tensor_cache import TensorCache, read_index
from mlc_bridge.compiler.pipeline import compile_module
from mlc_bridge.models import Arch, ModelConfig, Weight
from mlc_bridge.models.arch import own_scheme, parameters
from mlc_bridge.schemes import Scheme
from mlc_bridge.sources import Checkpoint
from mlc_bridge.stages.compile import CompileJob, make_plan, make_unit
from mlc_bridge.stages.convert_weight import ConvertJob, convert_weight
from mlc_bridge.stages.recognise import recognise

Array = np.ndarray[Any, Any]
Build = Callable[..., "Built"]
Checkpoints = Callable[[str], Path]


@dataclass(frozen=True)
class Built:
    lib: Lib
    reference: torch.nn.Module
    config: ModelConfig
    vocab: int

    def expected(self, ids: Sequence[int]) -> Array:
        """Float32 logits of the reference after every token, ``[len(ids), v]``."""
        with torch.no_grad():
            return self.reference(torch.tensor([list(ids)])).logits[0].numpy()

    def tokens(self, count: int, seed: int = 0) -> list[int]:
        return np.random.default_rng(seed).integers(3, self.vocab, count).tolist()


@thrifty()
def build(
    checkpoint: Path, out: Path, quantization: str, without: tuple[str, ...] = (), **limits: int
) -> Built:
    """Convert, compile and load; nothing is left out of the user's road but the tokenizer.

    Functions named in ``without`` are not compiled, which saves their kernels' time.
    """
    found = recognise(checkpoint, quantization=quantization, limits=limits)
    arch, config, scheme = found.arch, found.config, found.scheme
    convert_weight(ConvertJob(checkpoint, out, quantization=quantization))
    write_config(out, arch, config, scheme)
    target = quick_target()
    unit = make_unit(make_plan(CompileJob(out)), target)
    for name in without:
        del unit.mod[name]
    cache = read_index(out)
    names = [param["name"] for param in unit.metadata["params"]]
    lib = Lib(compile_module(unit, target), {n: cache.array(n) for n in names}, names)
    as_it_is = quantization == "q0f32" and found.source.name == "dense"
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        checkpoint
        if as_it_is
        else write_decoded(checkpoint, out / "decoded", arch, config, scheme, cache),
        dtype=torch.float32,
        attn_implementation="eager",
    )
    return Built(lib, reference.eval(), config, config.vocab_size)


def write_config(out: Path, arch: Arch, config: ModelConfig, scheme: Scheme) -> None:
    """The least ``mlc-chat-config.json`` that compile needs."""
    block = config.asdict()
    chat = {
        "version": "0.1.0",
        "model_type": arch.name,
        "quantization": scheme.name,
        "model_config": block,
        "vocab_size": config.vocab_size,
        "context_window_size": config.context_window_size,
        "sliding_window_size": -1,
        "prefill_chunk_size": config.prefill_chunk_size,
        "attention_sink_size": -1,
        "tensor_parallel_shards": 1,
        "conv_template": {"roles": {"user": "u", "assistant": "a"}, "seps": ["\n"]},
    }
    (out / "mlc-chat-config.json").write_text(json.dumps(chat))


def write_decoded(
    checkpoint: Path, out: Path, arch: Arch, config: ModelConfig, scheme: Scheme, cache: TensorCache
) -> Path:
    """A float32 Hugging Face checkpoint that holds what the artifact holds."""
    state = {}
    original = Checkpoint.open(checkpoint)
    for weight in arch.weights(config):
        if weight.role == "plain":
            source = weight.sources[0]
            state[source] = cache.array(weight.path).reshape(original.shape(source))
            continue
        stack = decoded(weight, config, scheme, cache)
        for number, full in enumerate(stack):
            sources = weight.expert_sources(number) if weight.experts else weight.sources
            cuts = np.cumsum(weight.rows)[:-1]
            for source, part in zip(sources, np.split(full, cuts), strict=True):
                state[f"{source}.weight"] = np.ascontiguousarray(part)
        if weight.bias:
            bias = cache.array(f"{weight.path}.bias").astype(np.float32)
            for source, part in zip(weight.sources, np.split(bias, cuts), strict=True):
                state[f"{source}.bias"] = np.ascontiguousarray(part)
    out.mkdir()
    save_file(state, out / "model.safetensors", metadata={"format": "pt"})
    hf = json.loads((checkpoint / "config.json").read_text())
    hf.pop("quantization_config", None)
    (out / "config.json").write_text(json.dumps(hf))
    return out


def decoded(weight: Weight, config: ModelConfig, scheme: Scheme, cache: TensorCache) -> list[Array]:
    """The weight as the artifact holds it, float32 ``[n, k]`` (a norm: ``[n]``), per expert."""
    suffixes = parameters(weight, scheme, config)
    arrays = {s: cache.array(f"{weight.path}.{s}") for s in suffixes if s != "bias"}
    if not weight.experts:
        arrays = {s: a[None] for s, a in arrays.items()}
    layout = own_scheme(weight, scheme, config)
    if layout is None:
        return list(arrays["weight"].astype(np.float32) - np.float32(weight.offset))
    count = weight.experts or 1
    parts = [layout.decode({s: a[e] for s, a in arrays.items()}) for e in range(count)]
    return [part.dequantize()[: weight.n, : weight.k] for part in parts]
