"""The parts that decoders are made of: one class a file, with all its faces on one screen.

``weights()`` is the table that conversion reads (no compiler needed), ``emit()`` the graph,
``state()`` what the runtime must hold. An architecture builds a ``Decoder`` from its config::

    Decoder(embed, layers, norm, head)        Layer(mixer, mlp, join)
    mixer: Attention, GatedDelta, Mamba2, ShortConv   mlp: Gated, Plain, Experts
    join: Pre, Post, Sandwich, Parallel; or Single(part, norm) for a layer of one part
"""

from __future__ import annotations

from mlc_bridge.models.decoder.attention import Attention
from mlc_bridge.models.decoder.classic import ClassicConfig, classic_fields
from mlc_bridge.models.decoder.experts import Experts
from mlc_bridge.models.decoder.family import DecoderFamily
from mlc_bridge.models.decoder.gated_delta import GatedDelta
from mlc_bridge.models.decoder.layer import Layer, Parallel, Post, Pre, Sandwich, Single
from mlc_bridge.models.decoder.mamba2 import Mamba2
from mlc_bridge.models.decoder.mlp import Gated, Plain
from mlc_bridge.models.decoder.model import Decoder, Names
from mlc_bridge.models.decoder.norm import LayerNorm, Norm
from mlc_bridge.models.decoder.rope import LongRope, Rope
from mlc_bridge.models.decoder.router import Router
from mlc_bridge.models.decoder.settings import Settings
from mlc_bridge.models.decoder.short_conv import ShortConv
from mlc_bridge.models.decoder.state import KVPages, Recurrent

__all__ = [
    "Attention",
    "ClassicConfig",
    "Decoder",
    "DecoderFamily",
    "Experts",
    "Gated",
    "GatedDelta",
    "KVPages",
    "Layer",
    "LayerNorm",
    "LongRope",
    "Mamba2",
    "Names",
    "Norm",
    "Parallel",
    "Plain",
    "Post",
    "Pre",
    "Recurrent",
    "Rope",
    "Router",
    "Sandwich",
    "Settings",
    "ShortConv",
    "Single",
    "classic_fields",
]
