"""The text model of a multimodal checkpoint, under the names that a text model has.

config.json nests it in ``text_config`` (older Qwen2-VL files are flat), and its tensors have a
prefix that depends on the tool that saved them:

===========================  ===========================  =================================
text model                   head                         e.g.
===========================  ===========================  =================================
language_model.model.layers  language_model.lm_head       Gemma 3, Mistral Small 3, LLaVA
model.language_model.layers  lm_head                      Qwen3-VL, what transformers 5 saves
model.text_model.layers      lm_head                      Idefics3, SmolVLM
model.layers                 lm_head                      Qwen2-VL, Qwen2.5-VL
===========================  ===========================  =================================

``text_part`` gives a view of the checkpoint with names as in the last row, so that sources and
models know nothing of it. What sees and hears is left out by ``OTHERS``; a tensor that no rule
names stays under its own name, and is refused where every tensor must have a place.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from mlc_bridge.errors import SourceError
from mlc_bridge.sources import Checkpoint

NESTED = ("text_config", "llm_config")
# The text model's model_type -> the architecture that computes the same for a prompt of text: with
# equal positions in all sections of mrope, it is plain rotary embedding.
TYPES = {
    "qwen2_vl_text": "qwen2",
    "qwen2_5_vl_text": "qwen2",
    "qwen3_vl_text": "qwen3",
    "qwen3_vl_moe_text": "qwen3_moe",
}
# The whole's model_type -> the text model's, where text_config has none or all lies flat.
WITHOUT = {
    "gemma3": "gemma3_text",
    "idefics3": "llama",
    "internvl": "qwen2",
    "llava": "llama",
    "mistral3": "mistral",
    "paligemma": "gemma",
    "qwen2_vl": "qwen2_vl_text",
    "qwen2_5_vl": "qwen2_5_vl_text",
    "qwen3_vl": "qwen3_vl_text",
    "qwen3_5": "qwen3_5_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
    "smolvlm": "llama",
}
# Their text models attend to a prompt in both directions, which older configs do not say.
BIDIRECTIONAL = ("paligemma",)
# Keys of the whole that hold for its text model too.
SHARED = (
    "quantization_config", "compression_config", "torch_dtype", "dtype", "transformers_version",
    "bos_token_id", "eos_token_id", "pad_token_id",
)  # fmt: skip
# Keys of a flat config that tell of images only.
FLAT = (
    "vision_config", "image_token_id", "video_token_id", "vision_start_token_id",
    "vision_end_token_id", "vision_token_id",
)  # fmt: skip
PREFIXES = (
    "language_model.model.",
    "model.language_model.",
    "model.text_model.",
    "language_model.",
    "model.",
)
HEADS = ("language_model.lm_head.", "lm_head.")
OTHERS = {
    "the vision tower": ("vision_tower.", "vision_model.", "visual."),
    "the projector": ("multi_modal_projector.", "connector.", "mlp1."),
    "the image tokens": ("image_newline",),
}


def text_config(config: Mapping[str, Any], names: Collection[str] = ()) -> dict[str, Any]:
    """config.json of the text model; the same again where it is no part of a whole.

    With a head among the tensors ``names``, text_config's own word on tying counts: transformers
    writes one for the whole, which is not always looked at.
    """
    inner = next((config[key] for key in NESTED if isinstance(config.get(key), dict)), None)
    if inner is None and not isinstance(config.get("vision_config"), dict):
        return dict(config)
    if inner is None:
        text = {key: value for key, value in config.items() if key not in FLAT}
    else:
        text = {**{key: config[key] for key in SHARED if key in config}, **inner}
    whole = str(config.get("model_type"))
    kind = str((inner or {}).get("model_type") or WITHOUT.get(whole, whole))
    text["model_type"] = TYPES.get(kind, kind)
    if whole in BIDIRECTIONAL:
        text["use_bidirectional_attention"] = True
    tied = [block.get("tie_word_embeddings") for block in (config, inner or {})]
    said = reversed(tied) if any(name.startswith(HEADS) for name in names) else tied
    if (first := next((word for word in said if word is not None), None)) is not None:
        text["tie_word_embeddings"] = first
    return text


def text_part(ckpt: Checkpoint) -> Checkpoint:
    """The view of its text model; ``ckpt`` itself where there is nothing else in it."""
    config = text_config(ckpt.config, ckpt.names)
    if config == ckpt.config:
        return ckpt
    prefix = next((p for p in PREFIXES if _has_layers(ckpt, p)), "model.")
    head = next((h for h in HEADS if any(n.startswith(h) for n in ckpt.names)), "lm_head.")
    view = replace(ckpt, config=config, renamed={"model.": prefix, "lm_head.": head})
    outside = {name: part for name in ckpt.names if (part := _other(name))}
    entries = {}
    for name, entry in ckpt.entries.items():
        if name in outside:
            continue
        if (own := view.named(name)) in entries:
            raise SourceError(
                "the text model has this tensor twice", where=name, found=f"also as {own}",
                todo="Which of the two is meant cannot be known; fetch the checkpoint again",
            )  # fmt: skip
        entries[own] = entry
    return replace(view, entries=entries, outside=outside)


def told(outside: Mapping[str, str]) -> tuple[str, ...]:
    """What was left out, a sentence for every part."""
    found = []
    for part in dict.fromkeys(outside.values()):
        names = [name for name, of in outside.items() if of == part]
        whole = "the text model alone is read: " if part in OTHERS else ""
        found.append(f"{whole}left out are {len(names)} tensors of {part}; the first is {names[0]}")
    return tuple(found)


def _has_layers(ckpt: Checkpoint, prefix: str) -> bool:
    return any(
        name.startswith((f"{prefix}layers.", f"{prefix}embed_tokens.")) for name in ckpt.names
    )


def _other(name: str) -> str | None:
    """The part of the whole, beside the text model, that a tensor is of."""
    own = name.removeprefix("model.")
    return next((part for part, starts in OTHERS.items() if own.startswith(starts)), None)
