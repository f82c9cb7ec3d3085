"""LLMC's YAML as it is: each key is used, has no effect here (and a note says so), or is refused.

``quant.method`` Awq, GPTQ, RTN, SmoothQuant, OsPlus, OmniQuant, Quarot (offline); ``save_mlcllm``,
``save_autoawq``, ``save_vllm``, ``save_fake`` and ``save_trans`` choose format and folder as LLMC's
own exporters do, below the output directory, which takes the place of ``save_path``. Other than in
LLMC, losses are means over all batches, so ``bs`` has no influence, and a symmetric grid can be
exported.

Origin: LightCompress 9701d03, ``configs/`` and ``__main__.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mlc_bridge.errors import ConfigError
from mlc_bridge.quantizers.recipe import Recipe, unknown_key

KEYS = {
    "": "base model calib eval quant save ignored_layers opencompass sparse",
    "base": "seed",
    "model": "type path tokenizer_mode torch_dtype use_cpu_to_save_cuda_mem_for_catcher",
    "calib": "name download path n_samples bs seq_len preproc seed padding load_from_txt"
    " apply_chat_template",
    "quant": "method modality quant_out weight act kvcache special tp token_reduction",
    "quant.weight": "bit symmetric granularity group_size block_size head_num calib_algo ste"
    " ste_all round_zp int_range quant_type use_qtorch float_range need_pack pack_version"
    " mse_b_num maxshrink mse_grid bins",
    "quant.act": "bit symmetric granularity group_size static calib_algo quant_attn quant_softmax"
    " quant_act_fn quant_type",
    "quant.special": "true_sequential weight_clip clip_version clip_sym save_clip clip_path"
    " save_scale scale_path online_rotate fp32_had do_gqa_trans trans trans_version awq_bs"
    " save_mem actorder static_groups percdamp blocksize chunk_num owq n_outs aug_loss lwc let"
    " lwc_lr let_lr attn_lr use_shift alpha deactive_amp epochs wd search_clip_init load_clip"
    " search_scale_init smooth_up_down rotate_mode",
    "save": "save_trans save_fake save_vllm save_sgl save_lightllm save_autoawq save_mlcllm"
    " save_lightx2v save_trtllm trtllm_cfg save_path",
}
"""Every key of LLMC's schema that a recipe for a language model has, by section."""
# What would change the numbers and is not here: key -> what it would mean.
REFUSED = {
    "quant.kvcache": "a quantized KV cache is the runtime's business",
    "quant.token_reduction": "token pruning is for vision models",
    "quant.special.online_rotate": "rotations that run at run time have no place in MLC's graph",
    "quant.special.owq": "outlier columns in float have no place in MLC's layouts",
    "quant.special.let": "learned scales are not here; AWQ's scaling before OmniQuant is",
    "quant.special.use_shift": "a shift needs biases on every layer",
    "quant.special.clip_path": "clips of another run cannot be loaded",
    "quant.special.scale_path": "scales of another run cannot be loaded",
    "quant.special.load_clip": "clips of another run cannot be loaded",
    "quant.special.do_gqa_trans": "scaling shared value heads is not here",
    "quant.act.quant_attn": "quantized attention is not here",
    "quant.act.quant_softmax": "quantized attention is not here",
    "quant.act.quant_act_fn": "a quantized activation function is not here",
    "quant.weight.int_range": "codes have the whole range of their bits",
}
SAVES = {
    "save_mlcllm": ("autoawq", "mlcllm_quant_model"),
    "save_autoawq": ("autoawq", "autoawq_quant_model"),
    "save_vllm": ("compressed-tensors", "vllm_quant_model"),
    "save_fake": ("float", "fake_quant_model"),
    "save_trans": ("float", "transformed_model"),
}
JOINED = ("wikitext2_gptq", "ptb_gptq", "c4_gptq", "pileval_awq", "random_truncate_txt")


def is_llmc(values: Mapping[str, Any]) -> bool:
    return isinstance(values.get("quant"), dict) and "method" in values["quant"]


def read_llmc(values: Mapping[str, Any], where: Path) -> tuple[Recipe, str | None]:
    """The recipe, and the calibration data where ``calib.path`` leads to some."""
    _check_keys(values, where)
    quant = values["quant"]
    special, weight = quant.get("special") or {}, quant.get("weight") or {}
    method = METHODS.get(str(quant["method"]))
    if method is None:
        raise ConfigError("this method is not here", where=f"{where}: quant.method",
                          found=quant["method"], expected=", ".join(METHODS))  # fmt: skip
    calib = values.get("calib") or {}
    saved = _saved(values.get("save") or {}, where)
    recipe = {
        "name": where.stem,
        "weights": _grid(weight, where),
        "inputs": _inputs(quant.get("act"), where),
        "chained": bool(quant.get("quant_out", False)),
        "sequential": bool(special.get("true_sequential", False)),
        "keep": {"names": _ignored(values.get("ignored_layers") or {})},
        "calibration": _calibration(calib, values),
        "output": saved,
        "notes": _notes(values),
        **method(special),
    }
    if saved["folder"] == "transformed_model":
        recipe |= {"rounding": {"method": "none"}, "clip": False}
    path = calib.get("path")
    data = str(path) if isinstance(path, str) and Path(path).is_file() else None
    return Recipe.of(recipe, where), data


def _awq(special: Mapping[str, Any]) -> dict[str, Any]:
    edit = {"method": "awq", "version": special.get("trans_version", "v2")}
    return {
        "edits": [edit] if special.get("trans", True) else [],
        "clip": bool(special.get("weight_clip", False)),
    }


def _gptq(special: Mapping[str, Any]) -> dict[str, Any]:
    return {"rounding": {
        "method": "gptq",
        "damping": special.get("percdamp", 0.01),
        "block": special.get("blocksize", 128),
        "order": bool(special.get("actorder", False)),
        "static_groups": bool(special.get("static_groups", False)),
    }}  # fmt: skip


def _omniquant(special: Mapping[str, Any]) -> dict[str, Any]:
    return {"rounding": {
        "method": "omniquant",
        "epochs": special.get("epochs", 5),
        "rate": special.get("lwc_lr", 0.01),
        "decay": special.get("wd", 0),
        "second_loss": bool(special.get("aug_loss", False)),
        "from_clip": bool(special.get("search_clip_init", False)),
    }}  # fmt: skip


def _smoothquant(special: Mapping[str, Any]) -> dict[str, Any]:
    alpha = special.get("alpha", 0.5)
    return {"edits": [{"method": "smooth", "alpha": alpha, "beta": 1 - alpha}]}


def _quarot(special: Mapping[str, Any]) -> dict[str, Any]:
    kind = special.get("rotate_mode", "hadamard")
    return {"edits": [{"method": "rotate", "kind": kind, "values": False}]}


METHODS: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "RTN": lambda special: {"clip": bool(special.get("weight_clip", False))},
    "Awq": _awq,
    "GPTQ": _gptq,
    "OmniQuant": _omniquant,
    "SmoothQuant": _smoothquant,
    "OsPlus": lambda special: {"edits": [{"method": "os_plus"}]},
    "Quarot": _quarot,
}


def _check_keys(values: Mapping[str, Any], where: Path, path: str = "") -> None:
    for key, value in values.items():
        name = f"{path}.{key}" if path else str(key)
        if path in KEYS and key not in KEYS[path].split():
            raise unknown_key(str(key), KEYS[path].split(), where, name)
        if name in REFUSED and value:
            raise ConfigError(REFUSED[name], where=f"{where}: {name}", found=value,
                              todo="Leave it out")  # fmt: skip
        if isinstance(value, dict) and name in KEYS:
            _check_keys(value, where, name)


def _grid(weight: Mapping[str, Any], where: Path) -> dict[str, Any]:
    granularity = str(weight.get("granularity", "per_group")).removeprefix("per_")
    at = f"{where}: quant.weight"
    bits = weight.get("bit")
    if weight.get("quant_type") == "float-quant" or not isinstance(bits, int):
        raise ConfigError("float weights are not made here", where=at, found=bits,
                          todo="Convert with --quantization e4m3_e4m3_f16 instead")  # fmt: skip
    if weight.get("round_zp") is False or weight.get("pack_version") == "gemv_pack":
        raise ConfigError("neither float zeros nor gemv_pack can be exported", where=at)
    fit = weight.get("calib_algo", "minmax")
    if fit not in ("minmax", "mse", "learnable"):
        raise ConfigError("this range is not here", where=f"{at}.calib_algo", found=fit,
                          expected="minmax, mse, learnable")  # fmt: skip
    return {
        "bits": bits,
        "symmetric": bool(weight.get("symmetric", False)),
        "granularity": granularity,
        "group_size": weight.get("group_size", 128),
        "fit": "mse" if fit == "mse" else "minmax",
    }


def _inputs(act: Mapping[str, Any] | None, where: Path) -> dict[str, Any]:
    if not act:
        return {"kind": "float"}
    static = bool(act.get("static", False))
    granularity = act.get("granularity", "per_token")
    wanted = "per_tensor" if static else "per_token"
    if act.get("bit") != 8 or granularity != wanted:
        found = f"{act.get('bit')} bits {granularity}"
        raise ConfigError("inputs have 8 bits, one scale a token, or a stored one a tensor",
                          where=f"{where}: quant.act", found=found, expected=wanted)  # fmt: skip
    histogram = act.get("calib_algo") == "static_hist"
    return {
        "kind": "static" if static else "dynamic",
        "symmetric": bool(act.get("symmetric", False)),
        "method": 2 if histogram else 1,
    }


def _calibration(calib: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    found = {
        "samples": calib.get("n_samples", 128),
        "length": calib.get("seq_len", 512),
        "join": calib.get("preproc", JOINED[0]) in JOINED,
        "template": bool(calib.get("apply_chat_template", False)),
        "seed": calib.get("seed", (values.get("base") or {}).get("seed", 0)),
    }
    return {key: value for key, value in found.items() if value is not None}


def _saved(save: Mapping[str, Any], where: Path) -> dict[str, Any]:
    wanted = [key for key, value in save.items() if value is True]
    if unknown := [key for key in wanted if key not in SAVES]:
        raise ConfigError("this export is not here", where=f"{where}: save", found=unknown[0],
                          expected=", ".join(SAVES))  # fmt: skip
    if len(wanted) > 1:
        raise ConfigError("one export a run", where=f"{where}: save", found=" and ".join(wanted))
    form, folder = SAVES[wanted[0]] if wanted else ("compressed-tensors", None)
    return {"format": form, "folder": folder}


def _ignored(layers: Mapping[str, Any]) -> list[str]:
    """``block_ids`` (numbers, or "0-3") and ``layer_names`` as patterns of layers."""
    inside = layers.get("layer_names") or ["*"]
    blocks: list[int] = []
    for item in layers.get("block_ids") or ():
        first, _, last = str(item).partition("-")
        blocks += range(int(first), int(last or first) + 1)
    if not layers.get("block_ids"):
        return [f"*layers.*.{name}" for name in inside] if layers.get("layer_names") else []
    return [f"*layers.{i}.{name}" for i in blocks for name in inside]


def _notes(values: Mapping[str, Any]) -> list[str]:
    notes = []
    if (path := (values.get("model") or {}).get("path")) is not None:
        notes.append(f"model.path {path} has no effect: the model is the one that was named")
    if values.get("eval"):
        notes.append("eval has no effect: --heldout FILE measures perplexity and KL")
    return notes
