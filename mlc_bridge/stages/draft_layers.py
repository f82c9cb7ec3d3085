"""Layers that guess several tokens ahead (MTP) are no part of the model that is run: left out.

They are named ``mtp``, or lie beyond the last layer where config.json counts them
(``num_nextn_predict_layers``: GLM-4.5, DeepSeek V3).
"""

from __future__ import annotations

import re
from dataclasses import replace

from mlc_bridge.sources import Checkpoint

WHAT = "the layers that predict several tokens ahead (MTP)"
NAMED = re.compile(r"(model\.)?mtp[._].*")
LAYER = re.compile(r"model\.layers\.(\d+)\..*")


def without_draft_layers(ckpt: Checkpoint) -> Checkpoint:
    """A view of the checkpoint; ``ckpt`` itself where it has none."""
    last, more = (ckpt.config.get(k) for k in ("num_hidden_layers", "num_nextn_predict_layers"))
    counted = range(last, last + more) if isinstance(last, int) and isinstance(more, int) else ()

    def drafts(name: str) -> bool:
        layer = LAYER.fullmatch(name)
        return bool(NAMED.fullmatch(name)) or (layer is not None and int(layer[1]) in counted)

    outside = {name: WHAT for name in ckpt.names if drafts(name)}
    if not outside:
        return ckpt
    entries = {name: entry for name, entry in ckpt.entries.items() if name not in outside}
    return replace(ckpt, entries=entries, outside={**ckpt.outside, **outside})
