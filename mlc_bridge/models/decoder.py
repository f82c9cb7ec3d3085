"""The one relax graph of the decoder family, read off a ``DecoderSpec``.

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

from collections.abc import Callable
from typing import Any

from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import op
from tvm.relax.frontend.nn.llm.kv_cache import PagedKVCache

from mlc_bridge.models.arch import Weight
from mlc_bridge.models.decoder_spec import DecoderSpec, layer_weights, model_weights
from mlc_bridge.models.layers import (
    Embedding,
    Layer,
    QLinear,
    RMSNorm,
    attend,
    cap,
    gated,
    last_token,
    qk_norm,
    take_rows,
)
from mlc_bridge.models.mixture import ExpertLinear, choose
from mlc_bridge.models.rotary import (
    Reach,
    Table,
    each_row,
    one_sequence,
    positions,
    rope_table,
    rotate,
    unbroken,
    up_to,
)
from mlc_bridge.schemes.scheme import Scheme

Block = dict[str, Any]
Tables = tuple[Table, ...] | None


class Decoder(nn.Module):
    def __init__(self, spec: DecoderSpec, scheme: Scheme) -> None:
        self.spec, self.scheme = spec, scheme
        outer = model_weights(spec)
        embed = outer.pop("embed")
        # Planted in the table's order: it becomes the order of packed_params. Plain dicts refer to
        # the layers, because the exporter would count a module attribute as a second parameter.
        self.outer: Block = {"embed": self._plant(embed)}
        self.blocks: list[Block] = [
            {slot: self._fused(weights) for slot, weights in layer_weights(spec, index).items()}
            for index in range(spec.layers)
        ]
        self.outer |= {slot: self._plant(w) for slot, w in outer.items()}

    def _plant(self, weight: Weight) -> Layer:
        layer = self._layer(weight)
        *parents, leaf = weight.path.split(".")
        node: nn.Module = self
        for name in parents:
            if name not in node.__dict__:
                setattr(node, name, nn.Module())
            node = getattr(node, name)
        setattr(node, leaf, layer)
        return layer

    def _fused(self, weights: tuple[Weight, ...]) -> Callable[..., nn.Tensor]:
        """One layer; of several the outputs stand side by side."""
        layers = [self._plant(weight) for weight in weights]
        if len(layers) == 1:
            return layers[0]
        return lambda *args: op.concat([layer(*args) for layer in layers], dim=-1)

    def _layer(self, weight: Weight) -> Layer:
        scheme, floats = self.scheme, self.spec.float_layers
        if weight.role == "norm":
            return RMSNorm(weight, scheme, self.spec.eps)
        if weight.role == "embedding":
            return Embedding(weight, scheme, floats)
        kind = ExpertLinear if weight.experts else QLinear
        return kind(weight, scheme, floats)

    def hidden(self, x: nn.Tensor, kv: PagedKVCache, reach: Reach) -> nn.Tensor:
        """All layers, before the last norm; ``reach`` tells how far each row's sequence goes."""
        x = x if self.spec.embed_scale == 1.0 else x * self.spec.embed_scale
        tables = self.rope_tables(x, kv, reach)
        for index, block in enumerate(self.blocks):
            out = self.attention(block, block["attn_norm"](x), kv, index, tables)
            x = x + (block["attn_post"](out) if self.spec.post_norms else out)
            out = self.mlp(block, block["mlp_norm"](x))
            x = x + (block["mlp_post"](out) if self.spec.post_norms else out)
        return x

    def rope_tables(self, x: nn.Tensor, kv: PagedKVCache, reach: Reach) -> Tables:
        """For global and for local layers; none where the cache itself rotates all of them."""
        spec = self.spec
        if not spec.rotates_in_graph:
            return None
        at = positions(kv, x.shape[0] * x.shape[1])
        full = rope_table(at, reach, spec.rope, spec.head_dim)
        own = spec.local_rope
        return full, full if own is None else rope_table(at, reach, own, spec.head_dim)

    def attention(
        self, block: Block, x: nn.Tensor, kv: PagedKVCache, index: int, tables: Tables
    ) -> nn.Tensor:
        spec = self.spec
        b, s, _ = x.shape
        local = bool(spec.local) and spec.local[index]
        qkv = op.reshape(block["qkv"](x), (b * s, spec.heads + 2 * spec.kv_heads, spec.head_dim))
        if spec.qk_norm:
            qkv = qk_norm(qkv, block["q_norm"], block["k_norm"], spec.heads, spec.kv_heads)
        if tables is not None:
            qkv = rotate(qkv, tables[local], spec.heads + spec.kv_heads)
        scale = -spec.attention_scale if local else spec.attention_scale
        out = attend(kv, index, qkv, spec.heads, scale)
        return block["o"](op.reshape(out, (b, s, spec.heads * spec.head_dim)))

    def mlp(self, block: Block, x: nn.Tensor) -> nn.Tensor:
        if self.spec.experts is not None:
            return self.mixture(block, x)
        return block["down"](gated(block["gate_up"](x), self.spec.activation))

    def mixture(self, block: Block, x: nn.Tensor) -> nn.Tensor:
        """Every token through its chosen experts, their outputs added by the router's weights."""
        assert self.spec.experts is not None
        chosen, share = choose(block["router"](x, "float32"), self.spec.experts)
        inner = gated(block["expert_gate_up"](x, chosen), self.spec.activation)
        return op.reshape(block["expert_down"].combine(inner, chosen, share), x.shape)

    def logits(self, x: nn.Tensor) -> nn.Tensor:
        x = self.outer["norm"](x)
        head = self.outer["embed"].head if self.spec.tied else self.outer["head"]
        y = head(x, "float32")
        return y if self.spec.logit_cap is None else cap(y, self.spec.logit_cap)

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

    def functions(self) -> nn.spec.ModuleSpec:
        """Input shapes of every function; all take the parameters as one packed tuple."""
        h, dtype = self.spec.hidden, self.scheme.model_dtype
        kv = {"paged_kv_cache": nn.spec.Object(object_type=PagedKVCache)}

        def rows(*shape: int | str) -> nn.spec.Tensor:
            return nn.spec.Tensor([*shape, h], dtype)

        inputs: dict[str, dict[str, Any]] = {
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
        mode = {"$": {"param_mode": "packed", "effect_mode": "none"}}
        return nn.spec.ModuleSpec.from_raw({k: {**v, **mode} for k, v in inputs.items()}, self)
