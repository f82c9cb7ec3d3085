"""The fields that every ``model_config`` block of the decoder family has, and their reader.

Blocks are MLC's own, key by key; an architecture adds keys by inheritance. Values come from HF's
``config.json`` (see ``hf_config.py``) or from a block written before, with overrides on top.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from mlc_bridge.models.decoder import hf_config

OURS = ("float_layers", "split_layers", "linear_layers", "layer_schemes")
EPSILONS = ("rms_norm_eps", "layer_norm_eps", "norm_epsilon", "norm_eps")
"""Names of the norms' epsilon, whatever the norm."""


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float
    context_window_size: int
    prefill_chunk_size: int
    max_batch_size: int
    tensor_parallel_shards: int = 1
    float_layers: tuple[str, ...] = ()
    split_layers: tuple[str, ...] = ()
    linear_layers: tuple[str, ...] = ()
    layer_schemes: dict[str, str] = field(default_factory=dict)

    unsaid: ClassVar[tuple[str, ...]] = ()
    """Keys that MLC's block of this architecture does not have, said only where they are set."""

    @property
    def restart_beyond(self) -> int | None:
        """Tokens beyond which a sequence that began shorter must be prefilled anew."""
        return None

    def asdict(self) -> dict[str, Any]:
        """MLC's block; what is ours (``OURS``) stands there only when there is some of it."""
        block = asdict(self)
        ours = {key: block.pop(key) for key in (*OURS, *self.unsaid)}
        lists = {k: list(v) if isinstance(v, tuple) else v for k, v in ours.items() if v}
        return {**block, **lists}


def common(flat: Mapping[str, Any], largest_chunk: int = 8192) -> dict[str, Any]:
    """The fields of ``DecoderConfig`` from a flat config; what one device cannot do is refused."""
    hf_config.single_device(flat)
    heads, kv_heads, head_dim = hf_config.heads(flat)
    limits = hf_config.limits(flat, largest_chunk)
    epsilon = next((key for key in EPSILONS if flat.get(key) is not None), EPSILONS[0])
    return {
        "hidden_size": hf_config.integer(flat, "hidden_size"),
        "intermediate_size": hf_config.integer(flat, "intermediate_size"),
        "num_hidden_layers": hf_config.integer(flat, "num_hidden_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "vocab_size": hf_config.integer(flat, "vocab_size"),
        "rms_norm_eps": hf_config.number(flat, epsilon),
        "context_window_size": limits.context,
        "prefill_chunk_size": limits.chunk,
        "max_batch_size": limits.batch,
        **{key: tuple(flat.get(key, ())) for key in OURS if key != "layer_schemes"},
        "layer_schemes": dict(hf_config.block_of(flat, "layer_schemes")),
    }
