"""MLC LLM behind our Jobs; ``peer`` tests run where ``mlc_llm`` can be imported."""

from __future__ import annotations

import importlib.util
import json
import os
import runpy
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from mlc_bridge import upstream
from mlc_bridge.artifact.chat_config import ChatConfig
from mlc_bridge.artifact.tensor_cache import TensorCache, read_index
from mlc_bridge.errors import ConfigError, MissingDependency
from mlc_bridge.models import MODELS, Weight
from mlc_bridge.schemes import SCHEMES
from mlc_bridge.stages.compile import CompileJob
from mlc_bridge.stages.convert_weight import ConvertJob, convert_weight

HERE = importlib.util.find_spec("mlc_llm") is not None
EXAMPLES = Path(__file__).parents[1] / "examples/models"
SIZES = {
    "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "head_dim": 32,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 64, "rope_theta": 10000.0, "tie_word_embeddings": False,
}  # fmt: skip
EXTRA: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": None},
    "qwen2": {"hidden_act": "silu", "head_dim": 32},
    "qwen3": {"hidden_act": "silu", "attention_bias": False},
}


@pytest.mark.skipif(HERE, reason="mlc_llm is installed here")
def test_without_mlc_llm_it_says_what_to_install(tmp_path: Path) -> None:
    job = ConvertJob(EXAMPLES / "stdlib-llama-7m-awq", tmp_path / "out")
    with pytest.raises(MissingDependency, match=r"mlc_llm.*pip install.*mlc-llm-nightly"):
        upstream.convert_weight(job)
    assert not (tmp_path / "out").exists()
    assert upstream.available() is None


def test_a_split_layer_is_beyond_mlcs_graphs(tmp_path: Path) -> None:
    block = {"split_layers": ["model.layers.0.self_attn.qkv_proj"]}
    staged = upstream._staged(EXAMPLES / "stdlib-llama-7m", MODELS["llama"], block)
    with pytest.raises(ConfigError, match=r"qkv_proj.*--backend embedded"), staged:
        pass


MLC_ENGINE = '''
class MLCEngine:
    """Takes what MLC's takes (July 2026) and nothing else; says what it was given."""

    def __init__(self, model, device="auto", *, model_lib=None, mode="local",
                 engine_config=None, enable_tracing=False):
        if not model_lib.endswith(".so"):
            raise ValueError("line\\nno such lib")
        self.said = f"{model} {device} {model_lib} {mode} {engine_config}"
        self.chat = self.completions = self

    def create(self, *, messages, model=None, max_tokens=None, seed=None, stream=False,
               stream_options=None, temperature=None, top_p=None):
        text = f"{self.said} {messages[-1]['content']} {max_tokens} {temperature}"
        delta = Named(content=text)
        yield Named(choices=[Named(delta=delta, finish_reason="stop")], usage=None)

    def terminate(self):
        pass


class Named:
    def __init__(self, **fields):
        self.__dict__.update(fields)
'''
MLC_CONFIG = """
from dataclasses import dataclass

@dataclass
class EngineConfig:
    max_num_sequence: int = None
    max_total_sequence_length: int = None
    max_single_sequence_length: int = None
    prefill_chunk_size: int = None
    prefix_cache_mode: str = "radix"
"""


def run_cli(words: list[str]) -> int:
    """The command's exit code."""
    import signal

    from mlc_bridge.cli import main

    held = [(n, signal.getsignal(n)) for n in (signal.SIGINT, signal.SIGTERM)]
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["mlc-bridge", *words])
            main()
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        for number, handler in held:
            signal.signal(number, handler)
    raise AssertionError("a command ends with an exit code")


@pytest.mark.skipif(HERE, reason="mlc_llm is installed here")
class TestEngineArguments:
    """That our flags arrive under MLC's names; whether MLC's engine runs, only a peer test says."""

    @pytest.fixture(autouse=True)
    def stand_in(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        package = tmp_path / "stand_in/mlc_llm"
        (package / "serve").mkdir(parents=True)
        (package / "__init__.py").write_text(MLC_ENGINE)
        (package / "serve/__init__.py").write_text("")
        (package / "serve/config.py").write_text(MLC_CONFIG)
        monkeypatch.syspath_prepend(package.parent)
        monkeypatch.setenv("TVM_NUM_THREADS", "9")
        yield
        for name in [n for n in sys.modules if n.split(".")[0] == "mlc_llm"]:
            del sys.modules[name]

    def test_chat(self, capsys: pytest.CaptureFixture[str]) -> None:
        words = "chat m --engine mlc_llm --prompt hello --context-window-size 99 --threads 3"
        assert run_cli([*words.split(), "--max-tokens", "5", "--temperature", "0"]) == 0
        said = capsys.readouterr().out
        assert said.startswith("m auto m/lib.so interactive EngineConfig(")
        assert "max_single_sequence_length=99" in said
        assert said.endswith("hello 5 0.0\n")
        assert os.environ["TVM_NUM_THREADS"] == "3"
        assert run_cli([*words.split(), "--model-lib", "x"]) == 2
        assert "MLC LLM cannot open the model" in (error := capsys.readouterr().err)
        assert "no such lib" in error

    def test_example(self, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
        script = str(EXAMPLES.parent / "infer_with_mlcengine.py")
        monkeypatch.setattr(sys, "argv", [script, "m", "--engine", "mlc_llm", "--prompt", "hi"])
        runpy.run_path(script, run_name="__main__")
        assert capsys.readouterr().out == "m auto m/lib.so local None hi 128 0.0\n"

    def test_serve(self, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
        became: list[list[str]] = []
        monkeypatch.setattr(os, "execv", lambda _, command: became.append(command))
        words = "serve m --engine mlc_llm --port 9 --max-num-sequence 3 --no-prefix-cache"
        assert run_cli([*words.split(), "--context-window-size", "64"]) == 0
        (command,) = became
        assert command[1:5] == ["-m", "mlc_bridge.upstream", "serve", "m"]
        flags = dict(zip(command[5::2], command[6::2], strict=True))
        assert flags == {
            "--model-lib": "m/lib.so", "--device": "auto", "--mode": "local",
            "--host": "127.0.0.1", "--port": "9", "--allow-origins": "[]",
            "--prefix-cache-mode": "disable",
            "--overrides": "max_num_sequence=3;context_window_size=64",
        }  # fmt: skip
        assert run_cli(["serve", "m", "--engine", "mlc_llm", "--api-key", "secret"]) == 2
        assert "--api-key" in capsys.readouterr().err
        assert len(became) == 1


@pytest.mark.peer
@pytest.mark.skipif(not HERE, reason="needs mlc_llm")
class TestPeer:
    def test_tables_are_filled_once(self) -> None:
        from mlc_llm.model import MODELS as theirs
        from mlc_llm.quantization import QUANTIZATION

        upstream.register()
        again = upstream.register()
        assert (again.schemes, again.awq_models, again.sources) == ((), (), ())
        assert {"q4f16_autoawq_g64", "q8f16_1"} <= set(QUANTIZATION)
        for name in ("llama", "mistral", "qwen2", "qwen3"):
            assert "awq" in theirs[name].source
            assert "awq" in theirs[name].quantize

    @pytest.mark.parametrize("model_type", list(EXTRA))
    def test_their_awq_conversion_gives_our_bytes(self, model_type: str, tmp_path: Path) -> None:
        """MLC's own loader over the registered name map, against our converter."""
        import tvm
        from mlc_llm.interface.convert_weight import convert_weight as theirs
        from mlc_llm.model import MODELS as THEIRS
        from mlc_llm.quantization import QUANTIZATION

        upstream.register()
        checkpoint = awq_checkpoint(tmp_path / "awq", model_type)
        convert_weight(ConvertJob(checkpoint, tmp_path / "ours"))
        (tmp_path / "theirs").mkdir()
        theirs(
            config=checkpoint / "config.json",
            quantization=QUANTIZATION["q4f16_autoawq"],
            model=THEIRS[model_type],
            device=tvm.cpu(0),
            source=checkpoint / "model.safetensors.index.json",
            source_format="awq",
            output=tmp_path / "theirs",
        )
        same(read_index(tmp_path / "ours"), read_index(tmp_path / "theirs"))

    @pytest.mark.parametrize(
        ("folder", "scheme"),
        [
            ("stdlib-llama-7m-awq", "q4f16_autoawq"),
            ("stdlib-llama-7m", "q4f16_1"),
            ("stdlib-llama-7m", "q8f16_1"),
        ],
    )
    def test_their_stage_by_our_job(self, folder: str, scheme: str, tmp_path: Path) -> None:
        source = EXAMPLES / folder
        before = sorted(source.iterdir())
        report = upstream.convert_weight(ConvertJob(source, tmp_path / "theirs", scheme))
        convert_weight(ConvertJob(source, tmp_path / "ours", scheme))
        same(read_index(tmp_path / "ours"), read_index(tmp_path / "theirs"))
        assert report.n_params == len(read_index(tmp_path / "ours").records)
        assert sorted(source.iterdir()) == before

    def test_their_lib_wants_our_parameters(self, tmp_path: Path) -> None:
        import tvm
        from tvm import relax

        from mlc_bridge.stages.gen_config import GenConfigJob, gen_config

        source = EXAMPLES / "stdlib-llama-7m-awq"
        gen_config(GenConfigJob(source, tmp_path / "out"))
        convert_weight(ConvertJob(source, tmp_path / "out"))
        report = upstream.compile_model(CompileJob(tmp_path / "out", tmp_path / "lib.so"))
        lib = tvm.runtime.load_module(str(report.path))
        metadata = json.loads(relax.VirtualMachine(lib, tvm.cpu())["_metadata"]())
        records = read_index(tmp_path / "out").records
        assert [p["name"] for p in metadata["params"]] == list(records)
        assert metadata["quantization"] == ChatConfig.load(tmp_path / "out").quantization

    def test_their_lib_runs_our_weights(self, tmp_path: Path) -> None:
        """On our runtime, MLC's lib gives the same logits for our weights as for MLC's own."""
        from mlc_bridge.stages.gen_config import GenConfigJob, gen_config

        source = EXAMPLES / "stdlib-llama-7m-awq"
        for name, stage in (("ours", convert_weight), ("theirs", upstream.convert_weight)):
            gen_config(GenConfigJob(source, tmp_path / name))
            stage(ConvertJob(source, tmp_path / name))
        lib = tmp_path / "lib.so"
        upstream.compile_model(CompileJob(tmp_path / "ours", lib))
        with ThreadPoolExecutor(1) as pool:  # a pool of TVM's belongs to one thread
            ours, theirs = pool.map(lambda name: logits(tmp_path / name, lib), ("ours", "theirs"))
        assert np.abs(ours).max() > 1
        assert np.array_equal(ours, theirs)


def logits(model_dir: Path, lib: Path) -> np.ndarray[Any, Any]:
    """Next-token logits of MLC's lib after a short prompt."""
    from mlc_bridge.engine.runtime import Runtime

    runtime = Runtime.open(model_dir, lib)
    runtime.add(0)
    return runtime.prefill([0], [[1, 2, 3, 4, 5, 6, 7]]).copy()


def same(ours: TensorCache, theirs: TensorCache) -> None:
    assert sorted(ours.records) == sorted(theirs.records)
    for name, record in ours.records.items():
        a, b = ours.array(name), theirs.array(name)
        assert (record.shape, a.dtype) == (theirs.records[name].shape, b.dtype), name
        assert a.tobytes() == b.tobytes(), name


def awq_checkpoint(out: Path, model_type: str) -> Path:
    """A tiny AutoAWQ checkpoint of any architecture: random words, laid out by hand."""
    out.mkdir()
    config = {"model_type": model_type, **SIZES, **EXTRA[model_type]}
    settings = {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"}
    text = json.dumps({**config, "quantization_config": settings})
    (out / "config.json").write_text(text)
    arch = MODELS[model_type]
    rng = np.random.default_rng(0)
    tensors = dict(
        item for weight in arch.weights(arch.config(config)) for item in layer_tensors(weight, rng)
    )
    save_file(tensors, out / "model.safetensors")
    names = {"weight_map": dict.fromkeys(tensors, "model.safetensors")}
    (out / "model.safetensors.index.json").write_text(json.dumps(names))
    return out


def layer_tensors(
    weight: Weight, rng: np.random.Generator
) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    def floats(*shape: int) -> np.ndarray[Any, Any]:
        return rng.uniform(0.5, 1.5, shape).astype(np.float16)

    quantized = weight.role != "norm" and SCHEMES["q4f16_autoawq"].quantizes(weight.role)
    for layer, n in zip(weight.sources, weight.rows, strict=True):
        k = weight.k
        if quantized:
            words = rng.integers(-(2**31), 2**31, (k + k // 128, n // 8)).astype(np.int32)
            yield f"{layer}.qweight", words[:k]
            yield f"{layer}.qzeros", words[k:]
            yield f"{layer}.scales", floats(k // 128, n)
        else:
            yield f"{layer}.weight", floats(n, k) if k else floats(n)
        if weight.bias:
            yield f"{layer}.bias", floats(n)
