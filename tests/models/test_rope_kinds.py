"""Rates and amplitudes of every kind of rotary embedding against transformers' own functions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from mlc_bridge.errors import ConfigError
from mlc_bridge.models import MODELS
from mlc_bridge.models.decoder.rope import rope_of

YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 512}
KINDS: list[dict[str, Any]] = [
    {"rope_type": "linear", "factor": 4.0},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 512,
    },
    YARN,
    {**YARN, "attention_factor": 1.7},
    {**YARN, "mscale": 0.9, "mscale_all_dim": 0.4},
    {**YARN, "beta_fast": 16, "beta_slow": 2, "truncate": False},
    {**YARN, "factor": 0.5},
]


@pytest.mark.parametrize("block", KINDS, ids=lambda b: "-".join(map(str, b.values())))
@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_as_transformers_computes_it(block: dict[str, Any], fraction: float) -> None:
    parameters = {**block, "rope_theta": 50_000.0, "partial_rotary_factor": fraction}
    config = transformers.AutoConfig.for_model("glm4", head_dim=96, rope_parameters=parameters)
    rates, amplitude = ROPE_INIT_FUNCTIONS[block["rope_type"]](config)
    rope = rope_of(50_000.0, block, int(96 * fraction))
    np.testing.assert_allclose(rope.rates(96), rates.numpy()[None], rtol=1e-6)
    assert rope.amplitude == pytest.approx(amplitude)
    assert rope.in_graph == (block["rope_type"] == "yarn")


def test_a_config_gives_the_same() -> None:
    arch: Any = MODELS["glm4"]
    hf = transformers.AutoConfig.for_model(
        "glm4", rope_parameters={**YARN, "rope_theta": 5e4, "partial_rotary_factor": 0.25}
    ).to_dict()
    config = arch.config(hf)
    (rope,) = arch.decoder(config).ropes
    assert (rope.rotary_dim, rope.interleaved) == (32, True)
    assert rope == rope_of(5e4, YARN, 32, interleaved=True)
    assert arch.config(config.asdict()) == config


def test_an_unknown_kind_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="spiral"):
        MODELS["granite"].config(
            {"model_type": "granite", "rope_scaling": {"rope_type": "spiral", "factor": 2.0}}
        )
