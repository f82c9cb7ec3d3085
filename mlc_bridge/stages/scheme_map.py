"""``--quantization`` as it is written: one scheme for all layers, others for layers by name.

    auto            q4f16_autoawq            q4f16_autoawq,down_proj=q8f16_1,lm_head=q0f16

Names are those of ``--requantize`` (a path of MLC or of the checkpoint, its end, or a regular
expression); of two that name a layer the later one holds. What comes first, ``auto`` where nothing
does, is for all other layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mlc_bridge.errors import ConfigError
from mlc_bridge.models import Weight
from mlc_bridge.schemes import SCHEMES, Scheme
from mlc_bridge.stages.requantize import names

AUTO = "auto"


@dataclass(frozen=True)
class SchemeMap:
    """The parsed wish; ``first`` is ``auto`` or a scheme's name."""

    first: str
    named: Mapping[str, Scheme]

    @classmethod
    def of(cls, wish: str) -> SchemeMap:
        """Raises ConfigError for a scheme that does not exist, or two of them for all layers."""
        words = [word.strip() for word in wish.split(",") if word.strip()]
        pairs = [word.rpartition("=") for word in words]
        alone = [scheme for layer, _, scheme in pairs if not layer]
        if len(alone) > 1:
            raise ConfigError(
                "--quantization names two schemes for all layers", found=", ".join(alone),
                expected="one scheme, then layer=scheme for each layer of another",
            )  # fmt: skip
        first = alone[0] if alone else AUTO
        if first != AUTO:
            first = SCHEMES[first].name
        return cls(first, {layer: SCHEMES[scheme] for layer, _, scheme in pairs if layer})

    def of_weight(self, weight: Weight) -> Scheme | None:
        """The scheme that is named for this weight; of a fused one all parts must be named."""
        found = self._of_parts(weight)
        return found[0] if len(set(found)) == 1 else None

    def divides(self, weight: Weight) -> bool:
        """Whether the parts of a fused weight are named different schemes.

        Raises ConfigError for the experts of a stack, which has one.
        """
        count = len(weight.rows)
        found = self._of_parts(weight)
        if weight.experts and any(len(set(found[i::count])) > 1 for i in range(count)):
            raise ConfigError(
                "--quantization names single experts, which lie in one stack", where=weight.path,
                todo=f"Name the stack: {weight.path}=SCHEME",
            )  # fmt: skip
        return len(set(found)) > 1

    def check(self, weights: Sequence[Weight]) -> None:
        """Raises ConfigError for a name that no weight of the model has."""
        matrices = [weight for weight in weights if weight.tensor is None]
        for name in self.named:
            if not any(names(name, weight.path, *weight.sources) for weight in matrices):
                raise ConfigError(
                    "--quantization names a layer that the model does not have", found=repr(name),
                    expected=f"names such as {matrices[-1].path}, {matrices[1].path}",
                )  # fmt: skip

    def _of_parts(self, weight: Weight) -> list[Scheme | None]:
        if weight.tensor is not None or not self.named:
            return [None]
        return [self._last(weight.path, source) for source in weight.sources]

    def _last(self, *paths: str) -> Scheme | None:
        hits = [scheme for name, scheme in self.named.items() if names(name, *paths)]
        return hits[-1] if hits else None
