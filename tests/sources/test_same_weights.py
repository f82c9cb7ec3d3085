"""The example model's 4-bit weights in every tool's layout convert to byte-identical artifacts."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from tool_layouts import WRITERS, settings

from mlc_bridge.qtensor import QTensor
from mlc_bridge.sources import SOURCES, Checkpoint, detect
from mlc_bridge.stages.convert_weight import ConvertJob, convert_weight

EXAMPLE = Path(__file__).parents[2] / "examples" / "models" / "stdlib-llama-7m-awq"


def rewrite(home: Path, name: str, symmetric: bool, ordered: bool = False) -> Path:
    """The example checkpoint with every quantized layer in the layout ``name``.

    ``ordered``: every MLP with its inner channels mixed up, down_proj in activation order.
    """
    # Columns ascend within a group, as a stable sort of g_idx gives them back.
    perm = np.sort(np.random.default_rng(4).permutation(768).reshape(-1, 128)).reshape(-1)
    back = np.argsort(perm)
    ckpt, source = Checkpoint.open(EXAMPLE), SOURCES["autoawq"]
    tensors = {n: ckpt.tensor(n) for n in ckpt.names}
    group = 0
    for layer in source.layers(ckpt):
        q = source.read(ckpt, layer)
        assert isinstance(q, QTensor)
        assert q.zero is not None
        group = q.block[1]
        zeros = np.full(q.grid, 8, np.uint8) if symmetric else q.zero.unpack()
        for part in source.parts(ckpt, layer):
            del tensors[part]
        codes, scales = q.codes.unpack(), q.scale
        if ordered and layer.endswith(("gate_proj", "up_proj")):
            codes, zeros, scales = codes[back], zeros[back], scales[back]
        if ordered and layer.endswith("down_proj"):
            codes = codes[:, back]
        parts = WRITERS[name](codes, zeros, scales)
        if ordered and layer.endswith("down_proj"):
            parts["g_idx"] = parts["g_idx"][back]
        tensors |= {f"{layer}.{suffix}": array for suffix, array in parts.items()}
    home.mkdir()
    tensors = {n: np.ascontiguousarray(a) for n, a in tensors.items()}
    save_file(tensors, home / "model.safetensors")
    config = {**ckpt.config, "quantization_config": settings(name, group)}
    (home / "config.json").write_text(
        json.dumps({k: v for k, v in config.items() if v is not None})
    )
    return home


def digest(home: Path, output: Path) -> dict[str, str]:
    convert_weight(ConvertJob(home, output, "q4f16_autoawq"))
    shards = sorted(output.glob("params_shard_*.bin"))
    assert shards
    return {shard.name: hashlib.md5(shard.read_bytes()).hexdigest() for shard in shards}


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, dict[str, str]]:
    """Shards by symmetry; the asymmetric ones come from AutoAWQ's own file."""
    home = tmp_path_factory.mktemp("wanted")
    symmetric = rewrite(home / "symmetric", "autoawq", symmetric=True)
    return {
        False: digest(EXAMPLE, home / "example"),
        True: digest(symmetric, home / "symmetric-out"),
    }


@pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])
@pytest.mark.parametrize("name", WRITERS)
def test_byte_identical_artifacts(
    name: str, symmetric: bool, tmp_path: Path, wanted: dict[bool, dict[str, str]]
) -> None:
    if name == "autoawq-marlin" and not symmetric:
        pytest.skip("Marlin files are symmetric")
    home = rewrite(tmp_path / "model", name, symmetric)
    assert detect(Checkpoint.open(home)).name == name.partition(" ")[0]
    assert digest(home, tmp_path / "out") == wanted[symmetric]


def test_activation_order_folds_into_identical_bytes(
    tmp_path: Path, wanted: dict[bool, dict[str, str]]
) -> None:
    home = rewrite(tmp_path / "model", "gptq v1", symmetric=False, ordered=True)
    assert digest(home, tmp_path / "out") == wanted[False]


def test_llm_compressor_wrote_the_same_weights() -> None:
    """The example was quantized by llm-compressor and repacked for AutoAWQ by another program."""
    home = Path(__file__).parents[1] / "golden" / "sources" / "llm-compressor" / "awq-layer-0"
    ckpt, example = Checkpoint.open(home), Checkpoint.open(EXAMPLE)
    source = detect(ckpt)
    assert source.name == "compressed-tensors"
    assert len(source.layers(ckpt)) == 7
    for layer in source.layers(ckpt):
        q, wanted = source.read(ckpt, layer), SOURCES["autoawq"].read(example, layer)
        assert isinstance(q, QTensor)
        assert isinstance(wanted, QTensor)
        assert np.array_equal(q.codes.unpack(), wanted.codes.unpack())
        assert np.array_equal(q.zero.unpack(), wanted.zero.unpack())
        assert np.array_equal(q.scale, wanted.scale)
