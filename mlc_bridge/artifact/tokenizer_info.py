"""``tokenizer_info``: how token pieces turn back into text, read as MLC reads it.

token_postproc_method    "byte_level" (GPT-2's alphabet) or "byte_fallback" (<0x1B>, ▁)
prepend_space_in_encode  the normalizer puts ▁ before the text
strip_space_in_decode    the decoder strips one leading space
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

METHODS = {"ByteLevel": "byte_level", "ByteFallback": "byte_fallback"}


def tokenizer_info(tokenizer_json: Mapping[str, Any] | None) -> dict[str, Any]:
    """The block for mlc-chat-config.json; ``None`` (no tokenizer.json) gives MLC's defaults."""
    found = tokenizer_json or {}
    info = {
        "token_postproc_method": "byte_fallback",
        "prepend_space_in_encode": False,
        "strip_space_in_decode": False,
    }
    for step in _steps(found.get("decoder"), "decoders"):
        if step.get("type") in METHODS:  # the last one decides
            info["token_postproc_method"] = METHODS[step["type"]]
        if _is(step, type="Strip", content=" ", start=1, stop=0):
            info["strip_space_in_decode"] = True
    for step in _steps(found.get("normalizer"), "normalizers"):
        if _is(step, type="Prepend", prepend="▁"):
            info["prepend_space_in_encode"] = True
    return info


def _steps(part: Any, key: str) -> Iterator[Mapping[str, Any]]:
    if isinstance(part, Mapping):
        yield from part.get(key, []) if part.get("type") == "Sequence" else [part]


def _is(step: Mapping[str, Any], **want: object) -> bool:
    return all(step.get(key) == value for key, value in want.items())
