"""What one architecture of the decoder family is, as plain data.

An architecture file fills a ``DecoderSpec``; the weight table (here) and the relax graph
(``decoder.py``) are both read off it, so they cannot name or shape a weight differently::

    h = embed(ids) * embed_scale
    h = h + post(o(attention(rope(norm(qkv(norm(h)))))))        for every layer
    h = h + post(mlp(norm(h)))                                  mlp: gated, or experts
    logits = cap(head(norm(h)))

``Names`` holds MLC's module path first, then the checkpoint's, relative to the layer where they are
inside one. Weights fused on MLC's side have several checkpoint paths, stacked along the rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

from mlc_bridge.errors import ConfigError
from mlc_bridge.models.arch import Weight
from mlc_bridge.models.decoder_config import DecoderConfig
from mlc_bridge.models.settings import Settings
from mlc_bridge.schemes.scheme import Scheme

if TYPE_CHECKING:
    from tvm.relax.frontend import nn

Activation = Literal["silu", "gelu", "gelu_tanh"]
Path = tuple[str, ...]


@dataclass(frozen=True)
class Rope:
    """Rotary embedding: base, position scale, MLC's scaling block, rotated width (None: all)."""

    theta: float
    scale: float = 1.0
    scaling: dict[str, Any] | None = None
    rotary_dim: int | None = None
    lists: LongRope | None = None


@dataclass(frozen=True)
class LongRope:
    """Divisors of the frequencies: ``short`` up to ``trained`` tokens of a sequence, else ``long``.

    Cosine and sine are multiplied by ``amplitude``, whichever list is used.
    """

    short: tuple[float, ...]
    long: tuple[float, ...]
    trained: int
    amplitude: float


@dataclass(frozen=True)
class Experts:
    """A mixture instead of the MLP: ``count`` experts, ``chosen`` per token, of width ``inner``.

    Router weights are a softmax over all experts; ``renormalize`` makes the chosen ones sum to 1.
    """

    count: int
    chosen: int
    inner: int
    renormalize: bool


@dataclass(frozen=True)
class Names:
    """MLC path, then checkpoint path(s), of every slot; ``{}`` is the layer's number.

    In ``expert_gate_up`` and ``expert_down`` the checkpoint paths have an expert number ``{}``.
    """

    embed: Path = ("model.embed_tokens", "model.embed_tokens")
    layer: Path = ("model.layers.{}", "model.layers.{}")
    norm: Path = ("model.norm", "model.norm")
    head: Path = ("lm_head", "lm_head")
    qkv: Path = ("self_attn.qkv_proj", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    o: Path = ("self_attn.o_proj", "self_attn.o_proj")
    q_norm: Path = ("self_attn.q_norm", "self_attn.q_norm")
    k_norm: Path = ("self_attn.k_norm", "self_attn.k_norm")
    gate_up: Path = ("mlp.gate_up_proj", "mlp.gate_proj", "mlp.up_proj")
    down: Path = ("mlp.down_proj", "mlp.down_proj")
    router: Path = ("mlp.gate", "mlp.gate")
    expert_gate_up: Path = ()
    expert_down: Path = ()
    attn_norm: Path = ("input_layernorm", "input_layernorm")
    attn_post: Path = ("post_attention_layernorm", "post_attention_layernorm")
    mlp_norm: Path = ("post_attention_layernorm", "post_attention_layernorm")
    mlp_post: Path = ("post_feedforward_layernorm", "post_feedforward_layernorm")


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
    names: Names = field(default_factory=Names)
    tied: bool = False
    activation: Activation = "silu"
    fused_qkv: bool = True
    """False: query, key and value are three parameters under the checkpoint's names."""
    qkv_bias: bool = False
    o_bias: bool = False
    qk_norm: bool = False
    post_norms: bool = False
    norm_offset: float = 0.0
    """Added to every norm weight of the checkpoint (gemma stores weight - 1)."""
    embed_scale: float = 1.0
    query_width: float | None = None
    """Scores are divided by its square root; the head width unless given."""
    score_cap: float | None = None
    """cap * tanh(score / cap) before the mask."""
    logit_cap: float | None = None
    window: int | None = None
    local: tuple[bool, ...] = ()
    """Layers whose tokens see only the last ``window`` positions; empty: none."""
    local_rope: Rope | None = None
    """Rotary embedding of the local layers where it differs."""
    experts: Experts | None = None
    float_layers: tuple[str, ...] = ()
    split_layers: tuple[str, ...] = ()
    """Fused layers that fall apart into their checkpoint parts, by MLC path."""

    @property
    def rotates_in_graph(self) -> bool:
        """Where layers or sequences differ in their angles; the cache knows one kind for all."""
        return self.local_rope is not None or self.rope.lists is not None

    @property
    def attention_scale(self) -> float:
        return float(self.query_width or self.head_dim) ** -0.5


class DecoderFamily:
    """What all architectures of the family share: weight table and graph come from ``spec``."""

    defaults: Mapping[str, Any] = {}
    """What transformers' config class of this architecture sets where config.json is silent."""

    def read(self, flat: Settings) -> Any:
        """The architecture's config; every key that it asks for counts as read."""
        raise NotImplementedError

    def config(self, hf: Mapping[str, Any], **overrides: Any) -> Any:
        """Raises ConfigError for a value that cannot be built and for a key of effect unread."""
        flat = Settings.of(hf, overrides, self.defaults)
        made = self.read(flat)
        flat.refuse_unread()
        return made

    def unused(self, hf: Mapping[str, Any]) -> tuple[str, ...]:
        """Keys of a config.json that are neither read nor known to be harmless."""
        flat = Settings.of(hf, {}, self.defaults)
        self.read(flat)
        return flat.unread()

    def spec(self, config: Any) -> DecoderSpec:
        raise NotImplementedError

    def weights(self, config: Any) -> list[Weight]:
        return all_weights(self.spec(config))

    def graph(self, config: Any, scheme: Scheme) -> nn.Module:
        from mlc_bridge.models.decoder import Decoder

        return Decoder(self.spec(config), scheme)


def sizes(config: DecoderConfig) -> dict[str, Any]:
    """The fields of ``DecoderSpec`` that every config has."""
    return {
        "hidden": config.hidden_size,
        "intermediate": config.intermediate_size,
        "layers": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "kv_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "vocab": config.vocab_size,
        "eps": config.rms_norm_eps,
        "float_layers": config.float_layers,
        "split_layers": config.split_layers,
    }


def all_weights(spec: DecoderSpec) -> list[Weight]:
    """Every weight in MLC's parameter order; ConfigError where nothing is fused to be split."""
    outer, inner = model_weights(spec), [layer_weights(spec, i) for i in range(spec.layers)]
    slots = [weights for layer in inner for weights in layer.values()]
    split = sum(len(weights) > 1 for weights in slots)
    if split != len(spec.split_layers) + (0 if spec.fused_qkv else spec.layers):
        raise ConfigError(
            "split_layers names what is no fused layer of this model",
            found=", ".join(spec.split_layers),
        )
    return [outer.pop("embed"), *chain.from_iterable(slots), *outer.values()]


def model_weights(spec: DecoderSpec) -> dict[str, Weight]:
    """Slot -> weight outside the layers, in MLC's order (``embed`` ... ``norm``, ``head``)."""
    names, hidden = spec.names, spec.hidden
    table = {
        "embed": _matrix(names.embed, (spec.vocab,), hidden, role="embedding"),
        "norm": _norm(spec, names.norm, hidden),
    }
    if not spec.tied:
        table["head"] = _matrix(names.head, (spec.vocab,), hidden, role="lm_head")
    return table


def layer_weights(spec: DecoderSpec, index: int) -> dict[str, tuple[Weight, ...]]:
    """Slot -> weight of one layer, in MLC's order; its parts where a fused one is split."""
    ours, theirs = (name.format(index) for name in spec.names.layer)

    def placed(slot: str, weight: Weight) -> tuple[Weight, ...]:
        split = f"{ours}.{weight.path}" in spec.split_layers
        whole = not split and (slot != "qkv" or spec.fused_qkv)
        return tuple(_below(w, ours, theirs) for w in ((weight,) if whole else _parts(weight)))

    slots = {**_attention(spec), **_mlp(spec), **_norms(spec)}
    return {slot: placed(slot, weight) for slot, weight in slots.items()}


def _attention(spec: DecoderSpec) -> dict[str, Weight]:
    names, hidden, bias = spec.names, spec.hidden, spec.qkv_bias
    q, kv = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    slots = {
        "qkv": _matrix(names.qkv, (q, kv, kv), hidden, bias=bias),
        "o": _matrix(names.o, (hidden,), q, bias=spec.o_bias),
    }
    if spec.qk_norm:
        slots["q_norm"] = _norm(spec, names.q_norm, spec.head_dim)
        slots["k_norm"] = _norm(spec, names.k_norm, spec.head_dim)
    return slots


def _mlp(spec: DecoderSpec) -> dict[str, Weight]:
    names, hidden, inner = spec.names, spec.hidden, spec.intermediate
    if spec.experts is None:
        return {
            "gate_up": _matrix(names.gate_up, (inner, inner), hidden),
            "down": _matrix(names.down, (hidden,), inner),
        }
    count, inner = spec.experts.count, spec.experts.inner
    return {
        "router": _matrix(names.router, (count,), hidden, role="router"),
        "expert_gate_up": _experts(names.expert_gate_up, (inner, inner), hidden, count),
        "expert_down": _experts(names.expert_down, (hidden,), inner, count),
    }


def _norms(spec: DecoderSpec) -> dict[str, Weight]:
    slots = ["attn_norm", "mlp_norm"]
    if spec.post_norms:
        slots += ["attn_post", "mlp_post"]
    return {slot: _norm(spec, getattr(spec.names, slot), spec.hidden) for slot in slots}


def _matrix(names: Path, rows: tuple[int, ...], k: int, **kw: Any) -> Weight:
    """A weight that the checkpoint has fused already is one source with all the rows."""
    path, *sources = names
    if len(sources) == 1:
        rows = (sum(rows),)
    return Weight(path, tuple(sources), rows, k, **kw)


def _experts(names: Path, rows: tuple[int, ...], k: int, count: int) -> Weight:
    path, *parts = names
    sources = tuple(part.format(number) for number in range(count) for part in parts)
    return Weight(path, sources, rows, k, experts=count)


def _parts(weight: Weight) -> tuple[Weight, ...]:
    """The sources as weights of their own, under the checkpoint's names; experts: one stack each.

    Experts keep the checkpoint's name without their number (``mlp.experts.gate_proj``).
    """
    count = len(weight.rows)
    names = (".".join(p for p in s.split(".") if not p.isdigit()) for s in weight.sources[:count])
    stacks = (weight.sources[i::count] for i in range(count))
    return tuple(
        replace(weight, path=name, sources=stack, rows=(n,))
        for name, stack, n in zip(names, stacks, weight.rows, strict=True)
    )


def _norm(spec: DecoderSpec, names: Path, width: int) -> Weight:
    return Weight(names[0], (names[1],), (width,), 0, "norm", offset=spec.norm_offset)


def _below(w: Weight, ours: str, theirs: str) -> Weight:
    return replace(
        w, path=f"{ours}.{w.path}", sources=tuple(f"{theirs}.{source}" for source in w.sources)
    )
