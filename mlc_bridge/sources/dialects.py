"""Other tools' words for bytes that a source reads: their settings in the words of that source.

A tool that writes another tool's layout describes it in its own config. ``own_words`` turns such a
config into the one that the layout's own tool would have written, so that the readers know one
vocabulary each. What is unknown stays as it is, and no source takes it.

=====================  ============================================  ==============================
quant_method           says by                                       read as
=====================  ============================================  ==============================
awq_marlin             -                                             awq (the word of a server)
gptq_marlin            -                                             gptq
auto-round,            packing_format (older: backend)               awq, gptq (``auto_gptq`` keeps
intel/auto-round, inc                                                zeros less 1, others do not)
modelopt               quant_algo FP8, FP8_PER_CHANNEL_PER_TOKEN     fp8
fbgemm_fp8             -                                             fp8, a scale per row
quark                  global_quant_config.weight.dtype fp8_e4m3     fp8; fp4: modelopt
modelopt_fp4           -                                             modelopt
=====================  ============================================  ==============================

Origin: auto-round 0.16 inference/backend.py, ModelOpt 0.47 and transformers 5.23 configs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Settings = Mapping[str, Any]


def own_words(settings: Settings, wanted: str | None = None) -> dict[str, Any]:
    """``settings`` as the tool of the layout itself writes them.

    ``wanted``: the source that the user named; its tool's words replace what the settings say.
    """
    if wanted in SILENT:
        return {}
    method = settings.get("quant_method")
    translate = DIALECTS.get(method) if isinstance(method, str) else None
    own = translate(settings) if translate else {}
    return {**settings, **own, **(WORDS.get(wanted, {}) if wanted else {})}


def _auto_round(settings: Settings) -> Settings:
    """AutoRound names the layout behind a colon, and single layers in ``extra_config``."""
    packing = settings.get("packing_format") or settings.get("backend")
    if not packing and settings.get("sym") is True:  # its zeros prove the version
        packing = "auto_round:auto_gptq"
    layers = settings.get("extra_config")
    own = _overrides(layers if isinstance(layers, dict) else {})
    return {"desc_act": False, **_packing(str(packing)), "dynamic": own}


def _packing(word: str) -> Settings:
    if word.endswith(("auto_awq", ":awq")):
        return {"quant_method": "awq", "version": "gemm"}
    if word.endswith((":auto_gptq", ":gptq")):
        return {"quant_method": "gptq", "checkpoint_format": "gptq"}
    if word == "auto_round" or word.endswith((":gptqmodel", ":exllamav2", ":tritonv2")):
        return {"quant_method": "gptq", "checkpoint_format": "gptq_v2"}
    return {}


def _overrides(layers: Settings) -> Settings:
    """Names or patterns with settings of their own, as GPTQModel's ``dynamic``."""
    return {f"+:(?:{name})$": own for name, own in layers.items()}


def _modelopt(settings: Settings) -> Settings:
    known = settings.get("quant_algo") in ("FP8", "FP8_PER_CHANNEL_PER_TOKEN")
    return {"quant_method": "fp8"} if known else {}


def _quark(settings: Settings) -> Settings:
    everywhere = settings.get("global_quant_config")
    weight = everywhere.get("weight") if isinstance(everywhere, dict) else None
    dtype = weight.get("dtype") if isinstance(weight, dict) else None
    read_as = {"fp8_e4m3": "fp8", "fp4": "modelopt"}.get(str(dtype))
    return {"quant_method": read_as} if read_as else {}


SILENT = ("dense", "llm-awq")
"""Sources whose tools write no settings."""
WORDS: Mapping[str, Settings] = {
    "autoawq": {"quant_method": "awq", "version": "gemm"},
    "autoawq-gemv": {"quant_method": "awq", "version": "gemv"},
    "autoawq-gemv-fast": {"quant_method": "awq", "version": "gemv_fast"},
    "autoawq-marlin": {"quant_method": "awq", "version": "marlin"},
    "gptq": {"quant_method": "gptq"},
    "compressed-tensors": {"quant_method": "compressed-tensors"},
    "hf-fp8": {"quant_method": "fp8"},
    "modelopt": {"quant_method": "modelopt"},
    "mxfp4": {"quant_method": "mxfp4"},
    "bitsandbytes": {"quant_method": "bitsandbytes"},
}
"""The words of each source's own tool, for ``--source-format``."""
DIALECTS: Mapping[str, Callable[[Settings], Settings]] = {
    "awq_marlin": lambda _: {"quant_method": "awq"},
    "gptq_marlin": lambda _: {"quant_method": "gptq"},
    "auto-round": _auto_round,
    "intel/auto-round": _auto_round,
    "inc": _auto_round,
    "modelopt": _modelopt,
    "modelopt_fp4": lambda _: {"quant_method": "modelopt"},
    "fbgemm_fp8": lambda _: {"quant_method": "fp8"},
    "quark": _quark,
}
