"""Refusals that help: what the file is, in one short paragraph, and advice that was followed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mlc_bridge.errors import SourceError, UnknownFormat
from mlc_bridge.sources import SOURCES, Checkpoint, detect
from mlc_bridge.sources.foreign import FILES, FOREIGN, INSTEAD, Foreign, foreign
from mlc_bridge.sources.tensor_file import Entry
from mlc_bridge.stages.convert_weight import ConvertJob, convert_weight

L = "model.layers.0.mlp.up_proj"
QARGS = {"num_bits": 4, "type": "float"}


def ct(form: str) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": QARGS, "format": form}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": {"g": group}}


def modelopt(algo: str) -> dict[str, Any]:
    return {"quant_method": "modelopt", "quant_algo": algo, "ignore": ["lm_head"]}


# As the tools write them in 2026: settings, and a layer's tensors by their endings, with dtypes.
WRITTEN: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "compressed-tensors MXFP8": (ct("mxfp8-quantized"), {".weight": "u1", ".weight_scale": "u1"}),
    "ModelOpt INT4 AWQ": (modelopt("W4A16_AWQ"), {".weight": "u1", ".pre_quant_scale": "f2"}),
    "bitsandbytes FP4": (
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
        {".weight": "u1", ".weight.absmax": "u1", ".weight.quant_state.bitsandbytes__fp4": "u1"}),
    "HQQ": ({"quant_method": "hqq", "quant_config": {}}, {".W_q": "u1", ".zero": "f2"}),
    "SINQ": ({"quant_method": "sinq", "nbits": 4}, {".W_q": "u1", ".scale2": "f2"}),
    "torchao": (
        {"quant_method": "torchao", "quant_type": {"default": {}}}, {".weight:qdata": "u1"}),
    "MLX": (
        {"group_size": 64, "bits": 4, "mode": "affine"},
        {".weight": "u4", ".scales": "f2", ".biases": "f2"}),
    "EXL3 of ExLlamaV3": ({"quant_method": "exl3", "version": "0.0.6"}, {".trellis": "i2"}),
    "AQLM": ({"quant_method": "aqlm"}, {".codes": "i2", ".codebooks": "f2"}),
    "VPTQ": ({"quant_method": "vptq"}, {".centroids.weight": "f2"}),
    "EETQ": ({"quant_method": "eetq", "weights": "int8"}, {".weight": "i1"}),
    "quanto": ({"quant_method": "quanto", "weights": "int4"}, {".weight._data": "u1"}),
    "BitNet": ({"quant_method": "bitnet"}, {".weight": "u1", ".weight_scale": "f2"}),
    "ParoQuant": (
        {"quant_method": "paroquant", "bits": 4, "group_size": 128},
        {".qweight": "i4", ".qzeros": "i4", ".scales": "f2", ".theta": "f2"}),
    "Google's mobile quantization": (
        {"quant_method": "gemma"}, {".weight": "u1", ".weight_scale": "f4"}),
    "SpQR": ({"quant_method": "spqr", "bits": 3}, {".dense_weights": "i8"}),
    "HIGGS": ({"quant_method": "higgs", "bits": 4}, {".weight": "u1"}),
    "FP-Quant": ({"quant_method": "fp_quant"}, {".qweight": "u1"}),
    "AutoRound MXFP": (
        {"quant_method": "auto-round", "data_type": "mx_fp", "packing_format": "auto_round:x"},
        {".weight_packed": "u1"}),
}  # fmt: skip


def checkpoint(settings: dict[str, Any], tensors: dict[str, str]) -> Checkpoint:
    dtypes = {"model.norm.weight": "f2", **{f"{L}{end}": dtype for end, dtype in tensors.items()}}
    file = Path("model.safetensors")
    entries = {name: Entry(file, np.dtype(d), (64, 64), 0, 0) for name, d in dtypes.items()}
    config = {"model_type": "llama", **({"quantization_config": settings} if settings else {})}
    return Checkpoint(Path("a-checkpoint"), config, entries)


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("wanted", [None, "compressed-tensors", "autoawq"])
def test_what_the_file_is(name: str, wanted: str | None) -> None:
    settings, tensors = WRITTEN[name]
    with pytest.raises(UnknownFormat) as error:
        detect(checkpoint(settings, tensors), wanted)
    text = str(error.value)
    assert text.startswith(f"a-checkpoint: this is {name} (")
    assert "not supported" in text
    assert INSTEAD in text
    assert len(text) < 400
    assert not any(f"{source} (" in text for source in SOURCES)


@pytest.mark.parametrize("row", FOREIGN, ids=lambda row: row.name)
def test_every_row_is_reached(row: Foreign) -> None:
    """By what the row itself says; no row before it takes the same."""
    settings = {"quant_method": row.methods[0]} if row.methods else {}
    text = " ".join(row.words).replace('"', "")
    settings |= {"checkpoint_format": text.rpartition(" ")[2]} if text else {}
    ends = {f".x{row.tensors[0]}" if row.tensors else ".weight": "u1"}
    found = foreign(settings, checkpoint(settings, ends).names)
    assert found is not None
    assert found.name == row.name


GOLDEN = Path(__file__).parents[1] / "golden" / "sources"


def test_no_row_takes_what_is_read() -> None:
    for case in sorted(GOLDEN.glob("*/*/config.json")):
        ckpt = Checkpoint.open(case.parent)
        assert foreign(ckpt.settings, ckpt.names) is None, case


@pytest.mark.parametrize("ending", FILES)
def test_files_of_others(tmp_path: Path, ending: str) -> None:
    (tmp_path / f"model{ending.upper()}").write_bytes(b"x")
    for path in (tmp_path, tmp_path / f"model{ending.upper()}"):
        with pytest.raises(SourceError, match=f"this is a file of {FILES[ending]}: not supported"):
            Checkpoint.open(path)


def test_instead_the_float_model(example_float: Path, tmp_path: Path) -> None:
    """What every row advises."""
    assert "--quantization q4f16_1" in INSTEAD
    convert_weight(ConvertJob(example_float, tmp_path / "out", "q4f16_1"))
    assert (tmp_path / "out" / "tensor-cache.json").is_file()


def saved(home: Path, model: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    model.half().save_pretrained(home)
    return load_file(home / "model.safetensors"), json.loads((home / "config.json").read_text())


def write(home: Path, tensors: dict[str, np.ndarray], config: dict[str, Any]) -> Path:
    home.mkdir(exist_ok=True)
    save_file({n: np.ascontiguousarray(a) for n, a in tensors.items()}, home / "model.safetensors")
    (home / "config.json").write_text(json.dumps(config))
    return home


def tiny(arch: str, **over: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    sizes = {
        "vocab_size": 128, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32,
        "bos_token_id": None, "eos_token_id": 2, "max_position_embeddings": 64,
    }  # fmt: skip
    config = transformers.AutoConfig.for_model(arch, **{**sizes, **over})
    return transformers.AutoModelForCausalLM.from_config(config)


def converts(home: Path, output: Path) -> bool:
    convert_weight(ConvertJob(home, output, "q0f16"))
    return (output / "tensor-cache.json").is_file()


def test_no_head_in_the_file(tmp_path: Path) -> None:
    tensors, config = saved(tmp_path / "tied", tiny("llama", tie_word_embeddings=True))
    untied = write(tmp_path / "untied", tensors, {**config, "tie_word_embeddings": False})
    with pytest.raises(SourceError, match=r"lm_head\.weight: .* tie_word_embeddings true"):
        converts(untied, tmp_path / "out")
    assert converts(write(untied, tensors, config), tmp_path / "out")


def test_names_with_another_prefix(tmp_path: Path) -> None:
    model = tiny("llama", tie_word_embeddings=False)
    tensors, config = saved(tmp_path / "whole", model)
    assert converts(tmp_path / "whole", tmp_path / "out")
    for prefix in ("", "transformer."):
        moved = {name.replace("model.", prefix): array for name, array in tensors.items()}
        home = write(tmp_path / f"moved{prefix}", moved, config)
        with pytest.raises(SourceError, match=rf"another prefix.* begin with model\. .*{prefix}"):
            converts(home, tmp_path / "out")
