"""The text part of multimodal checkpoints, made by transformers' own classes and other tools."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from recognise_cases import Example, with_texts, write
from safetensors.numpy import load_file, save_file
from test_recognise import one_answer
from tool_layouts import settings

from mlc_bridge import BuildJob, ConvertJob, InspectJob, build, convert_weight, inspect_checkpoint
from mlc_bridge.artifact.tensor_cache import read_index
from mlc_bridge.errors import ConfigError, SourceError
from mlc_bridge.sources import Checkpoint, detect
from mlc_bridge.stages.recognise import open_checkpoint, recognise
from mlc_bridge.stages.text_part import text_part
from mlc_bridge.stages.verify import VerifyJob, verify

TEXT = {
    "vocab_size": 4096, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "max_position_embeddings": 512, "initializer_range": 0.1, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
EYES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
        "num_attention_heads": 2, "image_size": 28, "patch_size": 14}  # fmt: skip
QWEN = {"depth": 1, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2,
        "out_hidden_size": 64}  # fmt: skip
MROPE = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}
DELTA = {"full_attention_interval": 2, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
         "linear_num_key_heads": 2, "linear_num_value_heads": 4,
         "rope_parameters": {**MROPE, "mrope_section": [2, 1, 1], "mrope_interleaved": True,
                             "partial_rotary_factor": 0.5}}  # fmt: skip


def llava(text: str, **more: Any) -> dict[str, Any]:
    return {"text_config": {**TEXT, "model_type": text, **more},
            "vision_config": {**EYES, "model_type": "clip_vision_model"}}  # fmt: skip


# model type -> class, config, architecture here
MADE: dict[str, tuple[str, dict[str, Any], str]] = {
    "gemma3": ("Gemma3ForConditionalGeneration", {
        "text_config": {**TEXT, "sliding_window": 16}, "vision_config": EYES,
        "mm_tokens_per_image": 4}, "gemma3_text"),
    "llava": ("LlavaForConditionalGeneration", llava("llama"), "llama"),
    "llava-mistral": ("LlavaForConditionalGeneration", llava("mistral"), "mistral"),
    "mistral3": ("Mistral3ForConditionalGeneration", {
        **llava("mistral"), "vision_config": {**EYES, "model_type": "pixtral", "head_dim": 16},
        "tie_word_embeddings": False}, "mistral"),
    "mistral3-ministral3": ("Mistral3ForConditionalGeneration", {
        **llava("ministral3", tie_word_embeddings=True),
        "vision_config": {**EYES, "model_type": "pixtral", "head_dim": 16},
        "tie_word_embeddings": True}, "ministral3"),
    "idefics3": ("Idefics3ForConditionalGeneration", {
        "text_config": {**TEXT, "model_type": "llama"}, "vision_config": EYES}, "llama"),
    "qwen2_vl": ("Qwen2VLForConditionalGeneration", {
        "text_config": {**TEXT, "rope_parameters": MROPE},
        "vision_config": {"depth": 1, "embed_dim": 32, "hidden_size": 64, "num_heads": 2}},
        "qwen2"),
    "qwen2_5_vl": ("Qwen2_5_VLForConditionalGeneration", {
        "text_config": {**TEXT, "rope_parameters": MROPE},
        "vision_config": {**QWEN, "fullatt_block_indexes": [0]}}, "qwen2"),
    "qwen3_vl": ("Qwen3VLForConditionalGeneration", {
        "text_config": {**TEXT, "rope_parameters": {**MROPE, "mrope_interleaved": True}},
        "vision_config": {**QWEN, "deepstack_visual_indexes": [0], "num_position_embeddings": 16},
        "tie_word_embeddings": True}, "qwen3"),
    "qwen3_vl_moe": ("Qwen3VLMoeForConditionalGeneration", {
        "text_config": {**TEXT, "moe_intermediate_size": 32, "num_experts": 4,
                        "num_experts_per_tok": 2, "rope_parameters": MROPE},
        "vision_config": {**QWEN, "deepstack_visual_indexes": [0], "num_position_embeddings": 16},
        "tie_word_embeddings": False}, "qwen3_moe"),
    "qwen3_5": ("Qwen3_5ForConditionalGeneration", {
        "text_config": {**TEXT, **DELTA}, "vision_config": {**QWEN, "num_position_embeddings": 16},
        "tie_word_embeddings": True}, "qwen3_5_text"),
    "qwen3_5_moe": ("Qwen3_5MoeForConditionalGeneration", {
        "text_config": {**TEXT, **DELTA, "moe_intermediate_size": 32, "num_experts": 4,
                        "num_experts_per_tok": 2, "shared_expert_intermediate_size": 32},
        "vision_config": {**QWEN, "num_position_embeddings": 16},
        "tie_word_embeddings": False}, "qwen3_5_moe_text"),
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """``made(name)``: the model, and the directory that it saved itself to."""

    @cache
    def once(name: str) -> tuple[Any, Path]:
        family, config, _ = MADE[name]
        torch.manual_seed(0)
        cls = getattr(transformers, family)
        model = cls(cls.config_class(**config)).eval()
        home = tmp_path_factory.mktemp(name) / "model"
        model.save_pretrained(home)
        return model, with_texts(home)

    return once


@pytest.mark.parametrize("name", MADE)
def test_five_doors_read_the_text_model(name: str, made: Any, tmp_path: Path) -> None:
    model, home = made(name)
    assert one_answer(home, tmp_path / "doors") == ("scheme", "q0f32")
    found = recognise(home)
    assert found.arch.name == MADE[name][2]
    told = " ".join(found.notes)
    counts = [int(n) for n in re.findall(r"left out are (\d+) tensors of", told)]
    whole = text_part(Checkpoint.open(home))
    assert sum(counts) == len(found.left_out) == len(whole.outside)
    assert "vision tower" in told
    assert "not used" not in told
    assert set(found.notes) <= set(inspect_checkpoint(InspectJob(home)).findings)
    _same_weights(model, home, tmp_path)


def _same_weights(model: Any, home: Path, out: Path) -> None:
    """What was written is what transformers' text model holds."""
    convert_weight(ConvertJob(home, out / "mlc"))
    cache_, found = read_index(out / "mlc"), recognise(home)
    state = {f"model.{n}": w for n, w in model.get_decoder().state_dict().items()}
    state["lm_head.weight"] = model.get_output_embeddings().weight
    for weight in found.weights:
        parts = [_of(state, weight.tensor or f"{s}.weight") for s in weight.sources]
        suffix = "" if weight.role == "plain" else "weight"
        stored = cache_.array(weight.parameter(suffix)) - np.float32(weight.offset)
        wanted = np.concatenate(parts).reshape(stored.shape)
        np.testing.assert_allclose(stored, wanted, atol=1e-6)
        if weight.bias:
            biases = np.concatenate([state[f"{s}.bias"].numpy() for s in weight.sources])
            np.testing.assert_array_equal(cache_.array(f"{weight.path}.bias"), biases)


def _of(state: Any, name: str) -> np.ndarray:
    """A tensor by name; an expert's out of those of all experts."""
    if name in state:
        return state[name].detach().numpy()
    experts, number, layer = re.fullmatch(
        r"(.*\.experts)\.(\d+)\.(\w+)_proj\.weight", name
    ).groups()
    if layer == "down":
        return state[f"{experts}.down_proj"][int(number)].detach().numpy()
    both = state[f"{experts}.gate_up_proj"][int(number)].detach().numpy()
    return np.split(both, 2)[layer == "up"]


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_5"])
def test_logits_are_those_of_the_whole_model(name: str, made: Any, tmp_path: Path) -> None:
    """In float32, mrope and all, against its own class."""
    _, home = made(name)
    build(BuildJob(home, tmp_path / "mlc", conv_template="LM", prefill_chunk_size=48))
    report = verify(VerifyJob(tmp_path / "mlc", home, tokens=128, window=64))
    found = report.behaviour
    assert report.weights.exact == report.weights.weights
    assert found is not None
    assert found.tokens == 128
    assert found.reference_perplexity > 10
    assert found.logit_difference < 1e-3
    assert found.kl < 1e-6


def test_a_flat_config_says_the_same(made: Any, tmp_path: Path) -> None:
    """As Qwen2-VL's first files: no text_config, and mrope as a kind of rope scaling."""
    _, home = made("qwen2_vl")
    config = json.loads((home / "config.json").read_text())
    inner = config.pop("text_config")
    rope = inner.pop("rope_parameters")
    flat = {**inner, **config, "rope_theta": rope["rope_theta"],
            "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}}  # fmt: skip
    write(tmp_path / "flat", load_file(home / "model.safetensors"), flat)
    one, other = recognise(home), recognise(tmp_path / "flat")
    assert one.fingerprint == other.fingerprint
    assert one.notes == other.notes


PREFIXES = (
    ("language_model.model.", "language_model.lm_head."),
    ("model.language_model.", "lm_head."),
    ("model.text_model.", "lm_head."),
    ("language_model.", "lm_head."),
)


def multimodal(home: Path, names: tuple[str, str], writer: str, config: Any) -> Path:
    """The example's layers in one tool's form, in a LLaVA whose eyes are of this form too."""
    example = Example()
    pairs = (("model.", names[0]), ("lm_head.", names[1]))
    tensors = {}
    for name, array in example.tensors(writer).items():
        old, new = next(pair for pair in pairs if name.startswith(pair[0]))
        tensors[new + name.removeprefix(old)] = array
    layer, q = next(iter(example.layers.items()))
    eye = f"vision_tower.{layer.removeprefix('model.')}"
    tensors |= example.layer(eye, writer, q)
    tensors["multi_modal_projector.linear_1.weight"] = np.ones((8, 8), np.float16)
    inner = {k: v for k, v in example.config.items() if k != "quantization_config"}
    whole = {"model_type": "llava", "text_config": inner, "vision_config": {"hidden_size": 8}}
    return write(home, tensors, {**whole, "quantization_config": config})


def of_the_language_model(writer: str) -> dict[str, Any]:
    """The tool's settings, of the layers that it names by what the file calls them."""
    found: Any = settings(writer, 128)
    if writer == "compressed-tensors":
        found["config_groups"]["group_0"]["targets"] = [r"re:^language_model\.model\..*_proj$"]
    if writer == "gptq v2":
        found |= {"bits": 8, "dynamic": {r"+:^language_model\.model\..*_proj$": {"bits": 4}}}
    return found


@pytest.mark.parametrize("writer", ["autoawq", "gptq v2", "compressed-tensors"])
def test_every_tools_layers_are_found(writer: str, tmp_path: Path) -> None:
    config = of_the_language_model(writer)
    found = recognise(multimodal(tmp_path / writer, PREFIXES[0], writer, config))
    for layer, wanted in Example().layers.items():
        read: Any = found.source.read(found.ckpt, layer)
        np.testing.assert_array_equal(read.dequantize(), wanted.dequantize())
    assert not any("vision" in layer for layer in found.source.layers(found.ckpt))


@pytest.mark.parametrize("names", PREFIXES)
def test_awq_converts_to_the_bytes_of_the_text_model_alone(
    names: tuple[str, str], example_awq: Path, tmp_path: Path
) -> None:
    home = multimodal(tmp_path / "in", names, "autoawq", settings("autoawq", 128))
    report = convert_weight(ConvertJob(home, tmp_path / "whole"))
    assert any("4 tensors" in f or "3 tensors" in f for f in report.findings)
    convert_weight(ConvertJob(example_awq, tmp_path / "alone"))
    whole, alone = read_index(tmp_path / "whole"), read_index(tmp_path / "alone")
    assert list(whole.records) == list(alone.records)
    for name in alone.records:
        np.testing.assert_array_equal(whole.array(name), alone.array(name))


def test_what_no_rule_names_is_refused(made: Any, tmp_path: Path) -> None:
    _, home = made("llava")
    tensors = load_file(home / "model.safetensors")
    config = json.loads((home / "config.json").read_text())
    more = {**tensors, "model.cross_attention.q_proj.weight": np.ones((4, 4), np.float32)}
    with pytest.raises(SourceError, match=r"no place for .*model\.cross_attention"):
        recognise(write(tmp_path / "more", more, config))
    twice = {**tensors, "model.norm.weight": np.ones(64, np.float32)}
    with pytest.raises(SourceError, match="this tensor twice"):
        open_checkpoint(write(tmp_path / "twice", twice, config))
    lost = {n: a for n, a in tensors.items() if "layers.1.mlp.up_proj" not in n}
    with pytest.raises(SourceError, match=r"lacks this tensor.*up_proj|up_proj.*lacks"):
        recognise(write(tmp_path / "lost", lost, config))
    both = {"model_type": "paligemma", "text_config": {**TEXT, "model_type": "gemma"}}
    with pytest.raises(ConfigError, match="use_bidirectional_attention changes what"):
        recognise(write(tmp_path / "both", tensors, both))
    config["text_config"]["model_type"] = "nonesuch"
    with pytest.raises(ConfigError, match="nonesuch"):
        recognise(write(tmp_path / "unknown", tensors, config))


def test_a_description_speaks_of_the_files_names(tmp_path: Path) -> None:
    """msModelSlim's, which lists what is left out too."""
    golden = Path(__file__).parents[1] / "golden/sources/msmodelslim"
    case = next(p.parent for p in sorted(golden.glob("*/quant_model_description.json")))
    plain = Checkpoint.open(case)
    source = detect(plain)
    layer = source.layers(plain)[0]

    def stored(name: str) -> str:
        inside = name.startswith("model.")
        return f"language_model.{name}" if inside else f"language_model.model.{name}"

    def inner(name: str) -> str:
        return name if name.startswith("model.") else f"model.{name}"

    types = json.loads((case / "quant_model_description.json").read_text())
    listed = {stored(k) if "." in k else k: v for k, v in types.items()}
    eye = "vision_tower.weight"
    save_file(
        {**{stored(n): np.array(plain.tensor(n)) for n in plain.names},
         "language_model.model.layers.9.norm.weight": np.ones(1, np.float16),
         eye: np.ones(1, np.float16)},
        tmp_path / "quant_model_weight.safetensors",
    )  # fmt: skip
    (tmp_path / "quant_model_description.json").write_text(json.dumps({**listed, eye: "FLOAT"}))
    whole = {"model_type": "llava", "text_config": {"model_type": "llama"}, "vision_config": {}}
    (tmp_path / "config.json").write_text(json.dumps(whole))
    ckpt = open_checkpoint(tmp_path)
    assert detect(ckpt).name == "msmodelslim"
    source.check_whole(ckpt)
    read: Any = source.read(ckpt, inner(layer))
    wanted: Any = source.read(plain, layer)
    np.testing.assert_array_equal(read.dequantize(), wanted.dequantize())
