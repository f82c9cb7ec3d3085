"""Float checkpoints as Hugging Face saves them: ``<layer>.weight`` ``[n, k]``, 16 or 32 bits."""

from __future__ import annotations

from mlc_bridge.packing import Array
from mlc_bridge.sources.checkpoint import Checkpoint
from mlc_bridge.sources.source import FLOATS, Evidence, Source, check_float, read_float


class Dense(Source):
    name = "dense"

    def evidence(self, ckpt: Checkpoint) -> Evidence:
        quantized = ckpt.settings
        integers = [n for n in ckpt.names if n.endswith("weight") and ckpt.dtype(n) not in FLOATS]
        packed = [n for n in ckpt.names if n.endswith((".qweight", ".weight_packed"))]
        floats = sum(n.endswith("weight") for n in ckpt.names) - len(integers) - len(packed)
        against = []
        if quantized:
            against.append(f"the config says quant_method {quantized.get('quant_method')!r}")
        if integers or packed:
            first = (packed + integers)[0]
            against.append(f"{first} holds {ckpt.dtype(first)}")
        supports = (f"{floats} weights are float",) if floats > 0 else ()
        return Evidence(supports, tuple(against))

    def layers(self, ckpt: Checkpoint) -> tuple[str, ...]:
        return ()

    def parts(self, ckpt: Checkpoint, layer: str) -> tuple[str, ...]:
        return (f"{layer}.weight",)

    def check(self, ckpt: Checkpoint, layer: str, shape: tuple[int, int]) -> None:
        check_float(ckpt, layer, shape)

    def read(self, ckpt: Checkpoint, layer: str) -> Array:
        return read_float(ckpt, layer)
