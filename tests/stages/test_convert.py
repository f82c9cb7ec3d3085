"""Conversion: MLC LLM's own bytes from the example models; bad input is named, nothing stays."""

import hashlib
import json
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mlc_bridge.artifact.tensor_cache import read_index
from mlc_bridge.errors import ArtifactError, BridgeError, CannotExpress, SourceError
from mlc_bridge.stages.convert_weight import ConvertJob, convert_weight, plan_weights

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "examples" / "models"
GOLDEN = ROOT / "tests" / "golden" / "artifacts"
AWQ = MODELS / "stdlib-llama-7m-awq"
FLOAT = MODELS / "stdlib-llama-7m"


def stored_md5(array):
    """md5 of what MLC stores: float32 goes to disk as its bfloat16 rounding."""
    if array.dtype == np.float32:
        array = array.astype(ml_dtypes.bfloat16)
    return hashlib.md5(np.ascontiguousarray(array).view(np.uint8).data).hexdigest()


@pytest.mark.parametrize("golden", sorted(p.name for p in GOLDEN.glob("*.json")))
def test_every_byte_is_mlc_llms(tmp_path, golden):
    expected = json.loads((GOLDEN / golden).read_text())
    home = MODELS if (MODELS / expected["model"]).exists() else GOLDEN / "models"
    model = home / expected["model"]
    report = convert_weight(ConvertJob(model, tmp_path / "out", expected["scheme"]))
    cache = read_index(tmp_path / "out", md5=True)
    assert cache.records.keys() == expected["params"].keys()
    for name, wanted in expected["params"].items():
        record = cache.records[name]
        assert (list(record.shape), record.dtype) == (wanted["shape"], wanted["dtype"]), name
        assert record.format == ("raw" if record.dtype == "float32" else wanted["format"])
        assert stored_md5(cache.array(name)) == wanted["md5"], name
    assert report.n_params == len(expected["params"])
    assert cache.metadata["ParamBytes"] == expected["metadata"]["ParamBytes"]
    assert report.fingerprint == cache.metadata["mlc_bridge"]["fingerprint"]


def test_awq_into_float32_is_the_dequantized_model(tmp_path):
    """An independent decode: AutoAWQ's order, written out."""
    convert_weight(ConvertJob(AWQ, tmp_path / "out", "q0f32"))
    raw = load_file(AWQ / "model.safetensors")
    p = "model.layers.2.mlp.down_proj"
    order = [0, 2, 4, 6, 1, 3, 5, 7]

    def unpack(words):
        out = np.zeros((words.shape[0], words.shape[1] * 8), np.int64)
        for i, j in enumerate(order):
            out[:, j::8] = (words.view(np.uint32) >> (4 * i)) & 15
        return out

    codes, zeros = unpack(raw[f"{p}.qweight"]), unpack(raw[f"{p}.qzeros"])
    scales = raw[f"{p}.scales"].astype(np.float32)
    w = (codes - zeros.repeat(128, 0)) * scales.repeat(128, 0)
    got = read_index(tmp_path / "out").array(f"{p}.weight")
    assert np.array_equal(got, w.T.astype(np.float32))


def test_auto_keeps_the_checkpoint(tmp_path):
    assert convert_weight(ConvertJob(AWQ, tmp_path / "a")).quantization == "q4f16_autoawq"
    assert convert_weight(ConvertJob(FLOAT, tmp_path / "f")).quantization == "q0f16"


def test_report_and_progress(tmp_path):
    seen = []
    report = convert_weight(
        ConvertJob(AWQ, tmp_path / "out", "q4f16_autoawq"), lambda *step: seen.append(step)
    )
    assert seen[-1] == ("convert", report.nbytes, report.nbytes)
    assert sum(report.sizes.values()) == report.nbytes
    assert set(report.sizes) == {"embedding", "linear", "norm", "lm_head"}
    assert report.bits_per_weight == pytest.approx(7.8045, abs=1e-4)
    assert report.source_format == "autoawq"


@pytest.fixture
def model(tmp_path):
    """A writable copy of the AWQ model, and a function that rewrites its weights."""
    home = tmp_path / "model"
    shutil.copytree(AWQ, home, copy_function=shutil.copyfile)

    def change(edit=None, **settings):
        if edit is not None:
            tensors = dict(load_file(AWQ / "model.safetensors"))
            edit(tensors)
            save_file(tensors, home / "model.safetensors")
        config = json.loads((home / "config.json").read_text())
        config["quantization_config"].update(settings.pop("quantization", {}))
        config.update(settings)
        (home / "config.json").write_text(json.dumps(config))
        return home

    return change


def refused(home, output, error, said, quantization="q4f16_autoawq", **kw):
    before = {p.name: p.stat().st_mtime_ns for p in home.iterdir()}
    with pytest.raises(error, match=said):
        convert_weight(ConvertJob(home, output, quantization, **kw))
    assert not output.exists()
    assert {p.name: p.stat().st_mtime_ns for p in home.iterdir()} == before


def test_the_checkpoint_itself_is_no_output(model):
    home = model()
    before = sorted(p.name for p in home.iterdir())
    with pytest.raises(ArtifactError, match="the output is the checkpoint itself"):
        convert_weight(ConvertJob(home, home, "q4f16_autoawq"))
    assert sorted(p.name for p in home.iterdir()) == before


def test_source_elsewhere(tmp_path, model):
    home = model()
    (home / "model.safetensors").rename(tmp_path / "weights.safetensors")
    job = ConvertJob(home, tmp_path / "out", source=tmp_path / "weights.safetensors")
    assert convert_weight(job).n_params == 87


def test_truncated_file(tmp_path, model):
    home = model()
    with (home / "model.safetensors").open("r+b") as file:
        file.truncate(3_000_000)
    refused(home, tmp_path / "out", SourceError, "model.safetensors")


def test_missing_scales(tmp_path, model):
    name = "model.layers.3.mlp.up_proj.scales"
    refused(model(lambda t: t.pop(name)), tmp_path / "out", SourceError, name)


def test_shape_unlike_the_config(tmp_path, model):
    refused(model(intermediate_size=760), tmp_path / "out", SourceError, r"(?s)mlp.*expected")
    home = model(intermediate_size=768, num_hidden_layers=7)
    refused(home, tmp_path / "out", SourceError, r"layers\.6")


def test_unknown_quant_method(tmp_path, model):
    refused(model(quantization={"quant_method": "magic"}), tmp_path / "out", SourceError, "magic")


def test_three_bits(tmp_path, model):
    refused(model(quantization={"bits": 3}), tmp_path / "out", SourceError, "bits 3")


def test_group_size_that_does_not_divide(tmp_path, model):
    home = model(quantization={"group_size": 96})
    refused(home, tmp_path / "out", SourceError, "group")


def test_unknown_model_type_and_scheme(tmp_path, model):
    refused(model(model_type="elephant"), tmp_path / "out", BridgeError, "elephant.*llama")
    home = model(model_type="llama")
    refused(home, tmp_path / "out", BridgeError, "q9f9.*q4f16_autoawq", "q9f9")


def test_tensors_without_a_place(tmp_path, model):
    def add(tensors):
        tensors["model.layers.0.mlp.act.scales"] = np.ones(4, np.float16)
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
        tensors["model.layers.0.mlp.up_proj.bias"] = np.zeros(4, np.float16)

    refused(
        model(add), tmp_path / "out", SourceError, r"found model\.layers\.0\.mlp\.act\.scales\. "
    )


def test_cache_scales_are_carried(tmp_path, model):
    """Under their own names, beside unchanged weights; no lib asks for them."""
    scales = {f"model.layers.0.self_attn.{x}_scale": np.float32([0.1]) for x in "kv"}
    report = convert_weight(ConvertJob(model(lambda t: t.update(scales)), tmp_path / "out"))
    plain = convert_weight(ConvertJob(AWQ, tmp_path / "plain"))
    records = read_index(tmp_path / "out").records
    assert set(records) == {*read_index(tmp_path / "plain").records, *scales}
    for name, value in scales.items():
        assert np.array_equal(read_index(tmp_path / "out").array(name), value)
    assert report.fingerprint == plain.fingerprint
    assert any("2 scales of the KV cache" in finding for finding in report.findings)


def test_a_bias_that_matters_is_not_dropped(tmp_path, model):
    def add(tensors):
        tensors["model.layers.0.mlp.up_proj.bias"] = np.ones(768, np.float16)

    refused(model(add), tmp_path / "out", SourceError, r"up_proj\.bias")


def float_layer(layer):
    def edit(tensors):
        k, n = (tensors[f"{layer}.{s}"].shape[i] for i, s in enumerate(("qweight", "scales")))
        for suffix in ("qweight", "qzeros", "scales"):
            del tensors[f"{layer}.{suffix}"]
        tensors[f"{layer}.weight"] = np.linspace(-1, 1, n * k, dtype=np.float16).reshape(n, k)

    return edit


def test_a_layer_left_in_float_stays_float(tmp_path, model):
    layer = "model.layers.1.mlp.down_proj"
    report = convert_weight(ConvertJob(model(float_layer(layer)), tmp_path / "out"))
    assert report.float_layers == (layer,)
    assert report.sizes["float linear"] == 256 * 768 * 2
    assert read_index(tmp_path / "out").records[f"{layer}.weight"].shape == (256, 768)


def test_a_fused_layer_partly_in_float_stands_apart(tmp_path, model):
    """Both parts as they are in the file; with --requantize by name it is one again, rounded."""
    home, mlp = model(float_layer("model.layers.1.mlp.up_proj")), "model.layers.1.mlp"
    report = convert_weight(ConvertJob(home, tmp_path / "out"))
    assert report.quantization == "q4f16_autoawq"
    assert report.float_layers == (f"{mlp}.up_proj",)
    cache, raw = read_index(tmp_path / "out"), load_file(home / "model.safetensors")
    assert np.array_equal(cache.array(f"{mlp}.up_proj.weight"), raw[f"{mlp}.up_proj.weight"])
    for suffix in ("qweight", "qzeros", "scales"):
        part = cache.array(f"{mlp}.gate_proj.{suffix}")
        assert np.array_equal(part.view(raw[f"{mlp}.gate_proj.{suffix}"].dtype),
                              raw[f"{mlp}.gate_proj.{suffix}"])  # fmt: skip
    assert f"{mlp}.gate_up_proj" in " ".join(report.findings)
    wish = ConvertJob(home, tmp_path / "one", requantize="model.layers.1.mlp.gate_up_proj")
    rounded = convert_weight(wish)
    assert [e.layer for e in rounded.requantized] == [f"{mlp}.gate_up_proj"]
    assert rounded.float_layers == ()


def test_what_float16_cannot_hold_is_refused(tmp_path, model):
    refused(model(), tmp_path / "out", CannotExpress, r"layers\.0.*float16.*--requantize", "q0f16")


def test_requantizing_is_a_wish_and_reported(tmp_path):
    job = ConvertJob(AWQ, tmp_path / "out", "q0f16", requantize=True)
    report = convert_weight(job)
    assert {e.layer for e in report.requantized} >= {"model.layers.0.mlp.down_proj"}
    worst = max(report.requantized, key=lambda e: e.max)
    assert 0 < worst.rms < worst.max < 2e-3
    assert worst.cosine > 0.999999


def test_float16_overflow_is_named(tmp_path):
    home = tmp_path / "model"
    shutil.copytree(FLOAT, home, copy_function=shutil.copyfile)
    tensors = {k: v.astype(np.float32) for k, v in load_file(FLOAT / "model.safetensors").items()}
    tensors["model.layers.0.mlp.down_proj.weight"][3, 4] = 7e4
    save_file(tensors, home / "model.safetensors")
    refused(home, tmp_path / "out", CannotExpress, r"down_proj.*70000 overflows", "q0f16")
    assert convert_weight(ConvertJob(home, tmp_path / "out", "q0bf16")).n_params == 39


def test_a_config_of_other_weights_is_not_overwritten(tmp_path):
    from mlc_bridge.stages.gen_config import GenConfigJob, gen_config

    gen_config(GenConfigJob(AWQ, tmp_path, "q4f16_autoawq"))
    convert_weight(ConvertJob(AWQ, tmp_path, "q4f16_autoawq"))
    with pytest.raises(ArtifactError, match=r"quantization.*found q4f16_autoawq, expected q0f32"):
        convert_weight(ConvertJob(AWQ, tmp_path, "q0f32"))
    assert len(read_index(tmp_path, md5=True).records) == 87


def test_the_plan_reads_no_weights(model):
    home = model()
    plan = plan_weights(ConvertJob(home, "unused", "q4f16_autoawq"))
    assert plan.nbytes == 6652416
    assert plan.elements == 6819072
