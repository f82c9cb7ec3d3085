"""A scheme per layer: the checkpoint's widths, and Hugging Face's logits of its weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from built import Build, decoded
from mixed_checkpoint import CONFIG, Array, mixed

from mlc_bridge import ConvertJob, convert_weight
from mlc_bridge.artifact.tensor_cache import read_index
from mlc_bridge.errors import BridgeError
from mlc_bridge.models import MODELS
from mlc_bridge.stages.recognise import describe, recognise
from mlc_bridge.stages.scheme_map import SchemeMap

UNUSED = ("prefill", "batch_prefill", "decode", "batch_decode")
BLOCK = "model.layers.0"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Array]]:
    return mixed(tmp_path_factory.mktemp("mixed") / "model")


def test_every_layer_lands_in_its_own_width(
    checkpoint: tuple[Path, dict[str, Array]], tmp_path: Path
) -> None:
    home, exact = checkpoint
    plan = recognise(home)
    report = convert_weight(ConvertJob(home, tmp_path))
    assert plan.config.split_layers == (f"{BLOCK}.self_attn.qkv_proj",)
    forms = {w.path.removeprefix(f"{BLOCK}."): plan.scheme_of(w).name for w in plan.weights}
    assert forms["self_attn.q_proj"] == forms["mlp.gate_up_proj"] == "q4f16_2"
    assert forms["self_attn.v_proj"] == forms["mlp.down_proj"] == forms["lm_head"] == "q8f16_1_gk"
    assert forms["self_attn.k_proj"] == forms["model.embed_tokens"] == "q0f16"
    assert "7 q4f16_2, 3 q8f16_1_gk" in " ".join(report.findings)
    assert abs(report.nbytes / report.checkpoint_nbytes - 1) < 0.02
    cache = read_index(tmp_path)
    for weight in plan.weights:
        found = np.concatenate(decoded(weight, plan.config, plan.scheme, cache))
        wanted = np.concatenate([exact[layer] for layer in weight.sources])
        assert np.array_equal(found, wanted), weight.path


def test_logits_of_its_weights(built: Build, checkpoint: tuple[Path, dict[str, Array]]) -> None:
    home, exact = checkpoint
    model = built(home, "auto", without=UNUSED)
    ids = model.tokens(48)
    config = transformers.AutoConfig.for_model(**CONFIG)
    reference = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    reference.load_state_dict({f"{n}.weight": torch.tensor(a) for n, a in exact.items()})
    with torch.no_grad():
        wanted = reference.eval()(torch.tensor([ids])).logits[0].numpy()
    got = model.lib.all_logits(model.lib.cache(), ids)
    assert np.abs(got - wanted).max() < 0.01 * wanted.std()


def test_schemes_named_layer_by_layer(
    checkpoint: tuple[Path, dict[str, Array]], tmp_path: Path, example_float: Path
) -> None:
    """Of a float checkpoint as well; a part of a fused layer falls out of it."""
    wish = "q4f16_1,down_proj=q8f16_1,layers.0.self_attn.v_proj=q0f16,lm_head=q8f16_1"
    plan = recognise(example_float, quantization=wish)
    forms = {w.path: plan.scheme_of(w).name for w in plan.weights}
    assert forms[f"{BLOCK}.self_attn.q_proj"] == "q4f16_1"
    assert forms[f"{BLOCK}.self_attn.v_proj"] == "q0f16"
    assert forms["model.layers.1.self_attn.qkv_proj"] == forms["model.embed_tokens"] == "q4f16_1"
    assert forms["model.layers.5.mlp.down_proj"] == forms["lm_head"] == "q8f16_1"
    cache_of = convert_weight(ConvertJob(example_float, tmp_path / "out", wish))
    assert cache_of.fingerprint == plan.fingerprint
    alike = describe(example_float, wish.replace("layers.0.self_attn.v_proj=q0f16,", ""))
    assert alike.scheme_of(alike.weights[-1]).name == "q8f16_1"
    home, _ = checkpoint
    kept = recognise(home, quantization="auto,lm_head=q8f16_1_g128")
    assert kept.config.layer_schemes["lm_head"] == "q8f16_1_g128"
    rounded = recognise(home, quantization="auto,v_proj=q4f16_1", requantize="v_proj")
    assert rounded.config.layer_schemes[f"{BLOCK}.self_attn.v_proj"] == "q4f16_1"


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ("q4f16_1,q8f16_1", "two schemes for all layers"),
        ("auto,nonesuch=q8f16_1", "names a layer that the model does not have"),
        ("auto,lm_head=q9f16", "unknown name in schemes"),
        ("auto,lm_head=q4bf16_1", "one model dtype"),
        ("auto,lm_head=q4f16_autoawq", "lm_head: .*q4f16_autoawq.*its codes are uint8"),
        ("q8f16_1_gk", "0.self_attn.*q8f16_1_gk.*or q8f16_1_g32 keeps"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(
    wish: str, said: str, checkpoint: tuple[Path, dict[str, Array]]
) -> None:
    with pytest.raises(BridgeError, match=said):
        recognise(checkpoint[0], quantization=wish)


def test_the_later_name_holds() -> None:
    weights = MODELS["llama"].weights(MODELS["llama"].config(CONFIG))
    wish = SchemeMap.of(" down_proj=q8f16_1 , layers.0.mlp.down_proj=q4f16_1 ")
    assert wish.first == "auto"
    found = {w.path: s.name for w in weights if (s := wish.of_weight(w))}
    assert found == {
        f"model.layers.{i}.mlp.down_proj": "q4f16_1" if i == 0 else "q8f16_1" for i in range(2)
    }
