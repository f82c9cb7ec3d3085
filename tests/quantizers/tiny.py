"""A Llama of two layers with seeded random weights, and text that its tokenizer can read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from mlc_bridge.packing import Array
from mlc_bridge.quantizers.tensor_file import write

HIDDEN, INTERMEDIATE, HEADS, KV, DIM, VOCAB = 64, 128, 4, 4, 16, 4096
EXAMPLE = Path(__file__).resolve().parents[2] / "examples/models/stdlib-llama-7m"
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV,
    "head_dim": DIM,
    "hidden_act": "silu",
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "vocab_size": VOCAB,
    "eos_token_id": 2,
    "torch_dtype": "float16",
}
SHAPES = {
    "self_attn.q_proj": (HEADS * DIM, HIDDEN),
    "self_attn.k_proj": (KV * DIM, HIDDEN),
    "self_attn.v_proj": (KV * DIM, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HEADS * DIM),
    "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
    "mlp.up_proj": (INTERMEDIATE, HIDDEN),
    "mlp.down_proj": (HIDDEN, INTERMEDIATE),
}


def weights(dtype: Any = np.float16, seed: int = 0) -> dict[str, Array]:
    """A few large columns and rows, so that methods have something to do."""
    rng = np.random.default_rng(seed)

    def normal(shape: tuple[int, ...], size: float) -> Array:
        w = (rng.standard_normal(shape) * size).astype(np.float32)
        w[..., ::13] *= 4
        return w

    found = {"model.embed_tokens.weight": normal((VOCAB, HIDDEN), 0.5)}
    for i in range(2):
        at = f"model.layers.{i}"
        for name, shape in SHAPES.items():
            found[f"{at}.{name}.weight"] = normal(shape, shape[1] ** -0.5)
            found[f"{at}.{name}.weight"][::11] *= 3
        for norm in ("input_layernorm", "post_attention_layernorm"):
            found[f"{at}.{norm}.weight"] = 1 + normal((HIDDEN,), 0.1)
    found["model.norm.weight"] = 1 + normal((HIDDEN,), 0.1)
    found["lm_head.weight"] = normal((VOCAB, HIDDEN), 0.1)
    return {name: w.astype(dtype) for name, w in found.items()}


def checkpoint(home: Path, config: dict[str, Any] | None = None, **changed: Array) -> Path:
    """The model as a directory; ``changed``: tensors with other values."""
    home.mkdir(parents=True, exist_ok=True)
    write(home / "model.safetensors", {**weights(), **changed})
    (home / "config.json").write_text(json.dumps({**CONFIG, **(config or {})}), "utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(EXAMPLE / name, home / name)
    return home
