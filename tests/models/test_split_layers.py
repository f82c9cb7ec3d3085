"""A fused layer whose parts are stored apart computes what the whole one computes.

Every architecture's first block is built twice from one set of weights: whole, and with all fused
layers split, the last part of each in float. The float part holds what the quantized one decodes
to, so that nothing but rounding of float32 may differ.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tvm
from test_model_configs import hf
from tvm import relax
from tvm.ir.transform import Sequential
from tvm.relax.frontend import nn

from mlc_bridge.compiler.pipeline import fuse, lower, plan_memory
from mlc_bridge.compiler.target import host_target
from mlc_bridge.errors import ConfigError
from mlc_bridge.models import MODELS, ModelConfig, Weight
from mlc_bridge.models.arch import own_scheme, parameters
from mlc_bridge.models.decoder.graph import DecoderGraph
from mlc_bridge.models.decoder.part import Step
from mlc_bridge.schemes import SCHEMES

Array = np.ndarray[Any, Any]
SCHEME = SCHEMES["q4f32_1"]
# The first layer of these is a Mamba, which has nothing fused.
FUSED = [n for n in MODELS if n not in ("phi3", "granitemoehybrid", "nemotron_h")]


def config_of(name: str, **changes: Any) -> ModelConfig:
    small = {"num_hidden_layers": 1, "attention_bias": name in ("qwen3", "qwen3_moe")}
    return MODELS[name].config(hf(name, **small), **changes)


def fused(name: str) -> list[Weight]:
    weights = MODELS[name].weights(config_of(name))
    return [weight for weight in weights if len(weight.rows) > 1]


def split(name: str) -> ModelConfig:
    """Every fused layer in its parts, the last part of each in float."""
    paths = tuple(weight.path for weight in fused(name))
    apart = config_of(name, split_layers=paths)
    whole = {w.path for w in MODELS[name].weights(config_of(name))}
    new = [w.path for w in MODELS[name].weights(apart) if w.path not in whole]
    last = tuple(path for path in new if path.endswith(("v_proj", "up_proj", "w3")))
    assert len(last) == len(paths)
    return dataclasses.replace(apart, float_layers=last)  # type: ignore[type-var]


def arrays(weight: Weight, config: ModelConfig) -> Iterator[tuple[str, Array]]:
    """Full name -> stored array; values depend on the checkpoint's names alone."""
    rows = weight.rows * max(weight.experts, 1)
    drawn = [_drawn(source, (n, weight.k)) for source, n in zip(weight.sources, rows, strict=True)]
    codes = [SCHEME.encode(SCHEME.quantize(w)) for w in drawn]
    if own_scheme(weight, SCHEME, config) is None:
        codes = [{"weight": SCHEME.decode(c).dequantize()} for c in codes]
    for suffix, spec in parameters(weight, SCHEME, config).items():
        if suffix == "bias":
            parts = [_drawn(f"{s}.bias", (n,)) for s, n in zip(weight.sources, rows, strict=True)]
        else:
            parts = [c[suffix] for c in codes]
        yield f"{weight.path}.{suffix}", np.concatenate(parts).reshape(spec.shape)


def _drawn(name: str, shape: tuple[int, ...]) -> Array:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    return rng.normal(size=shape).astype(np.float32) / 8


class Block(DecoderGraph):
    """The layers of the first block that may be fused, as functions of their own."""

    def qkv(self, x: nn.Tensor) -> nn.Tensor:
        return self.blocks[0]["qkv"](x)

    def feed_forward(self, x: nn.Tensor) -> nn.Tensor:
        return self.decoder.layers[0].mlp.emit(self.blocks[0], x, Step(None, None))


def outputs(name: str, config: ModelConfig) -> list[Array]:
    """What ``qkv`` and the MLP give for three rows."""
    arch: Any = MODELS[name]
    block = Block(arch.decoder(config), SCHEME)
    mode = {"param_mode": "packed", "effect_mode": "none"}
    rows = nn.spec.Tensor([1, "rows", 256], "float32")
    told = {key: {"x": rows, "$": mode} for key in ("qkv", "feed_forward")}
    mod, params = block.export_tvm(spec=nn.spec.ModuleSpec.from_raw(told, block))[:2]
    target = host_target()
    with target:
        for phase in (fuse(), plan_memory(), lower(target)):  # serial loops need no schedule
            mod = Sequential(phase)(mod)
        vm = relax.VirtualMachine(relax.build(mod, target, relax_pipeline=None), tvm.cpu())
    held = {n: a for w in arch.weights(config) if w.k for n, a in arrays(w, config)}
    empty = np.zeros(256, "float32")
    packed = [tvm.runtime.tensor(held.get(param, empty)) for param, _ in params]
    x = tvm.runtime.tensor(_drawn("x", (1, 3, 256)))
    return [vm[function](x, packed).numpy() for function in told]


LATENT = ("mistral4", "glm4_moe_lite", "deepseek_v3", "deepseek_v2")  # no fused query, key, value


@pytest.mark.parametrize("name", [n for n in FUSED if n not in LATENT])
def test_parts_compute_what_the_whole_computes(name: str) -> None:
    for whole, parts in zip(
        outputs(name, config_of(name)), outputs(name, split(name)), strict=True
    ):
        assert whole.std() > 1e-3
        np.testing.assert_allclose(parts, whole, atol=1e-5 * np.abs(whole).max())


@pytest.mark.parametrize("name", FUSED)
def test_parts_have_the_names_of_the_checkpoint(name: str) -> None:
    """Relative to their layer, which keeps MLC's name; everything else stays as it was."""
    (whole, apart) = (MODELS[name].weights(c) for c in (config_of(name), split(name)))
    kept = [w for w in apart if w in whole]
    new = [w for w in apart if w not in whole]
    assert kept == [w for w in whole if len(w.rows) == 1]
    for weight in new:
        ours, theirs = (p.split("layers.0.")[1] for p in (weight.path, weight.sources[0]))
        assert ours == theirs.replace("experts.0.", "experts.")
    assert sum(w.n for w in new) == sum(w.n for w in whole if len(w.rows) > 1)


def test_uniform_models_do_not_mention_it() -> None:
    for name in MODELS:
        assert "split_layers" not in config_of(name).asdict()


@pytest.mark.parametrize("name", FUSED)
def test_block_keeps_it(name: str) -> None:
    config = split(name)
    assert MODELS[name].config(config.asdict()) == config


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("llama", "model.layers.0.mlp.down_proj"),
        ("llama", "model.layers.9.mlp.gate_up_proj"),
        ("phi3", "transformer.h.0.mixer.qkv_proj"),
    ],
)
def test_what_is_not_fused_cannot_be_split(name: str, path: str) -> None:
    with pytest.raises(ConfigError, match=rf"fused.*{path}"):
        MODELS[name].weights(config_of(name, split_layers=(path,)))
