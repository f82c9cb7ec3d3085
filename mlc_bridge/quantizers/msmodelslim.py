"""msModelSlim's options by their own names, each doing what ``quant_llama.py`` really does.

    --w_bit 8 --a_bit 8 --anti_method m4 --act_method 1 --disable_level L5 --model_type llama2

``OPTIONS`` says of each option what it is; those without effect in the tool have none here, and a
note says so. What the script decides by itself is done the same: ``mm_tensor`` is ignored (scales
are per channel), with a_bit 8 and no ``disable_names`` layers stay float by ``model_type``, and a
larger ``disable_threshold`` leaves fewer of them in float (the tool's guide says the opposite).

Origin: msmodelslim 3de0a3c, ``example/Llama/quant_llama.py``; msmodelslim 26.1.0.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from mlc_bridge.errors import ConfigError
from mlc_bridge.quantizers.recipe import Recipe, unknown_key

WHERE = "msModelSlim's options"
LLAMA3 = "llama3"
BY_TYPE = {
    "llama": ("re:.*\\.down_proj",),
    "llama2": ("re:.*\\.down_proj",),
    "llama3.1_bf": ("re:.*\\.down_proj",),
    "llama3": ("re:.*\\.layers\\.[0-4]\\..*", "lm_head"),
    "llama3.1_fp": ("re:.*\\.down_proj", "re:.*\\.layers\\.[0-4]\\..*", "lm_head"),
    "llama3.1_instruct": ("re:.*\\.down_proj", "re:.*\\.layers\\.[0-4]\\..*", "lm_head"),
}
"""Layers that the script leaves float under a_bit 8 when no names are given."""


def _flag(text: str) -> bool:
    if str(text).lower() not in ("true", "false", "1", "0", ""):
        raise ValueError("a switch: true or false")
    return str(text).lower() in ("true", "1", "")


def _level(text: str) -> int:
    if re.fullmatch(r"L(0|[1-9]\d*)", text) is None:
        raise ValueError("L0, L1, L2 ...")
    return int(text[1:])


def _one_of(*words: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in words:
            raise ValueError(" or ".join(words))
        return text

    return read


OPTIONS: dict[str, tuple[Callable[[str], Any], str]] = {
    "w_bit": (int, "Bits of a weight: 4 or 8."),
    "a_bit": (int, "Bits of an input: 8, or 16 for none."),
    "w_sym": (_flag, "Symmetric weights."),
    "act_method": (int, "Range of stored inputs: 1 min-max, 2 histogram, 3 either."),
    "anti_method": (_one_of("m1", "m2", "m3", "m4", "m5", "m6"), "Scaling of outliers: m1 to m6."),
    "model_type": (_one_of(*BY_TYPE), "Which layers stay float without disable_names."),
    "disable_names": (str.split, "Layers left in float, names with blanks between."),
    "disable_level": (_level, "L5: the five layers hardest to quantize stay float."),
    "disable_threshold": (float, "Of the named layers those with a larger score stay float."),
    "disable_last_linear": (_flag, "The head stays float."),
    "is_dynamic": (_flag, "Inputs are quantized at run time, by token."),
    "is_lowbit": (_flag, "4-bit weights by group, or sparse ones."),
    "open_outlier": (_flag, "Sparse 4-bit weights with outliers (with is_lowbit)."),
    "group_size": (int, "Input columns that share a scale (with is_lowbit)."),
    "co_sparse": (_flag, "Sparse 4-bit weights, old way."),
    "fraction": (float, "Share of the weights that are outliers."),
    "use_sigma": (_flag, "Outliers by the standard deviation."),
    "sigma_factor": (float, "How many of them."),
    "do_smooth": (_flag, "A search that is not here."),
    "pdmix": (_flag, "Inputs by token in prefill, stored scales in decode."),
    "use_kvcache_quant": (_flag, "Scales of an int8 KV cache."),
    "use_fa_quant": (_flag, "Scales of int8 attention."),
    "fa_amp": (int, "Attention layers left in float."),
    "part_file_size": (int, "Gigabytes a weights file."),
    "calib_file": (str, "Calibration data."),
    "anti_calib_file": (str, "Data for anti_method; calib_file without it."),
    "calib_texts": (str, "No effect beside calib_file."),
    "mm_tensor": (_flag, "No effect: the script scales by channel."),
    "tp_size": (int, "No effect, in the script neither."),
    "use_reduce_quant": (_flag, "No effect: scales of sums between devices."),
    "mindie_format": (_flag, "The older names of files and tensors."),
    "device_type": (str, "No effect: quantizing runs on the CPU."),
    "trust_remote_code": (_flag, "Refused."),
}
NO_EFFECT = ("mm_tensor", "tp_size", "use_reduce_quant", "device_type", "calib_texts",
             "anti_calib_file")  # fmt: skip
EDITS: dict[str, dict[str, Any]] = {
    "m1": {"method": "smooth", "alpha": 0.5, "beta": 0.5},
    "m2": {"method": "os_plus"},
    "m3": {"method": "awq", "first_batch": True},
    "m4": {"method": "smooth", "alpha": 0.9, "beta": 0.1, "outputs": True},
    "m5": {"method": "outliers"},
    "m6": {"method": "flex"},
}


def read_options(options: Mapping[str, str]) -> tuple[Recipe, str | None]:
    """The recipe, and the calibration file named in it."""
    given = {_name(key): _value(_name(key), text) for key, text in options.items()}
    if given.get("trust_remote_code"):
        raise ConfigError("code of a checkpoint is never run", where=f"{WHERE}: trust_remote_code")
    if given.get("do_smooth"):
        raise ConfigError("the tool's search of smoothing scales is closed and not here",
                          where=f"{WHERE}: do_smooth", todo="Leave it out")  # fmt: skip
    w_bit, a_bit = given.get("w_bit", 8), given.get("a_bit", 8)
    if given.get("fa_amp"):
        raise ConfigError("the tool's choice of attention layers left in float is closed",
                          where=f"{WHERE}: fa_amp", expected=0)  # fmt: skip
    anti = given.get("anti_method")
    recipe = {
        "name": f"msmodelslim W{w_bit}A{a_bit}" + (f" {anti}" if anti else ""),
        "edits": [EDITS[anti]] if anti else [],
        "keep": _keep(given, a_bit),
        "inputs": _inputs(given, a_bit),
        "cache": "int8" if given.get("use_kvcache_quant") else "float",
        "attention": bool(given.get("use_fa_quant", False)),
        "chained": False,
        "calibration": {"join": False, "template": False, "length": 1 << 20},
        "output": _output(given),
        "notes": [f"{key} has no effect: {OPTIONS[key][1]}" for key in NO_EFFECT if key in given],
        **_weights(given, w_bit, a_bit),
    }
    return Recipe.of(recipe, WHERE), given.get("calib_file")


def _name(key: str) -> str:
    name = key.replace("-", "_")
    if name not in OPTIONS:
        raise unknown_key(name, OPTIONS, WHERE)
    return name


def _value(name: str, text: str) -> Any:
    try:
        return OPTIONS[name][0](text)
    except ValueError as error:
        expected = str(error) if "invalid literal" not in str(error) else "a number"
        raise ConfigError("cannot be used", where=f"{WHERE}: {name}", found=text,
                          expected=expected) from None  # fmt: skip


def _keep(given: Mapping[str, Any], a_bit: int) -> dict[str, Any]:
    names = given.get("disable_names")
    if names is None:
        names = BY_TYPE[given.get("model_type", "llama2")] if a_bit == 8 else ()
    return {
        "names": list(names),
        "last_linear": given.get("disable_last_linear", True),
        "level": given.get("disable_level", 0),
        "threshold": given.get("disable_threshold", 0.0),
    }


def _inputs(given: Mapping[str, Any], a_bit: int) -> dict[str, Any]:
    if a_bit not in (8, 16):
        raise ConfigError("inputs have 8 bits, or 16 for none", where=f"{WHERE}: a_bit",
                          found=a_bit)  # fmt: skip
    kind = "static" if a_bit == 8 else "float"
    if a_bit == 8 and given.get("pdmix"):
        kind = "mixed"
    elif a_bit == 8 and given.get("is_dynamic"):
        kind = "dynamic"
    return {"kind": kind, "method": given.get("act_method", 1)}


def _weights(given: Mapping[str, Any], w_bit: int, a_bit: int) -> dict[str, Any]:
    lowbit, outlier = given.get("is_lowbit", False), given.get("open_outlier", True)
    symmetric = given.get("w_sym", True)
    channel: dict[str, Any] = {"bits": 8, "symmetric": True, "granularity": "channel"}
    groups = {"granularity": "group", "group_size": given.get("group_size", 64)}
    if w_bit == 4 and a_bit == 8 and (given.get("co_sparse") or (lowbit and outlier)):
        rounding: dict[str, Any] = {"method": "sparse", "fraction": given.get("fraction", 0.01)}
        if lowbit:
            rounding["per_row"] = True
            rounding["sigma"] = given.get("sigma_factor", 3.0) if given.get("use_sigma") else None
        return {"weights": channel, "rounding": rounding}
    if w_bit == 4 and a_bit == 8:
        if not (lowbit and given.get("is_dynamic")):
            raise ConfigError("W4A8 is dynamic and by group, or sparse", where=WHERE,
                              expected="is_lowbit, is_dynamic and open_outlier false; or "
                              "co_sparse")  # fmt: skip
        grid = {**channel, **groups, "bits": 4}
        return {"weights": grid, "rounding": {"method": "progressive"}}
    if w_bit not in (4, 8):
        raise ConfigError("weights have 4 or 8 bits", where=f"{WHERE}: w_bit", found=w_bit)
    by_group = groups if lowbit and not outlier else {}
    return {"weights": {**channel, "bits": w_bit, "symmetric": symmetric, **by_group}}


def _output(given: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"format": "msmodelslim"}
    if "part_file_size" in given:
        found["shard_bytes"] = given["part_file_size"] * 10**9
    found["safe_tensor"] = bool(given.get("mindie_format", False))
    return found
