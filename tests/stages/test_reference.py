"""verify's reference: the float model whole, and the same numbers with one layer in memory."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from recognise_cases import with_texts

from mlc_bridge.errors import ArtifactError, ConfigError
from mlc_bridge.stages import reference
from mlc_bridge.stages.kept_reference import KeptReference
from mlc_bridge.stages.progress import silent
from mlc_bridge.stages.recognise import detected, open_checkpoint
from mlc_bridge.stages.reference import Need, Reference, open_reference
from mlc_bridge.stages.verify import nbytes_of

SHARED: dict[str, Any] = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "max_position_embeddings": 512, "initializer_range": 0.15, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
EYES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
        "num_attention_heads": 2, "image_size": 28, "patch_size": 14}  # fmt: skip
LAYERS = ["sliding_attention", "full_attention", "sliding_attention"]
THIRD = {"layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
         "sliding_window": 8, "sliding_window_pattern": 3}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "gemma2": {"sliding_window": 8, "final_logit_softcapping": 4.0, "layer_types": LAYERS},
    "gemma3_text": THIRD,
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "granite": {"logits_scaling": 2.0, "residual_multiplier": 0.4},
    "phi3": {"sliding_window": 8},
    "gemma3": {"text_config": {**SHARED, **THIRD},
               "vision_config": EYES, "mm_tokens_per_image": 4},
}  # fmt: skip


def made(kind: str, home: Path) -> tuple[Any, Path]:
    fields = KINDS[kind] if "text_config" in KINDS[kind] else {**SHARED, **KINDS[kind]}
    config = transformers.AutoConfig.for_model(kind, **fields)
    torch.manual_seed(3)
    seeing = transformers.AutoModelForImageTextToText
    family = seeing if "vision_config" in fields else transformers.AutoModelForCausalLM
    model = family.from_config(config, dtype=torch.float32).eval()
    model.save_pretrained(home)
    return model, with_texts(home)


def windows(count: int, size: int) -> list[Any]:
    return list(np.random.default_rng(7).integers(3, 320, (count, size)).astype(np.int32))


@pytest.mark.parametrize("kind", KINDS)
def test_layer_by_layer_is_the_same(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against transformers' own model, in more than one pass over the layers."""
    monkeypatch.setattr(reference, "PASS", 48)
    model, home = made(kind, tmp_path / kind)
    read = detected(open_checkpoint(home))
    whole = open_reference(*read, 24, 72)
    need = Need.of(reference.survey(*read).weights, 24, 72)
    streamed = open_reference(*read, 24, 72, max_memory=need.whole + need.work - 1)
    assert (whole.how, streamed.how) == ("float32, whole", "float32, layer by layer")
    ids = windows(3, 24)
    for one, other, asked in zip(whole.logits(ids), streamed.logits(ids), ids, strict=True):
        with torch.no_grad():
            wanted = model(torch.from_numpy(asked[None]).long()).logits[0].numpy()
        assert np.abs(wanted).max() > 0.5
        np.testing.assert_allclose(one, wanted, atol=1e-6)
        np.testing.assert_allclose(other, wanted, atol=2e-6)
    _readings(model, whole, streamed, ids[0])


def _readings(model: Any, whole: Reference, streamed: Reference, ids: Any) -> None:
    """Norm and head of what transformers itself records; the last one are the logits."""
    with torch.no_grad():
        out = model(torch.from_numpy(ids[None]).long(), output_hidden_states=True)
    read = [*whole.readings(ids)]
    assert len(read) == len(out.hidden_states) == 4
    for one, other in zip(read, streamed.readings(ids), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6)
    np.testing.assert_allclose(read[-1], out.logits[0].numpy(), atol=1e-6)
    if getattr(model.config.get_text_config(), "final_logit_softcapping", None) is None:
        norm, head = model.get_decoder().norm, model.get_output_embeddings()
        first = head(norm(out.hidden_states[0]))[0].detach().numpy()
        factor = np.linalg.norm(read[0]) / np.linalg.norm(first)  # granite's is not 1
        np.testing.assert_allclose(read[0], factor * first, atol=1e-5)


def test_kept_logits_are_not_computed_again(tmp_path: Path) -> None:
    """Only what is new is; another checkpoint under the same name is another key."""
    _, home = made("llama", tmp_path / "llama")
    opened = []

    def kept() -> KeptReference:
        read = detected(open_checkpoint(home))

        def computed() -> Reference:
            opened.append(1)
            return open_reference(*read, 24, 72)

        return KeptReference(tmp_path / "kept", *read, computed)

    ids, first = windows(3, 24), kept()
    wanted = list(first.logits(ids[:2], silent))
    assert first.how.startswith("float32, whole, 0 of 2 windows")
    again = kept()
    for one, other in zip(again.logits(ids[:2], silent), wanted, strict=True):
        np.testing.assert_array_equal(one, other)
    assert (len(opened), again.how.split(" as")[0]) == (1, "float32, 2 of 2 windows")
    assert len(list(kept().logits(ids, silent))) == 3
    assert len(opened) == 2
    os.utime(home / "model.safetensors")
    list(kept().logits(ids, silent))
    assert len(opened) == 3
    assert len(list((tmp_path / "kept").iterdir())) == 6


def test_layers_are_freed(tmp_path: Path) -> None:
    """No more than embedding, head and one layer have weights at any time."""
    _, home = made("llama", tmp_path)
    streamed = reference.Streamed(reference._Weights(*detected(open_checkpoint(home))), False)
    list(streamed.logits(windows(1, 8)))
    held = [p for p in streamed._model.parameters() if p.device.type != "meta"]
    assert sum(p.numel() for p in held) == 320 * 64 + 64  # tied table and last norm


def test_what_does_not_fit_at_all_is_refused(tmp_path: Path) -> None:
    _, home = made("llama", tmp_path)
    with pytest.raises(ArtifactError, match="even layer by layer"):
        open_reference(*detected(open_checkpoint(home)), 24, 72, max_memory=10**4)


def test_a_weight_that_is_missing_is_told(tmp_path: Path) -> None:
    """transformers would draw it at random."""
    _, home = made("llama", tmp_path)
    config = json.loads((home / "config.json").read_text())
    weights = reference._Weights(*detected(open_checkpoint(home)))
    (home / "config.json").write_text(json.dumps({**config, "attention_bias": True}))
    with pytest.raises(ArtifactError, match=r"lacks weights.*bias"):
        reference.Reference(weights, False)


@pytest.mark.parametrize(
    ("text", "nbytes"), [("8GB", 8 * 10**9), ("1.5 gib", 3 * 2**29), ("900", 900), (None, None)]
)
def test_sizes(text: str | None, nbytes: int | None) -> None:
    assert nbytes_of(text) == nbytes
    with pytest.raises(ConfigError, match="--max-memory"):
        nbytes_of("much")
