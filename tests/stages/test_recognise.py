"""Five doors, one answer: gen-config, convert, inspect, verify and build's plan."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recognise_cases import (
    EXAMPLE,
    GOLDEN,
    MADE,
    Example,
    another_head,
    float_model,
    grown,
    quantized_head,
    scales_of_their_own,
    write,
)
from tool_layouts import WRITERS, settings

from mlc_bridge import (
    BuildJob,
    ConvertJob,
    GenConfigJob,
    InspectJob,
    build,
    convert_weight,
    gen_config,
    inspect_checkpoint,
)
from mlc_bridge.artifact.tensor_cache import read_index
from mlc_bridge.errors import BridgeError
from mlc_bridge.schemes import SCHEMES
from mlc_bridge.sources import Checkpoint
from mlc_bridge.stages.build import BuildPlan
from mlc_bridge.stages.recognise import detected, open_checkpoint, recognise, survey

SOURCES = sorted(p.parent for p in (GOLDEN / "sources").glob("*/*/expected.safetensors"))
MODELS = sorted((GOLDEN / "models").glob("*.json"))


class Planned(Exception):
    """Ends a build when its plan is known."""


def ask(home: Path, out: Path, **wish: Any) -> dict[str, tuple[str, str]]:
    """Door -> ("scheme", its name) or ("refused", what was said), for the writing doors."""

    def planned() -> str:
        found: list[BuildPlan] = []

        def stop(plan: BuildPlan) -> None:
            found.append(plan)
            raise Planned

        with pytest.raises(Planned):
            build(BuildJob(home, out / "b", conv_template="LM", **wish), announce=stop)
        return found[0].quantization

    doors = {
        "gen-config": lambda: (
            gen_config(
                GenConfigJob(home, out / "c", conv_template="LM", **wish)
            ).config.quantization
        ),
        "build": planned,
        "convert": lambda: convert_weight(ConvertJob(home, out / "w", **wish)).quantization,
    }
    said = {}
    for door, opened in doors.items():
        try:
            said[door] = ("scheme", opened())
        except BridgeError as error:
            said[door] = ("refused", str(error))
    assert (out / "w").exists() == (said["convert"][0] == "scheme")
    shutil.rmtree(out, ignore_errors=True)
    return said


def one_answer(home: Path, out: Path, **wish: Any) -> tuple[str, str]:
    """The answer that all five doors give."""
    said = ask(home, out, **wish)
    assert len(set(said.values())) == 1, said
    kind, text = said["convert"]
    _inspect_agrees(home, kind, text)
    refused = said_by(lambda: survey(*detected(open_checkpoint(home))))  # what verify asks
    assert refused in (None, text)
    return kind, text


def said_by(call: Callable[[], object]) -> str | None:
    try:
        call()
    except BridgeError as error:
        return str(error)
    return None


def _inspect_agrees(home: Path, kind: str, text: str) -> None:
    """It names the scheme exact; else it raises, tells the same, or finds no scheme either."""
    if said_by(lambda: inspect_checkpoint(InspectJob(home))):
        assert kind == "refused"  # by the layer that it read first, perhaps another one
        return
    found = inspect_checkpoint(InspectJob(home))
    exact = {fit.scheme for fit in found.schemes if fit.exact}
    if kind == "scheme":
        assert text in exact | {layer.scheme for layer in found.layers}
        stored = sum(layer.checkpoint_nbytes for layer in found.layers)
        assert stored == found.nbytes
    else:
        told = any(text in finding for finding in found.findings)
        assert told or all(SCHEMES[name].quantizes("embedding") for name in exact)


@pytest.mark.parametrize("case", SOURCES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_every_golden_of_a_tool(case: Path, tmp_path: Path) -> None:
    if refused := said_by(lambda: grown(case, tmp_path / "model")):
        pytest.skip(f"its source refuses it: {refused}")
    home = tmp_path / "model"
    if one_answer(home, tmp_path / "out")[0] == "refused":
        return
    for fit in inspect_checkpoint(InspectJob(home)).schemes:  # what is exact by name, too
        wish = ConvertJob(home, tmp_path / fit.scheme, fit.scheme)
        if not fit.exact:
            assert said_by(lambda job=wish: convert_weight(job)), fit  # type: ignore[misc]
        elif fit.scheme.endswith(("_1", "_gk")):  # one of each family
            assert not convert_weight(wish).requantized


@pytest.mark.parametrize("golden", MODELS, ids=lambda p: p.stem)
def test_every_architecture_in_float(golden: Path, tmp_path: Path) -> None:
    home = float_model(golden, tmp_path / "model")
    assert one_answer(home, tmp_path / "out") == ("scheme", "q0f16")


@pytest.mark.parametrize("case", MADE)
def test_every_made_case(case: str, tmp_path: Path) -> None:
    make, expected = MADE[case]
    kind, text = one_answer(make(tmp_path / "model"), tmp_path / "out")
    assert (text == expected) if kind == "scheme" else re.search(expected, text), text


def test_the_weights_file_may_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As MODEL_DIR itself, and as --source under the user's home."""
    shutil.copytree(EXAMPLE, tmp_path / "model")
    monkeypatch.setenv("HOME", str(tmp_path))
    wanted = ("scheme", "q4f16_autoawq")
    assert one_answer(tmp_path / "model" / "model.safetensors", tmp_path / "out") == wanted
    found = ask(tmp_path / "model", tmp_path / "out", source="~/model/model.safetensors")
    assert set(found.values()) == {wanted}


def test_another_head_is_kept(tmp_path: Path) -> None:
    """As it stands in the file, and said; a copy of the embedding is left out."""
    home = another_head(tmp_path / "model")
    report = convert_weight(ConvertJob(home, tmp_path / "out"))
    kept = read_index(tmp_path / "out").array("lm_head.weight")
    assert np.array_equal(kept, Example().floats["lm_head.weight"])
    assert any("they are kept apart" in finding for finding in report.findings)
    config = gen_config(GenConfigJob(home, tmp_path / "out", conv_template="LM")).config
    assert config.arch_config["tie_word_embeddings"] is False
    assert config.fingerprint == report.fingerprint


def test_what_is_left_out_says_why(tmp_path: Path) -> None:
    example = Example()
    tensors = example.tensors()
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].astype(np.float32)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
    tensors["model.layers.0.mlp.up_proj.bias"] = np.zeros(768, np.float16)
    home = write(tmp_path / "model", tensors, {**example.config, "tie_word_embeddings": True})
    assert recognise(home).left_out == {
        "lm_head.weight": "it is a copy of model.embed_tokens.weight",
        "model.layers.0.self_attn.rotary_emb.inv_freq": "the graph computes it",
        "model.layers.0.mlp.up_proj.bias": "it is zero",
    }


def test_a_key_that_nobody_reads_is_named(tmp_path: Path) -> None:
    """By inspect and gen-config alike; one that changes the maths ends both."""
    home = tmp_path / "model"
    shutil.copytree(EXAMPLE, home)
    told = "unknown in config.json, not used: wavelet_depth"
    edit(home, wavelet_depth=3)
    assert told in inspect_checkpoint(InspectJob(home)).findings
    assert told in gen_config(GenConfigJob(home, tmp_path / "out", conv_template="LM")).notes
    edit(home, clip_qkv=8.0)
    with pytest.raises(BridgeError, match="clip_qkv changes what the model computes"):
        gen_config(GenConfigJob(home, tmp_path / "out", conv_template="LM"))


def edit(home: Path, **changes: Any) -> None:
    path = home / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_scales_of_their_own_stand_apart_under_one_scale(tmp_path: Path) -> None:
    """MLC's scheme has one scale a weight: q, k and v as they are in the file, in three weights."""
    home = scales_of_their_own(tmp_path / "model")
    wish = ConvertJob(home, tmp_path / "out", "e4m3_e4m3_f16")
    findings = " ".join(convert_weight(wish).findings)
    assert "self_attn.c_attn" in findings
    ckpt, source = detected(open_checkpoint(home))
    cache, scheme = read_index(tmp_path / "out"), SCHEMES["e4m3_e4m3_f16"]
    for part in "qkv":
        layer = f"model.layers.0.self_attn.{part}_proj"
        params = {s: cache.array(f"{layer}.{s}") for s in scheme.params(64, 256)}
        exact = source.read(ckpt, layer)
        assert np.array_equal(scheme.decode(params).dequantize(), exact.dequantize())  # type: ignore[union-attr]
    assert {k for k, _ in ask(home, tmp_path / "o", quantization=scheme.name).values()} == {
        "scheme"
    }
    job = ConvertJob(home, tmp_path / "one", scheme.name, requantize="q_proj")
    assert [e.layer.rpartition(".")[2] for e in convert_weight(job).requantized] == ["c_attn"]


@pytest.mark.parametrize("name", WRITERS)
def test_a_named_format_goes_over_the_configs_word(name: str, tmp_path: Path) -> None:
    """The bytes of one tool under another's word: read by name, and only as what they are."""
    example, fmt = Example(), name.partition(" ")[0]
    tensors = example.tensors(name, symmetric=name == "autoawq-marlin")
    right = {**example.config, "quantization_config": settings(name, 128)}
    wrong = {**(settings(name, 128) or {}), "quant_method": "somebody's"}
    home = write(tmp_path / "model", tensors, {**right, "quantization_config": wrong})
    assert {k for k, _ in ask(home, tmp_path / "o").values()} == {"refused"}
    told = ask(home, tmp_path / "o", source_format=fmt)
    assert set(told.values()) == {("scheme", "q4f16_autoawq")}
    assert inspect_checkpoint(InspectJob(home, fmt)).source_format == fmt
    other = "gptq" if fmt != "gptq" else "hf-fp8"
    assert {k for k, _ in ask(home, tmp_path / "o", source_format=other).values()} == {"refused"}


def test_a_quantized_head_lands_as_it_is(tmp_path: Path) -> None:
    """In the scheme's own form, and the graph asks for it; by wish it is rounded to float."""
    home = quantized_head(tmp_path / "model")
    raw = Checkpoint.open(home)
    convert_weight(ConvertJob(home, tmp_path / "out"))
    cache = read_index(tmp_path / "out")
    for suffix in ("qweight", "qzeros", "scales"):
        stored = cache.array(f"lm_head.{suffix}")
        assert np.array_equal(stored.view(raw.dtype(f"lm_head.{suffix}")),
                              raw.tensor(f"lm_head.{suffix}"))  # fmt: skip
    found = recognise(home)
    graph = found.arch.graph(found.config, found.scheme)
    assert {name for name, _ in graph.named_parameters()} == set(found.specs) == set(cache.records)
    job = ConvertJob(home, tmp_path / "float", found.scheme.name, requantize="lm_head")
    assert [e.layer for e in convert_weight(job).requantized] == ["lm_head"]
    assert read_index(tmp_path / "float").array("lm_head.weight").dtype == np.float16
