"""What a conversion will do, from headers alone: format, scheme, weights, every tensor's fate.

Nothing is read or written for it, so whatever headers can show is refused before any work.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlc_bridge.artifact.manifest import fingerprint
from mlc_bridge.artifact.tensor_cache import dtype_of
from mlc_bridge.errors import SourceError
from mlc_bridge.models import MODELS, Arch, ModelConfig, Weight
from mlc_bridge.models.arch import parameters
from mlc_bridge.schemes import SCHEMES, Scheme, Spec
from mlc_bridge.sources import Checkpoint, Source, detect
from mlc_bridge.sources.activation_order import folded
from mlc_bridge.sources.hub import resolve
from mlc_bridge.stages.choose_scheme import choose_scheme
from mlc_bridge.stages.float_layers import float_layers


@dataclass(frozen=True)
class WeightPlan:
    """Everything that headers decide; nothing has been read or written yet."""

    ckpt: Checkpoint
    source: Source
    scheme: Scheme
    arch: Arch
    config: ModelConfig
    weights: Sequence[Weight]

    @property
    def specs(self) -> dict[str, Spec]:
        """Full parameter name -> Spec, in the order in which they are written."""
        return {f"{w.path}.{s}": spec for w in self.weights for s, spec in self.params(w).items()}

    def params(self, weight: Weight) -> dict[str, Spec]:
        """Suffix -> Spec of one weight."""
        return parameters(weight, self.scheme, self.config.float_layers)

    @property
    def fingerprint(self) -> str:
        params = [(name, spec.shape, spec.dtype) for name, spec in self.specs.items()]
        return fingerprint(self.arch.name, self.config.asdict(), params)

    @property
    def nbytes(self) -> int:
        """Bytes of all parameters together."""
        sizes = (dtype_of(s.dtype).itemsize * math.prod(s.shape) for s in self.specs.values())
        return sum(sizes)

    @property
    def elements(self) -> int:
        """Logical elements: what the float model has."""
        return sum(
            (w.n * max(w.k, 1) + (w.n if w.bias else 0)) * max(w.experts, 1) for w in self.weights
        )


def make_plan(
    model_dir: str | Path, quantization: str, source: str | Path | None, source_format: str
) -> WeightPlan:
    """Read headers and decide everything; raises the errors that headers can show."""
    home = resolve(model_dir)
    ckpt = Checkpoint.open(home if source is None else source, config_dir=home)
    fmt = folded(detect(ckpt, source_format), ckpt)
    arch = MODELS[str(ckpt.config.get("model_type"))]
    floats = float_layers(ckpt, fmt, arch.weights(arch.config(ckpt.config)))
    config = arch.config(ckpt.config, float_layers=floats)
    weights = arch.weights(config)
    auto = quantization == "auto"
    scheme = choose_scheme(ckpt, fmt, weights) if auto else SCHEMES[quantization]
    plan = WeightPlan(ckpt, fmt, scheme, arch, config, weights)
    fmt.check_whole(ckpt)
    for weight in weights:
        plan.params(weight)
        _check_sources(ckpt, fmt, weight)
    _check_leftovers(plan)
    return plan


def _check_sources(ckpt: Checkpoint, source: Source, weight: Weight) -> None:
    if weight.role == "norm":
        ckpt.require(f"{weight.sources[0]}.weight", (weight.n,))
        return
    rows = weight.rows * max(weight.experts, 1)
    for layer, n in zip(weight.sources, rows, strict=True):
        source.check(ckpt, layer, (n, weight.k))
        if weight.bias and f"{layer}.bias" in ckpt:
            ckpt.require(f"{layer}.bias", (n,))
        elif weight.bias and source.bias(ckpt, layer) is None:
            raise SourceError("the checkpoint lacks this tensor", where=f"{layer}.bias")


def _check_leftovers(plan: WeightPlan) -> None:
    """Every tensor of the checkpoint is used, or known to mean nothing here."""
    known = {*plan.source.aside(plan.ckpt), *_copies(plan)}
    for weight in plan.weights:
        for layer in weight.sources:
            if weight.role == "norm":
                known.add(f"{layer}.weight")
                continue
            known.update(plan.source.parts(plan.ckpt, layer))
            if weight.bias:
                known.add(f"{layer}.bias")
    if all(weight.role != "lm_head" for weight in plan.weights):
        known.add("lm_head.weight")  # tied: a copy of the embedding
    left = [n for n in plan.ckpt.names if n not in known and not _meaningless(plan.ckpt, n)]
    if left:
        more = f" and {len(left) - 4} more" if len(left) > 4 else ""
        raise SourceError(
            f"{plan.arch.name} has no place for these tensors of the checkpoint",
            where=plan.ckpt.path,
            found=", ".join(left[:4]) + more,
            todo="They change what the model computes, so the checkpoint is not converted",
        )


def _copies(plan: WeightPlan) -> Sequence[str]:
    """Tensors that repeat another one, each compared with it."""
    copies = plan.source.copies(plan.ckpt)
    for name, original in copies.items():
        if not np.array_equal(plan.ckpt.tensor(name), plan.ckpt.tensor(original)):
            raise SourceError(
                "two tensors that should hold the same differ", where=name, expected=original,
                todo="Which of the two is meant cannot be known; quantize the model again",
            )  # fmt: skip
    return tuple(copies)


def _meaningless(ckpt: Checkpoint, name: str) -> bool:
    """Buffers that the graph computes itself, and biases of zeros that some tools write."""
    if name.endswith((".rotary_emb.inv_freq", ".attn.bias", ".masked_bias")):
        return True
    return name.endswith(".bias") and not np.any(ckpt.tensor(name))
