"""The methods: LLMC's own numbers on the same model and tokens, and functions that must stay."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlc_bridge.packing import Array
from mlc_bridge.quantizers import loop, tensor_file
from mlc_bridge.quantizers.hadamard import hadamard
from mlc_bridge.quantizers.outputs import OUTPUTS
from mlc_bridge.quantizers.recipe import Recipe
from mlc_bridge.sources import SOURCES, Checkpoint
from tests.quantizers.tiny import SHAPES

LINEARS = frozenset(f"model.layers.{i}.{name}" for i in range(2) for name in SHAPES)
G32 = {"bits": 4, "group_size": 32}
W8 = {"bits": 8, "symmetric": True, "granularity": "channel"}
AWQ = {"clip": True, "weights": G32}
LWC: dict[str, Any] = {"method": "omniquant", "epochs": 2}
# LLMC's case -> the same in our words.
RECIPES: dict[str, dict[str, Any]] = {
    "rtn": {"weights": G32},
    "rtn-sym": {"weights": {**G32, "symmetric": True}},
    "awq-v1": {**AWQ, "edits": [{"method": "awq", "version": "v1"}]},
    "awq-v2": {**AWQ, "edits": [{"method": "awq", "version": "v2"}]},
    "awq-v2-sym": {
        "clip": True, "weights": {**G32, "symmetric": True}, "edits": [{"method": "awq"}],
    },
    "gptq": {"weights": G32, "rounding": {"method": "gptq"}, "sequential": True},
    "gptq-no-order": {
        "weights": G32, "sequential": True,
        "rounding": {"method": "gptq", "order": False, "static_groups": False},
    },
    "smoothquant": {
        "weights": W8, "inputs": {"kind": "dynamic"},
        "edits": [{"method": "smooth", "alpha": 0.7, "beta": 0.3}],
    },
    "osplus": {"weights": W8, "inputs": {"kind": "dynamic"}, "edits": [{"method": "os_plus"}]},
    "omniquant": {"weights": G32, "rounding": {**LWC, "from_clip": False}},
}  # fmt: skip


def tokens() -> list[list[int]]:
    found: list[list[int]] = np.random.default_rng(1).integers(0, 4096, (4, 32)).tolist()
    return found


def run(model: Path, folder: Path, recipe: Recipe, heldout: Any = ()) -> loop.Done:
    ckpt = Checkpoint.open(model)
    kept = frozenset[str]()
    work = loop.Work(ckpt, recipe, LINEARS, kept, tokens(), heldout, "key")
    return loop.run(work, folder, lambda *_: None)


@cache
def golden(home: Path) -> dict[str, Array]:
    with np.load(home / "quantizers/llmc.npz") as file:
        return dict(file)


@pytest.mark.parametrize("case", RECIPES)
def test_llmc_gives_the_same_weights(case: str, tiny: Path, tmp_path: Path, goldens: Path) -> None:
    recipe = Recipe(**RECIPES[case], output={"dtype": "float32"})  # type: ignore[arg-type]
    done = run(tiny, tmp_path, recipe)
    config = OUTPUTS["compressed-tensors"].settings(recipe, (), {})
    wanted = {
        k.partition("/")[2]: v for k, v in golden(goldens).items() if k.startswith(f"{case}/")
    }
    assert len(wanted) == 7
    ckpt = Checkpoint.open(done.parts[1], tmp_path)
    ckpt = Checkpoint(ckpt.path, config, {**Checkpoint.open(done.parts[0], tmp_path).entries,
                                          **ckpt.entries})  # fmt: skip
    for name, theirs in wanted.items():
        if name.endswith("layernorm.weight"):
            ours = ckpt.tensor(name).astype(np.float32)
        else:
            read = SOURCES["compressed-tensors"].read(ckpt, name.removesuffix(".weight"))
            ours = read.dequantize()
        wrong = np.abs(ours - theirs) > 1e-6 * np.abs(theirs).max()
        assert not wrong.any(), (name, wrong.mean())


@pytest.mark.parametrize(
    "edits",
    [
        [{"method": "rotate"}],
        [{"method": "rotate", "kind": "random", "values": False}, {"method": "awq", "steps": 4}],
        [{"method": "smooth", "alpha": 0.9, "beta": 0.1, "outputs": True}],
    ],
    ids=["rotate", "rotate-awq", "smooth"],
)
def test_edits_keep_the_function(edits: Any, tiny: Path, tmp_path: Path) -> None:
    values = {
        "edits": edits,
        "rounding": {"method": "none"},
        "output": {"dtype": "float32"},
        "weights": G32,
    }
    done = run(tiny, tmp_path, Recipe(**values), heldout=tokens())
    assert done.measured["kl"] < 1e-7


@pytest.mark.parametrize("n", [1, 2, 12, 20, 28, 36, 64, 80, 256, 896])
def test_hadamard(n: int) -> None:
    h = hadamard(n)
    assert set(np.unique(h)) <= {1.0, -1.0}
    np.testing.assert_array_equal(h @ h.T, n * np.eye(n))


def test_parts_become_shards_of_the_size_asked_for(tmp_path: Path) -> None:
    arrays = {f"t{i}": np.full((100, 10), i, np.float32) for i in range(5)}
    parts = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    tensor_file.write(parts[0], {n: arrays[n] for n in ("t0", "t1", "t2")})
    tensor_file.write(parts[1], {n: arrays[n] for n in ("t3", "t4")})
    files = tensor_file.assemble(parts, tmp_path, "model", 9000)
    assert files == [*(f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)),
                     "model.safetensors.index.json"]  # fmt: skip
    read = Checkpoint.open(tmp_path / files[-1])
    for name, array in arrays.items():
        np.testing.assert_array_equal(read.tensor(name), array)
    assert not any(part.exists() for part in parts)
