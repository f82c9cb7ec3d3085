"""Wrong settings are never read as right ones, and silent ones are answered by the shapes.

Every key of every golden's quantization settings is deleted and changed: the file is refused, or
the weights are what they were.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mutants import CASES, GOLDEN, case_id, outcome, shapes_of, weights, with_config

from mlc_bridge.errors import SourceError
from mlc_bridge.sources import SOURCES, Checkpoint, detect

GONE = object()
ODD: tuple[Any, ...] = (
    GONE, None, True, False, 0, 1, -1, 4, 8, 32, 64, 128, 256, 1.5, "", "4", "gemm", "gemv",
    "gemv_fast", "marlin", "gptq", "gptq_v2", "awq", "fp8", "group", "channel", "tensor", "block",
    "weight", "int", "float", [], {}, [64, 64], [128, 128], {"a": 1}, ["Linear"], ["re:.*"],
)  # fmt: skip
CONFIGURED = [case for case in CASES if "quantization_config" in Checkpoint.open(case).config]


def keys(settings: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in settings.items():
        yield (*above, key)
        if isinstance(value, dict) and key != "meta":
            yield from keys(value, (*above, key))


def near(value: Any) -> tuple[Any, ...]:
    """Values that look right beside this one."""
    if type(value) is int:
        return value - 1, value + 1, value // 2, value * 2, value * 3 // 2
    if isinstance(value, list) and value and type(value[0]) is int:
        return tuple([x, *value[1:]] for x in near(value[0])) + tuple(
            [*value[:-1], x] for x in near(value[-1])
        )
    return ()


def changed(settings: Mapping[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    new = copy.deepcopy(dict(settings))
    place = new
    for key in path[:-1]:
        place = place[key]
    if value is GONE:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return new


@pytest.mark.parametrize("case", CONFIGURED, ids=case_id)
def test_every_key_deleted_and_changed(case: Path) -> None:
    ckpt, shapes = Checkpoint.open(case), shapes_of(case)
    wanted, settings = weights(ckpt, shapes), ckpt.config["quantization_config"]
    silent = []
    for path in keys(settings):
        now = settings
        for key in path:
            now = now[key]
        for value in (*ODD, *near(now)):
            config = {**ckpt.config, "quantization_config": changed(settings, path, value)}
            if outcome(with_config(ckpt, config), shapes, wanted) == "silent":
                silent.append((path, value))
    assert not silent


SILENT = {
    "autoawq/w4-g32": ("bits", "group_size", "version"),
    "autoawq-gemv/w4-g64": ("bits", "group_size", "version"),
    "autoawq-gemv/w4-gK": ("bits", "group_size", "version"),
    "autoawq-gemv-fast/w4-g32": ("bits", "group_size", "version"),
    "autoawq-marlin/w4-g128": ("bits", "group_size", "version"),
    "gptq/w4-g128-asym-v2": ("bits", "group_size"),
    "gptq/w8-g128-sym-v1": ("bits", "group_size"),
    "hf-fp8/block128-partial": ("weight_block_size",),
}


@pytest.mark.parametrize("case", SILENT)
def test_a_silent_config_is_answered_by_the_shapes(case: str) -> None:
    """All of them gone at once: the same weights, and the user is told."""
    ckpt, shapes = Checkpoint.open(GOLDEN / case), shapes_of(GOLDEN / case)
    settings = ckpt.config["quantization_config"]
    less = {key: value for key, value in settings.items() if key not in SILENT[case]}
    silent = with_config(ckpt, {**ckpt.config, "quantization_config": less})
    assert outcome(silent, shapes, weights(ckpt, shapes)) == "same"
    (told,) = [x for x in detect(silent).findings(silent) if "does not say" in x]
    assert all(key in told for key in SILENT[case])
    assert not [x for x in detect(ckpt).findings(ckpt) if "does not say" in x]


def test_zeros_that_differ_are_read_whatever_sym_says() -> None:
    """The zeros are in the file, and no kernel of GPTQ's goes by ``sym`` where they are."""
    case = GOLDEN / "gptq/w4-g64-asym-v1"
    ckpt, shapes = Checkpoint.open(case), shapes_of(case)
    settings = {**ckpt.config["quantization_config"], "sym": True}
    told = with_config(ckpt, {"quantization_config": settings})
    assert outcome(told, shapes, weights(ckpt, shapes)) == "same"


def test_an_order_that_nothing_speaks_of_is_told() -> None:
    ckpt = Checkpoint.open(GOLDEN / "gptq/w4-g128-asym-v2")
    entries = {n: e for n, e in ckpt.entries.items() if not n.endswith("g_idx")}
    for desc_act, told in ((None, True), (False, False)):
        settings = {**ckpt.config["quantization_config"], "desc_act": desc_act}
        bare = replace(with_config(ckpt, {"quantization_config": settings}), entries=entries)
        found = detect(bare).findings(bare)
        assert any("the columns of a group lie together" in text for text in found) is told


def test_versions_that_contradict_each_other() -> None:
    ckpt = Checkpoint.open(GOLDEN / "gptq/w4-g64-asym-v1")
    for key in ("format", "checkpoint_format"):
        settings = {**ckpt.config["quantization_config"], key: "gptq_v2"}
        evidence = SOURCES["gptq"].evidence(with_config(ckpt, {"quantization_config": settings}))
        assert "the config says checkpoint_format gptq and gptq_v2" in evidence.contradicts


def test_version_2_read_as_version_1_is_told_by_sym() -> None:
    ckpt = Checkpoint.open(GOLDEN / "gptq/w4-g32-sym-v2")
    words = {"format": "gptq", "checkpoint_format": "gptq"}
    settings = {**ckpt.config["quantization_config"], **words}
    with pytest.raises(SourceError, match="found 9, expected 8"):
        SOURCES["gptq"].read(
            with_config(ckpt, {"quantization_config": settings}), "model.layers.0.self_attn.q_proj"
        )
