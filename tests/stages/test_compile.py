"""The compile stage: its report, what the lib says about itself, and bad input."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tvm
from tvm import relax
from typer.testing import CliRunner

from mlc_bridge.artifact.manifest import fingerprint
from mlc_bridge.cli.app import app
from mlc_bridge.errors import ArtifactError, BridgeError, CompileError, ConfigError
from mlc_bridge.stages.compile import CompileJob, CompileReport, compile_model, make_plan

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "rms_norm_eps": 1e-5,
    "vocab_size": 128,
    "tie_word_embeddings": True,
    "position_embedding_base": 10000,
    "rope_scaling": None,
    "context_window_size": 256,
    "prefill_chunk_size": 64,
    "max_batch_size": 4,
}
Write = Callable[..., Path]


def write(directory: Path, **changes: Any) -> Path:
    """An artifact directory with a config and no weights."""
    chat = {
        "version": "0.1.0",
        "model_type": "llama",
        "quantization": "q0f32",
        "model_config": {**SMALL, **changes.pop("model_config", {})},
        "vocab_size": 128,
        "context_window_size": 256,
        "sliding_window_size": -1,
        "prefill_chunk_size": 64,
        "attention_sink_size": -1,
        "tensor_parallel_shards": 1,
        "conv_template": {"roles": {"user": "u", "assistant": "a"}, "seps": ["\n"]},
        **changes,
    }
    (directory / "mlc-chat-config.json").write_text(json.dumps(chat))
    return directory


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> CompileReport:
    directory = write(tmp_path_factory.mktemp("artifact"))
    return compile_model(CompileJob(directory, dump=directory / "dump"))


@pytest.fixture
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache of this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mlc-bridge" / "libs"


@pytest.fixture(scope="module")
def metadata(report: CompileReport) -> dict[str, Any]:
    vm = relax.VirtualMachine(tvm.runtime.load_module(str(report.path)), tvm.cpu())
    return json.loads(vm["_metadata"]())


def test_report(report: CompileReport) -> None:
    assert report.path.name == "lib.so"
    assert report.size == report.path.stat().st_size
    assert report.path.stat().st_mode & 0o777 == 0o755
    assert {p.name for p in report.path.parent.iterdir()} == {
        "lib.so", "dump", "mlc-chat-config.json", "mlc-bridge.json",
    }  # fmt: skip
    # 64 embeddings of 64 float32, read by the engine before its first prefill.
    assert report.memory_usage["alloc_embedding_tensor"] == 64 * 64 * 4


def test_kernels_of_the_report(report: CompileReport) -> None:
    found = {c.layers: c for c in report.kernels if c.n}
    # both are [128, 64]: one function
    both = found["model.embed_tokens", "model.layers.*.self_attn.qkv_proj"]
    down = found["model.layers.*.mlp.down_proj",]
    assert (both.n, both.k, both.rule) == (128, 64, "Linear")
    assert (down.n, down.k, down.rule) == (64, 96, "Linear")
    assert {name.split()[0] for name in down.kernels.values()} <= {"float_gemv", "gemm"}
    assert report.notes == ()


def test_dump_is_readable_after_each_phase(report: CompileReport) -> None:
    names = sorted(path.name for path in (report.path.parent / "dump").iterdir())
    assert names == ["0-attach.py", "1-fuse.py", "2-schedule.py", "3-plan.py", "4-lower.py"]
    assert "create_tir_paged_kv_cache" in (report.path.parent / "dump" / names[0]).read_text()


def test_cache_is_created_with_five_numbers(report: CompileReport) -> None:
    """Released engines refuse a sixth."""
    text = (report.path.parent / "dump" / "0-attach.py").read_text()
    call = text[text.index('"vm.builtin.paged_attention_kv_cache_create"') :]
    shape = call[call.index("R.shape([") + 9 : call.index("])")]
    assert len(shape.split(",")) == 5


def test_metadata_is_complete(report: CompileReport, metadata: dict[str, Any]) -> None:
    assert metadata["model_type"] == "llama"
    assert metadata["quantization"] == "q0f32"
    assert metadata["kv_state_kind"] == "kv_cache"
    assert (metadata["context_window_size"], metadata["prefill_chunk_size"]) == (256, 64)
    assert metadata["kv_cache"] == {
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
    }
    assert metadata["memory_usage"] == report.memory_usage
    first = metadata["params"][0]
    assert first == {
        "name": "model.embed_tokens.weight",
        "shape": [128, 64],
        "dtype": "float32",
        "preprocs": [],
        "pipeline_stages": [0],
    }


def test_fingerprint_binds_the_lib(report: CompileReport, metadata: dict[str, Any]) -> None:
    params = [(p["name"], p["shape"], p["dtype"]) for p in metadata["params"]]
    config = {**SMALL, "tensor_parallel_shards": 1}
    expected = fingerprint("llama", config, params)
    assert metadata["mlc_bridge"]["fingerprint"] == report.fingerprint == expected


def test_functions_that_engines_call(report: CompileReport) -> None:
    vm = relax.VirtualMachine(tvm.runtime.load_module(str(report.path)), tvm.cpu())
    for name in (
        "embed", "prefill", "decode", "batch_prefill", "batch_decode", "batch_verify",
        "softmax_with_temperature", "alloc_embedding_tensor", "create_tir_paged_kv_cache",
    ):  # fmt: skip
        assert vm[name] is not None
    assert vm["alloc_embedding_tensor"]().shape == (64, 64)


def test_second_compile_is_a_copy(report: CompileReport, tmp_path: Path, own_cache: Path) -> None:
    """And two that are compiled, at other times in other places, are equal to the last byte."""
    job = CompileJob(write(tmp_path), output=tmp_path / "a.so")
    first, again = compile_model(job), compile_model(replace(job, output=tmp_path / "b.so"))
    assert (first.cached, again.cached) == (False, True)
    assert again.memory_usage == first.memory_usage
    assert again.kernels == first.kernels == report.kernels
    assert again.path.read_bytes() == first.path.read_bytes() == report.path.read_bytes()
    assert again.seconds < 1
    assert [p.suffix for p in sorted(own_cache.iterdir())] == [".json", ".so"]
    told = CliRunner().invoke(app, ["compile", str(tmp_path), "-o", str(job.output), "--explain"])
    assert told.exit_code == 0, told.output
    for choice in first.kernels:
        assert choice.function in told.output
        assert set(choice.layers) <= set(re.split(r"[\s,]+", told.output))
        assert all(kernel in told.output for kernel in choice.kernels.values())
    plain = CliRunner().invoke(app, ["compile", str(tmp_path), "-o", str(job.output)])
    assert "float_gemv" not in plain.output


@pytest.mark.parametrize(
    "other",
    [
        {"max_batch_size": 3},
        {"prefill_chunk_size": 32},
        {"context_window_size": 128},
        {"target": "llvm -mcpu=x86-64-v3"},
        {"target": "sm_80"},
    ],
)
def test_what_matters_changes_the_key(tmp_path: Path, other: dict[str, Any]) -> None:
    job = CompileJob(write(tmp_path))
    assert make_plan(job).key == make_plan(job).key
    assert make_plan(replace(job, **other)).key != make_plan(job).key


@pytest.mark.parametrize("change", [{"quantization": "q0f16"}, {"active_vocab_size": 100}])
def test_the_config_changes_the_key(tmp_path: Path, change: dict[str, Any]) -> None:
    before = make_plan(CompileJob(write(tmp_path))).key
    assert make_plan(CompileJob(write(tmp_path, **change))).key != before


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"model_type": "bert"}, ConfigError, "llama"),
        ({"quantization": "q9"}, ConfigError, "q0f32"),
        ({"model_config": {"hidden_size": "big"}}, ConfigError, "hidden_size"),
        ({"model_config": {"num_key_value_heads": 3}}, ConfigError, "num_key_value_heads"),
        ({"model_config": {"tensor_parallel_shards": 2}}, ConfigError, "tensor_parallel_shards"),
        ({"model_config": {"rope_scaling": {"rope_type": "su"}}}, ConfigError, "rope_type"),
        ({"model_config": {"hidden_act": "relu"}}, ConfigError, "hidden_act"),
    ],
)
def test_bad_config(
    tmp_path: Path, change: dict[str, Any], error: type[BridgeError], words: str
) -> None:
    with pytest.raises(error, match=words):
        compile_model(CompileJob(write(tmp_path, **change)))
    assert [p.name for p in tmp_path.iterdir()] == ["mlc-chat-config.json"]


def test_no_config(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"mlc-chat-config\.json"):
        compile_model(CompileJob(tmp_path))


def test_output_is_a_directory(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match="directory"):
        compile_model(CompileJob(write(tmp_path), output=tmp_path))


def test_shape_that_the_scheme_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(BridgeError, match="k % 128"):
        compile_model(CompileJob(write(tmp_path, quantization="q4f16_autoawq")))


def test_cuda_is_cross_compiled(tmp_path: Path) -> None:
    """No GPU here; that decode records CUDA graphs is read from the library itself."""
    wide = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 64, "num_hidden_layers": 1}
    folder = write(tmp_path, model_config=wide, quantization="q4f16_autoawq")
    report = compile_model(replace(CompileJob(folder, target="sm_90a"), cache=False))
    assert '"sm_90a"' in report.target
    library = report.path.read_bytes()
    assert library[:4] == b"\x7fELF"
    assert b"vm.builtin.cuda_graph.run_or_capture" in library
    assert b"batch_decode_cuda_graph_capture" in library


@pytest.mark.parametrize("name", ["lib.dll", "lib.wasm", "lib.tar", "lib"])
def test_the_output_is_a_shared_library(tmp_path: Path, name: str) -> None:
    with pytest.raises(CompileError, match="shared library"):
        compile_model(CompileJob(tmp_path, tmp_path / name))
