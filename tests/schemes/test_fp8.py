"""FP8 schemes: codes against ml_dtypes, weights against MLC's own bytes, device against numpy."""

import hashlib
import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlc_bridge.artifact.tensor_cache import read_index
from mlc_bridge.errors import CannotExpress
from mlc_bridge.packing import AWQ, PLAIN, PackedArray, pack
from mlc_bridge.qtensor import QTensor, concat
from mlc_bridge.schemes import SCHEMES, fp8_row
from mlc_bridge.schemes.float8 import E4M3, E5M2
from mlc_bridge.sources import Checkpoint, detect
from mlc_bridge.stages.convert_weight import ConvertJob, convert_weight

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "examples" / "models" / "stdlib-llama-7m"
GOLDEN = ROOT / "tests" / "golden"
FORMATS = [E4M3, E5M2]
BLOCK = "fp8_e4m3fn_bf16_block_scale"
ROWS = [row.name for row in fp8_row.ROWS]
FAMILY = ["e4m3_e4m3_f16", "e4m3_e4m3_f16_max_calibrate", "e5m2_e5m2_f16"]
ALL_FLOAT16 = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
N, K = 96, 256


def weight(rows=N, columns=K, seed=0):
    return (np.random.default_rng(seed).standard_normal((rows, columns)) * 0.03).astype(np.float16)


def float8_tensor(scale, input_scale=None, seed=0, rows=N):
    codes = E4M3.round(np.random.default_rng(seed).standard_normal((rows, K)) * 100)
    given = None if input_scale is None else np.array(input_scale, np.float32)
    words = PackedArray(codes, PLAIN, (rows, K))
    return QTensor(words, np.full((1, 1), scale, np.float32), None, (rows, K), input_scale=given)


# -- the numbers ------------------------------------------------------------------------------


@pytest.mark.parametrize("float8", FORMATS, ids=lambda f: f.name)
def test_every_code_round_trips(float8):
    codes = np.arange(256, dtype=np.uint8)
    values = codes.view(float8.dtype).astype(np.float32)
    finite = np.isfinite(values)
    assert np.array_equal(float8.round(values[finite]).view(np.uint8), codes[finite])
    assert [float8.finite(code) for code in codes.view(float8.dtype)[:, None]] == finite.tolist()


@pytest.mark.parametrize("float8", FORMATS, ids=lambda f: f.name)
def test_rounding_is_ml_dtypes_own_and_saturates(float8):
    x = ALL_FLOAT16[np.isfinite(ALL_FLOAT16)].astype(np.float32)
    inside = np.abs(x) <= float8.largest
    assert np.array_equal(
        float8.round(x[inside]).view(np.uint8), x[inside].astype(float8.dtype).view(np.uint8)
    )
    assert np.all(
        float8.round(x[~inside]).astype(np.float32) == np.sign(x[~inside]) * float8.largest
    )


@given(st.floats(width=32, allow_nan=False))
def test_rounding_takes_the_nearest(x):
    for float8 in FORMATS:
        values = np.arange(256, dtype=np.uint8).view(float8.dtype).astype(np.float64)
        values = values[np.isfinite(values)]
        got = float(float8.round(np.float32([x])).astype(np.float64)[0])
        assert abs(got - x) == np.abs(values - x).min()


def on_llvm(function, x, out):
    """Run a device expression over an array."""
    import tvm
    from tvm import te

    placeholder = te.placeholder(x.shape, str(x.dtype), name="x")
    result = te.compute(x.shape, lambda i: function(placeholder[i]), name="y")
    built = tvm.compile(
        tvm.IRModule({"main": te.create_prim_func([placeholder, result])}), target="llvm"
    )
    got = tvm.runtime.empty(x.shape, out)
    built["main"](tvm.runtime.tensor(x), got)
    return got.numpy()


@pytest.mark.parametrize("float8", FORMATS, ids=lambda f: f.name)
def test_device_decodes_every_finite_code(float8):
    codes = np.arange(256, dtype=np.uint8).view(float8.dtype)
    codes = codes[np.isfinite(codes.astype(np.float32))]
    decoded = on_llvm(lambda code: float8.value(code, "float32"), codes, "float32")
    assert np.array_equal(decoded, codes.astype(np.float32))


@pytest.mark.parametrize("float8", FORMATS, ids=lambda f: f.name)
def test_device_rounds_bit_for_bit(float8):
    bits = np.random.default_rng(1).integers(0, 1 << 32, 1 << 16, dtype=np.uint64)
    any_float = bits.astype(np.uint32).view(np.float32)
    x = np.concatenate([ALL_FLOAT16.astype(np.float32), any_float])
    x = np.ascontiguousarray(x[~np.isnan(x)])
    wanted = float8.round(x).astype(np.float32)
    assert np.array_equal(on_llvm(float8.rounded, x, "float32"), wanted)


@pytest.mark.parametrize("float8", FORMATS, ids=lambda f: f.name)
def test_mlc_rounding_differs_only_below_the_smallest_normal(float8):
    """What MLC's CPU converter does to small weights is TVM's cast, which runs here as well."""
    x = ALL_FLOAT16[np.isfinite(ALL_FLOAT16)].astype(np.float32)
    x = np.ascontiguousarray(x[np.abs(x) <= float8.largest])
    mine = float8.round_like_mlc(x).view(np.uint8)
    cast = on_llvm(lambda value: value.astype(float8.name), x, float8.name).view(np.uint8)
    assert np.array_equal(mine & 0x7F, cast & 0x7F)
    exact = float8.round(x).view(np.uint8)
    differ = np.abs(x[mine & 0x7F != exact & 0x7F])
    assert 0 < differ.max() < 2.0 ** (1 - float8.bias)


# -- the parameters ---------------------------------------------------------------------------


def stored_md5(array):
    if array.dtype == np.float32:
        array = array.astype(ml_dtypes.bfloat16)
    return hashlib.md5(np.ascontiguousarray(array).view(np.uint8).data).hexdigest()


@pytest.mark.parametrize("name", FAMILY)
def test_every_byte_is_mlc_llms(tmp_path, name):
    golden = json.loads((GOLDEN / "fp8" / f"stdlib-llama-7m.{name}.json").read_text())["params"]
    convert_weight(ConvertJob(MODEL, tmp_path / "out", name))
    cache = read_index(tmp_path / "out")
    assert cache.records.keys() == golden.keys()
    for param, wanted in golden.items():
        record = cache.records[param]
        assert (list(record.shape), record.dtype) == (wanted["shape"], wanted["dtype"]), param
        if wanted["md5"] is None:  # MLC writes uninitialised memory here
            assert record.format == "raw"
            assert np.isnan(cache.array(param)).all()
        else:
            assert stored_md5(cache.array(param)) == wanted["md5"], param


@pytest.mark.parametrize("name", [*FAMILY, BLOCK, *ROWS])
def test_declared_and_encoded_parameters_agree(name):
    scheme = SCHEMES[name]
    encoded = scheme.encode(scheme.quantize(weight()))
    assert {k: (v.shape, v.dtype.name) for k, v in encoded.items()} == {
        k: (v.shape, v.dtype) for k, v in scheme.params(N, K).items()
    }
    back = scheme.decode(encoded)
    step = 2.0 ** -(3 if "e4m3" in name else 2)
    limit = np.abs(weight().astype(np.float32)) * step / 2 + 2e-4
    assert np.all(np.abs(back.dequantize() - weight().astype(np.float32)) <= limit)


def test_layer_of_zeros():
    encoded = SCHEMES["e4m3_e4m3_f16"].encode(
        SCHEMES["e4m3_e4m3_f16"].quantize(np.zeros((8, 8), np.float16))
    )
    assert encoded["q_scale"][0] > 0
    assert not encoded["q_weight"].astype(np.float32).any()


def test_block_scales_of_a_cut_block():
    w = weight(200, 300)
    w[130:] *= 50
    scheme = SCHEMES[BLOCK]
    q = scheme.quantize(w)
    assert q.scale.shape == (2, 3)
    largest = np.abs(w.astype(np.float32))
    assert q.scale[1, 2] == np.float32(largest[128:, 256:].max()) / np.float32(448)
    assert np.abs(scheme.decode(scheme.encode(q)).dequantize() - w).max() < largest.max() / 16


def test_fused_blocks_join_where_layers_fill_them():
    scheme = SCHEMES[BLOCK]
    parts = [scheme.quantize(weight(rows, seed=rows)) for rows in (256, 128, 64)]
    whole = scheme.encode(concat(parts))
    assert whole["weight_scale_inv"].shape == (4, 2)
    exact = np.concatenate([p.dequantize() for p in parts])
    assert np.array_equal(scheme.decode(whole).dequantize(), exact)
    with pytest.raises(CannotExpress, match="whole blocks"):
        scheme.encode(concat(parts[::-1]), "model.layers.0.qkv_proj")


def test_refusals_name_layer_and_reason():
    e4m3, e5m2, block = (SCHEMES[n] for n in ("e4m3_e4m3_f16", "e5m2_e5m2_f16", BLOCK))
    q = float8_tensor(0.01)
    nan = replace(q, codes=PackedArray(np.full((N, K), np.nan, E4M3.dtype), PLAIN, (N, K)))
    four_bits = QTensor(pack(np.ones((N, K), np.uint8), AWQ), q.scale, None, (N, K))
    cases = [
        (e4m3, concat([q, float8_tensor(0.02)]), "2 different scales"),
        (e4m3, replace(q, perm=np.arange(K)), "permuted"),
        (e4m3, nan, "NaN"),
        (e4m3, four_bits, "uint4"),
        (e5m2, q, "float8_e4m3fn"),
        (e5m2, replace(e5m2.quantize(weight()), scale=np.full((1, 1), 2.0)), "scale of 2"),
        (block, q, "blocks"),
        (block, four_bits, "uint4"),
    ]
    for scheme, tensor, reason in cases:
        with pytest.raises(CannotExpress, match=rf"layer\.7.*{reason}"):
            scheme.encode(tensor, "layer.7")


@pytest.mark.parametrize(
    ("case", "name"),
    [
        ("compressed-tensors/float-fp8-static-tensor", "e4m3_e4m3_f16"),
        ("hf-fp8/per-tensor-static", "e4m3_e4m3_f16"),
        ("compressed-tensors/float-fp8-block", BLOCK),
        ("hf-fp8/block128", BLOCK),
    ],
)
def test_float8_checkpoints_land_as_they_are(case, name):
    """The tools' own codes and scales, the static activation scale included."""
    folder = GOLDEN / "sources" / case
    ckpt = Checkpoint.open(folder)
    source = detect(ckpt)
    layers = source.layers(ckpt)
    assert layers
    for layer in layers:
        q = source.read(ckpt, layer)
        encoded = SCHEMES[name].encode(q, layer)
        codes = encoded.get("q_weight", encoded.get("weight"))
        assert np.array_equal(codes.view(np.uint8), ckpt.tensor(f"{layer}.weight").view(np.uint8))
        back = SCHEMES[name].decode(encoded)
        assert np.array_equal(back.dequantize(), q.dequantize())
        if name == "e4m3_e4m3_f16":
            assert encoded["q_calibration_scale"][0] == q.input_scale
            assert np.isfinite(encoded["q_calibration_scale"]).all()


CHANNELS = "compressed-tensors/float-fp8-dynamic-channel"
ROW_CASES = [CHANNELS, "compressed-tensors/float-fp8-static-tensor", "hf-fp8/per-tensor-static"]


@pytest.mark.parametrize("name", ["fp8_e4m3fn_f16_row_scale", "fp8_e4m3fn_bf16_row_scale"])
@pytest.mark.parametrize("case", ROW_CASES)
def test_rows_hold_channel_and_tensor_scales(case, name):
    ckpt = Checkpoint.open(GOLDEN / "sources" / case)
    source, scheme = detect(ckpt), SCHEMES[name]
    for layer in source.layers(ckpt):
        q = source.read(ckpt, layer)
        encoded = scheme.encode(q, layer)
        stored = ckpt.tensor(f"{layer}.weight")
        assert np.array_equal(encoded["q_weight"].view(np.uint8), stored.view(np.uint8))
        assert np.array_equal(scheme.decode(encoded).dequantize(), q.dequantize())


def test_one_scale_refuses_channels():
    ckpt = Checkpoint.open(GOLDEN / "sources" / CHANNELS)
    source = detect(ckpt)
    layer = source.layers(ckpt)[0]
    with pytest.raises(CannotExpress, match="different scales"):
        SCHEMES["e4m3_e4m3_f16"].encode(source.read(ckpt, layer), layer)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float8_e8m0fnu"])
def test_fused_tensors_keep_their_scales_in_rows(dtype):
    """q, k and v with scales and activation scales of their own: no weight moves."""
    scheme = SCHEMES["fp8_e4m3fn_f16_row_scale"]
    given = [(0.01, 0.5, 64), (0.02, 0.7, 32), (0.005, None, 32)]
    parts = [float8_tensor(s, x, seed, rows) for seed, (s, x, rows) in enumerate(given)]
    parts = [replace(p, scale=p.scale.astype(getattr(ml_dtypes, dtype, dtype))) for p in parts]
    aligned, moved = scheme.align(parts, "qkv_proj")
    encoded = scheme.encode(concat(aligned), "qkv_proj")
    exact = np.concatenate([p.dequantize() for p in parts])
    assert moved == ()
    assert np.array_equal(scheme.decode(encoded).dequantize(), exact)
    assert len(np.unique(encoded["q_scale"])) == 3


def test_rows_refuse_scales_that_change_along_a_row():
    scheme, q = SCHEMES["fp8_e4m3fn_f16_row_scale"], SCHEMES[BLOCK].quantize(weight())
    with pytest.raises(CannotExpress, match="change along a row"):
        scheme.encode(q, "layer")
    narrow = SCHEMES[BLOCK].quantize(weight(200, 128))  # one block along k is a scale a row
    encoded = scheme.encode(narrow)
    assert np.array_equal(scheme.decode(encoded).dequantize(), narrow.dequantize())


def test_fused_layers_take_the_largest_scale_and_say_what_it_costs():
    scheme = SCHEMES["e4m3_e4m3_f16"]
    parts = [float8_tensor(0.01, 0.5), float8_tensor(0.02, 0.7, seed=1)]
    aligned, (finding,) = scheme.align(parts, "qkv_proj")
    encoded = scheme.encode(concat(aligned), "qkv_proj")
    assert encoded["q_scale"] == np.float32(0.02)
    assert encoded["q_calibration_scale"] == np.float32(0.7)
    assert np.array_equal(aligned[1].dequantize(), parts[1].dequantize())
    exact, moved = parts[0].dequantize(), aligned[0].dequantize()
    assert np.all(np.abs(moved - exact) <= np.abs(exact) / 16 + 0.02 * 2**-10)
    worst = np.abs(moved - exact).max()
    assert "qkv_proj: scales 0.01, 0.02" in finding
    assert f"{worst:.3g}" in finding


def test_equal_scales_are_left_alone_and_one_dynamic_part_makes_all_dynamic():
    scheme = SCHEMES["e4m3_e4m3_f16"]
    aligned, findings = scheme.align([float8_tensor(0.01, 0.5), float8_tensor(0.01)], "qkv_proj")
    assert findings == ()
    assert np.isnan(scheme.encode(concat(aligned))["q_calibration_scale"]).all()


# -- the device -------------------------------------------------------------------------------


def layer_of(scheme):
    """A module with the scheme's parameters and one function for any number of rows."""
    from tvm.relax.frontend import nn

    specs = scheme.params(N, K)

    class Layer(nn.Module):
        def __init__(self):
            for suffix, spec in specs.items():
                setattr(self, suffix, nn.Parameter(spec.shape, spec.dtype))

        def forward(self, x):
            return scheme.linear(x, {s: getattr(self, s) for s in specs}, scheme.model_dtype)

    mode = {"param_mode": "plain", "effect_mode": "none"}
    inputs = {"x": nn.spec.Tensor(("rows", K), scheme.model_dtype), "$": mode}
    return Layer().export_tvm(spec={"forward": inputs})


def run_linear(scheme, params, x):
    """``scheme.linear`` compiled for llvm, as float32."""
    import tvm
    from tvm import relax

    mod, names = layer_of(scheme)
    vm = relax.VirtualMachine(tvm.compile(mod, target="llvm"), tvm.cpu())
    stored = [tvm.runtime.tensor(np.ascontiguousarray(params[name])) for name, _ in names]
    return vm["forward"](tvm.runtime.tensor(x), *stored).numpy().astype(np.float32)


@pytest.mark.parametrize("scale", [0.01, 2e-3, 1e-9])
def test_device_multiplies_float8_by_float8(scale):
    """Scales far below float16's range included; inputs beyond 448 scales saturate."""
    scheme = SCHEMES["e4m3_e4m3_f16"]
    params = scheme.encode(scheme.quantize(weight()))
    params["q_calibration_scale"] = np.array([scale], np.float32)
    x = (np.random.default_rng(3).standard_normal((5, K)) * min(scale * 150, 1)).astype(np.float16)
    codes = E4M3.round(x.astype(np.float32) / np.float32(scale)).astype(np.float64)
    wanted = codes @ params["q_weight"].astype(np.float64).T
    wanted *= float(np.float32(scale)) * float(params["q_scale"][0])
    got = run_linear(scheme, params, x)
    assert np.abs(got - wanted).max() <= np.abs(wanted).max() * 2**-10 + 6e-8


def test_device_without_scales_and_of_blocks_and_for_calibration():
    x = np.random.default_rng(4).standard_normal((5, K)).astype(np.float16)
    for name, rounded in (
        ("e5m2_e5m2_f16", E5M2.round(x).astype(np.float64)),
        ("e4m3_e4m3_f16_max_calibrate", x.astype(np.float64)),
        (BLOCK, x.astype(ml_dtypes.bfloat16).astype(np.float64)),
    ):
        scheme = SCHEMES[name]
        params = scheme.encode(scheme.quantize(weight()))
        wanted = rounded @ scheme.decode(params).dequantize().astype(np.float64).T
        dtype = ml_dtypes.bfloat16 if name == BLOCK else np.float16
        error = np.abs(run_linear(scheme, params, x.astype(dtype)) - wanted).max()
        assert error < np.abs(wanted).max() * (2**-7 if name == BLOCK else 2**-10), name


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs NVIDIA's compiler")
def test_cuda_keeps_float8_in_memory_and_decodes_with_its_instruction():
    import tvm
    from tvm import relax
    from tvm.s_tir import dlight

    import tir_schedules
    from mlc_bridge.compiler.pipeline import fuse
    from mlc_bridge.compiler.target import choose_target

    target = choose_target(target="cuda -arch=sm_90a")
    with target:
        mod, _ = layer_of(SCHEMES["e4m3_e4m3_f16"])
        rules = dlight.ApplyDefaultSchedule(*tir_schedules.RULES(target))
        passes = [tvm.tirx.transform.BindTarget(target), *fuse(), rules]
        built = relax.build(tvm.ir.transform.Sequential(passes)(mod), target)
    (device,) = [m for m in built.mod.imports[0].imports if m.kind == "cuda"]
    source = device.inspect_source()
    assert "__nv_fp8_e4m3* __restrict__ q_weight" in source
    ptx = subprocess.run(
        ["nvcc", "-arch=sm_90a", "-ptx", "-x", "cu", "-o", "-", "-"],
        input=source.encode(),
        capture_output=True,
        check=True,
    ).stdout.decode()
    assert "cvt.rn.f16x2.e4m3x2" in ptx
