"""The reference of ``verify``: Hugging Face's model in float32, whole or layer by layer.

The weights are the checkpoint's, dequantized by its source. Whole, a model takes about 6 bytes a
weight while it loads: 40 GB for 7B. Where that does not fit, all windows go through one layer at a
time:

    embed -> h [w, n, d] -> load layer 0 -> h -> free it -> load layer 1 -> ... -> norm
    norm(h) [1, n, d] of one window after the other -> head -> logits [n, v]

so that embedding, head, one layer and the hidden states are in memory, and nothing else. Both ways
run the model's own ``forward``, with its masks, rotations and caps: a layer that is not there yet
is a module without weights, which fetches them when it is called. transformers' ``from_pretrained``
loads each part, because it knows how every version of a model stores its experts.

A multimodal model's eyes and ears are left out: text alone is asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mlc_bridge.engine.memory import available_memory
from mlc_bridge.errors import ArtifactError
from mlc_bridge.models import Weight
from mlc_bridge.packing import Array
from mlc_bridge.qtensor import QTensor
from mlc_bridge.sources import Checkpoint, Source
from mlc_bridge.stages.progress import Progress, silent
from mlc_bridge.stages.recognise import survey

WHOLE, STREAMED = "float32, whole", "float32, layer by layer"
LOADING = 6
"""Bytes a weight takes while a model loads: 4 of its own, and what joining experts copies."""
PASS = 4096
"""Positions that go through a layer together."""
ALL = -1
OUTSIDE = None  # embedding, norm, head
Number = int | None
_LAYER = re.compile(r"\blayers\.(\d+)\.")


@dataclass(frozen=True)
class Need:
    """Bytes of memory: ``whole`` or ``streamed`` weights, and ``work`` for what is computed."""

    whole: int
    streamed: int
    work: int

    @classmethod
    def of(cls, weights: Sequence[Weight], window: int, positions: int) -> Need:
        """Of a model with these ``weights``, for ``positions`` in windows of ``window``."""
        sizes: dict[Number, int] = {}
        for w in weights:
            number = _number(f"{w.path}.")
            sizes[number] = sizes.get(number, 0) + w.n * max(w.k, 1) * max(w.experts, 1)
        outside = sizes.pop(OUTSIDE, 0)
        layer = max(sizes.values(), default=0)
        vocab, hidden = weights[0].n, weights[0].k
        widest = max((sum(w.rows) for w in weights if _number(f"{w.path}.") is not None), default=0)
        states = min(positions, max(PASS, window)) * (8 * hidden + 3 * widest)
        logits = 10 * window * vocab  # both sides' and their distributions in float64
        return cls(
            whole=LOADING * (outside + sum(sizes.values())),
            streamed=4 * outside + 2 * LOADING * layer,
            work=4 * (states + logits),
        )


def open_reference(
    ckpt: Checkpoint,
    source: Source,
    window: int,
    positions: int,
    beside: int = 0,
    max_memory: int | None = None,
) -> Reference:
    """Whole if it fits into ``max_memory`` and what is free, ``beside`` bytes taken off, else layer
    by layer. Raises ArtifactError where even that does not fit.
    """
    found = survey(ckpt, source)
    need = Need.of(found.weights, window, positions)
    given = [n for n in (available_memory(), max_memory) if n is not None]
    room = min(given) - beside - need.work if given else need.whole
    if need.whole > room and need.streamed > room:
        raise ArtifactError(
            "the reference does not fit into memory, even layer by layer",
            found=f"{min(given) / 1e9:.2f} GB",
            expected=f"{(beside + need.work + need.streamed) / 1e9:.2f} GB",
            todo="Free memory, raise --max-memory or take a smaller --window; --weights-only "
            "needs no reference",
        )
    kind = Streamed if need.whole > room else Reference
    return kind(_Weights(ckpt, source), bool(found.untied))


class Reference:
    """The whole model in memory."""

    how = WHOLE

    def __init__(self, weights: _Weights, untied: bool) -> None:
        self._family = _Family(weights.ckpt, untied)
        self._model = self._family.load(ALL, weights.read(ALL))

    def logits(self, windows: Sequence[Array], progress: Progress = silent) -> Iterator[Array]:
        """float32 ``[n, vocab]`` of each window of ids ``[n]``."""
        for ids in windows:
            yield self._run(ids[None])[0]

    def readings(self, ids: Array) -> list[Array]:
        """float32 ``[n, vocab]``: norm and head of the hidden state before the first layer, then
        after each layer.
        """
        layers = self._family.decoder(self._model).layers
        states = self._states(ids, layers)
        own = [layer.__dict__.get("forward") for layer in layers]
        for layer in layers:
            layer.forward = lambda hidden, *_, **__: hidden
        found = []
        try:
            for state in states:
                layers[0].forward = lambda *_, state=state, **__: state
                found.append(self._run(ids[None])[0])
        finally:
            for layer, forward in zip(layers, own, strict=True):
                if forward is None:
                    del layer.forward
                else:
                    layer.forward = forward
        return found

    def _states(self, ids: Array, layers: Any) -> list[Any]:
        """``[1, n, d]``: what the first layer gets, then what each gives."""
        found: list[Any] = []

        def entered(_: Any, args: Any, kwargs: Any) -> None:
            found.append(args[0] if args else kwargs["hidden_states"])

        def left(_: Any, __: Any, out: Any) -> None:
            found.append(out)

        hooks = [layers[0].register_forward_pre_hook(entered, with_kwargs=True)]
        hooks += [layer.register_forward_hook(left) for layer in layers]
        try:
            self._run(ids[None], logits_to_keep=1)
        finally:
            for hook in hooks:
                hook.remove()
        return found

    def _run(self, ids: Array, **wishes: Any) -> Array:
        """Logits ``[w, n, v]`` of ids ``[w, n]``."""
        torch = self._family.torch
        with torch.inference_mode():
            asked = torch.from_numpy(np.array(ids)).long()
            return _array(self._model(asked, use_cache=False, **wishes).logits)


class Streamed(Reference):
    """One layer in memory at a time."""

    how = STREAMED

    def __init__(self, weights: _Weights, untied: bool) -> None:
        self._family = _Family(weights.ckpt, untied)
        self._weights = weights
        self._outside = dict(weights.read(OUTSIDE))
        self._model = self._family.load(OUTSIDE, self._outside.items())
        self._progress = silent
        layers = self._family.decoder(self._model).layers
        for number, layer in enumerate(self._family.empty_layers()):
            layer.forward = self._fetched(number)
            layers[number] = layer

    def logits(self, windows: Sequence[Array], progress: Progress = silent) -> Iterator[Array]:
        self._progress = progress
        each = max(1, PASS // len(windows[0]))
        for at in range(0, len(windows), each):
            yield from self._pass(np.stack(windows[at : at + each]))

    def _pass(self, ids: Array) -> Iterator[Array]:
        """The decoder once for all windows, then what comes after it for one at a time."""
        decoder, seen = self._family.decoder(self._model), []
        hook = decoder.register_forward_hook(lambda _, __, out: seen.append(out))
        try:
            self._run(ids, logits_to_keep=1)
        finally:
            hook.remove()
        (out,) = seen
        own = decoder.forward
        for number, window in enumerate(ids):
            rows = out.last_hidden_state[number : number + 1]
            decoder.forward = lambda *_, rows=rows, **__: type(out)(last_hidden_state=rows)
            try:
                yield self._run(window[None])[0]
            finally:
                decoder.forward = own

    def _fetched(self, number: int) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Any:
            self._progress(
                "reference layers", number, len(self._family.decoder(self._model).layers)
            )
            state = {**self._outside, **dict(self._weights.read(number))}
            model = self._family.load(number, state.items())
            return self._family.decoder(model).layers[number](*args, **kwargs)

        return forward


class _Family:
    """The class of models that config.json names, and how to make one with only some layers."""

    def __init__(self, ckpt: Checkpoint, untied: bool) -> None:
        import torch
        from transformers import MODEL_FOR_CAUSAL_LM_MAPPING as TEXT
        from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING as SEEING
        from transformers import AutoConfig

        self.torch = torch
        self.config = AutoConfig.from_pretrained(ckpt.path)
        for block in (self.config, self.config.get_text_config()):
            vars(block).pop("quantization_config", None)
        if untied:
            self.config.tie_word_embeddings = False
        # A whole's config may also stand for its text model, whose class wants the inner one.
        whole = self.config.get_text_config() is not self.config
        first, other = (SEEING, TEXT) if whole else (TEXT, SEEING)
        self.kind = (first if type(self.config) in first else other)[type(self.config)]

    @staticmethod
    def decoder(model: Any) -> Any:
        return model.get_decoder()

    def empty_layers(self) -> list[Any]:
        """Every layer, without weights."""
        with self.torch.device("meta"):
            return list(self.decoder(self.kind(self.config)).layers)

    def load(self, number: Number, weights: Iterable[tuple[str, Array]]) -> Any:
        """A model with layer ``number`` alone, with all or with none; the others pass through."""
        kind, torch = self.kind, self.torch

        def made(model: Any, config: Any) -> None:
            kind.__init__(model, config)
            decoder, body = self.decoder(model), model.base_model
            if body is not decoder:  # eyes, ears, and what joins them
                for name, part in list(body.named_children()):
                    if not any(module is decoder for module in part.modules()):
                        setattr(body, name, torch.nn.Identity())
            for other in range(len(decoder.layers)):
                if number not in (ALL, other):
                    decoder.layers[other] = torch.nn.Identity()

        # transformers looks for what it knows of a model by the names of its class.
        same = {"__init__": made, "__module__": kind.__module__}
        lean: Any = type(kind.__name__, (kind,), same)
        with _quiet():
            model, told = lean.from_pretrained(
                None,
                config=self.config,
                state_dict={name: torch.from_numpy(w) for name, w in weights},
                dtype=torch.float32,
                output_loading_info=True,
            )
        if told["missing_keys"]:
            raise ArtifactError(
                f"the reference {kind.__name__} lacks weights that the checkpoint does not have",
                found=", ".join(sorted(told["missing_keys"])[:3]),
            )
        return model.eval()


@dataclass(frozen=True)
class _Weights:
    """Every weight of the text model, dequantized to float32, under the names of the file."""

    ckpt: Checkpoint
    source: Source

    def read(self, number: Number) -> Iterator[tuple[str, Array]]:
        """Of one layer, of what is outside them, or of ``ALL``."""
        wanted = self._names if number == ALL else {number: self._names.get(number, [])}
        for name in (name for names in wanted.values() for name in names):
            yield from self._dense(name) if name in self._quantized else self._float(name)

    @cached_property
    def _quantized(self) -> frozenset[str]:
        return frozenset(self.source.layers(self.ckpt))

    @cached_property
    def _names(self) -> Mapping[Number, list[str]]:
        """Quantized layers, then tensors that are no part of one, by the layer's number."""
        ckpt, source = self.ckpt, self.source
        parts = {part for layer in self._quantized for part in source.parts(ckpt, layer)}
        parts |= {f"{layer}.bias" for layer in self._quantized}
        parts |= {*source.aside(ckpt)}
        found: dict[Number, list[str]] = {}
        for name in (*source.layers(ckpt), *(n for n in ckpt.names if n not in parts)):
            found.setdefault(_number(name), []).append(name)
        return found

    def _dense(self, layer: str) -> Iterator[tuple[str, Array]]:
        read = self.source.read(self.ckpt, layer)
        dense = read.dequantize() if isinstance(read, QTensor) else read
        yield self.ckpt.stored(f"{layer}.weight"), np.array(dense, np.float32)
        bias = self.source.bias(self.ckpt, layer)
        if bias is not None:
            yield self.ckpt.stored(f"{layer}.bias"), np.array(bias, np.float32)

    def _float(self, name: str) -> Iterator[tuple[str, Array]]:
        yield self.ckpt.stored(name), np.array(self.ckpt.tensor(name), np.float32)


def _number(name: str) -> Number:
    found = _LAYER.search(name)
    return int(found[1]) if found else OUTSIDE


def _array(tensor: Any) -> Array:
    found: Array = tensor.detach().float().numpy()
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' bars and tables."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        logging.enable_progress_bar()
