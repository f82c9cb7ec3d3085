"""The command line: ours, and msModelSlim's with its script's name replaced."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlc_bridge.cli import main
from mlc_bridge.sources import SOURCES, Checkpoint


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr("sys.argv", ["mlc-bridge", "quantize", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_msmodelslims_command(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = tmp_path / "texts.jsonl"
    texts.write_text("\n".join(json.dumps({"inputs_pretokenized": t}) for t in ("import os", "x")))
    code = run(
        monkeypatch, "--model_path", tiny, "--save_directory", tmp_path / "out", "--calib_file",
        texts, "--w_bit", 8, "--a_bit", 8, "--anti_method", "m4", "--act_method", 1,
        "--disable_names", "model.layers.0.mlp.down_proj", "lm_head", "--tp_size", 2,
    )  # fmt: skip
    assert code == 0
    assert "tp_size has no effect" in capsys.readouterr().out
    ckpt = Checkpoint.open(tmp_path / "out")
    source = SOURCES["msmodelslim"]
    assert source.matches(ckpt)
    assert len(source.layers(ckpt)) == 13
    described = json.loads((tmp_path / "out/quant_model_description.json").read_text())
    assert described["model.layers.0.mlp.down_proj.weight"] == "FLOAT"
    assert described["model.layers.1.mlp.down_proj.weight"] == "W8A8"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--w_bit", "8"], "model_dir: missing"),
        (["MODEL", "-o", "OUT", "--recipe", "rtn-w4a16", "--w-bit", "8"], "at once"),
        (["MODEL", "-o", "OUT"], "no recipe"),
    ],
)
def test_what_is_missing_is_said(
    words: list[str],
    said: str,
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"MODEL": str(tiny), "OUT": str(tmp_path / "out")}
    assert run(monkeypatch, *(places.get(w, w) for w in words)) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()
