"""Which linear layers a quantized checkpoint leaves in float, as MLC names them.

Tools leave layers out by lists of names (``modules_to_not_convert``, ``ignore``) or by mixed
precision without any list; the tensors on disk say it in every case. Both the config and the
weights stages need the answer, because the graph has to know.
"""

from __future__ import annotations

from collections.abc import Sequence

from mlc_bridge.errors import CannotExpress
from mlc_bridge.models.arch import Weight
from mlc_bridge.sources import Checkpoint, Source


def float_layers(ckpt: Checkpoint, source: Source, weights: Sequence[Weight]) -> tuple[str, ...]:
    """MLC paths of the linears that stay float; empty for a checkpoint that is float altogether.

    Raises CannotExpress for a fused layer whose checkpoint layers are partly float.
    """
    quantized = set(source.layers(ckpt))
    if not quantized:
        return ()
    found = []
    for weight in weights:
        if weight.role != "linear":
            continue
        left = [layer for layer in weight.sources if layer not in quantized]
        if left and len(left) < len(weight.sources):
            raise CannotExpress(
                weight.path,
                "One fused layer",
                f"the checkpoint leaves {', '.join(left)} in float and quantizes the others",
                todo="Quantize the model again with these layers treated alike",
            )
        if left:
            found.append(weight.path)
    return tuple(found)
