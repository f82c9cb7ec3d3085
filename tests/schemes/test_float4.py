"""4-bit floats: real files' bytes as they are, and the tools' own rounding of float weights."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from mlc_bridge.errors import CannotExpress
from mlc_bridge.packing import FLOAT4
from mlc_bridge.qtensor import QTensor, concat, take_rows
from mlc_bridge.schemes import SCHEMES
from mlc_bridge.sources import Checkpoint, detect

GOLDEN = Path(__file__).parents[1] / "golden" / "sources"
FILES = {
    "compressed-tensors/oneshot-nvfp4": "nvfp4_f16",
    "compressed-tensors/oneshot-mxfp4a16": "mxfp4_f16",
    "modelopt/nvfp4": "nvfp4_bf16",
    "bitsandbytes/nf4-double": "nf4_f16",
    "mxfp4/gpt-oss-experts": "mxfp4_bf16",
}


def read(case: str) -> list[tuple[QTensor, np.ndarray]]:
    ckpt = Checkpoint.open(GOLDEN / case)
    expected, source = Checkpoint.open(GOLDEN / case / "expected.safetensors"), detect(ckpt)
    layers = expected.layers("weight")
    return [(source.read(ckpt, x), expected.tensor(f"{x}.weight")) for x in layers]  # type: ignore[misc]


@pytest.mark.parametrize(("case", "name"), FILES.items())
def test_a_files_bytes_are_kept(case: str, name: str) -> None:
    """Words, scales and global scales; fused layers keep each its own."""
    scheme = SCHEMES[name]
    layers = read(case)
    for q, exact in layers:
        params = scheme.encode(q)
        assert np.array_equal(scheme.decode(params).dequantize(), q.dequantize())
        np.testing.assert_allclose(q.dequantize(), exact, rtol=2e-7)
        assert params["q_scale"].tobytes() == np.ascontiguousarray(q.scale).tobytes()
        if not name.startswith("nf4"):
            assert params["q_weight"].tobytes() == q.codes.words.tobytes()
    same = [q for q, _ in layers if q.shape[1] == layers[0][0].shape[1]]
    whole = scheme.decode(scheme.encode(concat(same))).dequantize()
    assert np.array_equal(whole, np.concatenate([q.dequantize() for q in same]))
    rows = np.random.default_rng(0).permutation(len(whole))
    assert np.array_equal(take_rows(concat(same), rows).dequantize(), whole[rows])


@pytest.mark.parametrize("name", [n for n in SCHEMES if n.startswith(("nvfp4", "mxfp4", "nf4"))])
def test_no_value_is_nearer_than_the_chosen_one(name: str) -> None:
    scheme = SCHEMES[name]
    w = np.random.default_rng(1).normal(size=(8, 128)).astype(np.float32)
    w[0, :64] = 0
    q = scheme.quantize(w)
    table = np.array(FLOAT4[q.kind], np.float32)
    step = np.repeat(q.scale.astype(np.float32), q.block[1], axis=1)
    step *= 1 if q.outer is None else q.outer[:, None]
    nearest = np.abs(w[..., None] - step[..., None] * table).min(axis=-1)
    clipped = np.abs(w) > step * table.max()
    chosen = np.abs(w - scheme.decode(scheme.encode(q)).dequantize())
    assert np.all((chosen <= nearest * 1.0001 + 1e-7) | clipped)
    assert np.sqrt(np.mean(chosen**2)) < 0.13


def test_another_kind_of_scale_is_refused() -> None:
    """Powers of two are float8 values too, and mean another format."""
    q, _ = read("compressed-tensors/oneshot-mxfp4a16")[0]
    with pytest.raises(
        CannotExpress, match="scales are float8_e8m0fnu, the scheme's float8_e4m3fn"
    ):
        SCHEMES["nvfp4_f16"].encode(q)


def test_exponents_that_leave_float16() -> None:
    q, _ = read("mxfp4/gpt-oss-experts")[0]
    scale = np.array(q.scale)
    scale[3, 1] = np.float32(2.0**-40).astype(ml_dtypes.float8_e8m0fnu)
    wide = QTensor(q.codes, scale, None, q.block)
    with pytest.raises(CannotExpress, match="leaves float16"):
        SCHEMES["mxfp4_f16"].encode(wide)
    kept = SCHEMES["mxfp4_bf16"].decode(SCHEMES["mxfp4_bf16"].encode(wide))
    assert np.array_equal(kept.dequantize(), wide.dequantize())
