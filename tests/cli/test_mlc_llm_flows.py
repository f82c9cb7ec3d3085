"""The command lines of LLMC's and MLC LLM's documents, with only the program's name changed."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from mlc_bridge.artifact.tensor_cache import read_index

ROOT = Path(__file__).parents[2]
FLOAT = ROOT / "examples/models/stdlib-llama-7m"
AWQ = ROOT / "examples/models/stdlib-llama-7m-awq"
DATA = ROOT / "tests/golden/fp8/calibration_sharegpt.json"

# LightCompress docs/en/source/backend/mlcllm.md; the template is ours, which has no [INST].
LLMC = """
mlc_llm gen_config {LOCAL} --quantization q4f16_autoawq --conv-template chatml -o {MLC}
mlc_llm compile {MLC} -o {MLC}/lib.so
mlc_llm convert_weight {LOCAL} --quantization q4f16_autoawq -o {MLC} --source-format awq \
 --source {LLMC}/mlcllm_quant_model/model.safetensors
"""
# The steps that MLC LLM's maintainers give for FP8, in their words and in the documents' spelling.
FP8 = """
mlc_llm gen_config {LOCAL} --quantization e4m3_e4m3_f16_max_calibrate --conv-template chatml -o {A}
mlc_llm convert_weights {LOCAL}/config.json --quantization e4m3_e4m3_f16_calibrate --device cuda -o {A}
mlc_llm compile {A}/mlc-chat-config.json --device cpu --opt "cudagraph=0" --overrides "" -o {A}/lib.so
mlc_llm calibrate {A} --model-lib {A}/lib.so --dataset {DATA} --num-calibration-samples 4 -o {MLC}
mlc_llm compile {MLC} --device cpu --opt O2 --host auto -o {MLC}/lib.so
"""  # noqa: E501
# LLMC's infer_with_mlcllm.py and MLC's quick start.
INFER = """
from mlc_llm import MLCEngine

# Create engine
model_path = "{MLC}"
model_lib = "{MLC}/lib.so"
engine = MLCEngine(model_path, "auto", model_lib=model_lib, mode="local")

# Run chat completion in OpenAI API.
for response in engine.chat.completions.create(
    messages=[{{"role": "user", "content": "What is the meaning of life?"}}],
    model=model_path,
    stream=True,
    max_tokens=8,
):
    for choice in response.choices:
        print(choice.delta.content, end="", flush=True)
print("\\n")

engine.terminate()
"""


def shell(script: str, **names: Path) -> list[str]:
    """Run the lines with our name; returns what each said on stderr."""
    told = []
    for line in filter(None, script.replace("\\\n", "").splitlines()):
        words = shlex.split(line.format(**names))
        assert words[0] == "mlc_llm"
        ran = subprocess.run(
            [sys.executable, "-m", "mlc_bridge", *words[1:]],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert ran.returncode == 0, (line, ran.stderr)
        told.append(ran.stderr)
    return told


def answer(**names: Path) -> str:
    """What their inference script prints, with the import changed."""
    script = INFER.format(**names).replace("from mlc_llm import", "from mlc_bridge import")
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout


def test_llmc_export_beside_its_float_model(tmp_path: Path) -> None:
    export = tmp_path / "llmc/mlcllm_quant_model"
    export.mkdir(parents=True)
    (export / "model.safetensors").write_bytes((AWQ / "model.safetensors").read_bytes())
    names = {"LOCAL": FLOAT, "MLC": tmp_path / "mlc", "LLMC": tmp_path / "llmc"}
    shell(LLMC, **names)
    index = read_index(names["MLC"])
    theirs = load_file(AWQ / "model.safetensors")
    ours = index.array("model.layers.0.mlp.down_proj.qweight")
    assert (ours == theirs["model.layers.0.mlp.down_proj.qweight"].view("uint32")).all()
    assert answer(**names).strip()


@pytest.fixture
def two_layers(tmp_path: Path) -> Path:
    """The example model with two of its six layers."""
    out = tmp_path / "two-layers"
    out.mkdir()
    for file in FLOAT.iterdir():
        if file.suffix != ".safetensors":
            (out / file.name).write_bytes(file.read_bytes())
    config = json.loads((FLOAT / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    tensors = load_file(FLOAT / "model.safetensors")
    kept = {k: v for k, v in tensors.items() if not any(f"layers.{i}." in k for i in range(2, 6))}
    save_file(kept, out / "model.safetensors", metadata={"format": "pt"})
    return out


def test_fp8_in_three_steps(two_layers: Path, tmp_path: Path) -> None:
    names = {"LOCAL": two_layers, "A": tmp_path / "a", "MLC": tmp_path / "mlc", "DATA": DATA}
    told = shell(FP8, **names)
    assert "--device has no effect" in told[1]
    scales = [n for n in read_index(names["MLC"]).records if n.endswith(".q_calibration_scale")]
    assert len(scales) == 8
    config = json.loads((names["MLC"] / "mlc-chat-config.json").read_text())
    assert config["quantization"] == "e4m3_e4m3_f16"
    assert answer(**names).strip()
