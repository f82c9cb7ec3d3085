"""Every 4-bit file lands in the q4f16_autoawq family, codes and zeros as they are, or says why."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mlc_bridge.errors import CannotExpress
from mlc_bridge.qtensor import QTensor
from mlc_bridge.schemes import SCHEMES
from mlc_bridge.sources import SOURCES, Checkpoint

GOLDEN = Path(__file__).parents[1] / "golden" / "sources"
CASES = sorted(p.parent for p in GOLDEN.glob("*/*/expected.safetensors"))
FAMILY = {32: "q4f16_autoawq_g32", 64: "q4f16_autoawq_g64", 128: "q4f16_autoawq"}


def four_bit_layers() -> list[tuple[Path, str]]:
    found = []
    for case in CASES:
        ckpt, source = Checkpoint.open(case), SOURCES[case.parent.name]
        for layer in source.layers(ckpt):
            q = source.read(ckpt, layer)
            if isinstance(q, QTensor) and q.kind == "uint4":
                found.append((case, layer))
    return found


def why_not(q: QTensor) -> str | None:
    """What of this layer the family's layout cannot say."""
    if q.perm is not None:
        return "activation order"
    if q.shape[0] % 8:
        return r"n % 8"
    return None


@pytest.mark.parametrize(
    ("case", "layer"),
    four_bit_layers(),
    ids=lambda x: f"{x.parent.name}/{x.name}" if isinstance(x, Path) else x.rpartition(".")[2],
)
def test_codes_and_zeros_land(case: Path, layer: str) -> None:
    q = SOURCES[case.parent.name].read(Checkpoint.open(case), layer)
    per_channel = q.block[1] == q.shape[1]
    scheme = SCHEMES["q4f16_autoawq_gk" if per_channel else FAMILY[q.block[1]]]
    reason = why_not(q)
    if reason is not None:
        with pytest.raises(CannotExpress, match=f"{layer}.*{reason}"):
            scheme.encode(q, layer)
        return
    back = scheme.decode(scheme.encode(q, layer))
    assert np.array_equal(back.codes.unpack(), q.codes.unpack())
    assert np.array_equal(back.zero.unpack(), q.zero.unpack())
    step = np.abs(q.dequantize() - back.dequantize())
    assert (step <= 2**-11 * np.abs(q.dequantize())).all()
