"""A third package's scheme and schedule come in by the same door as our own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mlc_bridge.compiler.target import host_target
from mlc_bridge.errors import ConfigError
from mlc_bridge.registry import Table, table
from mlc_bridge.schemes import SCHEMES, register_quantization
from mlc_bridge.schemes.group_quant import GroupQuant
from tir_schedules import RULES

ROOT = Path(__file__).parents[2]
PLUGIN = ROOT / "examples" / "plugin"
EXAMPLE = ROOT / "examples" / "models" / "stdlib-llama-7m"

# As pip would leave it: the module and its metadata on the path.
USE = """
import json, sys
from mlc_bridge.artifact.tensor_cache import read_index
from mlc_bridge.schemes import SCHEMES
from mlc_bridge.stages.convert_weight import ConvertJob, convert_weight
report = convert_weight(ConvertJob(sys.argv[1], sys.argv[2], "q2f16_ternary"))
cache = read_index(sys.argv[2])
layer = "model.layers.0.mlp.down_proj"
stored = {s: cache.array(f"{layer}.{s}") for s in ("q_weight", "q_scale")}
w = SCHEMES["q2f16_ternary"].decode(stored).dequantize()
print(json.dumps([list(SCHEMES), report.quantization, w.tolist()]))
"""


# One ternary layer through the compiler's phases: which functions the package's rule took, the
# largest error over the largest value, and the first rules in the list.
RULE = """
import json
import numpy as np, tvm
from tvm import relax
from tvm.ir.transform import Sequential
from tvm.relax.frontend import nn
import tir_schedules
from mlc_bridge.compiler import pipeline
from mlc_bridge.compiler.target import host_target
from mlc_bridge_ternary import TERNARY
from mlc_bridge_ternary_rule import RULE

class Layer(nn.Module):
    def __init__(self):
        for name, spec in TERNARY.params(48, 256).items():
            setattr(self, name, nn.Parameter(spec.shape, spec.dtype))
    def forward(self, x: nn.Tensor):
        stored = {"q_weight": self.q_weight, "q_scale": self.q_scale}
        return TERNARY.linear(x, stored, "float16")

taken, apply = [], RULE.apply
def watched(func, *more):
    taken.append((found := apply(func, *more)) is not None)
    return found
RULE.apply = watched

inputs = {"x": nn.spec.Tensor([1, "rows", 256], "float16")}
inputs["$"] = {"param_mode": "plain", "effect_mode": "none"}
mod, _ = Layer().export_tvm(spec={"forward": inputs})
target = host_target()
phases = (pipeline.fuse(), pipeline.schedule(target), pipeline.plan_memory(),
          pipeline.lower(target))
with target:
    mod = Sequential([p for phase in phases for p in phase])(mod)
    vm = relax.VirtualMachine(relax.build(mod, target, relax_pipeline=None), tvm.cpu())
rng = np.random.default_rng(0)
stored = TERNARY.encode(TERNARY.quantize(rng.normal(size=(48, 256)).astype(np.float16)))
x = rng.normal(size=(1, 3, 256)).astype(np.float16)
given = map(tvm.runtime.tensor, (x, stored["q_weight"], stored["q_scale"]))
exact = x.astype(np.float64) @ TERNARY.decode(stored).dequantize().astype(np.float64).T
error = np.abs(vm["forward"](*given).numpy() - exact).max() / np.abs(exact).max()
names = [type(rule).__name__ for rule in tir_schedules.RULES(target)]
print(json.dumps([taken, float(error), names]))
"""


@pytest.fixture
def installed(tmp_path):
    import tomllib

    project = tomllib.loads((PLUGIN / "pyproject.toml").read_text())["project"]
    info = tmp_path / "mlc_bridge_ternary-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: x\nVersion: 0.1.0\n")
    lines = []
    for group, entries in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{k} = {v}" for k, v in entries.items())]
    (info / "entry_points.txt").write_text("\n".join(lines))
    return os.pathsep.join([str(tmp_path), str(PLUGIN), str(ROOT)])


def python(path, code, *args):
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )


def test_the_example_plugin_converts_a_model(installed, tmp_path):
    done = python(installed, USE, EXAMPLE, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    names, used, w = json.loads(done.stdout)
    assert names == [*SCHEMES, "q2f16_ternary"]
    assert used == "q2f16_ternary"
    from safetensors.numpy import load_file

    exact = load_file(EXAMPLE / "model.safetensors")["model.layers.0.mlp.down_proj.weight"]
    groups = np.asarray(w, np.float32).reshape(256, -1, 64)
    assert all(len(np.unique(np.abs(g[g != 0]))) == 1 for g in groups.reshape(-1, 64)[:100])
    assert np.corrcoef(exact.ravel().astype(np.float32), groups.ravel())[0, 1] > 0.85


def test_the_plugin_may_be_imported_first(installed):
    code = "import mlc_bridge_ternary, mlc_bridge.schemes as s; print('q2f16_ternary' in s.SCHEMES)"
    done = python(installed, code)
    assert done.stdout == "True\n", done.stderr


def test_a_broken_plugin_is_named(installed, tmp_path):
    (tmp_path / "mlc_bridge_ternary.py").write_text("import no_such_module")
    done = python(installed, "import mlc_bridge.schemes as s; s.SCHEMES['q0f16']")
    assert "ConfigError" in done.stderr
    assert "mlc_bridge_ternary:TERNARY cannot be loaded" in done.stderr


def test_the_packages_rule_takes_the_function_it_is_for(installed):
    done = python(installed, RULE)
    assert done.returncode == 0, done.stderr
    taken, error, rules = json.loads(done.stdout)
    assert taken == [True]
    assert error < 6e-4  # float16 output
    assert rules[0] == "TernaryLinear"
    assert rules[1:] == [type(rule).__name__ for rule in RULES(host_target())]


def test_a_compiled_lib_is_kept_for_the_rules_it_was_made_by(installed, tmp_path):
    """Another rule, another lib: the package's file is part of the key of kept libs."""
    code = "from mlc_bridge.stages.compile import _schedules; print(*_schedules(), sep='\\n')"
    places = python(installed, code).stdout.split()
    assert places[0].endswith("tir_schedules")
    assert places[1:] == [str(PLUGIN / "mlc_bridge_ternary_rule.py")]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("import no_such_module", "cannot be loaded: No module named 'no_such_module'"),
        ("RULE = int", "is no rule"),
    ],
)
def test_a_broken_rule_is_named(installed, tmp_path, content, said):
    (tmp_path / "mlc_bridge_ternary_rule.py").write_text(content)
    code = (
        "from mlc_bridge.compiler import pipeline, target as t\npipeline.schedule(t.host_target())"
    )
    done = python(installed, code)
    assert "errors.ConfigError: mlc_bridge.schedules: the schedule plugin ternary" in done.stderr
    assert said in done.stderr


def test_a_row_registered_at_run_time(monkeypatch):
    fresh: Table = table("tests", *SCHEMES.values())
    monkeypatch.setattr("mlc_bridge.schemes.SCHEMES", fresh)
    row = GroupQuant("q4f16_g64", bits=4, group=64, model_dtype="float16")
    assert register_quantization(row) is row
    assert list(fresh)[-1] == "q4f16_g64"
    w = np.random.default_rng(0).normal(size=(8, 128)).astype(np.float16)
    stored = fresh["q4f16_g64"].encode(fresh["q4f16_g64"].quantize(w))
    assert stored["q_scale"].shape == (8, 2)
    with pytest.raises(ConfigError, match="registered twice"):
        register_quantization(row)


def test_an_unknown_name_is_answered_with_the_list():
    with pytest.raises(ConfigError, match=r"'q5'.*q0f16, .*q4f16_1"):
        SCHEMES["q5"]
