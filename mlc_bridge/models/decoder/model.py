"""A whole decoder as data: the weight table is read off it here, the graph in ``graph.py``.

h      = embed(ids) * embed_scale;   h = layer(h) for every layer
logits = cap(head(norm(h)) * logit_scale)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

from mlc_bridge.errors import ConfigError
from mlc_bridge.models.arch import Weight
from mlc_bridge.models.decoder.layer import Layer, Single
from mlc_bridge.models.decoder.norm import Norm
from mlc_bridge.models.decoder.part import Path, matrix
from mlc_bridge.models.decoder.rope import Rope
from mlc_bridge.models.decoder.state import KVPages, Recurrent, State

if TYPE_CHECKING:
    from mlc_bridge.models.decoder.config import DecoderConfig


@dataclass(frozen=True)
class Names:
    """MLC path, then checkpoint path, of what is outside the layers; ``{}`` is a layer's number."""

    embed: Path = ("model.embed_tokens", "model.embed_tokens")
    layer: Path = ("model.layers.{}", "model.layers.{}")
    norm: Path = ("model.norm", "model.norm")
    head: Path = ("lm_head", "lm_head")


@dataclass(frozen=True)
class Decoder:
    vocab: int
    hidden: int
    layers: tuple[Layer | Single, ...]
    norm: Norm
    """Of the last layer's output; the layers' norms are of its kind."""
    tied: bool = False
    embed_scale: float = 1.0
    logit_scale: float = 1.0
    logit_cap: float | None = None
    names: Names = field(default_factory=Names)
    float_layers: tuple[str, ...] = ()
    split_layers: tuple[str, ...] = ()
    """Fused layers that fall apart into their checkpoint parts, by MLC path."""
    linear_layers: tuple[str, ...] = ()
    """Head and routers stored like any linear, as the checkpoint quantizes them; MLC path."""
    layer_schemes: Mapping[str, str] = field(default_factory=dict)
    """MLC path -> the layer's own scheme, where it is not the model's."""
    apart: tuple[str, ...] = ()
    """Slots whose parts MLC keeps apart in every layer."""

    @classmethod
    def of(
        cls, config: DecoderConfig, layers: Iterable[Layer | Single], norm: Norm, **more: Any
    ) -> Decoder:
        """With the sizes of ``config``."""
        return cls(
            config.vocab_size,
            config.hidden_size,
            tuple(layers),
            norm,
            float_layers=config.float_layers,
            split_layers=config.split_layers,
            linear_layers=config.linear_layers,
            layer_schemes=config.layer_schemes,
            **more,
        )

    def weights(self) -> list[Weight]:
        """Every weight in MLC's order; ConfigError where nothing is fused to be split."""
        outer = self.outer_weights()
        inner = [self.layer_weights(index) for index in range(len(self.layers))]
        split = sum(
            len(weights) > 1
            for slots in inner
            for slot, weights in slots.items()
            if slot not in self.apart
        )
        if split != len(self.split_layers):
            raise ConfigError(
                "split_layers names what is no fused layer of this model",
                found=", ".join(self.split_layers),
            )
        table = chain.from_iterable(weights for slots in inner for weights in slots.values())
        return [outer.pop("embed"), *table, *outer.values()]

    def outer_weights(self) -> dict[str, Weight]:
        """Slot -> weight outside the layers, in MLC's order (``embed`` ... ``norm``, ``head``)."""
        names, rows = self.names, (self.vocab,)
        table = {
            "embed": matrix(names.embed, rows, self.hidden, role="embedding"),
            "norm": self.norm.weight(names.norm, self.hidden),
        }
        if not self.tied:
            head = matrix(names.head, rows, self.hidden, role="lm_head")
            table["head"] = self._in_its_role(head)
        return table

    def layer_weights(self, index: int) -> dict[str, tuple[Weight, ...]]:
        """Slot -> weight of one layer, in MLC's order; its parts where a fused one is split."""
        ours, theirs = (name.format(index) for name in self.names.layer)

        def placed(slot: str, weight: Weight) -> tuple[Weight, ...]:
            split = slot in self.apart or f"{ours}.{weight.path}" in self.split_layers
            parts = _parts(weight) if split else (weight,)
            return tuple(self._in_its_role(_below(w, ours, theirs)) for w in parts)

        slots = self.layers[index].weights(self.hidden)
        return {slot: placed(slot, weight) for slot, weight in slots.items()}

    def _in_its_role(self, weight: Weight) -> Weight:
        return replace(weight, role="linear") if weight.path in self.linear_layers else weight

    def states(self) -> tuple[State, ...]:
        """What the runtime must hold for every layer that looks at other tokens.

        The cache rotates alike for all layers and knows no sequences; where that is not enough the
        graph rotates, and no layer's pages have a rope.
        """
        held = (layer.state() for layer in self.layers)
        states = tuple(state for state in held if state is not None)
        if self.rotates_in_graph:
            states = tuple(
                replace(state, rope=None) if isinstance(state, KVPages) else state
                for state in states
            )
        return states

    @property
    def pages(self) -> tuple[KVPages, ...]:
        """The states of the layers with attention."""
        states = (layer.state() for layer in self.layers)
        return tuple(state for state in states if isinstance(state, KVPages))

    @property
    def is_hybrid(self) -> bool:
        """Whether some layers are recurrences."""
        return any(isinstance(layer.state(), Recurrent) for layer in self.layers)

    @property
    def ropes(self) -> tuple[Rope, ...]:
        """Every kind of rotary embedding once, in the order of the layers."""
        kinds = dict.fromkeys(pages.rope for pages in self.pages)
        return tuple(rope for rope in kinds if rope is not None)

    @property
    def rotates_in_graph(self) -> bool:
        plain = len({pages.rope for pages in self.pages}) <= 1
        return not plain or any(rope.in_graph for rope in self.ropes)


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


def _below(w: Weight, ours: str, theirs: str) -> Weight:
    return replace(
        w, path=f"{ours}.{w.path}", sources=tuple(f"{theirs}.{source}" for source in w.sources)
    )
