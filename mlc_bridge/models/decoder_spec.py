"""What one architecture of the decoder family is, as plain data.

An architecture file fills a ``DecoderSpec``; the weight table (here) and the relax graph
(``decoder.py``) are both read off it, so they cannot name or shape a weight differently::

    h = embed(ids) * embed_scale
    h = h + post?(attention(rope(qkv(norm(h)))))        for every layer
    h = h + post?(mlp(norm(h)))
    logits = cap(head(norm(h)))

``Names`` holds MLC's module paths and the checkpoint's, relative to the layer where they are inside
one. Weights fused on MLC's side have several checkpoint names, stacked along the output rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from mlc_bridge.models.arch import Weight
from mlc_bridge.schemes.scheme import Scheme

if TYPE_CHECKING:
    from tvm.relax.frontend import nn

Activation = Literal["silu", "gelu", "gelu_tanh"]


@dataclass(frozen=True)
class Rope:
    """Rotary embedding: base, position scale, MLC's scaling block, rotated width (None: all)."""

    theta: float
    scale: float = 1.0
    scaling: dict[str, Any] | None = None
    rotary_dim: int | None = None


@dataclass(frozen=True)
class Names:
    """MLC path and checkpoint paths of every slot; layer slots are relative to the layer."""

    embed: tuple[str, str] = ("model.embed_tokens", "model.embed_tokens")
    layer: tuple[str, str] = ("model.layers.{}", "model.layers.{}")
    norm: tuple[str, str] = ("model.norm", "model.norm")
    head: tuple[str, str] = ("lm_head", "lm_head")
    qkv: tuple[str, ...] = (
        "self_attn.qkv_proj",
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
    )
    o: tuple[str, str] = ("self_attn.o_proj", "self_attn.o_proj")
    gate_up: tuple[str, ...] = ("mlp.gate_up_proj", "mlp.gate_proj", "mlp.up_proj")
    down: tuple[str, str] = ("mlp.down_proj", "mlp.down_proj")
    attn_norm: tuple[str, str] = ("input_layernorm", "input_layernorm")
    mlp_norm: tuple[str, str] = ("post_attention_layernorm", "post_attention_layernorm")


@dataclass(frozen=True)
class DecoderSpec:
    """Sizes, switches and names; see the module docstring for where each acts."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    eps: float
    rope: Rope
    tied: bool = False
    activation: Activation = "silu"
    float_layers: tuple[str, ...] = ()
    names: Names = field(default_factory=Names)

    @property
    def attention_scale(self) -> float:
        return float(self.head_dim) ** -0.5


class DecoderFamily:
    """What all architectures of the family share: weight table and graph come from ``spec``."""

    def spec(self, config: Any) -> DecoderSpec:
        raise NotImplementedError

    def weights(self, config: Any) -> list[Weight]:
        return all_weights(self.spec(config))

    def graph(self, config: Any, scheme: Scheme) -> nn.Module:
        from mlc_bridge.models.decoder import Decoder

        return Decoder(self.spec(config), scheme)


def model_weights(spec: DecoderSpec) -> dict[str, Weight]:
    """Slot -> weight outside the layers, in MLC's order (``embed`` ... ``norm``, ``head``)."""
    names, hidden = spec.names, spec.hidden
    table = {
        "embed": _matrix(names.embed, (spec.vocab,), hidden, role="embedding"),
        "norm": _norm(names.norm, hidden),
    }
    if not spec.tied:
        table["head"] = _matrix(names.head, (spec.vocab,), hidden, role="lm_head")
    return table


def layer_weights(spec: DecoderSpec, index: int) -> dict[str, Weight]:
    """Slot -> weight of one layer, in MLC's order."""
    names, hidden, inner = spec.names, spec.hidden, spec.intermediate
    q, kv = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    slots = {
        "qkv": _matrix(names.qkv, (q, kv, kv), hidden),
        "o": _matrix(names.o, (hidden,), q),
        "gate_up": _matrix(names.gate_up, (inner, inner), hidden),
        "down": _matrix(names.down, (hidden,), inner),
        "attn_norm": _norm(names.attn_norm, hidden),
        "mlp_norm": _norm(names.mlp_norm, hidden),
    }
    ours, theirs = (name.format(index) for name in names.layer)
    return {slot: _below(w, ours, theirs) for slot, w in slots.items()}


def all_weights(spec: DecoderSpec) -> list[Weight]:
    """Every weight in MLC's parameter order."""
    outer = model_weights(spec)
    return [outer.pop("embed"), *_layers(spec), *outer.values()]


def _layers(spec: DecoderSpec) -> Iterator[Weight]:
    for index in range(spec.layers):
        yield from layer_weights(spec, index).values()


def _matrix(names: tuple[str, ...], rows: tuple[int, ...], k: int, **kw: Any) -> Weight:
    """A name that the checkpoint has fused already is one source with all the rows."""
    path, *sources = names
    if len(sources) == 1:
        rows = (sum(rows),)
    return Weight(path, tuple(sources), rows, k, **kw)


def _norm(names: tuple[str, str], width: int) -> Weight:
    return Weight(names[0], (names[1],), (width,), 0, "norm")


def _below(w: Weight, ours: str, theirs: str) -> Weight:
    sources = tuple(f"{theirs}.{s}" for s in w.sources)
    return Weight(f"{ours}.{w.path}", sources, w.rows, w.k, w.role, w.bias)
