"""Calibration end to end on the first two layers of the example model."""

import hashlib
import json
import os
import random
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mlc_bridge.artifact.chat_config import ChatConfig
from mlc_bridge.artifact.tensor_cache import read_index
from mlc_bridge.engine.runtime import Runtime
from mlc_bridge.engine.threads import start_pool
from mlc_bridge.engine.tokenizer import Tokenizer
from mlc_bridge.errors import ArtifactError, ConfigError
from mlc_bridge.schemes import SCHEMES
from mlc_bridge.stages import calibration_run
from mlc_bridge.stages.calibrate import (
    CALIBRATED,
    CALIBRATING,
    STATE,
    SUFFIX,
    CalibrateJob,
    calibrate,
)
from mlc_bridge.stages.calibration_data import draw, read_records, tokenize
from mlc_bridge.stages.calibration_run import Sample, batches
from mlc_bridge.stages.compile import CompileJob, compile_model
from mlc_bridge.stages.convert_weight import ConvertJob, convert_weight
from mlc_bridge.stages.gen_config import GenConfigJob, gen_config

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "models" / "stdlib-llama-7m"
GOLDEN = ROOT / "tests" / "golden" / "fp8"
DATA = GOLDEN / "calibration_sharegpt.json"
LAYERS = 2
SAMPLES = 12


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """The example model with two of its six layers."""
    out = tmp_path_factory.mktemp("two-layers")
    for file in EXAMPLE.iterdir():
        if file.suffix != ".safetensors":
            (out / file.name).write_bytes(file.read_bytes())
    config = json.loads((EXAMPLE / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "num_hidden_layers": LAYERS}))
    tensors = load_file(EXAMPLE / "model.safetensors")
    kept = {k: v for k, v in tensors.items() if not any(f"layers.{i}." in k for i in range(2, 6))}
    save_file(kept, out / "model.safetensors", metadata={"format": "pt"})
    return out


def converted(model, out, scheme):
    gen_config(GenConfigJob(model, out, quantization=scheme))
    convert_weight(ConvertJob(model, out, quantization=scheme))
    return out


@pytest.fixture(scope="session")
def waiting(model, tmp_path_factory):
    """Weights and lib for calibration."""
    out = converted(model, tmp_path_factory.mktemp("waiting"), CALIBRATING)
    compile_model(CompileJob(out, device="cpu"))
    return out


@pytest.fixture(scope="session")
def job(waiting):
    return CalibrateJob(waiting, "", DATA, num_calibration_samples=SAMPLES)


@pytest.fixture(scope="session")
def finished(job, tmp_path_factory):
    """A calibrated model with its lib, and the stage's report."""
    out = tmp_path_factory.mktemp("calibrated") / "out"
    report = calibrate(replace(job, output=out))
    compile_model(CompileJob(out, device="cpu"))
    return out, report


def digest(directory):
    files = sorted(p for p in Path(directory).rglob("*") if p.is_file())
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def weights_of(directory):
    """What an engine reads: index and shards."""
    return {k: v for k, v in digest(directory).items() if "params_shard" in k or "tensor" in k}


def score(directory, windows):
    """Mean negative log likelihood of token windows under a model, in a thread of its own."""
    found = []

    def work():
        start_pool()
        runtime = Runtime.open(directory, mode="interactive")
        for ids in windows:
            runtime.add(0)
            logits = runtime.score(0, ids[:-1]).astype(np.float64)
            runtime.clear()
            top = logits.max(axis=1, keepdims=True)
            total = np.log(np.exp(logits - top).sum(axis=1)) + top[:, 0]
            found.append((total - logits[np.arange(len(ids) - 1), ids[1:]]).mean())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(found) == len(windows)
    return float(np.mean(found))


def test_three_steps_make_a_complete_model(waiting, finished):
    out, report = finished
    before, after = read_index(waiting), read_index(out, md5=True)
    new = after.records.keys() - before.records.keys()
    assert new == {layer.layer + SUFFIX for layer in report.layers}
    assert len(new) == 4 * LAYERS
    for name in before.records:
        assert np.array_equal(
            before.array(name).view(np.uint8), after.array(name).view(np.uint8)
        ), name
    for layer in report.layers:
        name = layer.layer + SUFFIX
        assert after.records[name].format == "raw"
        assert after.array(name)[0] == np.float32(layer.amax) / np.float32(448)
    assert ChatConfig.load(out).quantization == CALIBRATED
    assert after.metadata["ParamSize"] == len(after.records)
    assert not (out / STATE).exists()


def test_report_says_what_was_seen(finished):
    out, report = finished
    told = json.loads((out / "calibration.json").read_text())
    assert [x["layer"] for x in told["layers"]] == [x.layer for x in report.layers]
    assert told["samples"] == report.samples == SAMPLES
    for layer in report.layers:
        assert layer.values % report.tokens == 0
        assert layer.chosen == layer.observers["max"]
        assert layer.chosen.saturated == 0
        assert 0.01 < layer.chosen.error**0.5 < 0.05  # float8 keeps four bits
        assert not layer.wrong
    page = (out / "calibration.html").read_text()
    assert page.count("<circle") == len(report.layers)
    assert all(x.layer in page for x in report.layers)


def test_fp8_is_within_one_percent_of_float(model, finished, tmp_path):
    text = (GOLDEN / "heldout.txt").read_text()
    ids = Tokenizer(EXAMPLE).encode(text)
    windows = [ids[i : i + 513] for i in range(0, 2048, 512)]
    exact = converted(model, tmp_path / "q0f32", "q0f32")
    compile_model(CompileJob(exact, device="cpu"))
    float_loss, fp8_loss = score(exact, windows), score(finished[0], windows)
    assert abs(np.exp(fp8_loss - float_loss) - 1) < 0.01


def test_amax_is_that_of_pytorch(model, tmp_path, monkeypatch):
    """The same graph in float32 arithmetic, so that nothing but the sum's order differs."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    float32 = replace(SCHEMES[CALIBRATING], model_dtype="float32")
    monkeypatch.setitem(SCHEMES._items, CALIBRATING, float32)
    source = converted(model, tmp_path / "f32", CALIBRATING)
    compile_model(CompileJob(source, device="cpu"))
    job = CalibrateJob(source, tmp_path / "out", DATA, num_calibration_samples=SAMPLES)
    report = calibrate(job)

    stored, chat = read_index(source), ChatConfig.load(source)
    records = draw(read_records(DATA), SAMPLES, job.seed)
    encode = Tokenizer(source, chat.tokenizer_info).encode
    reference = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    amax = hook(reference, stored, torch)
    with torch.no_grad():
        for record in records:
            ids = tokenize(record, chat.conv_template, encode, chat.context_window_size).ids
            reference(torch.tensor([ids]))
    assert len(report.layers) == len(amax) == 4 * LAYERS
    for layer in report.layers:
        assert layer.amax == pytest.approx(amax[layer.layer], rel=1e-5), layer.layer


def hook(reference, stored, torch):
    """Put the FP8 weights into the PyTorch model and let it record max |input| of every linear."""
    parts = {
        "self_attn.qkv_proj": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        "self_attn.o_proj": ["self_attn.o_proj"],
        "mlp.gate_up_proj": ["mlp.gate_proj", "mlp.up_proj"],
        "mlp.down_proj": ["mlp.down_proj"],
    }
    amax = {}
    for index, block in enumerate(reference.model.layers):
        for ours, theirs in parts.items():
            name = f"model.layers.{index}.{ours}"
            codes = stored.array(f"{name}.q_weight").astype(np.float32)
            w = torch.from_numpy(codes * stored.array(f"{name}.q_scale"))
            at = 0
            for path in theirs:
                linear = block.get_submodule(path)
                linear.weight.data = w[at : at + linear.out_features].clone()
                at += linear.out_features

            def note(_, inputs, name=name):
                amax[name] = max(amax.get(name, 0.0), inputs[0].abs().max().item())

            block.get_submodule(theirs[0]).register_forward_pre_hook(note)
    return amax


def test_uncalibrated_weights_are_refused_by_name(model, finished, tmp_path):
    bare = converted(model, tmp_path / "bare", CALIBRATED)
    with pytest.raises(ArtifactError, match=r"q_calibration_scale: .*never calibrated"):
        Runtime.open(bare, finished[0] / "lib.so")


def test_weights_marked_as_waiting_can_be_calibrated_too(model, waiting, job, finished, tmp_path):
    """Converted as ``e4m3_e4m3_f16`` with NaN scales: the same scales in the same places."""
    bare = converted(model, tmp_path / "bare", CALIBRATED)
    again = replace(job, model_dir=bare, model_lib=waiting / "lib.so", output=tmp_path / "out")
    calibrate(again)
    assert weights_of(tmp_path / "out") == weights_of(finished[0])


def test_a_calibration_lib_does_not_answer(waiting):
    with pytest.raises(ArtifactError, match=r"compiled for calibration.*mlc-bridge calibrate"):
        Runtime.open(waiting)


def test_observers_and_modes(job, finished, tmp_path):
    _, by_max = finished
    mse = calibrate(replace(job, output=tmp_path / "mse", observer="mse"))
    for one, other in zip(by_max.layers, mse.layers, strict=True):
        assert other.chosen == one.observers["mse"]
        assert other.observers == one.observers
    runs = [
        calibrate(
            replace(job, output=tmp_path / f"run{i}", mode="generate", num_calibration_samples=5)
        )
        for i in range(2)
    ]
    assert weights_of(tmp_path / "run0") == weights_of(tmp_path / "run1")
    assert all(layer.values > 0 for layer in runs[0].layers)
    assert runs[0].layers != by_max.layers


def test_an_interrupted_run_goes_on_where_it_was(job, finished, tmp_path, monkeypatch):
    monkeypatch.setattr(calibration_run, "SAVE_SECONDS", 0.0)
    job = replace(job, output=tmp_path / "out")
    steps = []

    def interrupt(label, done, total):
        steps.append(done)
        if len(steps) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(job, interrupt)
    assert [p.name for p in (tmp_path / "out").iterdir()] == [STATE]
    seen = []
    calibrate(job, lambda label, done, total: seen.append(done))
    assert seen[0] == steps[1] > 0
    assert weights_of(tmp_path / "out") == weights_of(finished[0])
    assert not (tmp_path / "out" / STATE).exists()


def test_a_state_that_is_damaged_or_of_another_run_is_not_taken_up(
    job, finished, tmp_path, monkeypatch
):
    monkeypatch.setattr(calibration_run, "SAVE_SECONDS", 0.0)

    def interrupt(label, done, total):
        if done:
            raise KeyboardInterrupt

    for out, damage in ((tmp_path / "other", 0), (tmp_path / "damaged", 9)):
        with pytest.raises(KeyboardInterrupt):
            calibrate(replace(job, output=out, seed=0 if damage else 7), interrupt)
        state = (out / STATE).read_bytes()
        (out / STATE).write_bytes(state[: len(state) - damage])
        calibrate(replace(job, output=out))
        assert weights_of(out) == weights_of(finished[0])


KILLER = """
import os, random, signal, sys, time
from dataclasses import replace
from mlc_bridge.artifact.tensor_cache import read_index
from mlc_bridge.stages import calibration_run
from mlc_bridge.stages.calibrate import CalibrateJob, calibrate
import mlc_bridge.engine.runtime, tvm

calibration_run.SAVE_SECONDS = 0.0
source, data, out, samples = sys.argv[1:]
job = CalibrateJob(source, out, data, num_calibration_samples=int(samples))

def child(job):
    pid = os.fork()
    if pid == 0:
        calibrate(job)
        os._exit(0)
    return pid

start = time.monotonic()
os.waitpid(child(replace(job, output=out + "-whole")), 0)
whole = time.monotonic() - start
killed = 0
for number in range(20):
    pid = child(job)
    time.sleep(random.Random(number).uniform(0.0, whole))
    os.kill(pid, signal.SIGKILL)
    killed += os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    if os.path.exists(out + "/tensor-cache.json"):
        read_index(out, md5=True)
print(killed)
"""


def test_killed_at_twenty_moments(waiting, job, finished, tmp_path):
    """A child of one warm process each time: source untouched, output whole or absent."""
    before = digest(waiting)
    out = tmp_path / "out"
    run = subprocess.run(
        [sys.executable, "-c", KILLER, waiting, DATA, out, str(SAMPLES)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) >= 10
    assert digest(waiting) == before
    calibrate(replace(job, output=out))
    assert weights_of(out) == weights_of(finished[0])
    assert {p.name for p in out.iterdir()} == {p.name for p in finished[0].iterdir()} - {"lib.so"}


def test_what_cannot_be_calibrated_is_refused(model, waiting, finished, job, tmp_path):
    def refused(error, message, **changes):
        with pytest.raises(error, match=message):
            calibrate(replace(job, **{"output": tmp_path / "no", **changes}))
        assert not (tmp_path / "no").exists()

    e5m2 = converted(model, tmp_path / "e5m2", "e5m2_e5m2_f16")
    refused(ConfigError, "e5m2_e5m2_f16 needs no calibration", model_dir=e5m2)
    refused(ConfigError, "own directory", output=waiting)
    refused(ConfigError, "absent", dataset=tmp_path / "absent")
    refused(ConfigError, "samples", num_calibration_samples=0)
    refused(ConfigError, "median", observer="median")
    lib = finished[0] / "lib.so"
    refused(ArtifactError, "not compiled for calibration", model_dir=finished[0], model_lib=lib)


def changed(model, out, name, change):
    """A copy of the checkpoint with one tensor changed, converted for calibration."""
    checkpoint = out / "checkpoint"
    checkpoint.mkdir(parents=True)
    for file in model.iterdir():
        if file.suffix != ".safetensors":
            (checkpoint / file.name).write_bytes(file.read_bytes())
    tensors = load_file(model / "model.safetensors")
    tensors[name] = change(tensors[name])
    save_file(tensors, checkpoint / "model.safetensors")
    return converted(checkpoint, out / "source", CALIBRATING)


def test_a_broken_model_is_named_not_scaled(model, waiting, job, tmp_path):
    norm = "model.layers.1.input_layernorm.weight"
    source = changed(model, tmp_path, norm, lambda w: np.full_like(w, np.inf))
    changes = {"model_dir": source, "model_lib": waiting / "lib.so", "output": tmp_path / "out"}
    with pytest.raises(ArtifactError, match=r"model\.layers\.1\.self_attn\.qkv_proj: .*infinite"):
        calibrate(replace(job, **changes))
    assert not (tmp_path / "out" / "tensor-cache.json").exists()


@pytest.mark.parametrize(
    ("name", "change", "layer", "word"),
    [
        ("self_attn.v_proj.weight", lambda w: w * 0, "self_attn.o_proj", "dead"),
        (
            "input_layernorm.weight",
            lambda w: w * np.float16(2500),
            "self_attn.qkv_proj",
            "exploding",
        ),
    ],
)
def test_layers_that_look_wrong_are_told(model, waiting, job, tmp_path, name, change, layer, word):
    source = changed(model, tmp_path, f"model.layers.1.{name}", change)
    changes = {"model_dir": source, "model_lib": waiting / "lib.so", "output": tmp_path / "out"}
    report = calibrate(replace(job, **changes))
    (finding,) = [f for f in report.findings if f"layers.1.{layer}" in f]
    assert word in finding
    scale = read_index(tmp_path / "out").array(f"model.layers.1.{layer}{SUFFIX}")
    assert np.isfinite(scale).all()
    assert scale > 0
    assert report.page.read_text().count("<tr class=bad>") == len(report.findings)


def test_batches_keep_order_and_room():
    rng = random.Random(0)
    samples = [Sample(tuple(range(rng.randrange(1, 300))), 0) for _ in range(100)]
    groups = batches(samples, 4, 400)
    assert [i for group in groups for i in group] == list(range(100))
    assert all(len(group) <= 4 for group in groups)
    assert all(sum(len(samples[i].ids) for i in group) <= 400 for group in groups)
    long = [Sample(tuple(range(1000)), 0), samples[0]]
    assert batches(long, 4, 400) == [[0], [1]]
