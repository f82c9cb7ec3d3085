"""AutoRound: negative scales, its names for GPTQ's and AWQ's bytes, settings of single layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mutants import GOLDEN, outcome, shapes_of, weights, with_config

from mlc_bridge.errors import CannotExpress, SourceError
from mlc_bridge.qtensor import QTensor
from mlc_bridge.schemes import SCHEMES
from mlc_bridge.sources import SOURCES, Checkpoint, detect

SYMMETRIC = sorted(p for p in GOLDEN.glob("*/autoround-*sym*") if "asym" not in p.name)
K = "model.layers.0.self_attn.k_proj"


def tensor(case: Path, layer: str = K) -> QTensor:
    ckpt = Checkpoint.open(case)
    q = detect(ckpt).read(ckpt, layer)
    assert isinstance(q, QTensor)
    return q


@pytest.mark.parametrize("case", SYMMETRIC, ids=lambda p: p.name)
def test_half_of_the_scales_are_negative_and_every_scheme_keeps_them(case: Path) -> None:
    q = tensor(case)
    assert 0.2 < (q.scale.astype(np.float32) < 0).mean() < 0.8
    held = []
    for scheme in SCHEMES.values():
        if not scheme.quantizes("linear"):
            continue
        try:
            params = scheme.encode(q)
        except CannotExpress:
            continue
        got = scheme.decode(params).dequantize()[:, : q.shape[1]]
        scale = q.scale.astype(np.float32)
        rounding = 2**-8 if "bf16" in scheme.name else 0
        assert (np.abs(got - q.dequantize()) <= rounding * np.abs(q.dequantize())).all()
        assert (np.sign(got) == np.sign(q.dequantize())).all(), scale
        held.append(scheme.name)
    assert held


NAMES = [
    ("gptq/autoround-w4-g32-asym", {"packing_format": "auto_round:auto_gptq"}),
    ("gptq/autoround-w4-g32-asym", {"packing_format": None, "backend": "auto_round:gptq"}),
    ("gptq/w4-g64-asym-v2-desc-act", {"packing_format": "auto_round:gptqmodel"}),
    ("gptq/w4-g128-asym-v2", {"packing_format": "auto_round"}),
    ("gptq/w4-g64-asym-v1", {"packing_format": "auto_round:auto_gptq"}),
    ("autoawq/w4-g128", {"packing_format": "auto_round:auto_awq"}),
    ("gptq/w4-g32-sym-v1-desc-act", {}),
]


@pytest.mark.parametrize("method", ["auto-round", "intel/auto-round", "inc"])
@pytest.mark.parametrize(("case", "words"), NAMES)
def test_names_of_known_bytes(case: str, words: dict[str, Any], method: str) -> None:
    """The golden of the layout's own tool, described as AutoRound describes it."""
    ckpt, shapes = Checkpoint.open(GOLDEN / case), shapes_of(GOLDEN / case)
    settings = dict(ckpt.config["quantization_config"])
    for key in ("format", "checkpoint_format", "version", "method"):
        settings.pop(key, None)
    settings |= {"quant_method": method, **words}
    told = with_config(ckpt, {**ckpt.config, "quantization_config": settings})
    assert outcome(told, shapes, weights(ckpt, shapes)) == "same"


@pytest.mark.parametrize("word", ["auto_round:unheard_of", "nonsense", 7, ["auto_round"]])
def test_other_packings_are_not_guessed(word: Any) -> None:
    ckpt = Checkpoint.open(GOLDEN / "gptq/autoround-w4-g32-asym")
    settings = {**ckpt.config["quantization_config"], "packing_format": word}
    with pytest.raises(SourceError):
        detect(with_config(ckpt, {"quantization_config": settings}))


def test_a_layer_with_bits_of_its_own() -> None:
    ckpt = Checkpoint.open(GOLDEN / "gptq/autoround-w4-w8-mixed")
    bits = {layer: SOURCES["gptq"].read(ckpt, layer).bits for layer in SOURCES["gptq"].layers(ckpt)}
    assert bits == {K: 4, "model.layers.0.mlp.down_proj": 8}


@pytest.mark.parametrize("method", ["awq_marlin", "gptq_marlin"])
def test_a_servers_words(method: str) -> None:
    case = {"awq_marlin": "autoawq/w4-g64", "gptq_marlin": "gptq/w4-g128-sym-v1"}[method]
    ckpt, shapes = Checkpoint.open(GOLDEN / case), shapes_of(GOLDEN / case)
    settings = {**ckpt.config["quantization_config"], "quant_method": method}
    told = with_config(ckpt, {**ckpt.config, "quantization_config": settings})
    assert outcome(told, shapes, weights(ckpt, shapes)) == "same"
