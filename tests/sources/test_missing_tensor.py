"""A missing tensor is never read as an empty one: any one dropped, and the file is refused or the
weights are what they were."""

from __future__ import annotations

from pathlib import Path

import pytest
from mutants import CASES, case_id, outcome, shapes_of, weights, without

from mlc_bridge.errors import SourceError
from mlc_bridge.sources import Checkpoint, detect


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_any_one_tensor_dropped(case: Path) -> None:
    ckpt, shapes = Checkpoint.open(case), shapes_of(case)
    wanted = weights(ckpt, shapes)
    silent = [n for n in ckpt.names if outcome(without(ckpt, n), shapes, wanted) == "silent"]
    assert not silent


ORDERED = [case for case in CASES if "desc-act" in case.name or "actorder" in case.name]


@pytest.mark.parametrize("case", ORDERED, ids=case_id)
def test_order_that_is_missing_is_named(case: Path) -> None:
    """Refused from headers alone, and the message names the tensor."""
    ckpt, shapes = Checkpoint.open(case), shapes_of(case)
    (name,) = [n for n in ckpt.names if n.endswith("g_idx")]
    layer = name.rpartition(".")[0]
    less = without(ckpt, name)
    with pytest.raises(SourceError, match=f"{name}: .* columns of a group are scattered"):
        detect(less).check(less, layer, shapes[layer])
