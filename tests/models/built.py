"""Checkpoint directory -> loaded lib and the Hugging Face model it must agree with.

The road is the user's: ``convert_weight`` writes the artifact, ``compile`` reads only its config. The
reference is the Hugging Face model in float32, with every weight replaced by what the artifact holds
(the scheme's numpy ``decode``), so that quantization itself is no part of the difference.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from lib_runner import Lib

from mlc_bridge.artifact.tensor_cache import TensorCache, read_index
from mlc_bridge.compiler.pipeline import compile_module
from mlc_bridge.compiler.target import host_target
from mlc_bridge.models import MODELS, Arch, ModelConfig, Weight
from mlc_bridge.models.arch import is_quantized, parameters
from mlc_bridge.schemes import SCHEMES, Scheme
from mlc_bridge.stages.compile import CompileJob, plan
from mlc_bridge.stages.convert_weight import ConvertJob, convert_weight

Array = np.ndarray[Any, Any]


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


def build(checkpoint: Path, out: Path, quantization: str, **limits: int) -> Built:
    """Convert, compile and load; nothing is left out of the user's road but the tokenizer."""
    hf = json.loads((checkpoint / "config.json").read_text())
    arch, scheme = MODELS[hf["model_type"]], SCHEMES[quantization]
    convert_weight(ConvertJob(checkpoint, out, quantization=quantization))
    config = arch.config(hf, **limits)
    write_config(out, arch, config, scheme)
    target = host_target()
    unit = plan(CompileJob(out), target)
    cache = read_index(out)
    names = [param["name"] for param in unit.metadata["params"]]
    lib = Lib(compile_module(unit, target), {n: cache.array(n) for n in names}, names)
    hf_config = transformers.AutoConfig.from_pretrained(checkpoint)
    hf_config.__dict__.pop("quantization_config", None)
    reference = transformers.AutoModelForCausalLM.from_config(
        hf_config, dtype=torch.float32, attn_implementation="eager"
    )
    load_decoded(reference, arch, config, scheme, cache)
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


def load_decoded(
    model: torch.nn.Module, arch: Arch, config: ModelConfig, scheme: Scheme, cache: TensorCache
) -> None:
    """Put the artifact's weights into the Hugging Face model."""
    state = {}
    for weight in arch.weights(config):
        first = 0
        full = decoded(weight, config, scheme, cache)
        for source, rows in zip(weight.sources, weight.rows, strict=True):
            state[f"{source}.weight"] = torch.from_numpy(full[first : first + rows].copy())
            if weight.bias:
                bias = cache.array(f"{weight.path}.bias").astype(np.float32)
                state[f"{source}.bias"] = torch.from_numpy(bias[first : first + rows].copy())
            first += rows
    result = model.load_state_dict(state, strict=False)
    assert not result.unexpected_keys
    tied = {"lm_head.weight"} if getattr(config, "tie_word_embeddings", False) else set()
    assert set(result.missing_keys) <= tied


def decoded(weight: Weight, config: ModelConfig, scheme: Scheme, cache: TensorCache) -> Array:
    """The weight as the artifact holds it, float32 ``[n, k]`` (a norm: ``[n]``)."""
    suffixes = parameters(weight, scheme, config.float_layers)
    arrays = {s: cache.array(f"{weight.path}.{s}") for s in suffixes if s != "bias"}
    if is_quantized(weight, scheme, config.float_layers):
        return scheme.decode(arrays).dequantize()[: weight.n, : weight.k]
    return arrays["weight"].astype(np.float32)
