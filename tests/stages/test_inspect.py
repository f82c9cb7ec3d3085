"""inspect: facts about checkpoints and MLC directories, and damage that it must show."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mlc_bridge import (
    CheckJob,
    ConvertJob,
    GenConfigJob,
    InspectJob,
    check_artifact,
    convert_weight,
    gen_config,
    inspect_artifact,
    inspect_checkpoint,
)
from mlc_bridge.artifact.inventory import INDEX, INVENTORY, Entry
from mlc_bridge.schemes import SCHEMES


def test_awq_checkpoint(example_awq: Path) -> None:
    found = inspect_checkpoint(InspectJob(example_awq))
    assert (found.source_format, found.model_type, found.supported) == ("autoawq", "llama", True)
    (kind,) = found.kinds
    assert (kind.layers, kind.bits, kind.block, kind.zeros) == (42, 4, "group 128", "per block")
    assert found.float_layers == ("lm_head", "model.embed_tokens")
    assert len(found.codes) == 42
    assert not any(use.outlier for use in found.codes)
    assert found.nbytes == (example_awq / "model.safetensors").stat().st_size - header(example_awq)
    exact = {fit.scheme for fit in found.schemes if fit.exact}
    assert {"q4f16_autoawq", "q4f16_autoawq_g64", "q4f16_autoawq_g32"} <= exact
    assert all(fit.exact or fit.reason for fit in found.schemes)
    assert "gptq" in found.evidence
    assert found.evidence["gptq"].contradicts


def header(model: Path) -> int:
    """Bytes before the first tensor."""
    with (model / "model.safetensors").open("rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")


def test_float_checkpoint(example_float: Path) -> None:
    found = inspect_checkpoint(InspectJob(example_float))
    assert (found.source_format, found.kinds, found.codes) == ("dense", (), ())
    assert [fit.scheme for fit in found.schemes if fit.exact] == ["q0f16"]
    assert {part.pattern for part in found.parts} >= {"model.layers.*.self_attn.q_proj.weight"}


def test_samples_only_reads_one_layer_of_every_kind(example_awq: Path) -> None:
    found = inspect_checkpoint(InspectJob(example_awq, samples_only=True))
    assert len(found.codes) == 7
    assert found.schemes == inspect_checkpoint(InspectJob(example_awq)).schemes


def test_a_spoilt_layer_is_an_outlier(example_awq: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(example_awq, model)
    tensors = dict(load_file(model / "model.safetensors"))
    name = "model.layers.3.mlp.up_proj"
    tensors[f"{name}.qweight"] = np.zeros_like(tensors[f"{name}.qweight"])
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    found = inspect_checkpoint(InspectJob(model))
    assert [use.layer for use in found.codes if use.outlier] == [name]


def test_unknown_format_is_explained_not_raised(example_awq: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(example_awq, model)
    config = json.loads((model / "config.json").read_text())
    config["quantization_config"]["quant_method"] = "nonesuch"
    (model / "config.json").write_text(json.dumps(config))
    found = inspect_checkpoint(InspectJob(model))
    assert found.source_format is None
    assert "nonesuch" in " ".join(found.findings)
    assert found.parts


def test_every_scheme_of_the_table_is_answered(example_awq: Path) -> None:
    found = inspect_checkpoint(InspectJob(example_awq, samples_only=True))
    linear = {name for name, scheme in SCHEMES.items() if scheme.quantizes("linear")}
    assert {fit.scheme for fit in found.schemes} == linear


@pytest.fixture
def artifact(example_awq: Path, tmp_path: Path) -> Path:
    """Config and weights, no lib."""
    output = tmp_path / "model"
    gen_config(GenConfigJob(example_awq, output))
    convert_weight(ConvertJob(example_awq, output, "q4f16_autoawq"))
    return output


def failed(directory: Path, **flags: object) -> dict[str, str]:
    report = check_artifact(CheckJob(directory, **flags))  # type: ignore[arg-type]
    assert report.passed == all(check.passed for check in report.checks)
    return {check.name: check.detail for check in report.checks if not check.passed}


def test_artifact_without_lib(artifact: Path) -> None:
    found = inspect_artifact(artifact)
    assert (found.model_type, found.quantization) == ("llama", "q4f16_autoawq")
    assert found.n_params == 87
    assert found.dtypes["uint32"][0] == 48
    assert found.fingerprints["config"] == found.fingerprints["weights"] is not None
    assert found.fingerprints["lib"] is None
    assert "no compiled lib" in " ".join(found.findings)
    assert list(failed(artifact)) == ["lib"]


def said(directory: Path, name: str, **flags: object) -> str:
    report = check_artifact(CheckJob(directory, **flags))  # type: ignore[arg-type]
    return next(check.detail for check in report.checks if check.name == name)


def flip(path: Path, at: int = 1000) -> None:
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("sums", ["both", "digests", "md5"])
def test_damaged_bytes_are_named(artifact: Path, sums: str) -> None:
    if sums == "digests":
        without_md5(artifact)
    elif sums == "md5":
        (artifact / INVENTORY).unlink()
    flip(artifact / "params_shard_0.bin")
    assert "params_shard_0.bin: damaged" in failed(artifact)["weights"]
    assert "weights" not in failed(artifact, md5=False)
    assert "no byte was read" in said(artifact, "weights", md5=False)
    (artifact / "params_shard_0.bin").write_bytes(b"x")
    assert "damaged" in failed(artifact, md5=False)["weights"]


def without_md5(artifact: Path) -> None:
    """As weights above MD5_BELOW are written."""
    path = artifact / INDEX
    index = json.loads(path.read_text())
    for shard in index["records"]:
        del shard["md5sum"]
    path.write_text(json.dumps(index))
    relist(artifact, INDEX)


def relist(artifact: Path, name: str) -> None:
    listed = json.loads((artifact / INVENTORY).read_text())
    listed["files"][name] = Entry.of(artifact / name).model_dump()
    (artifact / INVENTORY).write_text(json.dumps(listed))


def test_says_what_was_compared_and_what_was_not(artifact: Path) -> None:
    assert said(artifact, "weights") == (
        "87 parameters in 1 shard, lengths agree, XXH3 digests of 1 shard agree, "
        "md5 sums of 1 shard agree"
    )
    count = len([path for path in artifact.iterdir() if path.name != INVENTORY]) - 1
    assert said(artifact, "files") == f"{count} are as they were written"
    assert said(artifact, "files", md5=False) == f"{count} are listed, none was read"
    without_md5(artifact)
    assert said(artifact, "weights").endswith("lengths agree, XXH3 digests of 1 shard agree")
    (artifact / INVENTORY).unlink()
    assert said(artifact, "weights").endswith("neither digest nor md5 sum for 1 shard")
    assert said(artifact, "files") == "no mlc-bridge.json: none was compared"


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", INDEX])
def test_a_changed_file_is_named(artifact: Path, name: str) -> None:
    path = artifact / name
    path.write_text(path.read_text() + " ")
    assert f"{name}: damaged or changed" in failed(artifact)["files"]


def test_an_edited_config_and_leftovers_are_told(artifact: Path) -> None:
    path = artifact / "mlc-chat-config.json"
    path.write_text(path.read_text().replace('"temperature": 1.0', '"temperature": 0.5'))
    others = len(list(artifact.iterdir())) - 3  # but for itself, the list and the shard
    for name in (".mlc-bridge-work", ".mlc-bridge-weights"):
        (artifact / name).mkdir()
    (artifact / "params_shard_9.bin").write_text("")
    (artifact / "README.md").write_text("mine")
    assert said(artifact, "files") == (
        f"{others} are as they were written; mlc-chat-config.json was edited since; "
        "left by a run that was killed or still writes: .mlc-bridge-weights, .mlc-bridge-work; "
        "shards of no known run: params_shard_9.bin"
    )
    listed = json.loads((artifact / INVENTORY).read_text())
    (artifact / INVENTORY).write_text(json.dumps(listed | {"unfinished": True}))
    assert "killed while it moved" in failed(artifact)["files"]


def test_other_peoples_weights_are_named(artifact: Path) -> None:
    path = artifact / "mlc-chat-config.json"
    config = json.loads(path.read_text())
    config["mlc_bridge"]["fingerprint"] = "0" * 64
    path.write_text(json.dumps(config))
    assert "different builds" in failed(artifact)["config and weights"]


def test_each_missing_thing_is_one_line(artifact: Path) -> None:
    (artifact / "tokenizer.json").unlink()
    assert "tokenizer" in failed(artifact)
    (artifact / "tensor-cache.json").unlink()
    assert {"tokenizer", "weights", "numbers"} <= set(failed(artifact))
    (artifact / "mlc-chat-config.json").unlink()
    assert "gen-config" in failed(artifact)["config"]
    assert inspect_artifact(artifact).n_params == 0


def test_config_that_contradicts_itself(artifact: Path) -> None:
    path = artifact / "mlc-chat-config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"vocab_size": 5000}))
    assert "4096 and 5000" in failed(artifact)["config"]
    path.write_text(json.dumps(config | {"vocab_size": 100, "model_config": {
        **config["model_config"], "vocab_size": 100}}))  # fmt: skip
    assert "another model's tokenizer" in failed(artifact)["tokenizer"]
    config["conv_template"] |= {"stop_token_ids": [], "stop_str": []}
    path.write_text(json.dumps(config))
    assert "nothing ends an answer" in failed(artifact)["config"]


def test_uncalibrated_scales_are_named(example_float: Path, tmp_path: Path) -> None:
    output = tmp_path / "fp8"
    gen_config(GenConfigJob(example_float, output, "e4m3_e4m3_f16"))
    convert_weight(ConvertJob(example_float, output, "e4m3_e4m3_f16"))
    assert "q_calibration_scale" in failed(output)["numbers"]
