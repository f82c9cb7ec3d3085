"""The certificate: what an artifact was made of and proven to be, and what of it still holds."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import xxhash

from mlc_bridge import (
    CheckJob,
    ConvertJob,
    GenConfigJob,
    VerifyJob,
    VerifyReport,
    check_artifact,
    convert_weight,
    gen_config,
    verify,
)
from mlc_bridge.artifact.inventory import INVENTORY, Inventory
from mlc_bridge.sources import Checkpoint
from mlc_bridge.stages import certificate
from mlc_bridge.stages.behaviour import Behaviour
from mlc_bridge.stages.verify import _certify

BEHAVIOUR = Behaviour(512, 1.7e-6, 2.1e-5, 0.9985, 14.7, 14.7, 0.01)


@pytest.fixture(scope="module")
def converted(example_awq: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint and its artifact without a library."""
    root = tmp_path_factory.mktemp("certified")
    home = shutil.copytree(example_awq, root / "model")
    gen_config(GenConfigJob(home, root / "out", conv_template="chatml"))
    convert_weight(ConvertJob(home, root / "out"))
    return home, root / "out"


@pytest.fixture
def made(converted: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    home, out = converted
    return home, shutil.copytree(out, tmp_path / "out")


def section(out: Path, name: str) -> Any:
    return json.loads((out / INVENTORY).read_text())[name]


def said(out: Path, **wishes: Any) -> tuple[bool, str]:
    checks = check_artifact(CheckJob(out, **wishes)).checks
    return next((c.passed, c.detail) for c in checks if c.name == "certificate")


def test_what_it_was_made_from(made: tuple[Path, Path]) -> None:
    home, out = made
    found = section(out, "made_from")
    data = (home / "model.safetensors").read_bytes()
    assert found["files"]["model.safetensors"] == {
        "nbytes": len(data), "xxh3_128": xxhash.xxh3_128_hexdigest(data)
    }  # fmt: skip
    assert {"config.json", "model.safetensors"} <= set(found["files"])
    assert found["source_format"] == "autoawq"
    assert "model.layers.*.mlp.down_proj" in found["schemes"]["q4f16_autoawq"]
    assert "model.norm" in found["schemes"]["q0f16"]
    assert found["rounded"] == {}
    assert found["job"]["model_dir"] == str(home)
    assert "output" not in found["job"]


def test_what_was_rounded_is_named_with_its_error(example_awq: Path, tmp_path: Path) -> None:
    job = ConvertJob(example_awq, tmp_path, "q4f16_1", requantize=True)
    report = convert_weight(job)
    found = section(tmp_path, "made_from")
    assert {e.layer: e.relative for e in report.requantized} == {
        layer: error["relative"] for layer, error in found["rounded"].items()
    }
    assert len(found["rounded"]) > 20
    assert found["schemes"]["q4f16_1"]


def test_deep_reads_the_checkpoint(converted: tuple[Path, Path], tmp_path: Path) -> None:
    home, out = (shutil.copytree(path, tmp_path / path.name) for path in converted)
    listed = json.loads((out / INVENTORY).read_text())
    listed["made_from"]["checkpoint"] = str(home)
    (out / INVENTORY).write_text(json.dumps(listed))
    assert said(out, deep=True) == (True, said(out, deep=True)[1])
    assert "files are as they were" in said(out, deep=True)[1]
    with (home / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x7f")
    assert said(out)[0]  # it was not asked for
    passed, why = said(out, deep=True)
    assert not passed
    assert "no longer the one" in why
    shutil.rmtree(home)
    assert "not here" in said(out, deep=True)[1]


def test_what_verify_found_holds_for_the_files_it_read(made: tuple[Path, Path]) -> None:
    home, out = made
    (out / "lib.so").write_bytes(b"\x7fELF of this test")
    weights = verify(VerifyJob(out, home, weights_only=True)).weights
    job, report = VerifyJob(out, home), VerifyReport(True, (), weights, BEHAVIOUR)
    origin = Checkpoint.open(home)
    _certify(job, report, origin)
    found = section(out, "verified")
    assert found["behaviour"]["kl"] == BEHAVIOUR.kl
    assert "shlex" in found["text"]["name"]
    assert len(found["text"]["sha256"]) == 64
    assert found["versions"]["torch"]
    passed, told = said(out)
    assert passed
    assert "KL 1.7e-06, top-1 99.85%; weights and lib are those it read" in told
    assert Inventory.read(out) is not None  # the list of files is still whole
    card = dict(certificate.card_rows(out))
    assert card["rounded"].startswith("nothing")
    assert card["same likeliest token"] == "99.85% of 512 positions"
    (out / "lib.so").write_bytes(b"\x7fELF of another build")
    assert "perplexity" not in dict(certificate.card_rows(out))
    assert "verified before lib.so changed" in said(out)[1]


def test_a_model_that_did_not_pass_is_told(made: tuple[Path, Path], tmp_path: Path) -> None:
    home, out = made
    weights = verify(VerifyJob(out, home, weights_only=True)).weights
    bad = replace(BEHAVIOUR, kl=0.3)
    job, report = VerifyJob(out, home), VerifyReport(False, ("KL 0.3 > 0.001",), weights, bad)
    other = shutil.copytree(home, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.1}))
    _certify(job, report, Checkpoint.open(other))
    assert said(out)[0]  # another checkpoint proves nothing about this model
    _certify(job, report, Checkpoint.open(shutil.copytree(home, tmp_path / "copy")))
    passed, why = said(out)
    assert not passed
    assert "KL 0.3" in why


def test_it_is_the_same_every_time(made: tuple[Path, Path], tmp_path: Path) -> None:
    home, out = made
    convert_weight(ConvertJob(home, tmp_path / "again"))
    assert section(tmp_path / "again", "made_from") == section(out, "made_from")


def test_a_directory_that_cannot_be_written_is_left(made: tuple[Path, Path]) -> None:
    _, out = made
    before = (out / INVENTORY).read_bytes()
    (out / f".{INVENTORY}.part").mkdir()
    assert not certificate.write(out, "verified", {"passed": True})
    assert (out / INVENTORY).read_bytes() == before
    (out / INVENTORY).unlink()
    assert not certificate.write(out, "verified", {})
    assert said(out) == (True, "none: made by MLC LLM or an older version")
