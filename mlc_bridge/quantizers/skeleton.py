"""The model without its weights: transformers' own decoder layers, one filled at a time.

The whole model is built on the meta device, where tensors have shapes and no memory; only small
buffers (rotary frequencies) are computed. ``arguments`` runs the model's own forward over layers
that only note what they are called with, so masks and position embeddings, of every kind of layer,
are the model's own. ``layer(i)`` gives decoder layer i with its weights in float32.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from mlc_bridge.errors import ConfigError, SourceError
from mlc_bridge.packing import Array
from mlc_bridge.quantizers.extra import float32, torch_here, transformers_here
from mlc_bridge.sources.checkpoint import Checkpoint

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

HEAD = "lm_head"
LENGTHS = 64  # of texts, whose masks and positions are kept


class Skeleton:
    """The decoder of a float checkpoint; raises ConfigError for one that has no such layers."""

    def __init__(self, ckpt: Checkpoint) -> None:
        self.ckpt = ckpt
        self.model = _on_meta(ckpt.config)
        self.decoder = self.model.base_model
        self.prefix = f"{self.model.base_model_prefix}."
        if not hasattr(self.decoder, "layers") or not hasattr(self.decoder, "embed_tokens"):
            raise ConfigError("this architecture has no list of decoder layers",
                              where=ckpt.path, found=ckpt.config.get("model_type"))  # fmt: skip
        self._arguments: dict[int, list[dict[str, Any]]] = {}

    @property
    def n_layers(self) -> int:
        return len(self.decoder.layers)

    def name(self, i: int, inside: str = "") -> str:
        """The checkpoint's name of a module of layer ``i``."""
        return f"{self.prefix}layers.{i}.{inside}".removesuffix(".")

    @contextmanager
    def layer(self, i: int) -> Iterator[Module]:
        """Decoder layer ``i`` in float32; its memory is free again after the block."""
        layer = self.decoder.layers[i]
        fill(layer, self.ckpt, f"{self.name(i)}.")
        try:
            yield layer
        finally:
            layer.to("meta")

    def embed(self, ids: Array) -> Tensor:
        """What the first layer sees of token ids ``[...]``: float32 ``[..., hidden]``."""
        torch = torch_here()
        table = self.ckpt.tensor(f"{self.prefix}embed_tokens.weight")
        if ids.max(initial=0) >= len(table):
            raise ConfigError(
                "the tokenizer gives ids that the embedding does not have",
                where=self.ckpt.path, found=int(ids.max()), expected=f"below {len(table)}",
            )  # fmt: skip
        used, place = np.unique(ids, return_inverse=True)
        module = self.decoder.embed_tokens
        module.padding_idx = None
        rows = torch.nn.Parameter(float32(table[used]), requires_grad=False)
        return torch.func.functional_call(
            module, {"weight": rows}, (torch.from_numpy(place.reshape(ids.shape)),)
        ).detach()

    def arguments(self, i: int, length: int) -> dict[str, Any]:
        """What layer ``i`` is called with beside hidden states of ``length`` tokens."""
        if length not in self._arguments:
            while len(self._arguments) >= LENGTHS:
                del self._arguments[next(iter(self._arguments))]
            self._arguments[length] = self._noted(length)
        return self._arguments[length][i]

    def _noted(self, length: int) -> list[dict[str, Any]]:
        torch = torch_here()
        notes: list[dict[str, Any]] = []
        layers, norm = self.decoder.layers, self.decoder.norm
        self.decoder.layers = torch.nn.ModuleList(_noting(layer, notes) for layer in layers)
        self.decoder.norm = torch.nn.Identity()
        try:
            hidden = torch.zeros(1, length, self.hidden)
            self.decoder(inputs_embeds=hidden, use_cache=False)
        finally:
            self.decoder.layers, self.decoder.norm = layers, norm
        return notes

    @property
    def hidden(self) -> int:
        return int(self.ckpt.shape(f"{self.prefix}embed_tokens.weight")[1])

    @property
    def head(self) -> Array:
        """The head's weight ``[vocab, hidden]`` as stored; the embedding's where they are tied."""
        own = f"{HEAD}.weight"
        return self.ckpt.tensor(own if own in self.ckpt else f"{self.prefix}embed_tokens.weight")

    def final_norm(self) -> Module:
        """The norm before the head, in float32."""
        norm = self.decoder.norm
        fill(norm, self.ckpt, f"{self.prefix}norm.")
        return norm


def fill(module: Module, ckpt: Checkpoint, prefix: str) -> None:
    """Give ``module`` its weights, float32, from tensors ``<prefix><name>``."""
    torch = torch_here()
    state = {}
    for name, parameter in module.named_parameters():
        ckpt.require(prefix + name, tuple(parameter.shape))
        state[name] = float32(ckpt.tensor(prefix + name))
        if not bool(torch.isfinite(state[name]).all()):
            raise SourceError("holds NaN or infinity", where=prefix + name,
                              todo="The checkpoint is damaged; fetch it again")  # fmt: skip
    module.load_state_dict(state, assign=True, strict=False)
    module.requires_grad_(False)


def logits(skeleton: Skeleton, norm: Module, hidden: Tensor, head: Tensor | None = None) -> Tensor:
    """Logits ``[..., vocab]`` of the last layer's output."""
    torch = torch_here()
    x = norm(hidden)
    weight = float32(skeleton.head) if head is None else head
    out = x @ weight.T
    config = skeleton.model.config
    out = out / getattr(config, "logits_scaling", 1.0)
    if cap := getattr(config, "final_logit_softcapping", None):
        out = torch.tanh(out / cap) * cap
    return out


def _noting(layer: Module, notes: list[dict[str, Any]]) -> Module:
    """Stands for a decoder layer and notes its keyword arguments."""
    torch = torch_here()

    class Note(torch.nn.Module):  # type: ignore[name-defined]
        def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            notes.append(kwargs)
            return hidden

    note: Any = Note()
    for name in ("attention_type", "layer_type"):  # what the model's forward asks a layer for
        if hasattr(layer, name):
            setattr(note, name, getattr(layer, name))
    return note


def _on_meta(config_json: dict[str, Any]) -> Any:
    """The model of a config, all weights on the meta device, small buffers real."""
    torch, transformers = torch_here(), transformers_here()
    values = json.loads(json.dumps(config_json))
    kind = values.pop("model_type", "")
    values.pop("quantization_config", None)
    try:
        config = transformers.AutoConfig.for_model(kind, **values)
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(
                config, dtype=torch.float32, attn_implementation="sdpa"
            )
    except (ValueError, KeyError, AttributeError) as error:
        raise ConfigError(f"transformers cannot build this model: {str(error)[:200]}",
                          where="config.json", found=kind) from error  # fmt: skip
    for module in model.modules():
        buffers = [b for b in module.buffers(recurse=False) if b.is_meta]
        if buffers:
            module._apply(lambda t: torch.empty_like(t, device="cpu"), recurse=False)
            model._init_weights(module)
    return model.eval()
