"""AutoAWQ checkpoints of every architecture: the weights that are written are the file's own."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from awq_checkpoint import write_as, write_awq

pytest.importorskip("torch")
pytest.importorskip("transformers")

from mlc_bridge.artifact.tensor_cache import read_index
from mlc_bridge.models import MODELS
from mlc_bridge.schemes import SCHEMES
from mlc_bridge.stages.convert_weight import (
    ConvertJob,
    convert_weight,
    plan_weights,
)

_spec = importlib.util.spec_from_file_location(
    "tiny_models", Path(__file__).parents[1] / "models" / "tiny.py"
)
tiny = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tiny)

TINY = tiny.MODELS | tiny.CLASSIC | tiny.MIXED
PARTS = tiny.HYBRIDS | tiny.SAME_PARTS | tiny.MLA
NAMES = sorted(TINY.keys() - tiny.JOINED)  # AutoAWQ leaves joined experts alone
SMALL = ("in_proj_a", "in_proj_b", "in_proj_ba")  # as many rows as heads


@pytest.fixture(scope="module", params=NAMES)
def awq(request, tmp_path_factory):
    """An AutoAWQ checkpoint (group 64) of one architecture, and its weights in float32."""
    return made(request.param, tmp_path_factory.mktemp(request.param))


def made(name, home):
    tiny.save(name, home / "float")
    return home / "awq", write_awq(home / "float", home / "awq", group=64)


def test_every_architecture_is_here():
    kinds = {fields.get("model_type", name) for name, fields in (TINY | PARTS).items()}
    assert kinds >= set(MODELS)


def matrices(plan):
    """(parameter path, expert or None, checkpoint layers) of every quantized matrix."""
    for weight in plan.weights:
        if weight.role == "linear" and weight.path not in plan.config.float_layers:
            for expert in range(weight.experts) if weight.experts else (None,):
                layers = weight.sources if expert is None else weight.expert_sources(expert)
                yield weight.path, expert, layers


def test_awq_lands_exactly(awq, tmp_path):
    assert landed(*awq, tmp_path) == ()


@pytest.mark.parametrize("name", sorted(PARTS.keys() - tiny.JOINED))
def test_awq_of_other_parts_lands_exactly(name, tmp_path):
    """Recurrent layers, latent attention: all but what is small."""
    assert all(path.endswith(SMALL) for path in landed(*made(name, tmp_path), tmp_path / "out"))


def landed(model, exact, out):
    """Converts, compares every matrix, and tells which are left in float."""
    job = ConvertJob(model, out, "auto")
    report = convert_weight(job)
    assert report.quantization == "q4f16_autoawq_g64"
    cache, scheme, seen = read_index(out, md5=True), SCHEMES["q4f16_autoawq_g64"], set()
    for path, expert, layers in matrices(plan_weights(job)):
        stored = {s: cache.array(f"{path}.{s}") for s in ("qweight", "qzeros", "scales")}
        if expert is not None:
            stored = {s: array[expert] for s, array in stored.items()}
        wanted = np.concatenate([exact[layer] for layer in layers])
        assert np.array_equal(scheme.decode(stored).dequantize(), wanted), path
        seen.update(layers)
    assert seen == set(exact)
    return report.float_layers


@pytest.mark.parametrize("tool", ["gptq v2", "compressed-tensors"])
def test_other_tools_files_give_the_same_bytes(awq, tool, tmp_path):
    def converted(model, out):
        convert_weight(ConvertJob(model, out, "q4f16_autoawq_g64"))
        return b"".join(shard.read_bytes() for shard in sorted(out.glob("params_shard_*.bin")))

    other = write_as(tool, awq[0], tmp_path / "other", 64)
    assert converted(other, tmp_path / "its") == converted(awq[0], tmp_path / "awqs")


def test_awq_into_float32_is_the_dequantized_model(awq, tmp_path):
    model, exact = awq
    job = ConvertJob(model, tmp_path, "q0f32")
    convert_weight(job)
    cache = read_index(tmp_path)
    for path, expert, layers in matrices(plan_weights(job)):
        stored = cache.array(f"{path}.weight")
        wanted = np.concatenate([exact[layer] for layer in layers])
        assert np.array_equal(stored if expert is None else stored[expert], wanted), path


def test_requantizing_says_what_it_costs(awq, tmp_path):
    model, _ = awq
    job = ConvertJob(model, tmp_path, "q4f16_1", requantize=True)
    report = convert_weight(job)
    assert {e.layer for e in report.requantized}
    assert all(0.98 < e.cosine < 1 and 0 < e.rms < e.max for e in report.requantized)
    assert len(report.requantized) == len(list(matrices(plan_weights(job))))
