"""Damaged msModelSlim checkpoints: each is refused, or holds the same weights as the sound one.

One tensor dropped, one entry of the description removed or changed, and one layer's entries changed
together, for every tensor, entry and layer of every golden.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from mlc_bridge.errors import SourceError
from mlc_bridge.qtensor import QTensor
from mlc_bridge.sources import SOURCES, Checkpoint

GOLDEN = Path(__file__).parents[1] / "golden" / "sources" / "msmodelslim"
CASES = sorted(p.parent.name for p in GOLDEN.glob("*/expected.safetensors"))
Weights = dict[str, np.ndarray]
SLIM = SOURCES["msmodelslim"]
VALUES = ("W8A8", "W8A16", "W4A16", "W8A8_DYNAMIC", "W4A8_DYNAMIC", "FLOAT", "", 4, None, [], {})


def weights(ckpt: Checkpoint, shapes: dict[str, tuple[int, ...]] | None = None) -> Weights:
    """All that a conversion takes: every layer and vector with what else the layer has.

    ``shapes`` are those that config.json would ask for.
    """
    SLIM.check_whole(ckpt)
    layers = dict.fromkeys(x.partition(".tp_list.")[0] for x in ckpt.layers("weight"))
    got = {}
    for layer in layers:
        if shapes and len(shapes[layer]) == 2:
            SLIM.check(ckpt, layer, shapes[layer])
        weight = SLIM.read(ckpt, layer)
        got[layer] = weight.dequantize() if isinstance(weight, QTensor) else weight
        if (bias := SLIM.bias(ckpt, layer)) is not None:
            got[f"{layer}.bias"] = bias
    return got


def same(got: Weights, wanted: Weights) -> bool:
    return got.keys() == wanted.keys() and all(np.array_equal(got[n], wanted[n]) for n in wanted)


def fate(home: Path, wanted: Weights) -> str:
    shapes = {layer: weight.shape for layer, weight in wanted.items()}
    try:
        return "same" if same(weights(Checkpoint.open(home), shapes), wanted) else "OTHER WEIGHTS"
    except SourceError:
        return "refused"


def sound(tmp_path: Path, case: str) -> tuple[Path, Path, Path, Weights]:
    home = tmp_path / case
    shutil.copytree(GOLDEN / case, home, ignore=shutil.ignore_patterns("expected*", "*.index.json"))
    (described,) = home.glob("quant_model_description*.json")
    (file,) = home.glob("quant_model_weight*.safetensors")
    return home, described, file, weights(Checkpoint.open(home))


@pytest.mark.parametrize("case", CASES)
def test_one_tensor_dropped(tmp_path: Path, case: str) -> None:
    home, _, file, _ = sound(tmp_path, case)
    tensors = load_file(file)
    for lost in tensors:
        save_file({n: t for n, t in tensors.items() if n != lost}, file)
        with pytest.raises(SourceError, match=f"{lost}: .*the checkpoint lacks"):
            weights(Checkpoint.open(home))


@pytest.mark.parametrize("case", CASES)
def test_one_entry_changed(tmp_path: Path, case: str) -> None:
    home, described, _, wanted = sound(tmp_path, case)
    fates = {}
    for what, types in changed(json.loads(described.read_text())):
        described.write_text(json.dumps(types))
        fates[what] = fate(home, wanted)
    assert [what for what, end in fates.items() if end not in ("same", "refused")] == []
    assert "refused" in fates.values()


def changed(types: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every entry removed, and given three other values in turn."""
    for number, key in enumerate(types):
        yield f"{key} removed", {k: v for k, v in types.items() if k != key}
        for step in range(3):
            value = VALUES[(3 * number + step) % len(VALUES)]
            yield f"{key} = {value!r}", {**types, key: value}
    for layer in [key.removesuffix(".weight") for key in types if key.endswith("_proj.weight")]:
        for kind in VALUES[:6]:
            together = {key: kind for key in types if key.startswith(f"{layer}.")}
            yield f"{layer}: {kind}", {**types, **together}
