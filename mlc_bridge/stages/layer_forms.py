"""Layer by layer: what the checkpoint holds, what it becomes, and what both weigh.

Layers alike (numbers as ``*``) are one row. The rows' bytes in the checkpoint, with what is left
out and carried along, are the file's own to the last one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from mlc_bridge.models import Weight
from mlc_bridge.qtensor import QTensor
from mlc_bridge.record import Record
from mlc_bridge.stages.choose_scheme import nbytes_of
from mlc_bridge.stages.kinds import nbytes
from mlc_bridge.stages.recognise import Recognised

LEFT_OUT, ASIDE = "left out", "carried unused"


@dataclass(frozen=True)
class LayerForm(Record):
    """``bits`` and ``checkpoint_bits`` are per logical weight, scales included."""

    pattern: Annotated[str, "Layers by name, their numbers as *."]
    count: Annotated[int, "How many."]
    holds: Annotated[str, "What the checkpoint has: codes, block, scales."]
    scheme: Annotated[str, "What it becomes."]
    checkpoint_bits: Annotated[float, "Bits per weight in the checkpoint."]
    bits: Annotated[float, "Bits per weight in the artifact."]
    checkpoint_nbytes: Annotated[int, "Bytes in the checkpoint."]
    nbytes: Annotated[int, "Bytes in the artifact."]


def layer_forms(model: Recognised) -> tuple[LayerForm, ...]:
    """Every weight of the model, then what is no weight of it."""
    rows: dict[tuple[str, str, str], list[Weight]] = {}
    holds: dict[object, str] = {}
    for weight in model.weights:
        looks = tuple((p.removeprefix(weight.sources[0]), model.ckpt.dtype(p), model.ckpt.shape(p))
                      for p in _parts(model, weight, weight.sources[:1]))  # fmt: skip
        if looks not in holds:
            holds[looks] = _holds(model, weight)
        pattern = re.sub(r"\.\d+(?=\.|$)", ".*", weight.path)
        key = (pattern, holds[looks], model.scheme_of(weight).name)
        rows.setdefault(key, []).append(weight)
    forms = [_form(model, key, weights) for key, weights in rows.items()]
    return (*forms, *_others(model))


def _form(model: Recognised, key: tuple[str, str, str], weights: list[Weight]) -> LayerForm:
    elements = sum(w.n * max(w.k, 1) * max(w.experts, 1) for w in weights)
    stored = sum(nbytes_of(spec) for w in weights for spec in model.params(w).values())
    parts = {p for w in weights for p in _parts(model, w, w.sources)}
    there = sum(nbytes(model.ckpt, part) for part in parts)
    bits = (8 * there / elements, 8 * stored / elements)
    return LayerForm(key[0], len(weights), key[1], key[2], *bits, there, stored)


def _parts(model: Recognised, weight: Weight, layers: tuple[str, ...]) -> Iterator[str]:
    """The checkpoint's tensors of these layers."""
    if weight.tensor is not None:
        yield weight.tensor
        return
    for layer in layers:
        yield from model.source.parts(model.ckpt, layer)
        if weight.bias and f"{layer}.bias" in model.ckpt:
            yield f"{layer}.bias"


def _holds(model: Recognised, weight: Weight) -> str:
    """In words, from the first of the weight's layers."""
    if weight.tensor is not None:
        return str(model.ckpt.dtype(weight.tensor))
    found = model.source.read(model.ckpt, weight.sources[0])
    if not isinstance(found, QTensor):
        return str(found.dtype)
    scales = "" if found.outer is None else " and a float32 for all"
    order = ", columns in activation order" if found.perm is not None else ""
    inputs = ", static activations" if found.input_scale is not None else ""
    return f"{found.kind} by {block(found)}, scales {found.scale.dtype}{scales}{order}{inputs}"


def block(q: QTensor) -> str:
    """What shares a scale."""
    (n, k), (bn, bk) = q.shape, q.block
    if (bn, bk) == (n, k):
        return "tensor"
    if bn == 1:
        return "channel" if bk == k else f"group {bk}"
    return f"block {bn} x {bk}"


def _others(model: Recognised) -> Iterator[LayerForm]:
    aside = model.source.aside(model.ckpt)
    for what, names in ((ASIDE, aside), (LEFT_OUT, [n for n in model.left_out if n in model.ckpt])):
        size = sum(nbytes(model.ckpt, name) for name in names)
        if names:
            kept = size if what == ASIDE else 0
            yield LayerForm(what, len(names), "", "none", 0.0, 0.0, size, kept)
