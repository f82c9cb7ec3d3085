"""The keys of a rotary embedding's block: those that a kind has, and those that are named.

A block stands under ``rope_scaling`` or ``rope_parameters``, there perhaps one for every type of
layer. A key of another kind, or of none, is not used, and told; one that changes the maths where
an architecture knows it is refused where it does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mlc_bridge.errors import ConfigError

EVERY = frozenset(
    """rope_theta rope_type type partial_rotary_factor mrope_section mrope_interleaved
    original_max_position_embeddings max_position_embeddings""".split()  # noqa: SIM905
)
OF_KIND = {
    "linear": "factor",
    "dynamic": "factor",
    "llama3": "factor low_freq_factor high_freq_factor",
    "yarn": "factor attention_factor beta_fast beta_slow mscale mscale_all_dim truncate",
    "longrope": "factor attention_factor short_factor long_factor",
    "su": "factor attention_factor short_factor long_factor",
    "proportional": "factor",
}
MATHS = ("alpha", "llama_4_scaling_beta")


def unknown(flat: Mapping[str, Any], more: tuple[str, ...] = ()) -> tuple[str, ...]:
    """``rope_scaling.key`` of every key that is not used; ``more`` are an architecture's own."""
    return tuple(sorted(f"{where}.{key}" for where, key in _strange(flat, more)))


def refuse_unknown(flat: Mapping[str, Any], more: tuple[str, ...] = ()) -> None:
    """ConfigError for a key that is not used and known to change the rotation."""
    for where, key in _strange(flat, more):
        if key in MATHS:
            raise ConfigError(
                f"{flat.get('model_type', 'the model')}: {key} changes the rotary embedding and is "
                "not supported",
                where=where,
            )


def _strange(flat: Mapping[str, Any], more: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for where, block in _blocks(flat):
        kind = str(block.get("rope_type", block.get("type", "default")))
        known = {*EVERY, *more, *OF_KIND.get(kind, "").split()}
        yield from ((where, key) for key, value in block.items() if key not in known and value)


def _blocks(flat: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for where in ("rope_scaling", "rope_parameters"):
        block = flat.get(where) or {}
        inner = {key: value for key, value in block.items() if isinstance(value, dict)}
        yield from ((f"{where}.{key}", value) for key, value in inner.items())
        if not inner:
            yield where, block
