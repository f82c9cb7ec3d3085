"""Perplexity before and after, and the distance between, on text that calibration never saw.

The windows went through every layer twice, once in float and once as quantized (``chain.py``), so
only norm and head are left: no second run of the model.

    perplexity = exp(mean of -log p(next token))        KL = mean over positions of sum p log(p / q)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mlc_bridge.quantizers.chain import Chain
from mlc_bridge.quantizers.extra import float32, torch_here
from mlc_bridge.quantizers.skeleton import Skeleton, logits

WINDOW = 512


class Heldout:
    """``rotation``: what the quantized states, and the head that reads them, were turned by."""

    def __init__(self, skeleton: Skeleton, chains: Mapping[str, Chain], rotation: Any) -> None:
        self.skeleton, self.chains, self.rotation = skeleton, chains, rotation

    def measure(self, windows: Sequence[Sequence[int]], at: int) -> dict[str, float]:
        torch = torch_here()
        norm, head = self.skeleton.final_norm(), float32(self.skeleton.head)
        sums = {"float": 0.0, "quantized": 0.0, "kl": 0.0, "same": 0.0}
        count = 0
        both = (self.chains[name].batches(at, 1) for name in ("float", "quantized"))
        for ids, a, b in zip(windows, *both, strict=True):
            turned = b if self.rotation is None else self.rotation.back(b)
            p, q = (
                torch.log_softmax(logits(self.skeleton, norm, x, head)[0, :-1], -1)
                for x in (a, turned)
            )
            after = torch.tensor(ids[1:])[:, None]
            sums["float"] -= float(p.gather(1, after).sum())
            sums["quantized"] -= float(q.gather(1, after).sum())
            sums["kl"] += float((p.exp() * (p - q)).sum())
            sums["same"] += float((p.argmax(-1) == q.argmax(-1)).sum())
            count += len(after)
        mean = {name: value / count for name, value in sums.items()}
        return {
            "positions": float(count),
            "perplexity_before": float(torch.tensor(mean["float"]).exp()),
            "perplexity_after": float(torch.tensor(mean["quantized"]).exp()),
            "kl": mean["kl"],
            "top1": mean["same"],
        }
