"""Detection explains itself; parameters a format cannot have are refused by tensor name."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from mlc_bridge.errors import ConfigError, SourceError, UnknownFormat
from mlc_bridge.sources import SOURCES, Checkpoint, detect
from mlc_bridge.sources.foreign import foreign
from mlc_bridge.sources.tensor_file import Entry

GOLDEN = Path(__file__).parents[1] / "golden" / "sources"
Q = "model.layers.0.self_attn.q_proj"


def edited(
    tmp_path: Path,
    case: str,
    settings: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray | None] | None = None,
) -> Checkpoint:
    """A copy of a golden case with settings and tensors changed (None: removed)."""
    home = tmp_path / "model"
    shutil.copytree(GOLDEN / case, home, ignore=shutil.ignore_patterns("expected*"))
    config = json.loads((home / "config.json").read_text())
    config["quantization_config"] = {**config.get("quantization_config", {}), **(settings or {})}
    (home / "config.json").write_text(json.dumps(config))
    arrays: dict[str, Any] = {**load_file(home / "model.safetensors"), **(tensors or {})}
    save_file({k: v for k, v in arrays.items() if v is not None}, home / "model.safetensors")
    return Checkpoint.open(home)


def test_unknown_method_is_said_and_every_candidate_is_on_the_error(tmp_path: Path) -> None:
    ckpt = edited(tmp_path, "autoawq/w4-g128", {"quant_method": "unheard_of"})
    with pytest.raises(UnknownFormat, match="'unheard_of' is of a tool that is not known") as error:
        detect(ckpt)
    assert set(error.value.evidence) == set(SOURCES)
    assert "quant_method 'unheard_of'" in "".join(error.value.evidence["autoawq"].contradicts)


@pytest.mark.parametrize("wanted", ["awq", "autoawq", "auto", None])
def test_wanted(wanted: str | None) -> None:
    assert detect(Checkpoint.open(GOLDEN / "autoawq/w4-g128"), wanted).name == "autoawq"


def test_wanted_but_contradicted() -> None:
    ckpt = Checkpoint.open(GOLDEN / "autoawq/w4-g128")
    with pytest.raises(UnknownFormat, match=r"not a checkpoint of .* dense.*quant_method 'awq'"):
        detect(ckpt, "dense")
    with pytest.raises(ConfigError, match="unknown name in sources"):
        detect(ckpt, "aqlm")


CASE = "autoawq/w4-g32"
BAD = {
    "bits 3": ({"bits": 3}, {}, "4-bit codes.*bits 3"),
    "bits 8": ({"bits": 8}, {}, "4-bit codes.*bits 8"),
    "group does not divide": ({"group_size": 96}, {}, "group_size 96 .* and 8 groups"),
    "group of another size": ({"group_size": 64}, {}, "group_size 64 .* and 8 groups"),
    "group is text": ({"group_size": "128"}, {}, "group_size '128' .* and 8 groups"),
    "group is zero": ({"group_size": 0}, {}, "group_size 0 .* and 8 groups"),
    "no scales": ({}, {f"{Q}.scales": None}, f"{Q}.scales: the checkpoint lacks"),
    "no zeros": ({}, {f"{Q}.qzeros": None}, f"{Q}.qzeros: the checkpoint lacks"),
    "scales of ints": ({}, {f"{Q}.scales": np.ones((8, 64), np.int32)}, "scales: wrong dtype"),
    "qzeros of floats": ({}, {f"{Q}.qzeros": np.ones((8, 8), np.float32)}, "qzeros: wrong dtype"),
    "qweight a vector": ({}, {f"{Q}.qweight": np.ones(8, np.int32)}, "qweight: not a matrix"),
}


@pytest.mark.parametrize("case", BAD)
def test_autoawq_parameters(tmp_path: Path, case: str) -> None:
    settings, tensors, message = BAD[case]
    ckpt = edited(tmp_path, CASE, settings, tensors)
    source = SOURCES["autoawq"]
    with pytest.raises(SourceError, match=message):
        source.read(ckpt, Q)
    with pytest.raises(SourceError, match=Q):
        source.check(ckpt, Q, (64, 256))


VERSIONS = [name for name in SOURCES if name.startswith("autoawq")]


@pytest.mark.parametrize("name", VERSIONS)
def test_shape_unlike_the_config(name: str) -> None:
    ckpt = Checkpoint.open(GOLDEN / name / "w4-g128")
    SOURCES[name].check(ckpt, Q, (64, 256))
    for shape in ((128, 256), (64, 512), (256, 64)):
        with pytest.raises(SourceError, match=rf"{Q}\.qweight: wrong shape"):
            SOURCES[name].check(ckpt, Q, shape)


@pytest.mark.parametrize("name", VERSIONS)
@pytest.mark.parametrize("part", ["qweight", "qzeros", "scales"])
@pytest.mark.parametrize("damage", ["missing", "wrong dtype", "wrong shape"])
def test_every_part_of_every_version_is_checked(
    tmp_path: Path, name: str, part: str, damage: str
) -> None:
    whole = load_file(GOLDEN / name / "w4-g128" / "model.safetensors")
    if f"{Q}.{part}" not in whole:
        pytest.skip("this version has no such tensor")
    old = whole[f"{Q}.{part}"]
    new = {"missing": None, "wrong dtype": old.astype(np.int64), "wrong shape": old[:-1]}[damage]
    ckpt = edited(tmp_path, f"{name}/w4-g128", tensors={f"{Q}.{part}": new})
    with pytest.raises(SourceError, match=Q):
        SOURCES[name].check(ckpt, Q, (64, 256))


def test_zero_points_that_are_no_whole_numbers(tmp_path: Path) -> None:
    zeros = load_file(GOLDEN / "autoawq-gemv-fast/w4-g128/model.safetensors")[f"{Q}.qzeros"]
    tensors = {f"{Q}.qzeros": (zeros * 1.3).astype(np.float16)}
    ckpt = edited(tmp_path, "autoawq-gemv-fast/w4-g128", tensors=tensors)
    with pytest.raises(SourceError, match=r"qzeros: not minus the scale times a whole"):
        SOURCES["autoawq-gemv-fast"].read(ckpt, Q)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.0])
def test_scales_that_cannot_be(tmp_path: Path, value: float) -> None:
    scales = load_file(GOLDEN / CASE / "model.safetensors")[f"{Q}.scales"].copy()
    scales[3, 5] = value
    ckpt = edited(tmp_path, CASE, tensors={f"{Q}.scales": scales})
    with pytest.raises(SourceError, match=rf"{Q}\.scales: 1 of .* at \[3, 5\]"):
        SOURCES["autoawq"].read(ckpt, Q)


def test_float_layer_wherever_it_is(tmp_path: Path) -> None:
    """LLMC's mixed precision leaves single layers float and the config's list empty."""
    weight = np.ones((64, 256), np.float16)
    gone = {f"{Q}.{part}": None for part in ("qweight", "qzeros", "scales")}
    tensors = {f"{Q}.weight": weight, **gone}
    ckpt = edited(tmp_path, "autoawq/w4-g128", tensors=tensors)
    source = detect(ckpt)
    assert source.name == "autoawq"
    source.check(ckpt, Q, (64, 256))
    assert np.array_equal(source.read(ckpt, Q), weight)
    assert source.parts(ckpt, Q) == (f"{Q}.weight",)
    assert Q not in source.layers(ckpt)


@pytest.mark.parametrize(("listed", "is_float"), [(["self_attn"], True), (["gate"], False)])
def test_modules_to_not_convert_are_substrings(
    tmp_path: Path, listed: list[str], is_float: bool
) -> None:
    ckpt = edited(
        tmp_path,
        CASE,
        {"modules_to_not_convert": listed},
        {f"{Q}.weight": np.ones((64, 256), np.float16)},
    )
    assert isinstance(SOURCES["autoawq"].read(ckpt, Q), np.ndarray) == is_float


def test_settings_in_text_config_and_in_a_file_of_their_own(tmp_path: Path) -> None:
    home = tmp_path / "model"
    shutil.copytree(GOLDEN / CASE, home)
    (home / "expected.safetensors").unlink()
    settings = json.loads((home / "config.json").read_text())["quantization_config"]
    (home / "config.json").write_text(
        json.dumps({"text_config": {"quantization_config": settings}})
    )
    assert detect(Checkpoint.open(home)).name == "autoawq"
    (home / "config.json").write_text("{}")
    (home / "quant_config.json").write_text(
        json.dumps({"w_bit": 4, "q_group_size": 32, "version": "GEMM", "zero_point": True})
    )
    ckpt = Checkpoint.open(home)
    assert detect(ckpt).name == "autoawq"
    assert SOURCES["autoawq"].read(ckpt, Q).block == (1, 32)


AWQ_CASES = sorted(p.name for p in (GOLDEN / "autoawq").iterdir())


@pytest.mark.parametrize("case", AWQ_CASES)
def test_overrun_codes_are_found(case: str) -> None:
    """One file holds codes of -1 that LightCompress wrote; the others are clean."""
    findings = SOURCES["autoawq"].findings(Checkpoint.open(GOLDEN / "autoawq" / case))
    assert bool(findings) == case.endswith("overflow")
    assert all("run over its neighbours" in text and Q in text for text in findings)


@settings(deadline=None, max_examples=60)
@given(
    st.dictionaries(
        st.sampled_from(
            ["quant_method", "version", "bits", "format", "checkpoint_format", "w_bit"]
        ),
        st.sampled_from(["awq", "gptq", "gemm", "fp8", "compressed-tensors", 4, None, "marlin"]),
    ),
    st.sets(
        st.sampled_from(
            [
                "weight",
                "qweight",
                "qzeros",
                "scales",
                "weight_packed",
                "weight_scale",
                "scaled_zeros",
            ]
        ),
        min_size=1,
    ),
    st.sampled_from([np.int32, np.int16, np.float16, np.int8]),
)
def test_detection_always_answers_or_explains(
    quantization: dict[str, Any], suffixes: set[str], dtype: Any
) -> None:
    """Whatever config and tensors say: one source whose evidence holds, or one paragraph."""
    entries = {
        f"layer.{s}": Entry(Path("model.safetensors"), np.dtype(dtype), (64, 64), 0, 0)
        for s in sorted(suffixes)
    }
    ckpt = Checkpoint(Path(), {"quantization_config": quantization}, entries)
    fitting = [name for name, source in SOURCES.items() if source.matches(ckpt)]
    if len(fitting) == 1 and foreign(ckpt.settings, ckpt.names) is None:
        assert detect(ckpt).name == fitting[0]
        return
    with pytest.raises(UnknownFormat) as error:
        detect(ckpt)
    assert set(error.value.evidence) == set(SOURCES)
    assert len(str(error.value)) < 400


ODD = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 200) | st.sampled_from(["", "group", "4", "re:("]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.just("x"), inner, max_size=1),
    max_leaves=3,
)
KEYS = {
    "autoawq/w4-g32": ["bits", "group_size", "modules_to_not_convert", "version"],
    "gptq/w4-g32-sym-v2": ["bits", "group_size", "dynamic", "checkpoint_format", "sym"],
    "hf-fp8/block128": ["weight_block_size", "activation_scheme", "modules_to_not_convert"],
    "compressed-tensors/pack-int4-sym-g32": [
        "config_groups", "format", "ignore", "sparsity_config", "transform_config", "weights",
        "targets", "num_bits", "group_size", "strategy", "block_structure", "symmetric",
    ],
}  # fmt: skip


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_odd_settings_are_read_or_refused(data: st.DataObject) -> None:
    """Values of any kind in a config: the layer is read, or the error is one of ours."""
    case = data.draw(st.sampled_from(sorted(KEYS)))
    ckpt = Checkpoint.open(GOLDEN / case)
    quantization = ckpt.config["quantization_config"]
    places = [quantization]
    for group in quantization.get("config_groups", {}).values():
        places += [group, group["weights"]]
    for key in data.draw(st.sets(st.sampled_from(KEYS[case]), min_size=1, max_size=2)):
        data.draw(st.sampled_from(places))[key] = data.draw(ODD)
    source = SOURCES[case.partition("/")[0]]
    source.evidence(ckpt)
    for layer in source.layers(ckpt):
        with contextlib.suppress(SourceError):
            source.read(ckpt, layer)
