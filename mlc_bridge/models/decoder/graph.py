"""The one relax graph of the decoder family, read off a ``Decoder``.

Modules are planted at the paths of the weight table, so parameter names are the table's. Functions
carry MLC's names and signatures (h hidden, v vocabulary, kv the paged cache, logits float32)::

    embed            ids int32 [s], params                       -> [s, h]
    prefill          [1, s, h], kv, params                       -> [1, 1, v], kv
    decode           [1, 1, h], kv, params                       -> [1, 1, v], kv
    batch_prefill    [1, s, h], positions int32 [b], kv, params  -> [1, b, v], kv
    batch_decode     [b, 1, h], kv, params                       -> [b, 1, v], kv
    batch_verify     [1, s, h], kv, params                       -> [1, s, v], kv

The batch shapes stay apart on purpose: one row, few rows and many rows want different kernels.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import op
from tvm.relax.frontend.nn.llm.kv_cache import PagedKVCache

from mlc_bridge.models.arch import Weight
from mlc_bridge.models.decoder.layers import (
    Embedding,
    QLinear,
    cap,
    last_token,
    take_rows,
)
from mlc_bridge.models.decoder.mixture import ExpertLinear
from mlc_bridge.models.decoder.model import Decoder
from mlc_bridge.models.decoder.part import Step
from mlc_bridge.models.decoder.rotary import (
    Reach,
    each_row,
    one_sequence,
    positions,
    rope_table,
    unbroken,
    up_to,
)
from mlc_bridge.models.decoder.state import State
from mlc_bridge.schemes.scheme import Scheme

Block = dict[str, Any]


class DecoderGraph(nn.Module):
    def __init__(self, decoder: Decoder, scheme: Scheme) -> None:
        self.decoder, self.scheme = decoder, scheme
        outer = decoder.outer_weights()
        embed = outer.pop("embed")
        # Planted in the table's order: it becomes the order of packed_params. Plain dicts refer to
        # the layers, because the exporter would count a module attribute as a second parameter.
        self.outer: Block = {"embed": self._plant(embed)}
        self.blocks: list[Block] = [
            {slot: self._fused(weights) for slot, weights in decoder.layer_weights(index).items()}
            for index in range(len(decoder.layers))
        ]
        self.outer |= {slot: self._plant(w) for slot, w in outer.items()}

    def _plant(self, weight: Weight) -> Any:
        layer = self._layer(weight)
        *parents, leaf = weight.path.split(".")
        node: nn.Module = self
        for name in parents:
            if name not in node.__dict__:
                setattr(node, name, nn.Module())
            node = getattr(node, name)
        setattr(node, leaf, layer)
        return layer

    def _fused(self, weights: tuple[Weight, ...]) -> Any:
        """One layer; of several the outputs stand side by side."""
        layers = [self._plant(weight) for weight in weights]
        if len(layers) == 1:
            return layers[0]
        return lambda *args: op.concat([layer(*args) for layer in layers], dim=-1)

    def _layer(self, weight: Weight) -> Any:
        scheme, stored = self.scheme, self.decoder
        if weight.role == "plain":
            dtype = scheme.model_dtype if weight.follows else "float32"
            return nn.Parameter(weight.shape, dtype)
        if weight.role == "norm":
            return self.decoder.norm.plant(weight, scheme)
        if weight.role == "embedding":
            return Embedding(weight, scheme, stored)
        kind = ExpertLinear if weight.experts else QLinear
        return kind(weight, scheme, stored)

    def hidden(self, x: nn.Tensor, kv: PagedKVCache, reach: Reach, **recurrence: Any) -> nn.Tensor:
        """All layers, before the last norm; ``reach`` tells how far each row's sequence goes."""
        x = x if self.decoder.embed_scale == 1.0 else x * self.decoder.embed_scale
        step = Step(kv, self.rope_tables(x, kv, reach), **recurrence)
        before: Counter[type] = Counter()
        for layer, block in zip(self.decoder.layers, self.blocks, strict=True):
            kind = type(layer.state())
            x = layer.emit(block, x, replace(step, index=before[kind]))
            before[kind] += 1
        return x

    def rope_tables(self, x: nn.Tensor, kv: PagedKVCache, reach: Reach) -> Any:
        """Rope -> cosine and sine; None where the cache itself rotates."""
        if not self.decoder.rotates_in_graph:
            return None
        at = positions(kv, x.shape[0] * x.shape[1])
        width = self.decoder.pages[0].head_dim
        return {rope: rope_table(at, reach, rope, width) for rope in self.decoder.ropes}

    def logits(self, x: nn.Tensor) -> nn.Tensor:
        x = self.outer["norm"](x)
        head = self.outer["embed"].head if self.decoder.tied else self.outer["head"]
        y = head(x, "float32")
        y = y if self.decoder.logit_scale == 1.0 else y * self.decoder.logit_scale
        return y if self.decoder.logit_cap is None else cap(y, self.decoder.logit_cap)

    def embed(self, input_ids: nn.Tensor) -> nn.Tensor:
        return self.outer["embed"](input_ids)

    def prefill(self, input_embed: nn.Tensor, paged_kv_cache: PagedKVCache) -> Any:
        x = last_token(self.hidden(input_embed, paged_kv_cache, one_sequence))
        return self.logits(x), paged_kv_cache

    def decode(self, input_embed: nn.Tensor, paged_kv_cache: PagedKVCache) -> Any:
        return self.logits(self.hidden(input_embed, paged_kv_cache, each_row)), paged_kv_cache

    def batch_prefill(
        self, input_embeds: nn.Tensor, logit_positions: nn.Tensor, paged_kv_cache: PagedKVCache
    ) -> Any:
        x = self.hidden(input_embeds, paged_kv_cache, up_to(logit_positions))
        return self.logits(take_rows(x, logit_positions)), paged_kv_cache

    def batch_decode(self, input_embeds: nn.Tensor, paged_kv_cache: PagedKVCache) -> Any:
        return self.logits(self.hidden(input_embeds, paged_kv_cache, each_row)), paged_kv_cache

    def batch_verify(self, input_embeds: nn.Tensor, paged_kv_cache: PagedKVCache) -> Any:
        return self.logits(self.hidden(input_embeds, paged_kv_cache, unbroken)), paged_kv_cache

    def states(self) -> tuple[State, ...]:
        """What the runtime must hold for every layer."""
        return self.decoder.states()

    def functions(self) -> nn.spec.ModuleSpec:
        """Input shapes of every function; all take the parameters as one packed tuple."""
        mode = {"$": {"param_mode": "packed", "effect_mode": "none"}}
        inputs = {name: {**takes, **mode} for name, takes in self.inputs().items()}
        return nn.spec.ModuleSpec.from_raw(inputs, self)

    def inputs(self) -> dict[str, dict[str, Any]]:
        """Function -> its arguments but the parameters."""
        h, dtype = self.decoder.hidden, self.scheme.model_dtype
        kv = {"paged_kv_cache": nn.spec.Object(object_type=PagedKVCache)}

        def rows(*shape: int | str) -> nn.spec.Tensor:
            return nn.spec.Tensor([*shape, h], dtype)

        return {
            "embed": {"input_ids": nn.spec.Tensor(["seq_len"], "int32")},
            "prefill": {"input_embed": rows(1, "seq_len"), **kv},
            "decode": {"input_embed": rows(1, 1), **kv},
            "batch_prefill": {
                "input_embeds": rows(1, "seq_len"),
                "logit_positions": nn.spec.Tensor(["batch_size"], "int32"),
                **kv,
            },
            "batch_decode": {"input_embeds": rows("batch_size", 1), **kv},
            "batch_verify": {"input_embeds": rows(1, "seq_len"), **kv},
        }
