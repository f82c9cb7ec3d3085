"""verify and bench on a compiled model: the right checkpoint passes, another one does not."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mlc_bridge import BuildJob, CheckJob, build, check_artifact, inspect_artifact
from mlc_bridge.errors import ConfigError
from mlc_bridge.stages.behaviour import Behaviour, _log_softmax, _Sums
from mlc_bridge.stages.bench import BenchJob, bench
from mlc_bridge.stages.verify import VerifyJob, verify

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(example_awq: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("verify") / "model"
    build(BuildJob(example_awq, output, context_window_size=512, prefill_chunk_size=96))
    return output


def test_the_checkpoint_itself_passes(model: Path, example_awq: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    found = verify(VerifyJob(model, example_awq, tokens=512, window=256, page=page))
    assert found.passed
    assert found.weights.exact == found.weights.weights
    said = found.behaviour
    assert said is not None
    assert said.tokens == 512
    assert said.kl < 1e-4
    assert said.decoded == 32
    assert 0 < said.decode_kl < 1e-4
    assert said.decode_kl <= said.decode_kl_max < 1e-3
    assert said.top1 > 0.99
    assert said.perplexity == pytest.approx(said.reference_perplexity, rel=1e-3)
    assert np.mean(said.by_position) == pytest.approx(said.kl)
    assert [w.kl for w in said.worst] == sorted(said.by_position)[:-13:-1]
    text = page.read_text()
    assert text.count("<circle") == 512
    assert "<h1>model: verified, all 39 weights hold the checkpoint&#x27;s values; KL" in text
    assert not re.search(r"https?:|<script|<link|@import", text)  # one file, no network
    checked = {c.name: c.detail for c in check_artifact(CheckJob(model)).checks}
    assert "weights and lib are those it read" in checked["certificate"]


def test_another_checkpoint_does_not(model: Path, example_float: Path) -> None:
    """Its weights are another's, so no text is read."""
    found = verify(VerifyJob(model, example_float, tokens=256, window=256))
    assert not found.passed
    assert found.behaviour is None
    assert "qkv_proj" in found.failures[0]


def test_trace_names_the_layer(model: Path, example_awq: Path, tmp_path: Path) -> None:
    """The library's own readings after every layer; one checkpoint whose layer 3 has other norms,
    and one with another rotation in all layers."""
    same = verify(VerifyJob(model, example_awq, tokens=64, window=64, trace=True))
    assert same.passed
    assert same.parted == ""
    assert [d.layers for d in same.depths] == list(range(7))
    assert all(d.distance < 5e-3 and d.cosine > 0.9999 for d in same.depths)
    for name, change, place in (
        ("norm", _other_norm, "layer 3:"), ("theta", _other_theta, "layer 0:"),
    ):  # fmt: skip
        home = shutil.copytree(example_awq, tmp_path / name)
        change(home)
        found = verify(VerifyJob(model, home, tokens=64, window=64, trace=True))
        assert not found.passed
        assert place in found.parted
        assert found.failures[-1] == found.parted
        assert found.weights.differences


def test_against_another_artifact(model: Path) -> None:
    """Its own copy: nothing differs, not even a bit of a logit."""
    job = VerifyJob(model, against=model, tokens=64, window=64, trace=True)
    found = verify(job)
    assert found.passed
    assert found.behaviour is not None
    assert (found.behaviour.kl, found.behaviour.logit_difference) == (0, 0)
    assert found.behaviour.reference.endswith(str(model))
    assert [(d.layers, d.largest) for d in found.depths] == [(i, 0) for i in range(7)]


def _other_norm(home: Path) -> None:
    tensors = load_file(home / "model.safetensors")
    tensors["model.layers.3.post_attention_layernorm.weight"] *= np.float16(1.5)
    save_file(tensors, home / "model.safetensors", metadata={"format": "pt"})


def _other_theta(home: Path) -> None:
    config = json.loads((home / "config.json").read_text())
    rope = {**config.get("rope_parameters", {}), "rope_theta": 100.0}
    config.update({"rope_theta": 100.0} | ({"rope_parameters": rope} if len(rope) > 1 else {}))
    (home / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("threshold", "value", "said"),
    [("max_kl", 0.01, "KL 0.02"), ("min_top1", 0.9, "top-1 agreement 0.8"),
     ("max_ppl_ratio", 1.1, "perplexity 1.2 times")],
)  # fmt: skip
def test_thresholds(threshold: str, value: float, said: str) -> None:
    seen = Behaviour(10, 0.02, 0.1, 0.8, 12.0, 10.0, 1.0)
    lax = {"max_kl": 1.0, "min_top1": 0.5, "max_ppl_ratio": 1.3}
    assert not list(seen.failures(VerifyJob("m", "c", **lax)))
    (failure,) = seen.failures(VerifyJob("m", "c", **{**lax, threshold: value}))
    assert failure.startswith(said)
    slow = replace(seen, decode_kl=2.0)
    assert [f.split(",")[0] for f in slow.failures(VerifyJob("m", "c", **lax))] == [
        "KL 2 token by token"
    ]
    broken = replace(seen, kl=math.nan, top1=math.nan, perplexity=math.nan)
    assert len(list(broken.failures(VerifyJob("m", "c", **lax)))) == 3
    with pytest.raises(ConfigError, match="--" + threshold.replace("_", "-")):
        verify(VerifyJob("m", "c", weights_only=True, **{threshold: -1}))


def test_too_little_text(model: Path, example_awq: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("two words")
    with pytest.raises(ConfigError, match="not enough text"):
        verify(VerifyJob(model, example_awq, text=tmp_path / "short.txt"))
    with pytest.raises(ConfigError, match=r"none\.txt"):
        verify(VerifyJob(model, example_awq, text=tmp_path / "none.txt"))


def test_divergence_against_a_sum_by_hand() -> None:
    """Two positions, three words; numbers worked out from the definition."""
    ours, theirs = np.array([[0.0, 1.0, 2.0], [3.0, 0.0, 0.0]]), np.array([[0.0, 2.0, 1.0]] * 2)
    p, q = (np.exp(x) / np.exp(x).sum(axis=1, keepdims=True) for x in (theirs, ours))
    np.testing.assert_allclose(_log_softmax(ours), np.log(q), rtol=1e-12)
    sums = _Sums()
    sums.add(ours, theirs, np.array([0, 1]))
    assert sums.kl == pytest.approx((p * np.log(p / q)).sum())
    assert sums.kl_max == pytest.approx((p * np.log(p / q)).sum(axis=1).max())
    assert (sums.count, sums.equal, sums.predicted) == (2, 0, 1)
    assert sums.loss == pytest.approx(-np.log(q[0, 1]))
    assert sums.difference == 3.0


def test_bench_measures_what_the_model_can_hold(model: Path) -> None:
    found = bench(BenchJob(model, prompt_tokens=512, decode_tokens=8, batch=2, repeats=2))
    names = [speed.name for speed in found.speeds]
    assert names == ["prefill, 96 tokens", "decode, 1 sequence", "decode, 2 sequences"]
    assert all(0 < speed.min <= speed.median <= speed.max for speed in found.speeds)
    assert found.threads >= 1


def test_a_complete_directory_passes_every_check(model: Path) -> None:
    report = check_artifact(CheckJob(model))
    assert report.passed, report.checks
    found = inspect_artifact(model)
    assert len(set(found.fingerprints.values())) == 1
    assert found.lib["context_window_size"] == 512
    assert not found.findings
